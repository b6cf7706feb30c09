//! The whole command, as a user meets it: what it prints and how it exits when something is wrong.

#![allow(clippy::unwrap_used, reason = "a test: a wrong value ends it")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::plugin_dir;
use insta::assert_snapshot;
use tempfile::TempDir;

fn plugin_file(name: &str) -> PathBuf {
    plugin_dir().join(format!("libunirl_plugin_{name}.so"))
}

struct Run {
    home: TempDir,
}

impl Run {
    fn new() -> Self {
        Self { home: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Exit status, stdout and stderr, with what differs from machine to machine named.
    fn run(&self, dir: &Path, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_unirl-under-test"))
            .arg(arguments[0])
            .args(&arguments[1..])
            .arg("--plugin-dir")
            .arg(dir)
            .current_dir(self.home.path())
            .env("HOME", self.home.path())
            .env_remove("UNIRL_PLUGIN_PATH")
            .env_remove("XDG_DATA_HOME")
            .env_remove("RUST_BACKTRACE")
            .env("CUDA_VISIBLE_DEVICES", "") // what is shown_text of GPUs is that there is none
            .output()
            .unwrap();
        let text = common::shown(&output);
        let program =
            Path::new(env!("CARGO_BIN_EXE_unirl-under-test")).parent().unwrap().display().to_string();
        let home = self.home.path().canonicalize().unwrap().display().to_string();
        let dir = dir.canonicalize().unwrap_or(dir.to_owned()).display().to_string();
        text.replace(&dir, "[PLUGINS]").replace(&home, "[HOME]").replace(&program, "[PROGRAM]")
    }

    fn train(&self, arguments: &[&str]) -> String {
        let mut all = vec!["--plugin", "showo"];
        all.extend(arguments);
        self.run(&plugin_dir(), &all)
    }
}

#[test]
fn an_unknown_plugin() {
    assert_snapshot!(Run::new().run(&plugin_dir(), &["--plugin", "shwo", "--optimizer", "grpo"]));
}

#[test]
fn a_file_that_is_no_plugin() {
    let run = Run::new();
    fs::write(run.path("libfoo.so"), "not a library").unwrap();
    let file = run.path("libfoo.so").display().to_string();
    assert_snapshot!(run.run(&plugin_dir(), &["--plugin", &file]));
}

/// A copy of a plugin whose stamp says something else.
fn forge(run: &Run, from: &str, to: &str) -> PathBuf {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(plugin_file("rewards")).unwrap();
    let magic = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    bytes[magic..magic + to.len()].copy_from_slice(to.as_bytes());
    let file = run.path("libunirl_plugin_forged.so");
    fs::write(&file, bytes).unwrap();
    file
}

#[test]
fn a_plugin_of_another_libtorch() {
    let run = Run::new();
    let file = forge(&run, "\ntorch=2.11.0", "\ntorch=2.10.9");
    assert_snapshot!(run.run(&plugin_dir(), &["--plugin", file.to_str().unwrap()]));
}

#[test]
fn a_plugin_of_another_abi() {
    let run = Run::new();
    let file = forge(&run, "\nabi=1\n", "\nabi=9\n");
    assert_snapshot!(run.run(&plugin_dir(), &["--plugin", file.to_str().unwrap()]));
}

#[test]
fn an_unknown_optimizer() {
    assert_snapshot!(Run::new().train(&["--optimizer", "gpro"]));
}

#[test]
fn an_unknown_rule_set() {
    assert_snapshot!(Run::new().train(&["--reward", "bond"]));
}

#[test]
fn an_unknown_rule_for_answers() {
    let rules = "reward.answer_rules=[{ name = 'bond' }]";
    assert_snapshot!(Run::new().train(&["--optimizer", "grpo-split", "--set", rules]));
}

#[test]
fn no_rule_for_answers() {
    let rules = "reward.answer_rules=[]";
    assert_snapshot!(Run::new().train(&["--optimizer", "grpo-split", "--set", rules]));
}

#[test]
fn rules_for_answers_that_no_objective_reads() {
    let rules = "reward.answer_rules=[{ name = 'bound' }]";
    assert_snapshot!(Run::new().train(&["--optimizer", "grpo", "--set", rules]));
}

#[test]
fn an_unknown_key() {
    assert_snapshot!(Run::new().train(&["--set", "train.stpes=3"]));
}

#[test]
fn an_unknown_key_of_the_optimizer() {
    assert_snapshot!(Run::new().train(&["--set", "optimizer.grpo.betta=3"]));
}

#[test]
fn a_schedule_of_one_objective() {
    assert_snapshot!(Run::new().train(&[
        "--optimizer",
        "grpo-split",
        "--set",
        "optimizer.grpo-split={ schedule = 'alternate', answer_coefficient = 0.0 }",
    ]));
}

#[test]
fn an_unknown_key_of_the_plugin() {
    assert_snapshot!(Run::new().train(&["--set", "model.options.architectur=3"]));
}

#[test]
fn an_unknown_preset() {
    assert_snapshot!(Run::new().train(&["--preset", "papr"]));
}

#[test]
fn a_configuration_that_is_missing() {
    assert_snapshot!(Run::new().train(&["--config", "nowhere.toml"]));
}

#[test]
fn a_model_folder_that_is_missing() {
    assert_snapshot!(Run::new().train(&["--model", "nowhere"]));
}

#[test]
fn a_model_folder_that_is_broken() {
    let run = Run::new();
    fs::create_dir(run.path("broken")).unwrap();
    fs::write(run.path("broken/config.json"), "{\"codebook_size\": 4").unwrap();
    assert_snapshot!(run.train(&["--model", "broken"]));
}

#[test]
fn a_model_folder_without_weights() {
    let run = Run::new();
    fs::create_dir(run.path("empty")).unwrap();
    assert_snapshot!(run.train(&["--model", "empty"]));
}

#[test]
fn a_device_that_is_not_there() {
    assert_snapshot!(Run::new().train(&["--device", "cuda:99"]));
}

#[test]
fn a_device_of_an_unknown_kind() {
    assert_snapshot!(Run::new().train(&["--device", "gpu"]));
}

#[test]
fn a_run_folder_that_is_used() {
    let run = Run::new();
    fs::create_dir(run.path("mine")).unwrap();
    fs::write(run.path("mine/notes"), "keep me").unwrap();
    assert_snapshot!(run.train(&["--out", "mine"]));
    assert_eq!(fs::read_to_string(run.path("mine/notes")).unwrap(), "keep me");
}

#[test]
fn an_image_that_is_missing() {
    let arguments = ["ask", "--plugin", "showo", "--image", "nowhere.png", "--question", "what"];
    assert_snapshot!(Run::new().run(&plugin_dir(), &arguments));
}

fn ask_about(image: &str) -> String {
    let path = format!("{}/fixtures/cases/{image}", env!("CARGO_MANIFEST_DIR"));
    let question = "what is the main object of the image";
    let arguments = ["ask", "--plugin", "showo", "--image", &path, "--question", question];
    Run::new().run(&plugin_dir(), &arguments).replace(&path, image)
}

#[test]
fn images_that_are_truncated() {
    assert_snapshot!([ask_about("cut.jpg"), ask_about("cut_end.jpg")].join("\n"));
}

#[test]
fn a_very_thin_image_is_answered() {
    let text = ask_about("thin_500k.png");
    assert!(text.contains("exit: 0"), "{text}");
}

#[test]
fn a_prompt_that_is_cut_warns_once() {
    let long = "a photo of a red star and a blue circle ".repeat(10);
    let other = "a photo of a green ring and a blue circle ".repeat(10);
    let run = Run::new();
    let text = run.run(
        &plugin_dir(),
        &["generate", "--plugin", "showo", "--prompt", &long, "--prompt", &other, "--seed", "1"],
    );
    assert!(text.contains("exit: 0"), "{text}");
    assert_eq!(text.matches("it is truncated").count(), 1, "{text}");
    let short = ["generate", "--plugin", "showo", "--prompt", "a photo of a red star"];
    let text = run.run(&plugin_dir(), &short);
    assert!(text.contains("exit: 0") && !text.contains("WARN"), "{text}");
}

#[test]
fn words_that_an_embedded_model_does_not_know_warn_once_each() {
    for plugin in ["showo", "janus"] {
        let prompts = ["a photo of a bench", "a photo of a Zebra", "a photo of a bench"];
        let mut arguments = vec!["generate", "--plugin", plugin, "--device", "cpu"];
        arguments.extend(prompts.iter().flat_map(|prompt| ["--prompt", prompt]));
        let text = Run::new().run(&plugin_dir(), &arguments);
        assert!(text.contains("exit: 0"), "{text}");
        assert_eq!(text.matches("reads as one unknown word: `bench`").count(), 1, "{text}");
        assert_eq!(text.matches("`Zebra`").count(), 1, "{text}");
        assert_eq!(text.matches("WARN").count(), 2, "{text}");
    }
    let path = format!("{}/fixtures/cases/thin_500k.png", env!("CARGO_MANIFEST_DIR"));
    let arguments = ["ask", "--plugin", "showo", "--image", &path, "--question", "where is the giraffe"];
    let text = Run::new().run(&plugin_dir(), &arguments);
    assert!(text.contains("exit: 0") && text.contains("`giraffe`"), "{text}");
}

#[test]
fn a_temperature_below_zero() {
    assert_snapshot!(Run::new().train(&["--set", "rollout.images.temperature=-1"]));
}

#[test]
fn an_evaluation_of_nothing() {
    assert_snapshot!(Run::new().run(&plugin_dir(), &["eval", "--plugin", "showo", "--prompts", "0"]));
}

#[test]
fn a_plan_instead_of_a_run() {
    let run = Run::new();
    let text = run.train(&["--optimizer", "grpo", "--dry-run"]);
    // What the machine has differs from machine to machine.
    let text: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("the device has") && !line.starts_with("the disk has"))
        .collect();
    let text = text.join("\n");
    assert_snapshot!(text);
    assert!(!run.path("runs").exists(), "nothing is written");
}

#[test]
fn a_plan_with_a_wrong_setting() {
    assert_snapshot!(Run::new().train(&["--dry-run", "--set", "model.options.lora={rank=0}"]));
}

#[test]
fn an_image_tokenizer_that_is_missing() {
    let run = Run::new();
    assert!(save_builtin(&run, "model").contains("exit: 0"));
    assert_snapshot!(run.train(&["--model", "model", "--tokenizer", "nowhere"]));
}

/// Saves the embedded model as a checkpoint folder.
fn save_builtin(run: &Run, name: &str) -> String {
    let text = run.train(&[
        "--steps",
        "1",
        "--out",
        "run",
        "--set",
        "eval.prompts=0",
        "--set",
        "rollout.prompts=1",
        "--set",
        "rollout.group=2",
        "--set",
        "rollout.images.steps=1",
        "--set",
        "train.sample_every=0",
    ]);
    fs::rename(run.path("run/checkpoints/step-000001"), run.path(name)).unwrap();
    text
}

#[test]
fn a_checkpoint_with_a_weight_too_few() {
    let run = Run::new();
    save_builtin(&run, "model");
    let path = run.path("model/pytorch_model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
    assert_snapshot!(run.train(&["--model", "model"]));
}

#[test]
fn a_drawing_of_another_form() {
    let arguments = ["generate", "--plugin", "showo", "--prompt", "a star", "--out", "star.jpg"];
    assert_snapshot!(Run::new().run(&plugin_dir(), &arguments));
}

#[test]
fn drawings_one_by_one_are_those_of_the_batch() {
    let run = Run::new();
    let draw = |out: &str, batch: &str| {
        let prompts = ["--prompt", "a photo of a star", "--prompt", "a photo of a red heart", "--count", "2"];
        let mut arguments =
            vec!["generate", "--plugin", "showo", "--out", out, "--batch", batch, "--seed", "4"];
        arguments.extend(prompts);
        let text = run.run(&plugin_dir(), &arguments);
        assert!(text.contains("exit: 0"), "{text}");
    };
    draw("one", "1");
    draw("all", "4");
    for name in ["00000-00.png", "00000-01.png", "00001-00.png", "00001-01.png"] {
        let [one, all] = ["one", "all"].map(|folder| fs::read(run.path(folder).join(name)).unwrap());
        assert!(one == all, "{name}");
    }
    assert_ne!(
        fs::read(run.path("all/00000-00.png")).unwrap(),
        fs::read(run.path("all/00000-01.png")).unwrap()
    );

    let [first, second] = ["all/00000-00.png", "all/00001-01.png"];
    let ask = |images: &[&str]| {
        let question = ["--question", "what is the main object of the image"];
        run.run(&plugin_dir(), &[&["ask", "--plugin", "showo"], images, &question].concat())
    };
    let shown_text = ask(&["--image", first, "--image", second]);
    assert_eq!(ask(&["--image", first, second]), shown_text);
    assert_snapshot!(shown_text);
    let three = ask(&["--image", second, first, "--image", second]);
    let answers: Vec<&str> = three.lines().filter(|line| line.starts_with("all/")).collect();
    let expected: Vec<&str> = shown_text.lines().filter(|line| line.starts_with("all/")).collect();
    assert_eq!(answers, [expected[1], expected[0], expected[1]]);
    let one = ask(&["--image", first]);
    assert!(expected[0].ends_with(one.lines().nth(2).unwrap()), "{one}");
    assert!(!one.contains("all/"), "{one}");
}

#[test]
fn an_optimizer_that_needs_one_representation() {
    let run = Run::new();
    assert_snapshot!(run.run(&plugin_dir(), &["--plugin", "janus", "--optimizer", "grpo"]));
    assert!(!run.path("runs").exists(), "nothing is left behind");
}

#[test]
fn sft_on_two_representations_warns() {
    let text = Run::new().run(&plugin_dir(), &["--plugin", "janus", "--optimizer", "sft", "--dry-run"]);
    assert!(text.contains("exit: 0") && text.contains("WARN"), "{text}");
    assert!(text.contains("the paper saw drawing collapse (§4.4)"), "{text}");
}

#[test]
fn a_model_of_another_family() {
    let run = Run::new();
    let model = run.path("model");
    fs::create_dir(&model).unwrap();
    let flow = r#"{"model_type": "multi_modality", "vision_gen_enc_config": {}}"#;
    fs::write(model.join("config.json"), flow).unwrap();
    let header = r#"{"vision_gen_enc_model.x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#;
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    fs::write(model.join("model.safetensors"), file).unwrap();
    let words = r#"{"version":"1.0","model":{"type":"WordLevel","vocab":{"<unk>":0},"unk_token":"<unk>"}}"#;
    fs::write(model.join("tokenizer.json"), words).unwrap();
    let arguments = ["--plugin", "janus", "--optimizer", "grpo-split", "--model", "model"];
    assert_snapshot!(run.run(&plugin_dir(), &arguments));
}

#[test]
fn tasks_that_are_missing() {
    let run = Run::new();
    assert_snapshot!(run.train(&["--set", "train.tasks=nowhere.jsonl"]));
    assert!(!run.path("runs").exists(), "nothing is left behind");
}

#[test]
fn a_choice_among_less_than_nothing() {
    assert_snapshot!(Run::new().train(&["--set", "rollout.answers.top_k=-1"]));
}

#[test]
fn a_batch_of_nothing() {
    let arguments = ["generate", "--plugin", "showo", "--prompt", "a star", "--batch", "0"];
    assert_snapshot!(Run::new().run(&plugin_dir(), &arguments));
}

#[test]
fn global_options_stand_before_and_after_a_command() {
    let run = Run::new();
    let plain = run.run(&plugin_dir(), &["schema", "metrics"]);
    assert!(plain.starts_with("exit: 0"), "{plain}");
    for arguments in [
        &["-v", "schema", "metrics"] as &[_],
        &["schema", "-v", "metrics"],
        &["schema", "metrics", "-vv"],
        &["--verbose", "--log", "json", "schema", "metrics"],
        &["--log=text", "schema", "metrics"],
        &["schema", "--log", "json", "metrics"],
    ] {
        assert_eq!(run.run(&plugin_dir(), arguments), plain, "{arguments:?}");
    }
    for arguments in
        [&["-v", "plugins", "list"] as &[_], &["plugins", "-v", "list"], &["plugins", "list", "-v"]]
    {
        let shown_text = run.run(&plugin_dir(), arguments);
        assert!(shown_text.starts_with("exit: 0"), "{shown_text}");
    }
    for arguments in [
        &["--log", "json", "eval", "verify", "no.json"] as &[_],
        &["eval", "--log=json", "verify", "no.json"],
    ] {
        let shown_text = run.run(&plugin_dir(), arguments);
        assert!(shown_text.contains("{\"level\":\"ERROR\",\"code\":\"usage\""), "{shown_text}");
    }
}

#[test]
fn options_of_a_command_before_it_are_refused() {
    let run = Run::new();
    let shown_text = [
        &["--plugin", "showo", "ask", "--image", "x.png", "--question", "what"] as &[_],
        &["-v", "--steps", "3", "plugins", "list"],
        &["eval", "--prompts", "3", "verify", "x.json"],
        &["plugins", "--json", "list"],
    ]
    .map(|arguments| run.run(&plugin_dir(), arguments));
    assert_snapshot!(shown_text.join("\n"));
}

/// The stderr of a command is JSON from its first line to its last.
#[test]
fn errors_are_json_where_the_log_is() {
    let run = Run::new();
    fs::create_dir(run.path("broken")).unwrap();
    fs::write(run.path("broken/config.json"), "{\"codebook_size\": 4").unwrap();
    let shown_text = [
        &["--log", "json", "--pluign", "showo"] as &[_],
        &["--plugin", "showo", "--log=json", "--steps", "many"],
        &["ask", "--log", "json"],
        &["--log", "json", "agk"],
        &["--plugin", "shwo", "--log", "json"],
        &["--log", "json", "--plugin", "showo", "--model", "broken"],
        &["--log", "json", "--plugin", "showo", "--set", "train.stpes=3"],
        &["--log", "jsom", "--plugin", "showo"],
    ]
    .map(|arguments| run.run(&plugin_dir(), arguments));
    for shown_text in &shown_text[..shown_text.len() - 1] {
        let (_, stderr) = shown_text.split_once("stderr:\n").unwrap();
        for line in stderr.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(line["level"].is_string(), "{shown_text}");
        }
    }
    assert_snapshot!(shown_text.join("\n"));
}

#[test]
fn a_tilde_is_the_home_folder_wherever_a_path_stands() {
    let run = Run::new();
    fs::write(run.path("tasks.toml"), "[train]\ntasks = '~/config/tasks.jsonl'\n").unwrap();
    fs::write(run.path("model.toml"), "[model]\ncheckpoint = '~/config/model'\n").unwrap();
    fs::create_dir(run.path("used")).unwrap();
    fs::write(run.path("used/notes"), "").unwrap();
    let question = ["--plugin", "showo", "--question", "what"];
    let train = ["--plugin", "showo"];
    for (command, arguments, path) in [
        (
            &["ask"] as &[_],
            &[&["--image", "~/a b.png"] as &[_], &question].concat() as &[_],
            "[HOME]/a b.png",
        ),
        (&["ask"], &[&["--image=~/a.png"] as &[_], &question].concat(), "[HOME]/a.png"),
        (&[], &[&train as &[_], &["--model=~/model"]].concat(), "[HOME]/model"),
        (&[], &[&train as &[_], &["--out", "~/used"]].concat(), "[HOME]/used"),
        (&[], &[&train as &[_], &["--config=~/no.toml"]].concat(), "[HOME]/no.toml"),
        (&[], &[&train as &[_], &["--reward", "~/no.toml"]].concat(), "[HOME]/no.toml"),
        (&[], &[&train as &[_], &["--reward", "cmd:~/no.py"]].concat(), "[HOME]/no.py"),
        (&[], &["--plugin", "~/no.so"], "[HOME]/no.so"),
        (&[], &["--resume", "~/run"], "[HOME]/run"),
        (&[], &[&train as &[_], &["--set", "train.tasks=~/tasks.jsonl"]].concat(), "[HOME]/tasks.jsonl"),
        (
            &[],
            &[&train as &[_], &["--set", "reward.rules=[{ name = '~/my.toml' }]"]].concat(),
            "[HOME]/my.toml",
        ),
        (&[], &[&train as &[_], &["--config", "tasks.toml"]].concat(), "[HOME]/config/tasks.jsonl"),
        (&[], &[&train as &[_], &["--config", "~/model.toml"]].concat(), "[HOME]/config/model"),
        (&["eval", "verify"], &["~/receipt.json"], "[HOME]/receipt.json"),
        (&["reward", "diff"], &["~/a.toml", "b.toml"], "[HOME]/a.toml"),
        (&["plugins", "check"], &["~/no.so"], "[HOME]/no.so"),
        // What is no path of one's own home stays as it is.
        (&[], &[&train as &[_], &["--model", "~somebody/model"]].concat(), "`~somebody/model`"),
        (&[], &[&train as &[_], &["--model", "./~/model"]].concat(), "`./~/model`"),
    ] {
        let shown_text = run.run(&plugin_dir(), &[command, arguments].concat());
        assert!(!shown_text.starts_with("exit: 0") && shown_text.contains(path), "{path}: {shown_text}");
        let error = shown_text.lines().find(|line| line.contains(path)).unwrap();
        assert_eq!(error.contains('~'), path.contains('~'), "{shown_text}");
    }
}

#[test]
fn an_image_tokenizer_has_two_names() {
    let run = Run::new();
    assert!(save_builtin(&run, "model").contains("exit: 0"));
    let of = |name: &str| run.train(&["--model", "model", name, "nowhere"]);
    assert_eq!(of("--image-tokenizer"), of("--tokenizer"));
}

#[test]
fn train_is_the_command_without_a_name() {
    let run = Run::new();
    let of = |command: &[&str]| {
        run.run(&plugin_dir(), &[command, &["--plugin", "showo", "--steps", "0"]].concat())
    };
    assert_eq!(of(&["train"]), of(&[]));
    assert!(of(&["train"]).contains("`train.steps`"), "{}", of(&["train"]));
}

#[test]
fn completions_know_commands_and_options() {
    let run = Run::new();
    for (shell, words) in [
        ("bash", ["complete -F _unirl", "--image-tokenizer", "geneval"]),
        ("zsh", ["#compdef unirl", "--image-tokenizer", "geneval"]),
        ("fish", ["complete -c unirl", "image-tokenizer", "geneval"]),
    ] {
        let output = common::program(["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && words.iter().all(|word| script.contains(word)), "{script}");
    }
    // What bash makes of it.
    fs::write(run.path("script"), common::program(["completions", "bash"]).output().unwrap().stdout).unwrap();
    let complete =
        "source ./script; COMP_WORDS=(unirl rew); COMP_CWORD=1; _unirl unirl rew unirl; echo ${COMPREPLY[@]}";
    let output = Command::new("bash").args(["-c", complete]).current_dir(run.home.path()).output().unwrap();
    assert_eq!(common::shown(&output), "exit: 0\nstdout:\nreward\nstderr:\n");
}

#[test]
fn manual_pages_are_those_of_the_program_and_of_each_command() {
    let page =
        |command: &[&str]| common::shown(&common::program([&["man"], command].concat()).output().unwrap());
    for (command, words) in [
        (&[] as &[_], ["unirl \\-", ".SH OPTIONS", "SIGUSR1"]),
        (&["ask"], ["unirl\\-ask", "\\-\\-image\\fR", "\\-\\-question"]),
        (&["reward", "score"], ["unirl\\-reward\\-score", "\\-\\-reward\\fR", "stdin"]),
    ] {
        let page = page(command);
        assert!(page.starts_with("exit: 0"), "{page}");
        assert!(words.iter().all(|word| page.contains(word)), "{words:?}: {page}");
    }
    assert_snapshot!([page(&["aks"]), page(&["reward", "scroe"])].join("\n"));
}

/// What somebody new to the command gets wrong: a value of the wrong form, a folder for a file, a name that is not quite one.
#[test]
fn wrong_values_are_one_clear_error() {
    let run = Run::new();
    fs::create_dir(run.path("folder")).unwrap();
    fs::write(run.path("file"), "").unwrap();
    let draw = ["generate", "--plugin", "showo", "--prompt", "a star"];
    let of = |arguments: &[&str]| run.run(&plugin_dir(), &[&draw, arguments].concat());
    let mut shown_text = vec![
        of(&["--count", "-1"]),
        of(&["--count=1.5"]),
        of(&["--seed", "-1"]),
        of(&["--steps", "-4"]),
        of(&["--steps", "four"]),
        of(&["--guidance", "-3"]),
        of(&["--guidance", "two"]),
        of(&["--batch", "-1"]),
        of(&["--out", "file"]),
        of(&["--out", "nowhere/x.png"]),
        of(&["--plugin-dir", "nowhere"]),
        of(&["--plugin-dir", "file"]),
    ];
    fs::create_dir(run.path("x.png")).unwrap();
    shown_text.push(of(&["--out", "x.png"]));
    for arguments in [
        &["aks", "--plugin", "showo"] as &[_],
        &["repotr", "run"],
        &["ask", "--plugin", "showo", "--question", "what", "--image", "folder"],
        &["reward", "diff", "exact", "bound", "--temperature", "-1"],
        &["plugins", "new", "mine", "--kind", "model", "--unirl", "folder"],
    ] {
        let output = common::program(arguments).current_dir(run.home.path()).output().unwrap();
        shown_text.push(format!("unirl {}\n{}", arguments.join(" "), common::shown(&output)));
    }
    let output =
        common::program(["prompts", "--out", "folder"]).current_dir(run.home.path()).output().unwrap();
    shown_text.push(common::shown(&output));
    assert_snapshot!(shown_text.join("\n"));
    assert!(!run.path("generated.png").exists() && !run.path("mine").exists(), "nothing is written");
}
