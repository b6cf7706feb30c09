//! A reward that pays for the mistakes of the model's own answers: the drift monitor stops the run.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::fs;
use std::path::Path;

use serde_json::Value;

/// A learning rate at which the model degrades within `MAX_STEPS`, instead of collapsing in the first steps.
const LEARNING_RATE: &str = "update.learning_rate=2e-3";
/// The number of steps after which the run must have stopped.
const MAX_STEPS: u64 = 20;
const SETTINGS: [&str; 9] = [
    "reward.rules=[{ name = 'adversary' }]",
    "train.steps=40",
    "rollout.prompts_per_step=12",
    "eval.prompts=10",
    "eval.samples_per_prompt=1",
    "eval.every=5",
    "eval.monitor_prompts=20",
    "eval.on_regression=stop",
    LEARNING_RATE,
];
/// A part of every message of the drift monitor.
const MESSAGES: [&str; 4] = [
    "the reward rises while the judge falls: T2I ",
    "the judge falls while the reward does not: T2I ",
    "more wrong images pass while the judge does not rise: T2I ",
    " dropped from ",
];

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn adversarial_reward_stops_the_run_and_the_best_step_is_shown() {
    let home = tempfile::tempdir().unwrap();
    let run = home.path().join("run");
    let mut arguments = vec!["--plugin", "showo", "--optimizer", "grpo", "--device", "cpu"];
    arguments.extend(["--out", run.to_str().unwrap()]);
    arguments.extend(SETTINGS.iter().flat_map(|setting| ["--set", setting]));
    let output = common::unirl(&arguments).output().unwrap();
    let printed = common::format_output(&output);
    assert!(output.status.success(), "{printed}");

    let report = read(&run.join("report.json"));
    let steps = report["steps"].as_u64().unwrap();
    assert!(steps <= MAX_STEPS, "{printed}");
    let stopped = report["stopped"].as_str().unwrap();
    assert!(MESSAGES.iter().any(|message| stopped.contains(message)), "{stopped}");
    assert!(printed.contains(&format!("\nstopped early: {stopped}\n")), "{printed}");

    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let last: Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    assert!(last["eval/t2i"].as_f64() < report["base"]["t2i"]["macro"].as_f64(), "{last}");
    for name in ["eval/reward", "eval/precision", "eval/wrong_passed"] {
        assert!(last[name].is_f64(), "{name}: {last}");
    }

    let best = run.join("checkpoints/best");
    let heading = if best.exists() {
        let shown = read(&best.join("training/state.json"))["step"].as_u64().unwrap();
        assert!(shown < steps, "the step that stopped the run is not the best one");
        assert_eq!(report["shown_step"], shown);
        format!("base -> step {shown} (best of {steps}), stopped early, ")
    } else {
        assert_eq!(report["shown_step"], steps);
        format!("base -> step {steps} (no step was better than the base model), stopped early, ")
    };
    assert!(printed.contains(&heading), "{printed}");
}
