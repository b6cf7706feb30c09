//! Invalid settings and input files: errors name the place, and no run is written.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::fs::{self, File};
use std::path::Path;

use common::{format_output, unirl};
use insta::assert_snapshot;

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/cases");
const LFS: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 4521\n";
const HTML: &str = "<!DOCTYPE html>\n<html><body>Sign in</body></html>\n";

fn train(home: &Path, arguments: &[&str]) -> String {
    let all = [&["--plugin", "showo", "--optimizer", "grpo"], arguments].concat();
    format_output(&unirl(all).current_dir(home).output().unwrap())
}

#[test]
fn invalid_settings_are_refused_with_full_key() {
    let home = tempfile::tempdir().unwrap();
    let settings = [
        "optimizer.beta=99",
        "optimizer.gpro.beta=1",
        "optimizer.sft.xyz=1",
        "optimizer.grpo.beta=-5",
        "update.beta1=2",
        "update.learning_rate=x",
        "update.max_grad_norm=nan",
        "reward.rules=[{ name = 'bound', weight = 0 }]",
        "reward.rules=[{ name = 'bound', options = { normalise = 'max' } }]",
        "model.options.lora={ alpha = 0 }",
        "model.options.lora.rank=many",
    ];
    let texts = settings.map(|set| format!("{set}\n{}", train(home.path(), &["--set", set])));
    assert_snapshot!(texts.join("\n"));
    assert!(!home.path().join("runs").exists(), "no files are written");
}

#[test]
fn invalid_json_lines_name_column_field_and_fix() {
    let score = |file: &str| {
        let input = File::open(format!("{CASES}/json/{file}")).unwrap();
        format_output(&unirl(["reward", "score", "--reward", "exact"]).stdin(input).output().unwrap())
    };
    let files = ["bom.jsonl", "nan.jsonl", "tagcat.jsonl", "array.json"];
    let texts = files.map(|file| format!("{file}\n{}", score(file)));
    assert_snapshot!(texts.join("\n"));
}

#[test]
fn lfs_pointers_and_html_pages_are_recognized_in_every_input() {
    let home = tempfile::tempdir().unwrap();
    let path = |name: &str| home.path().join(name);
    fs::create_dir(path("model")).unwrap();
    for (name, text) in [
        ("settings.toml", LFS),
        ("tasks.jsonl", HTML),
        ("objects.txt", HTML),
        ("rules.toml", HTML),
        ("image.png", LFS),
        ("model/config.json", LFS),
    ] {
        fs::write(path(name), text).unwrap();
    }
    let ask = ["ask", "--plugin", "showo", "--image", "image.png", "--question", "what"];
    let texts = [
        train(home.path(), &["--config", "settings.toml"]),
        train(home.path(), &["--set", "train.prompts_file=tasks.jsonl"]),
        train(home.path(), &["--reward", "rules.toml"]),
        train(home.path(), &["--model", "model"]),
        format_output(&unirl(ask).current_dir(home.path()).output().unwrap()),
        format_output(
            &common::program(["prompts", "--objects", "objects.txt"])
                .current_dir(home.path())
                .output()
                .unwrap(),
        ),
    ];
    for text in &texts {
        assert!(text.contains("Git LFS pointer") || text.contains("web page"), "{text}");
        assert!(!text.starts_with("exit: 0"), "{text}");
    }
    assert!(!path("runs").exists(), "no files are written");
}

#[test]
fn lfs_pointer_as_weights_is_recognized() {
    let home = tempfile::tempdir().unwrap();
    for name in ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"] {
        let file = home.path().join(name);
        fs::write(&file, LFS).unwrap();
        let error = unirl::weights::Weights::open(&file).err().unwrap();
        assert!(error.to_string().contains("Git LFS pointer"), "{name}: {error}");
    }
}

#[test]
fn empty_prompts_file_is_usage_error() {
    let home = tempfile::tempdir().unwrap();
    for text in ["", "\n  \n", "\u{feff}"] {
        fs::write(home.path().join("tasks.jsonl"), text).unwrap();
        let printed = train(home.path(), &["--set", "train.prompts_file=tasks.jsonl", "--out", "run"]);
        assert!(
            printed.starts_with("exit: 2") && printed.contains("`tasks.jsonl` contains no tasks"),
            "{printed}"
        );
        assert!(!home.path().join("run").exists());
    }
}

/// The log and the receipt report training prompts that are also evaluation prompts. The training split has none.
#[test]
fn training_on_evaluation_prompts_is_reported() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, split: &[&str]| {
        let arguments = ["prompts", "--objects", "tiles", "--count", "600", "--out", name];
        let output =
            common::program([&arguments[..], split].concat()).current_dir(home.path()).output().unwrap();
        assert!(output.status.success(), "{}", format_output(&output));
    };
    write("train.jsonl", &[]);
    write("all.jsonl", &["--split", "all"]);
    let run = |tasks: &str, out: &str| {
        let tasks = format!("train.prompts_file={tasks}");
        let small = [
            "eval.prompts=20",
            "rollout.prompts_per_step=1",
            "rollout.group_size=2",
            "rollout.images.steps=1",
            "eval.samples_per_prompt=0",
        ];
        let mut arguments = vec!["--steps", "1", "--out", out, "--set", &tasks];
        arguments.extend(small.iter().flat_map(|set| ["--set", set]));
        let printed = train(home.path(), &arguments);
        assert!(printed.starts_with("exit: 0"), "{printed}");
        let receipt = fs::read_to_string(home.path().join(out).join("eval/trained.json")).unwrap();
        let receipt: serde_json::Value = serde_json::from_str(&receipt).unwrap();
        (printed, receipt["trained_on"].clone())
    };
    let (printed, count) = run("train.jsonl", "disjoint");
    assert!(!printed.contains("also training tasks") && count.is_null(), "{printed}");
    let (printed, count) = run("all.jsonl", "overlapping");
    let count = count.as_u64().unwrap();
    assert!(
        count > 0 && printed.contains(&format!("{count} of 120 evaluation tasks are also training tasks")),
        "{printed}"
    );
    let verify =
        unirl(["eval", "verify", "overlapping/eval/trained.json"]).current_dir(home.path()).output().unwrap();
    assert!(
        format_output(&verify).contains(&format!("{count} of 120 were training prompts")),
        "{}",
        format_output(&verify)
    );
}
