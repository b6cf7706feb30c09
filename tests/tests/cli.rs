//! The command line as users see it: output and exit status on errors.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

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

/// Runs the command in a temporary home directory.
struct TestContext {
    home: TempDir,
}

impl TestContext {
    fn new() -> Self {
        Self { home: TempDir::new().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// Exit status, stdout and stderr, with paths of this machine replaced.
    fn unirl(&self, dir: &Path, arguments: &[&str]) -> String {
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
            .env("CUDA_VISIBLE_DEVICES", "")
            .output()
            .unwrap();
        let text = common::format_output(&output);
        let program =
            Path::new(env!("CARGO_BIN_EXE_unirl-under-test")).parent().unwrap().display().to_string();
        let home = self.home.path().canonicalize().unwrap().display().to_string();
        let dir = dir.canonicalize().unwrap_or(dir.to_owned()).display().to_string();
        text.replace(&dir, "[PLUGINS]").replace(&home, "[HOME]").replace(&program, "[PROGRAM]")
    }

    fn train(&self, arguments: &[&str]) -> String {
        let mut all = vec!["--plugin", "showo"];
        all.extend(arguments);
        self.unirl(&plugin_dir(), &all)
    }
}

#[test]
fn unknown_plugin_is_usage_error() {
    assert_snapshot!(TestContext::new().unirl(&plugin_dir(), &["--plugin", "shwo", "--optimizer", "grpo"]));
}

#[test]
fn file_that_is_not_a_plugin_is_refused() {
    let context = TestContext::new();
    fs::write(context.path("libfoo.so"), "not a library").unwrap();
    let file = context.path("libfoo.so").display().to_string();
    assert_snapshot!(context.unirl(&plugin_dir(), &["--plugin", &file]));
}

/// Writes a copy of a plugin with `from` replaced by `to` in its stamp.
fn forge(context: &TestContext, from: &str, to: &str) -> PathBuf {
    assert_eq!(from.len(), to.len());
    let mut bytes = fs::read(plugin_file("rewards")).unwrap();
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    let file = context.path("libunirl_plugin_forged.so");
    fs::write(&file, bytes).unwrap();
    file
}

#[test]
fn plugin_for_other_libtorch_is_refused() {
    let context = TestContext::new();
    let file = forge(&context, "\ntorch=2.11.0", "\ntorch=2.10.9");
    assert_snapshot!(context.unirl(&plugin_dir(), &["--plugin", file.to_str().unwrap()]));
}

#[test]
fn plugin_for_other_abi_is_refused() {
    let context = TestContext::new();
    let file = forge(&context, "\nabi=1\n", "\nabi=9\n");
    assert_snapshot!(context.unirl(&plugin_dir(), &["--plugin", file.to_str().unwrap()]));
}

#[test]
fn unknown_optimizer_is_usage_error() {
    assert_snapshot!(TestContext::new().train(&["--optimizer", "gpro"]));
}

#[test]
fn unknown_reward_is_usage_error() {
    assert_snapshot!(TestContext::new().train(&["--reward", "bond"]));
}

#[test]
fn unknown_answer_reward_is_usage_error() {
    let rules = "reward.answer_rules=[{ name = 'bond' }]";
    assert_snapshot!(TestContext::new().train(&["--optimizer", "grpo-split", "--set", rules]));
}

#[test]
fn empty_answer_rules_are_refused() {
    let rules = "reward.answer_rules=[]";
    assert_snapshot!(TestContext::new().train(&["--optimizer", "grpo-split", "--set", rules]));
}

#[test]
fn unused_answer_rules_are_refused() {
    let rules = "reward.answer_rules=[{ name = 'bound' }]";
    assert_snapshot!(TestContext::new().train(&["--optimizer", "grpo", "--set", rules]));
}

#[test]
fn unknown_config_key_is_usage_error() {
    assert_snapshot!(TestContext::new().train(&["--set", "train.stpes=3"]));
}

#[test]
fn unknown_optimizer_key_is_usage_error() {
    assert_snapshot!(TestContext::new().train(&["--set", "optimizer.grpo.betta=3"]));
}

#[test]
fn alternating_schedule_with_one_objective_is_refused() {
    assert_snapshot!(TestContext::new().train(&[
        "--optimizer",
        "grpo-split",
        "--set",
        "optimizer.grpo-split={ schedule = 'alternate', answer_weight = 0.0 }",
    ]));
}

#[test]
fn unknown_plugin_option_is_usage_error() {
    assert_snapshot!(TestContext::new().train(&["--set", "model.options.architectur=3"]));
}

#[test]
fn unknown_preset_is_usage_error() {
    assert_snapshot!(TestContext::new().train(&["--preset", "papr"]));
}

#[test]
fn missing_config_file_is_an_error() {
    assert_snapshot!(TestContext::new().train(&["--config", "nowhere.toml"]));
}

#[test]
fn missing_model_directory_is_usage_error() {
    assert_snapshot!(TestContext::new().train(&["--model", "nowhere"]));
}

#[test]
fn invalid_model_config_is_an_error() {
    let context = TestContext::new();
    fs::create_dir(context.path("broken")).unwrap();
    fs::write(context.path("broken/config.json"), "{\"codebook_size\": 4").unwrap();
    assert_snapshot!(context.train(&["--model", "broken"]));
}

#[test]
fn model_directory_without_weights_is_an_error() {
    let context = TestContext::new();
    fs::create_dir(context.path("empty")).unwrap();
    assert_snapshot!(context.train(&["--model", "empty"]));
}

#[test]
fn missing_gpu_is_usage_error() {
    assert_snapshot!(TestContext::new().train(&["--device", "cuda:99"]));
}

#[test]
fn unknown_device_is_usage_error() {
    assert_snapshot!(TestContext::new().train(&["--device", "gpu"]));
}

#[test]
fn non_empty_run_directory_is_refused() {
    let context = TestContext::new();
    fs::create_dir(context.path("mine")).unwrap();
    fs::write(context.path("mine/notes"), "keep me").unwrap();
    assert_snapshot!(context.train(&["--out", "mine"]));
    assert_eq!(fs::read_to_string(context.path("mine/notes")).unwrap(), "keep me");
}

#[test]
fn ask_missing_image_is_usage_error() {
    let arguments = ["ask", "--plugin", "showo", "--image", "nowhere.png", "--question", "what"];
    assert_snapshot!(TestContext::new().unirl(&plugin_dir(), &arguments));
}

fn ask_about(image: &str) -> String {
    let path = format!("{}/fixtures/cases/{image}", env!("CARGO_MANIFEST_DIR"));
    let question = "what is the main object of the image";
    let arguments = ["ask", "--plugin", "showo", "--image", &path, "--question", question];
    TestContext::new().unirl(&plugin_dir(), &arguments).replace(&path, image)
}

#[test]
fn ask_truncated_image_is_an_error() {
    assert_snapshot!([ask_about("cut.jpg"), ask_about("cut_end.jpg")].join("\n"));
}

#[test]
fn ask_accepts_very_thin_image() {
    let text = ask_about("thin_500k.png");
    assert!(text.contains("exit: 0"), "{text}");
}

#[test]
fn truncated_prompts_warn_once() {
    let long = "a photo of a red star and a blue circle ".repeat(10);
    let other = "a photo of a green ring and a blue circle ".repeat(10);
    let context = TestContext::new();
    let text = context.unirl(
        &plugin_dir(),
        &["generate", "--plugin", "showo", "--prompt", &long, "--prompt", &other, "--seed", "1"],
    );
    assert!(text.contains("exit: 0"), "{text}");
    assert_eq!(text.matches("it is truncated").count(), 1, "{text}");
    let short = ["generate", "--plugin", "showo", "--prompt", "a photo of a red star"];
    let text = context.unirl(&plugin_dir(), &short);
    assert!(text.contains("exit: 0") && !text.contains("WARN"), "{text}");
}

#[test]
fn unknown_words_of_builtin_models_warn_once_each() {
    for plugin in ["showo", "janus"] {
        let prompts = ["a photo of a bench", "a photo of a Zebra", "a photo of a bench"];
        let mut arguments = vec!["generate", "--plugin", plugin, "--device", "cpu"];
        arguments.extend(prompts.iter().flat_map(|prompt| ["--prompt", prompt]));
        let text = TestContext::new().unirl(&plugin_dir(), &arguments);
        assert!(text.contains("exit: 0"), "{text}");
        assert_eq!(text.matches("replaced by the unknown token: `bench`").count(), 1, "{text}");
        assert_eq!(text.matches("`Zebra`").count(), 1, "{text}");
        assert_eq!(text.matches("WARN").count(), 2, "{text}");
    }
    let path = format!("{}/fixtures/cases/thin_500k.png", env!("CARGO_MANIFEST_DIR"));
    let arguments = ["ask", "--plugin", "showo", "--image", &path, "--question", "where is the giraffe"];
    let text = TestContext::new().unirl(&plugin_dir(), &arguments);
    assert!(text.contains("exit: 0") && text.contains("`giraffe`"), "{text}");
}

#[test]
fn negative_temperature_is_usage_error() {
    assert_snapshot!(TestContext::new().train(&["--set", "rollout.images.temperature=-1"]));
}

#[test]
fn eval_zero_prompts_is_usage_error() {
    assert_snapshot!(
        TestContext::new().unirl(&plugin_dir(), &["eval", "--plugin", "showo", "--prompts", "0"])
    );
}

#[test]
fn dry_run_prints_memory_and_disk_plan() {
    let context = TestContext::new();
    let text = context.train(&["--optimizer", "grpo", "--dry-run"]);
    // Memory and disk space depend on the machine.
    let text: Vec<&str> = text
        .lines()
        .filter(|line| !line.starts_with("device memory") && !line.starts_with("disk available"))
        .collect();
    let text = text.join("\n");
    assert_snapshot!(text);
    assert!(!context.path("runs").exists(), "no files are written");
}

#[test]
fn dry_run_with_invalid_setting_is_usage_error() {
    assert_snapshot!(TestContext::new().train(&["--dry-run", "--set", "model.options.lora={rank=0}"]));
}

#[test]
fn missing_image_tokenizer_is_an_error() {
    let context = TestContext::new();
    assert!(save_builtin(&context, "model").contains("exit: 0"));
    assert_snapshot!(context.train(&["--model", "model", "--tokenizer", "nowhere"]));
}

/// Saves the builtin model as a checkpoint.
fn save_builtin(context: &TestContext, name: &str) -> String {
    let text = context.train(&[
        "--steps",
        "1",
        "--out",
        "run",
        "--set",
        "eval.prompts=0",
        "--set",
        "rollout.prompts_per_step=1",
        "--set",
        "rollout.group_size=2",
        "--set",
        "rollout.images.steps=1",
        "--set",
        "train.sample_every=0",
    ]);
    fs::rename(context.path("run/checkpoints/step-000001"), context.path(name)).unwrap();
    text
}

#[test]
fn truncated_checkpoint_is_an_error() {
    let context = TestContext::new();
    save_builtin(&context, "model");
    let path = context.path("model/pytorch_model.safetensors");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 4]).unwrap();
    assert_snapshot!(context.train(&["--model", "model"]));
}

#[test]
fn generate_refuses_formats_other_than_png() {
    let arguments = ["generate", "--plugin", "showo", "--prompt", "a star", "--out", "star.jpg"];
    assert_snapshot!(TestContext::new().unirl(&plugin_dir(), &arguments));
}

#[test]
fn generate_does_not_depend_on_batch_size() {
    let context = TestContext::new();
    let generate = |out: &str, batch: &str| {
        let prompts = ["--prompt", "a photo of a star", "--prompt", "a photo of a red heart", "--count", "2"];
        let mut arguments =
            vec!["generate", "--plugin", "showo", "--out", out, "--batch", batch, "--seed", "4"];
        arguments.extend(prompts);
        let text = context.unirl(&plugin_dir(), &arguments);
        assert!(text.contains("exit: 0"), "{text}");
    };
    generate("one", "1");
    generate("all", "4");
    for name in ["00000-00.png", "00000-01.png", "00001-00.png", "00001-01.png"] {
        let [one, all] = ["one", "all"].map(|folder| fs::read(context.path(folder).join(name)).unwrap());
        assert!(one == all, "{name}");
    }
    assert_ne!(
        fs::read(context.path("all/00000-00.png")).unwrap(),
        fs::read(context.path("all/00000-01.png")).unwrap()
    );

    let [first, second] = ["all/00000-00.png", "all/00001-01.png"];
    let ask = |images: &[&str]| {
        let question = ["--question", "what is the main object of the image"];
        context.unirl(&plugin_dir(), &[&["ask", "--plugin", "showo"], images, &question].concat())
    };
    let printed = ask(&["--image", first, "--image", second]);
    assert_eq!(ask(&["--image", first, second]), printed);
    assert_snapshot!(printed);
    let three = ask(&["--image", second, first, "--image", second]);
    let answers: Vec<&str> = three.lines().filter(|line| line.starts_with("all/")).collect();
    let expected: Vec<&str> = printed.lines().filter(|line| line.starts_with("all/")).collect();
    assert_eq!(answers, [expected[1], expected[0], expected[1]]);
    let one = ask(&["--image", first]);
    assert!(expected[0].ends_with(one.lines().nth(2).unwrap()), "{one}");
    assert!(!one.contains("all/"), "{one}");
}

#[test]
fn grpo_refuses_separate_image_representations() {
    let context = TestContext::new();
    assert_snapshot!(context.unirl(&plugin_dir(), &["--plugin", "janus", "--optimizer", "grpo"]));
    assert!(!context.path("runs").exists(), "no files are left behind");
}

#[test]
fn sft_warns_about_separate_image_representations() {
    let text =
        TestContext::new().unirl(&plugin_dir(), &["--plugin", "janus", "--optimizer", "sft", "--dry-run"]);
    assert!(text.contains("exit: 0") && text.contains("WARN"), "{text}");
    assert!(text.contains("the paper reports that generation collapses (§4.4)"), "{text}");
}

#[test]
fn checkpoint_of_other_model_family_is_refused() {
    let context = TestContext::new();
    let model = context.path("model");
    fs::create_dir(&model).unwrap();
    let flow = r#"{"model_type": "multi_modality", "vision_gen_enc_config": {}}"#;
    fs::write(model.join("config.json"), flow).unwrap();
    let header = r#"{"vision_gen_enc_model.x":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}"#;
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes()].concat();
    fs::write(model.join("model.safetensors"), file).unwrap();
    let words = r#"{"version":"1.0","model":{"type":"WordLevel","vocab":{"<unk>":0},"unk_token":"<unk>"}}"#;
    fs::write(model.join("tokenizer.json"), words).unwrap();
    let arguments = ["--plugin", "janus", "--optimizer", "grpo-split", "--model", "model"];
    assert_snapshot!(context.unirl(&plugin_dir(), &arguments));
}

#[test]
fn missing_prompts_file_is_usage_error() {
    let context = TestContext::new();
    assert_snapshot!(context.train(&["--set", "train.prompts_file=nowhere.jsonl"]));
    assert!(!context.path("runs").exists(), "no files are left behind");
}

#[test]
fn top_k_negative_is_usage_error() {
    assert_snapshot!(TestContext::new().train(&["--set", "rollout.answers.top_k=-1"]));
}

#[test]
fn generate_zero_batch_is_usage_error() {
    let arguments = ["generate", "--plugin", "showo", "--prompt", "a star", "--batch", "0"];
    assert_snapshot!(TestContext::new().unirl(&plugin_dir(), &arguments));
}

#[test]
fn global_options_are_accepted_before_and_after_commands() {
    let context = TestContext::new();
    let plain = context.unirl(&plugin_dir(), &["schema", "metrics"]);
    assert!(plain.starts_with("exit: 0"), "{plain}");
    for arguments in [
        &["-v", "schema", "metrics"] as &[_],
        &["schema", "-v", "metrics"],
        &["schema", "metrics", "-vv"],
        &["--verbose", "--log", "json", "schema", "metrics"],
        &["--log=text", "schema", "metrics"],
        &["schema", "--log", "json", "metrics"],
    ] {
        assert_eq!(context.unirl(&plugin_dir(), arguments), plain, "{arguments:?}");
    }
    for arguments in
        [&["-v", "plugins", "list"] as &[_], &["plugins", "-v", "list"], &["plugins", "list", "-v"]]
    {
        let printed = context.unirl(&plugin_dir(), arguments);
        assert!(printed.starts_with("exit: 0"), "{printed}");
    }
    for arguments in [
        &["--log", "json", "eval", "verify", "no.json"] as &[_],
        &["eval", "--log=json", "verify", "no.json"],
    ] {
        let printed = context.unirl(&plugin_dir(), arguments);
        assert!(printed.contains("{\"level\":\"ERROR\",\"code\":\"usage\""), "{printed}");
    }
}

#[test]
fn command_options_before_the_command_are_refused() {
    let context = TestContext::new();
    let printed = [
        &["--plugin", "showo", "ask", "--image", "x.png", "--question", "what"] as &[_],
        &["-v", "--steps", "3", "plugins", "list"],
        &["eval", "--prompts", "3", "verify", "x.json"],
        &["plugins", "--json", "list"],
    ]
    .map(|arguments| context.unirl(&plugin_dir(), arguments));
    assert_snapshot!(printed.join("\n"));
}

/// Every line on stderr is JSON.
#[test]
fn errors_are_json_with_log_json() {
    let context = TestContext::new();
    fs::create_dir(context.path("broken")).unwrap();
    fs::write(context.path("broken/config.json"), "{\"codebook_size\": 4").unwrap();
    let printed = [
        &["--log", "json", "--pluign", "showo"] as &[_],
        &["--plugin", "showo", "--log=json", "--steps", "many"],
        &["ask", "--log", "json"],
        &["--log", "json", "agk"],
        &["--plugin", "shwo", "--log", "json"],
        &["--log", "json", "--plugin", "showo", "--model", "broken"],
        &["--log", "json", "--plugin", "showo", "--set", "train.stpes=3"],
        &["--log", "jsom", "--plugin", "showo"],
    ]
    .map(|arguments| context.unirl(&plugin_dir(), arguments));
    for printed in &printed[..printed.len() - 1] {
        let (_, stderr) = printed.split_once("stderr:\n").unwrap();
        for line in stderr.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(line["level"].is_string(), "{printed}");
        }
    }
    assert_snapshot!(printed.join("\n"));
}

#[test]
fn tilde_expands_in_every_path() {
    let context = TestContext::new();
    fs::write(context.path("tasks.toml"), "[train]\ntasks = '~/config/tasks.jsonl'\n").unwrap();
    fs::write(context.path("model.toml"), "[model]\ncheckpoint = '~/config/model'\n").unwrap();
    fs::create_dir(context.path("used")).unwrap();
    fs::write(context.path("used/notes"), "").unwrap();
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
        (
            &[],
            &[&train as &[_], &["--set", "train.prompts_file=~/tasks.jsonl"]].concat(),
            "[HOME]/tasks.jsonl",
        ),
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
        // Other uses of `~` are not expanded.
        (&[], &[&train as &[_], &["--model", "~somebody/model"]].concat(), "`~somebody/model`"),
        (&[], &[&train as &[_], &["--model", "./~/model"]].concat(), "`./~/model`"),
    ] {
        let printed = context.unirl(&plugin_dir(), &[command, arguments].concat());
        assert!(!printed.starts_with("exit: 0") && printed.contains(path), "{path}: {printed}");
        let error = printed.lines().find(|line| line.contains(path)).unwrap();
        assert_eq!(error.contains('~'), path.contains('~'), "{printed}");
    }
}

#[test]
fn image_tokenizer_has_alias_tokenizer() {
    let context = TestContext::new();
    assert!(save_builtin(&context, "model").contains("exit: 0"));
    let of = |name: &str| context.train(&["--model", "model", name, "nowhere"]);
    assert_eq!(of("--image-tokenizer"), of("--tokenizer"));
}

#[test]
fn train_equals_no_command() {
    let context = TestContext::new();
    let of = |command: &[&str]| {
        context.unirl(&plugin_dir(), &[command, &["--plugin", "showo", "--steps", "0"]].concat())
    };
    assert_eq!(of(&["train"]), of(&[]));
    assert!(of(&["train"]).contains("`train.steps`"), "{}", of(&["train"]));
}

#[test]
fn completions_contain_commands_and_options() {
    let context = TestContext::new();
    for (shell, words) in [
        ("bash", ["complete -F _unirl", "--image-tokenizer", "geneval"]),
        ("zsh", ["#compdef unirl", "--image-tokenizer", "geneval"]),
        ("fish", ["complete -c unirl", "image-tokenizer", "geneval"]),
    ] {
        let output = common::program(["completions", shell]).output().unwrap();
        let script = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success() && words.iter().all(|word| script.contains(word)), "{script}");
    }
    // The script completes in bash.
    fs::write(context.path("script"), common::program(["completions", "bash"]).output().unwrap().stdout)
        .unwrap();
    let complete =
        "source ./script; COMP_WORDS=(unirl rew); COMP_CWORD=1; _unirl unirl rew unirl; echo ${COMPREPLY[@]}";
    let output =
        Command::new("bash").args(["-c", complete]).current_dir(context.home.path()).output().unwrap();
    assert_eq!(common::format_output(&output), "exit: 0\nstdout:\nreward\nstderr:\n");
}

#[test]
fn man_prints_pages_of_all_commands() {
    let page = |command: &[&str]| {
        common::format_output(&common::program([&["man"], command].concat()).output().unwrap())
    };
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

/// Common mistakes: invalid values, a directory instead of a file, misspelled names.
#[test]
fn invalid_argument_values_are_one_clear_error() {
    let context = TestContext::new();
    fs::create_dir(context.path("folder")).unwrap();
    fs::write(context.path("file"), "").unwrap();
    let generate = ["generate", "--plugin", "showo", "--prompt", "a star"];
    let of = |arguments: &[&str]| context.unirl(&plugin_dir(), &[&generate, arguments].concat());
    let mut printed = vec![
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
    fs::create_dir(context.path("x.png")).unwrap();
    printed.push(of(&["--out", "x.png"]));
    for arguments in [
        &["aks", "--plugin", "showo"] as &[_],
        &["repotr", "run"],
        &["ask", "--plugin", "showo", "--question", "what", "--image", "folder"],
        &["reward", "diff", "exact", "bound", "--temperature", "-1"],
        &["plugins", "new", "mine", "--kind", "model", "--unirl", "folder"],
    ] {
        let output = common::program(arguments).current_dir(context.home.path()).output().unwrap();
        printed.push(format!("unirl {}\n{}", arguments.join(" "), common::format_output(&output)));
    }
    let output =
        common::program(["prompts", "--out", "folder"]).current_dir(context.home.path()).output().unwrap();
    printed.push(common::format_output(&output));
    assert_snapshot!(printed.join("\n"));
    assert!(
        !context.path("generated.png").exists() && !context.path("mine").exists(),
        "no files are written"
    );
}
