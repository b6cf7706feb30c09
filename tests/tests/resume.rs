//! Runs survive kills at any time, damaged checkpoints and full disks.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests may panic and report what they skip")]

mod common;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{format_output, unirl};
use serde_json::Value;

/// A run of five steps that takes two seconds and writes every kind of file.
const SETTINGS: &str = r#"
[train]
steps = 5
sample_every = 2
[rollout]
prompts = 4
group = 2
images = { steps = 4 }
answers = { max_tokens = 8 }
[eval]
prompts = 1
pictures = 1
every = 2
every_prompts = 1
guard = "rollback"
[checkpoint]
every = 1
keep = 2
"#;

/// The number of kills in `killed_run_resumes_to_identical_weights`.
const KILLS: u64 = 25;

/// The arguments of a new run; writes its settings to `home`.
fn new_run(home: &Path, out: &Path) -> Vec<String> {
    let settings = home.join("settings.toml");
    fs::write(&settings, SETTINGS).unwrap();
    let [settings, out] = [&settings, out].map(|path| path.to_str().unwrap());
    ["--plugin", "showo", "--optimizer", "grpo", "--device", "cpu", "--config", settings, "--out", out]
        .map(String::from)
        .into()
}

fn run(arguments: &[impl AsRef<OsStr>]) -> Output {
    unirl(arguments).output().unwrap()
}

fn run_ok(arguments: &[impl AsRef<OsStr>]) {
    let output = run(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A recorded run holds the defaults of the algorithm, the plugin and the rewards. Runs of earlier releases, which lack them and
/// use former names of settings, still resume.
#[test]
fn config_holds_every_default_and_earlier_configs_resume() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("run");
    run_ok(&new_run(home.path(), &out));
    let file = out.join("config.toml");
    let text = fs::read_to_string(&file).unwrap();
    let config: toml::Table = text.parse().unwrap();
    assert_eq!(config["model"]["options"]["precision"].as_str(), Some("auto"));
    assert_eq!(config["optimizer"]["grpo"]["gumbel_temperature"].as_float(), Some(1.0));
    assert_eq!(config["reward"]["rules"][0]["options"]["normalize"].as_str(), Some("none"));

    let mut earlier = config.clone();
    earlier["model"].as_table_mut().unwrap().remove("options");
    let text = toml::to_string(&earlier)
        .unwrap()
        .replace("gumbel_temperature = 1.0\n", "")
        .replace("prompts_per_step", "prompts")
        .replace("group_size", "group")
        .replace("reward_temperature", "weight_temperature")
        .replace("max_grad_norm", "clip");
    assert!(text.contains("clip") && !text.contains("gumbel"), "{text}");
    fs::write(&file, text).unwrap();
    let output = resume(&out);
    let printed = format_output(&output);
    assert!(printed.contains("is complete") && !printed.contains("differ"), "{printed}");
    let changed = run(&["--resume", out.to_str().unwrap(), "--set", "optimizer.grpo.gumbel_temperature=0.5"]);
    assert!(format_output(&changed).contains("optimizer.grpo.gumbel_temperature: 1.0 -> 0.5"));
    // A setting that the run has under its former name, given under its current one.
    let changed = run(&["--resume", out.to_str().unwrap(), "--set", "rollout.group_size=7"]);
    assert!(format_output(&changed).contains("rollout.group_size: 2 -> 7"), "{}", format_output(&changed));
}

fn resume(run_dir: &Path) -> Output {
    run(&["--resume", run_dir.to_str().unwrap()])
}

/// What two equal runs share: the last weights and optimizer states, and the metrics without times.
fn result_of(run: &Path) -> (Vec<Vec<u8>>, Vec<Value>) {
    let last = run.join("checkpoints/step-000005");
    let files = ["pytorch_model.safetensors", "training/state.safetensors", "training/state.json"];
    let bytes = files.map(|file| fs::read(last.join(file)).unwrap());
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let untimed = |line: &str| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        line.as_object_mut().unwrap().retain(|name, _| !name.starts_with("time/"));
        line
    };
    (bytes.into(), metrics.lines().map(untimed).collect())
}

fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").args([from, to]).status().unwrap().success());
}

/// A pseudo-random number in `0..1`, so that the moments of the kills are the same each time, up to the speed of the machine.
fn pseudo_random(index: u64) -> f64 {
    let mixed = (index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    ((mixed ^ (mixed >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 11) as f64 / (1u64 << 53) as f64
}

/// Waits until a file of the run exists.
fn wait_for(path: &Path, child: &mut Child) {
    let started = Instant::now();
    while !path.exists() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it wrote `{}`", path.display());
        assert!(started.elapsed() < Duration::from_mins(2), "the run did not write `{}`", path.display());
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn killed_run_resumes_to_identical_weights() {
    let home = tempfile::tempdir().unwrap();
    let complete = home.path().join("complete");
    let arguments = new_run(home.path(), &complete);
    let started = Instant::now();
    run_ok(&arguments);
    let length = started.elapsed();
    let expected = result_of(&complete);

    let (mut saved, mut kills, mut index) = (Vec::new(), 0, 0);
    while kills < KILLS {
        let out = home.path().join(format!("killed-{index}"));
        let mut arguments = new_run(home.path(), &out);
        // Some runs are killed more than once.
        for _ in 0..=(index % 3) {
            let mut child = unirl(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            wait_for(&out.join("config.toml"), &mut child);
            std::thread::sleep(length.mul_f64(pseudo_random(index + kills)));
            if child.try_wait().unwrap().is_none() {
                child.kill().unwrap();
                kills += 1;
                saved.push(checkpoint_count(&out));
            }
            child.wait().unwrap();
            arguments = vec!["--resume".into(), out.to_str().unwrap().into()];
        }
        if !out.join("report.json").is_file() {
            run_ok(&arguments);
        }
        let got = result_of(&out);
        assert_eq!(got.1, expected.1, "run {index}: metrics");
        assert!(got.0 == expected.0, "run {index}: weights, moments or state");
        let leftovers = Command::new("find").arg(&out).args(["-name", ".partial-*"]).output().unwrap();
        assert!(leftovers.stdout.is_empty(), "{}", String::from_utf8_lossy(&leftovers.stdout));
        fs::remove_dir_all(&out).unwrap();
        index += 1;
    }
    // Some kills came before the first checkpoint, and some after.
    assert!(saved.contains(&0) && saved.iter().any(|count| *count > 0), "{saved:?}");
}

/// The number of checkpoints of a run.
fn checkpoint_count(run: &Path) -> usize {
    let Ok(folder) = fs::read_dir(run.join("checkpoints")) else { return 0 };
    folder.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("step-")).count()
}

#[test]
fn interrupted_run_saves_the_step_and_resumes() {
    let home = tempfile::tempdir().unwrap();
    let complete = home.path().join("complete");
    run_ok(&new_run(home.path(), &complete));
    for signal in ["-INT", "-TERM", "-HUP", "-USR1"] {
        let out = home.path().join(signal);
        let arguments = new_run(home.path(), &out);
        let mut child = unirl(&arguments).stderr(Stdio::piped()).spawn().unwrap();
        wait_for(&out.join("checkpoints/step-000002"), &mut child);
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(130), "{text}");
        assert!(text.contains(&format!("hint: resume with `unirl --resume {}`", out.display())), "{text}");
        assert!(!out.join("report.json").exists());
        run_ok(&["--resume", out.to_str().unwrap()]);
        assert!(result_of(&out) == result_of(&complete), "{signal}");
    }
}

/// Matrix products run with the stack pointer in a buffer on the heap. A handler that ran on their thread would overwrite the heap:
/// without `unirl_engine::signals`, this run aborts within a few hundred signals.
#[test]
fn signals_during_a_step_do_not_corrupt_memory() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("run");
    let mut arguments = new_run(home.path(), &out);
    arguments.extend(["--set", "rollout.prompts_per_step=40", "--set", "eval.prompts=0"].map(String::from));
    arguments.extend(["--set", "eval.every=0"].map(String::from));
    let mut child = unirl(&arguments).stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    while !out.join("samples/base.png").is_file() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    let script = format!("while kill -USR1 {0} 2>/dev/null; do :; done", child.id());
    let mut sender = Command::new("sh").args(["-c", &script]).spawn().unwrap();
    let status = child.wait().unwrap();
    sender.wait().unwrap();
    assert_eq!(status.code(), Some(130));
}

fn send(signal: &str, child: &Child) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// A closing terminal sends SIGHUP twice and closes stderr; a scheduler sends SIGUSR1 before SIGTERM.
#[test]
fn repeated_signals_and_closed_stderr_still_save_the_step() {
    let home = tempfile::tempdir().unwrap();
    let complete = home.path().join("complete");
    run_ok(&new_run(home.path(), &complete));
    for signals in [["-HUP", "-HUP"], ["-USR1", "-TERM"]] {
        let out = home.path().join(signals.concat());
        let mut child = unirl(new_run(home.path(), &out)).stderr(Stdio::piped()).spawn().unwrap();
        wait_for(&out.join("checkpoints/step-000001"), &mut child);
        drop(child.stderr.take());
        for signal in signals {
            send(signal, &child);
        }
        assert_eq!(child.wait().unwrap().code(), Some(130), "{signals:?}");
        assert!(!out.join("report.json").exists());
        run_ok(&["--resume", out.to_str().unwrap()]);
        assert!(result_of(&out) == result_of(&complete), "{signals:?}");
    }
}

#[test]
fn nohup_run_survives_hangup() {
    let home = tempfile::tempdir().unwrap();
    let out = home.path().join("run");
    let program = unirl(new_run(home.path(), &out));
    let mut command = Command::new("nohup");
    command.arg(program.get_program()).args(program.get_args()).env("OMP_NUM_THREADS", "1");
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    wait_for(&out.join("checkpoints/step-000001"), &mut child);
    send("-HUP", &child);
    assert!(child.wait().unwrap().success());
    assert!(out.join("report.json").is_file());
}

/// Changes a byte, truncates or deletes each file of the newest checkpoint.
#[test]
fn damaged_checkpoint_is_reported_and_never_skipped() {
    let home = tempfile::tempdir().unwrap();
    let complete = home.path().join("complete");
    run_ok(&new_run(home.path(), &complete));
    fs::remove_file(complete.join("report.json")).unwrap(); // as after a kill at the end
    let checkpoint = complete.join("checkpoints/step-000005");
    let listed = Command::new("find").arg(&checkpoint).args(["-type", "f"]).output().unwrap();
    let files: Vec<PathBuf> = String::from_utf8(listed.stdout).unwrap().lines().map(PathBuf::from).collect();
    assert!(files.len() >= 6, "{files:?}");
    for file in &files {
        let name = file.strip_prefix(&checkpoint).unwrap().display().to_string();
        let bytes = fs::read(file).unwrap();
        let mut changed = bytes.clone();
        changed[bytes.len() / 2] ^= 1;
        for damaged in [Some(&changed[..]), Some(&bytes[..bytes.len() / 2]), None] {
            match damaged {
                Some(damaged) => fs::write(file, damaged).unwrap(),
                None => fs::remove_file(file).unwrap(),
            }
            let output = resume(&complete);
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains("is damaged") && text.contains(&format!("`{name}`")), "{name}: {text}");
            assert!(text.contains("to resume from step 4"), "{text}");
        }
        fs::write(file, &bytes).unwrap();
    }
    assert!(!complete.join("report.json").exists(), "no run was resumed");

    // The way out in the hint leads to the same result.
    let expected = result_of(&complete);
    fs::remove_dir_all(&checkpoint).unwrap();
    assert!(resume(&complete).status.success());
    assert!(result_of(&complete) == expected);
}

/// Runs the command in `home` after the shell command `mount`, in a private namespace, and returns stderr. Returns `None` if
/// file systems cannot be mounted, which requires user namespaces.
fn on_a_mount(home: &Path, mount: &str, arguments: &[String]) -> Option<String> {
    let program = unirl(arguments);
    let words = [program.get_program()].into_iter().chain(program.get_args());
    let words: Vec<String> = words.map(|word| format!("'{}'", word.to_str().unwrap())).collect();
    let script = format!(
        "{{ {mount}; }} || exit 77; {}; status=$?; [ ! -d disk/run ] || cp -a disk/run kept; exit $status",
        words.join(" ")
    );
    let mut command = Command::new("unshare");
    let output =
        command.args(["-rm", "sh", "-c", &script]).env("OMP_NUM_THREADS", "1").current_dir(home).output();
    let output = output.unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    if output.status.code() == Some(77) || text.contains("unshare failed") {
        println!("SKIPPED: cannot mount a file system: {text}");
        return None;
    }
    assert_eq!(output.status.code(), Some(1), "{text}");
    Some(text)
}

/// On a disk of 15 MB, the first checkpoint fits and the second does not. The first stays complete, and with more space the run
/// resumes from it to the same result.
#[test]
fn full_disk_keeps_the_previous_checkpoint() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("disk")).unwrap();
    let arguments = new_run(home.path(), &home.path().join("disk/run"));
    let mount = "mount -t tmpfs -o size=15m none disk";
    let Some(text) = on_a_mount(home.path(), mount, &arguments) else { return };
    assert!(text.contains("not enough disk space in"), "{text}");
    let [complete, kept] = ["complete", "kept"].map(|name| home.path().join(name));
    run_ok(&new_run(home.path(), &complete));
    assert!(kept.join("checkpoints/step-000001").is_dir());
    assert!(resume(&kept).status.success());
    assert!(result_of(&kept).0[..2] == result_of(&complete).0[..2], "the same weights and optimizer states");
}

#[test]
fn resume_in_read_only_directory_fails_without_changes() {
    let home = tempfile::tempdir().unwrap();
    let [complete, disk] = ["complete", "disk"].map(|name| home.path().join(name));
    run_ok(&new_run(home.path(), &complete));
    let expected = result_of(&complete);
    fs::create_dir(&disk).unwrap();
    fs::remove_file(complete.join("report.json")).unwrap();
    fs::remove_dir_all(complete.join("checkpoints/step-000005")).unwrap();
    let arguments = ["--resume", "disk"].map(String::from);
    let mount = "mount --bind complete disk && mount -o remount,bind,ro disk";
    let Some(text) = on_a_mount(home.path(), mount, &arguments) else { return };
    assert!(text.starts_with("error: cannot") && text.contains("Read-only file system"), "{text}");
    assert!(resume(&complete).status.success());
    assert!(result_of(&complete) == expected);
}

#[test]
fn resume_refuses_invalid_requests() {
    let home = tempfile::tempdir().unwrap();
    let complete = home.path().join("complete");
    run_ok(&new_run(home.path(), &complete));
    let cut = home.path().join("cut");
    copy(&complete, &cut);
    fs::remove_file(cut.join("report.json")).unwrap();
    let locked = home.path().join("locked");
    copy(&cut, &locked);
    let lock = fs::File::open(locked.join("run.lock")).unwrap();
    lock.lock().unwrap();
    let damaged = home.path().join("damaged");
    copy(&cut, &damaged);
    fs::write(damaged.join("metrics.jsonl"), "{}\n").unwrap();
    let text = |run: &Path, more: &[&str]| {
        let arguments = [&["--resume", run.to_str().unwrap()], more].concat();
        let output = unirl(&arguments).current_dir(home.path()).output().unwrap();
        format_output(&output).replace(home.path().to_str().unwrap(), "[HOME]")
    };
    insta::assert_snapshot!(
        [
            text(&complete, &[]),
            text(&home.path().join("nowhere"), &[]),
            text(&cut, &["--set", "update.learning_rate=0.1", "--seed", "3"]),
            text(&cut, &["--steps", "3", "--allow-change"]),
            text(&cut, &["--set", "model.options.precision=bf17", "--allow-change"]),
            text(&locked, &[]),
            text(&damaged, &[]),
            text(&cut, &["--plugin", "janus", "--optimizer", "grpo-split", "--allow-change"]),
        ]
        .join("\n")
    );
}

/// Prompts, a rule file, a reward program, a file among its arguments, and plugins of both kinds are input files.
#[test]
fn resume_with_changed_input_file_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let repository = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let tasks = fs::read_to_string(repository.join("examples/tasks.jsonl")).unwrap();
    fs::write(home.join("tasks.jsonl"), tasks).unwrap();
    fs::copy(repository.join("plugins/rewards/rules/exact.toml"), home.join("my.toml")).unwrap();
    copy(&repository.join("examples/python-reward/reward.py"), home);
    fs::write(home.join("words.txt"), "star\n").unwrap();
    for plugin in ["libunirl_plugin_showo.so", "libunirl_plugin_rewards.so"] {
        fs::copy(common::plugin_dir().join(plugin), home.join(plugin)).unwrap();
    }
    let settings = r#"
[model]
plugin = "./libunirl_plugin_showo.so"
[train]
steps = 2
tasks = "tasks.jsonl"
sample_every = 0
[rollout]
prompts = 2
group = 2
images = { steps = 2 }
answers = { max_tokens = 4 }
[eval]
prompts = 0
[reward]
rules = [
    { name = "my.toml" },
    { name = "cmd:reward.py", options = { args = ["words.txt"] } },
    { name = "./libunirl_plugin_rewards.so#bound" },
]
"#;
    fs::write(home.join("settings.toml"), settings).unwrap();
    let begin =
        "--plugin ./libunirl_plugin_showo.so --optimizer grpo --device cpu --config settings.toml --out run";
    let command = |arguments: &str| {
        let output = common::program(arguments.split(' ')).current_dir(home).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let (status, text) = command(begin);
    assert_eq!(status, 0, "{text}");
    let cut = || fs::remove_file(home.join("run/report.json")).unwrap(); // as after a kill at the end
    cut();
    for (file, name) in [
        ("tasks.jsonl", "`train.tasks` `tasks.jsonl`"),
        ("my.toml", "reward rule `my.toml`"),
        ("reward.py", "reward rule `cmd:reward.py`, `./reward.py`"),
        ("words.txt", "reward rule `cmd:reward.py`, `words.txt`"),
        ("libunirl_plugin_showo.so", "plugin `showo`"),
        ("libunirl_plugin_rewards.so", "plugin of reward rule `./libunirl_plugin_rewards.so#bound`"),
    ] {
        let before = fs::read(home.join(file)).unwrap();
        fs::write(home.join(file), [&before[..], b"\n"].concat()).unwrap();
        let (status, text) = command("--resume run");
        assert_eq!(status, 2, "{file}: {text}");
        assert!(text.starts_with("error: files have changed since the run began"), "{text}");
        assert!(text.contains(&format!("caused by: {name}: ")), "{text}");
        assert_eq!(text.matches("caused by: ").count(), 1, "only one: {text}");
        assert!(text.contains("hint: resume with the changed files: `--allow-change`"), "{text}");
        fs::write(home.join(file), before).unwrap();
    }
    assert_eq!(command("--resume run").0, 0, "all files are restored");

    // An allowed change is recorded in the run.
    fs::write(home.join("words.txt"), "moon\n").unwrap();
    cut();
    let (status, text) = command("--resume run --steps 3 --allow-change");
    assert_eq!(status, 0, "{text}");
    cut();
    assert_eq!(command("--resume run").0, 0);

    // States of earlier releases do not name input files.
    let state = home.join("run/checkpoints/step-000003/training/state.json");
    let text = fs::read_to_string(&state).unwrap();
    let mut json: Value = serde_json::from_str(&text).unwrap();
    json.as_object_mut().unwrap().retain(|key, _| key != "inputs" && key != "seal");
    let seal = unirl_base::checksum::text(&json.to_string());
    json["seal"] = seal.into();
    fs::write(&state, format!("{json:#}\n")).unwrap();
    fs::write(home.join("words.txt"), "sun\n").unwrap();
    cut();
    let (status, text) = command("--resume run");
    assert_eq!(status, 0, "{text}");
}
