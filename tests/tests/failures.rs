//! Failing steps: non-finite values stop a run before they reach its weights; running out of memory does not.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{format_output, unirl};
use serde_json::Value;

/// Trains for a few steps. Returns the output and the run directory.
fn train(home: &Path, plugin: &str, settings: &[&str]) -> (String, PathBuf) {
    let mut arguments = vec!["--plugin", plugin, "--optimizer", "grpo", "--device", "cpu", "--out", "run"];
    let small = [
        "train.steps=3",
        "rollout.prompts_per_step=4",
        "rollout.group_size=1",
        "eval.prompts=0",
        "eval.samples_per_prompt=0",
    ];
    arguments.extend(small.iter().chain(settings).flat_map(|setting| ["--set", setting]));
    let output = unirl(&arguments).current_dir(home).output().unwrap();
    (format_output(&output), home.join("run"))
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// At this learning rate, the weights are infinite after one step.
#[test]
fn non_finite_step_stops_the_run_and_can_be_replayed() {
    let home = tempfile::tempdir().unwrap();
    let settings =
        ["update.learning_rate=1e38", "update.warmup_steps=1", "checkpoint.every=1", "rollout.group_size=4"];
    let (printed, out) = train(home.path(), "showo", &settings);
    assert!(printed.starts_with("exit: 1") && printed.contains("error: step 2 failed"), "{printed}");
    assert!(printed.contains("expected finite values, got"), "{printed}");
    assert!(
        printed.contains("hint: repeat the step with `unirl replay-step run/failed-step-000002`"),
        "{printed}"
    );
    let cause = printed.lines().find(|line| line.contains("caused by")).unwrap();

    let failed = out.join("failed-step-000002");
    let tasks = lines(&failed.join("tasks.jsonl"));
    assert_eq!(tasks.len(), 16);
    assert!(tasks[0]["prompt"].as_str().unwrap().starts_with("a photo of"));
    assert_eq!(lines(&out.join("metrics.jsonl")).len(), 1);
    assert!(out.join("checkpoints/step-000001").is_dir(), "the previous checkpoint is kept");

    let folder = failed.to_str().unwrap();
    let again = format_output(&unirl(["replay-step", folder]).output().unwrap());
    assert!(again.starts_with("exit: 1") && again.contains("error: step 2 failed again"), "{again}");
    assert!(again.contains(cause), "expected {cause}: {again}");

    // The failed step can also be repeated from the checkpoint before it.
    let repeated = format_output(
        &unirl(["replay-step", out.join("checkpoints/step-000001").to_str().unwrap()]).output().unwrap(),
    );
    assert!(repeated.contains("step 2 failed again"), "{repeated}");
    fs::remove_file(failed.join("training/state.safetensors")).unwrap();
    let damaged = format_output(&unirl(["replay-step", folder]).output().unwrap());
    assert!(
        damaged.contains("is damaged") && damaged.contains("`training/state.safetensors` is missing"),
        "{damaged}"
    );
}

#[test]
fn non_finite_reward_names_the_prompt() {
    let home = tempfile::tempdir().unwrap();
    let rules = "reward.rules=[{ name = \"constant\", weight = 1e308 }, { name = \"two\", weight = 1e308 }]";
    let (printed, _) = train(home.path(), "showo", &[rules]);
    assert!(printed.starts_with("exit: 1"), "{printed}");
    assert!(printed.contains("the reward is not finite for the prompt `a photo of"), "{printed}");
}

/// Prompts for a model outside the tiles benchmark.
const PROMPTS: &str = concat!("train.prompts_file=", env!("CARGO_MANIFEST_DIR"), "/../examples/tasks.jsonl");

#[test]
fn model_outside_tiles_requires_prompts() {
    let home = tempfile::tempdir().unwrap();
    let (printed, out) = train(home.path(), "fixture#tight", &[]);
    assert!(printed.starts_with("exit: 2"), "{printed}");
    assert!(printed.contains("error: `train.prompts_file` is required for `echo` at 2x2"), "{printed}");
    assert!(!out.exists(), "no files are left behind");
}

/// The plugin reports that memory ran out for more than two images at once: the run equals one with `micro_batch = 2`.
#[test]
fn out_of_memory_halves_the_micro_batch() {
    let ends = ["rollout.micro_batch=0", "rollout.micro_batch=2"].map(|micro_batch| {
        let home = tempfile::tempdir().unwrap();
        let settings = ["optimizer.grpo.beta=0.0", "rollout.prompts_per_step=7", micro_batch, PROMPTS];
        let (printed, out) = train(home.path(), "fixture#tight", &settings);
        assert!(printed.starts_with("exit: 0"), "{printed}");
        let messages = [
            "out of memory with a micro-batch of 7 images; continuing with 4",
            "out of memory with a micro-batch of 4 images; continuing with 2",
        ];
        for message in messages {
            assert_eq!(
                printed.matches(message).count(),
                usize::from(micro_batch.ends_with('0')),
                "{printed}"
            );
        }
        let state = fs::read_to_string(out.join("checkpoints/latest/training/state.json")).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&state).unwrap()["micro_batch"], 2);
        fs::read(out.join("checkpoints/latest/training/state.safetensors")).unwrap()
    });
    assert!(ends[0] == ends[1]);
}
