//! Steps that cannot be done: bad numbers stop a run before they spoil it, and an exhausted memory does not.

#![allow(clippy::unwrap_used, reason = "a test: a wrong value ends it")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{shown, unirl};
use serde_json::Value;

/// A short run of `plugin`: what it says, and its folder.
fn run(home: &Path, plugin: &str, settings: &[&str]) -> (String, PathBuf) {
    let mut arguments = vec!["--plugin", plugin, "--optimizer", "grpo", "--device", "cpu", "--out", "run"];
    let small =
        ["train.steps=3", "rollout.prompts=4", "rollout.group=1", "eval.prompts=0", "eval.pictures=0"];
    arguments.extend(small.iter().chain(settings).flat_map(|setting| ["--set", setting]));
    let output = unirl(&arguments).current_dir(home).output().unwrap();
    (shown(&output), home.join("run"))
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A learning rate at which the weights are infinite after a step.
#[test]
fn a_step_with_bad_numbers_stops_the_run_and_can_be_done_again() {
    let home = tempfile::tempdir().unwrap();
    let settings = ["update.learning_rate=1e38", "update.warmup=1", "checkpoint.every=1", "rollout.group=4"];
    let (shown_text, out) = run(home.path(), "showo", &settings);
    assert!(shown_text.starts_with("exit: 1") && shown_text.contains("error: step 2 failed"), "{shown_text}");
    assert!(shown_text.contains("expected finite values, got"), "{shown_text}");
    assert!(
        shown_text.contains("hint: repeat the step with `unirl replay-step run/failed-step-000002`"),
        "{shown_text}"
    );
    let cause = shown_text.lines().find(|line| line.contains("caused by")).unwrap();

    let failed = out.join("failed-step-000002");
    let tasks = lines(&failed.join("tasks.jsonl"));
    assert_eq!(tasks.len(), 16);
    assert!(tasks[0]["prompt"].as_str().unwrap().starts_with("a photo of"));
    assert_eq!(lines(&out.join("metrics.jsonl")).len(), 1);
    assert!(out.join("checkpoints/step-000001").is_dir(), "what was before it stays");

    let folder = failed.to_str().unwrap();
    let again = shown(&unirl(["replay-step", folder]).output().unwrap());
    assert!(again.starts_with("exit: 1") && again.contains("error: step 2 failed again"), "{again}");
    assert!(again.contains(cause), "expected {cause}: {again}");

    // The step before it, with another learning rate, goes through.
    let whole = shown(
        &unirl(["replay-step", out.join("checkpoints/step-000001").to_str().unwrap()]).output().unwrap(),
    );
    assert!(whole.contains("step 2 failed again"), "{whole}");
    fs::remove_file(failed.join("training/state.safetensors")).unwrap();
    let damaged = shown(&unirl(["replay-step", folder]).output().unwrap());
    assert!(
        damaged.contains("is damaged") && damaged.contains("`training/state.safetensors` is missing"),
        "{damaged}"
    );
}

#[test]
fn a_reward_that_is_not_finite_names_the_prompt() {
    let home = tempfile::tempdir().unwrap();
    let rules = "reward.rules=[{ name = \"constant\", weight = 1e308 }, { name = \"two\", weight = 1e308 }]";
    let (shown_text, _) = run(home.path(), "showo", &[rules]);
    assert!(shown_text.starts_with("exit: 1"), "{shown_text}");
    assert!(shown_text.contains("the reward is not finite for the prompt `a photo of"), "{shown_text}");
}

/// Prompts for a model that is not of the tiles.
const TASKS: &str = concat!("train.tasks=", env!("CARGO_MANIFEST_DIR"), "/../examples/tasks.jsonl");

#[test]
fn a_model_of_other_images_is_not_trained_on_tile_prompts() {
    let home = tempfile::tempdir().unwrap();
    let (shown_text, out) = run(home.path(), "fixture#tight", &[]);
    assert!(shown_text.starts_with("exit: 2"), "{shown_text}");
    assert!(shown_text.contains("error: `train.tasks` is required for `echo` at 2x2"), "{shown_text}");
    assert!(!out.exists(), "nothing is left behind");
}

/// The plugin says that memory ran out for more than two images at once: the run is that of `micro_batch = 2`.
#[test]
fn an_exhausted_memory_halves_the_micro_batch() {
    let ends = ["rollout.micro_batch=0", "rollout.micro_batch=2"].map(|micro_batch| {
        let home = tempfile::tempdir().unwrap();
        let settings = ["optimizer.grpo.beta=0.0", "rollout.prompts=7", micro_batch, TASKS];
        let (shown_text, out) = run(home.path(), "fixture#tight", &settings);
        assert!(shown_text.starts_with("exit: 0"), "{shown_text}");
        let told = [
            "out of memory with a micro-batch of 7 images; continuing with 4",
            "out of memory with a micro-batch of 4 images; continuing with 2",
        ];
        for told in told {
            assert_eq!(
                shown_text.matches(told).count(),
                usize::from(micro_batch.ends_with('0')),
                "once: {shown_text}"
            );
        }
        let state = fs::read_to_string(out.join("checkpoints/latest/training/state.json")).unwrap();
        assert_eq!(serde_json::from_str::<Value>(&state).unwrap()["micro_batch"], 2);
        fs::read(out.join("checkpoints/latest/training/state.safetensors")).unwrap()
    });
    assert!(ends[0] == ends[1]);
}
