//! `unirl reward`, and custom rewards in training runs.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use insta::assert_snapshot;
use serde_json::Value;
use tempfile::TempDir;

fn example(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(path)
        .canonicalize()
        .unwrap()
        .display()
        .to_string()
}

/// Runs the command in a directory with `stdin`. Returns exit status, stdout and stderr.
fn unirl(folder: &Path, stdin: &str, arguments: &[&str]) -> String {
    let mut child = common::unirl(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A usage error closes stdin.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    common::format_output(&output).replace(&example(""), "[EXAMPLES]")
}

fn samples() -> String {
    [
        ("counting", "a photo of three stars", "three stars", "Three stars."),
        ("counting", "a photo of three stars", "three stars", "two stars"),
        ("counting", "a photo of three stars", "three stars", "three stars and a ring"),
        ("counting", "a photo of three stars", "three stars", "not three stars"),
        (
            "position",
            "a photo of a star left of a ring",
            "the star is left of the ring",
            "The ring is left of the star.",
        ),
        ("position", "a photo of a star left of a ring", "the star is left of the ring", "a star and a disc"),
    ]
    .map(|(category, prompt, reference_answer, answer)| {
        let json =
            serde_json::json!({ "category": category, "prompt": prompt, "truth": reference_answer, "answer": answer });
        format!("{json}\n")
    })
    .concat()
}

#[test]
fn reward_score_prints_rewards_and_reasons() {
    let home = TempDir::new().unwrap();
    let own = example("my-rules/my-rules.toml");
    fs::write(
        home.path().join("run.toml"),
        format!("[reward]\nrules = [{{ name = \"paper\", weight = 0.5 }}, {{ name = {own:?} }}, {{ name = \"exact\", options = {{ normalize = \"max\" }} }}]"),
    )
    .unwrap();
    let of = |arguments: &[&str]| unirl(home.path(), &samples(), &[&["reward", "score"], arguments].concat());
    assert_snapshot!([of(&["--reward", "bound"]), of(&["--config", "run.toml"])].join("\n"));
}

#[test]
fn reward_diff_compares_two_rewards() {
    let home = TempDir::new().unwrap();
    let own = example("my-rules/my-rules.toml");
    let of = |arguments: &[&str]| unirl(home.path(), &samples(), &[&["reward", "diff"], arguments].concat());
    assert_snapshot!(
        [
            of(&["paper", &own]),
            of(&["paper", "bound", "--weighting", "advantage", "--show", "1"]),
            of(&["bound", "bound"]),
            of(&["paper", "exact", "--json"]),
        ]
        .join("\n")
    );
}

#[test]
fn reward_invalid_rule_files_and_samples_are_refused() {
    let home = TempDir::new().unwrap();
    let mut texts = Vec::new();
    for rules in [
        "[[counting]]\nwrod = \"{count}\"",
        "[[counting]]\nword = \"{color}\"",
        "[[counting]]\nword = \"{cuont}\"",
        "[[counting]]\nword = \"{count} {objects}\"\nmatch = \"bound\"",
        "[[counting]]\nword = \"{count}\"\npoints = 0",
        "[counting]\nword = \"{count}\"",
        "[penalty]\nextra = 1",
        "[penalties]\nextra = \"some\"",
        "[penalties]\nlong = { word = 3, lose = 1 }",
        "normalize = \"maximum\"",
        "description = \"nothing\"",
        "[[counting]]\nword = \"{count}\"\n[[example]]\ncategory = \"counting\"\nprompt = \"a photo of two stars\"\nanswer = \"three stars\"\nreward = 1",
        "[[counting]\n",
    ] {
        fs::write(home.path().join("rules.toml"), rules).unwrap();
        let printed = unirl(home.path(), &samples(), &["reward", "score", "--reward", "rules.toml"]);
        texts.push(format!("{rules}\n\n{printed}"));
    }
    for stdin in [
        "{\"category\":\"counting\",\"prompt\":\"a photo of two stars\"}",
        "{\"category\":\"counting\",\"prompt\":\"a photo of many stars\",\"answer\":\"two\"}",
        "{\"category\":\"count\",\"prompt\":\"a photo of two stars\",\"answer\":\"two\"}",
        "\nnonsense",
    ] {
        let printed = unirl(home.path(), stdin, &["reward", "score", "--reward", "bound"]);
        texts.push(format!("{stdin}\n\n{printed}"));
    }
    for arguments in [
        vec!["score", "--reward", "bond"],
        vec!["score", "--reward", "nowhere.toml"],
        vec!["score", "--reward", "my-reward"],
        vec!["diff", "paper", "bound", "--weighting", "softmx"],
        vec!["replay", "nowhere", "--reward", "bound"],
    ] {
        let arguments = [vec!["reward"], arguments].concat();
        texts.push(format!("{arguments:?}\n\n{}", unirl(home.path(), &samples(), &arguments)));
    }
    assert_snapshot!(texts.join("\n----\n"));
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Trains for one step on the tiles benchmark with `rules`. Returns the run directory.
fn train(home: &TempDir, rules: &str) -> PathBuf {
    let out = home.path().join("run");
    fs::write(home.path().join("run.toml"), format!("[reward]\nrules = {rules}")).unwrap();
    let settings = [
        "train.steps=1",
        "eval.samples_per_prompt=2",
        "rollout.prompts_per_step=6",
        "rollout.group_size=2",
        "eval.prompts=0",
        "rollout.micro_batch=5",
    ];
    let mut arguments = vec![
        "--plugin",
        "showo",
        "--optimizer",
        "grpo",
        "--device",
        "cpu",
        "--config",
        "run.toml",
        "--out",
        "run",
    ];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    let printed = unirl(home.path(), "", &arguments);
    assert!(printed.starts_with("exit: 0"), "{printed}");
    out
}

/// A rule file, as in `examples/my-rules`.
#[test]
fn rule_file_scores_a_run_and_its_rescoring() {
    let home = TempDir::new().unwrap();
    let own = example("my-rules/my-rules.toml");
    let out = train(&home, &format!("[{{ name = {own:?} }}]"));
    let metrics = &lines(&out.join("metrics.jsonl"))[0];
    for part in ["noun", "number", "color", "relation", "attribute"] {
        assert!(metrics[format!("reward/part/{part}")].is_number(), "{part}: {metrics}");
    }
    let samples = lines(&out.join("samples/trained.jsonl"));
    assert_eq!(samples.len(), 12);
    for sample in &samples {
        assert_eq!(sample["reward"]["max"], 1.0);
        assert!(sample["reward"]["why"].as_str().unwrap().contains(" of 1: "), "{sample}");
    }
    // Rescoring with the same file changes nothing.
    let same = unirl(home.path(), "", &["reward", "replay", "run", "--reward", &own]);
    assert!(same.contains("\nrewards differ for 0 of 24 samples\n"), "{same}");
    let other = unirl(home.path(), "", &["reward", "replay", "run", "--reward", "paper"]);
    assert!(
        other.contains("  paper: ") && !other.contains("\nrewards differ for 0 of 24 samples\n"),
        "{other}"
    );
}

/// A plugin that reads pixels, as in `examples/my-reward`, added to a shipped reward.
#[test]
fn plugin_reward_sees_generated_pixels() {
    let home = TempDir::new().unwrap();
    let out = train(
        &home,
        "[{ name = \"exact\" }, { name = \"my-reward\", weight = 0.5, options = { most = 0.2 } }]",
    );
    let metrics = &lines(&out.join("metrics.jsonl"))[0];
    assert!(
        metrics["reward/part/exact"].is_number() && metrics["reward/part/my-reward"].is_number(),
        "{metrics}"
    );
    for sample in lines(&out.join("samples/trained.jsonl")) {
        let (reward, why) = (&sample["reward"], sample["reward"]["why"].as_str().unwrap());
        let counting = sample["category"] == "counting";
        assert_eq!(reward["max"], if counting { 1.0 } else { 1.5 }, "{sample}");
        assert_eq!(why.contains("my-reward: several objects need room"), counting, "{why}");
        let parts = &reward["parts"];
        let sum = parts["exact"].as_f64().unwrap() + parts["my-reward"].as_f64().unwrap_or(0.0);
        assert_eq!(reward["score"], sum, "{sample}");
        if !counting {
            // The image has 16 tiles; a shape covers 12 to 64 of the 64 pixels of its tile.
            let covered =
                why.split("my-reward: ").nth(1).unwrap().split(' ').next().unwrap().parse::<f64>().unwrap();
            assert_eq!(parts["my-reward"], if (1.0..=20.0).contains(&covered) { 0.5 } else { 0.0 }, "{why}");
        }
    }
}

/// The log names the loaded plugins.
#[test]
fn reward_score_loads_only_the_needed_plugin() {
    let home = TempDir::new().unwrap();
    let (own, program) = (example("my-rules/my-rules.toml"), example("python-reward/reward.py"));
    for (rule, expected) in [
        ("exact", vec!["rewards"]),
        ("bound", vec!["rewards"]),
        (&own, vec![]),
        (&format!("cmd:{program}"), vec![]),
    ] {
        let printed = unirl(home.path(), &samples(), &["-vv", "reward", "score", "--reward", rule]);
        assert!(printed.starts_with("exit: 0"), "{printed}");
        let loaded = printed.lines().filter(|line| line.contains("plugin loaded"));
        let names: Vec<&str> =
            loaded.filter_map(|line| line.split("plugin=\"").nth(1)?.split('"').next()).collect();
        assert_eq!(names, expected, "{printed}");
    }
}
