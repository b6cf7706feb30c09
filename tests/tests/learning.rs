//! Regression tests of learning: figures of the builtin models, and of short runs from them.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

fn unirl(arguments: &[&str]) -> Vec<u8> {
    let output = common::unirl(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn mean(report: &Value, figure: &str) -> f64 {
    report[figure]["macro"].as_f64().unwrap()
}

/// Training needs a model that often generates wrong images and recognizes them.
#[test]
fn builtin_models_generate_errors_and_recognize_them() {
    for plugin in ["showo", "janus"] {
        let report: Value =
            serde_json::from_slice(&unirl(&["eval", "--plugin", plugin, "--device", "cpu", "--json"]))
                .unwrap();
        let t2i = mean(&report, "t2i");
        assert!((0.45..=0.70).contains(&t2i), "{plugin}: T2I {t2i}");
        assert!(mean(&report, "mmu") >= 0.90, "{plugin}: MMU {report:#}");
        for (category, share) in report["mmu"]["by_category"].as_object().unwrap() {
            assert!(share.as_f64().unwrap() >= 0.85, "{plugin}: MMU of {category}: {share}");
        }
        let passed = report["wrong_passed"]["micro"].as_f64().unwrap();
        assert!(passed <= 0.10, "{plugin}: false positives {passed}");
    }
}

/// T2I before and after a short run, and the mean reward of its first and last ten steps.
struct RunFigures {
    t2i: [f64; 2],
    reward: [f64; 2],
}

impl RunFigures {
    fn read(run: &Path) -> Self {
        let json = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
        let report = json(&fs::read_to_string(run.join("report.json")).unwrap());
        let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let rewards: Vec<f64> =
            metrics.lines().map(|line| json(line)["reward/mean"].as_f64().unwrap()).collect();
        let mean_of_ten = |rewards: &[f64]| rewards.iter().sum::<f64>() / 10.0;
        Self {
            t2i: ["base", "trained"].map(|what| mean(&report[what], "t2i")),
            reward: [mean_of_ten(&rewards[..10]), mean_of_ten(&rewards[rewards.len() - 10..])],
        }
    }

    fn gains(&self) -> [f64; 2] {
        [self.t2i, self.reward].map(|[before, after]| after - before)
    }
}

/// Training with rewards gains, and the shuffled-reward control does not: 40 steps from the builtin model, 50 held-out prompts
/// per category.
///
/// Measured with seeds 1 to 10: T2I gains .088 on average (standard deviation .025, minimum .057), and the mean reward gains
/// .050 (.037, minimum .008) from the first ten steps to the last ten. With shuffled rewards, T2I gains -.091 (.065, maximum
/// -.023) and the reward -.051 (.059, maximum .032). The bounds on T2I separate all runs from all controls. Seed 6, used here,
/// gained .093 and .086; its control -.237 and -.179.
#[test]
fn rewards_teach_and_shuffled_rewards_do_not() {
    const STEPS: [&str; 5] = [
        "train.steps=40",
        "rollout.prompts_per_step=12",
        "eval.prompts=50",
        "eval.samples_per_prompt=0",
        "eval.batch=100",
    ];
    let home = tempfile::tempdir().unwrap();
    let arms = ["false", "true"].map(|shuffled| {
        let out = home.path().join(shuffled);
        let shuffle = format!("train.shuffle_rewards={shuffled}");
        let mut arguments = vec!["--plugin", "showo", "--optimizer", "grpo", "--device", "cpu"];
        arguments.extend(["--seed", "6", "--out", out.to_str().unwrap(), "--set", &shuffle]);
        arguments.extend(STEPS.iter().flat_map(|setting| ["--set", setting]));
        let child = common::unirl(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        (child, out)
    });
    let [rewarded, control] = arms.map(|(child, out)| {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        RunFigures::read(&out).gains()
    });
    assert!(rewarded[0] >= 0.04, "T2I: {rewarded:?}");
    assert!(rewarded[1] >= 0.02, "reward: {rewarded:?}");
    assert!(control[0] <= 0.0, "T2I of the control: {control:?}");
    assert!(control[1] <= 0.0, "reward of the control: {control:?}");
}

/// Every algorithm completes a run and writes its files, and the saved model has the figures of the evaluated one.
#[test]
fn run_writes_config_metrics_samples_and_loadable_checkpoint() {
    for (plugin, optimizer) in [
        ("showo", "sft"),
        ("showo", "grpo"),
        ("showo", "grpo-split"),
        ("janus", "sft"),
        ("janus", "grpo-split"),
    ] {
        let home = tempfile::tempdir().unwrap();
        let out = home.path().join("run");
        let mut small = vec![
            "train.steps=2",
            "rollout.prompts_per_step=6",
            "rollout.group_size=2",
            "train.sample_every=1",
            "eval.prompts=2",
            "eval.samples_per_prompt=2",
            "checkpoint.every=1",
        ];
        let split = optimizer == "grpo-split";
        if split {
            small.extend([
                "reward.answer_rules=[{ name = 'paper' }]",
                "optimizer.grpo-split.schedule=alternate",
            ]);
        }
        let mut arguments = vec!["--plugin", plugin, "--optimizer", optimizer, "--device", "cpu"];
        arguments.extend(small.iter().flat_map(|setting| ["--set", setting]));
        arguments.extend(["--out", out.to_str().unwrap()]);
        let table = String::from_utf8(unirl(&arguments)).unwrap();
        assert!(table.contains("MMU->T2I"), "{table}");

        for file in ["config.toml", "samples/base.png", "samples/trained.png", "samples/step-000001.jsonl"] {
            assert!(out.join(file).is_file(), "{plugin}, {optimizer}: {file}");
        }
        let metrics = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
        let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 2);
        for name in ["reward/mean", "judge/right", "judge/wrong_passed", "time/draw", "update/gradient_norm"]
        {
            assert!(lines[0][name].is_f64(), "{plugin}, {optimizer}: {name}");
        }
        assert_eq!(lines[1]["reward/answer_mean"].is_f64(), split);
        if split {
            let has = |line: usize, name: &str| lines[line][name].is_f64();
            assert!(has(0, "loss/image") && !has(0, "loss/answer"), "generation in the first step");
            assert!(has(1, "loss/answer") && !has(1, "loss/image"), "understanding in the second");
        }

        assert!(out.join("checkpoints/step-000001").is_dir());
        let latest = out.join("checkpoints/latest");
        let reloaded: Value = serde_json::from_slice(&unirl(&[
            "eval",
            "--plugin",
            plugin,
            "--device",
            "cpu",
            "--json",
            "--prompts",
            "2",
            "--model",
            latest.to_str().unwrap(),
        ]))
        .unwrap();
        let report: Value = serde_json::from_slice(&fs::read(out.join("report.json")).unwrap()).unwrap();
        assert_eq!(reloaded, report["trained"], "{plugin}, {optimizer}");
        assert_ne!(report["base"], Value::Null);
    }
}

/// A run that learns for six steps and then collapses: the evaluation after training is that of the best step, which is the model
/// in `checkpoints/best`.
#[test]
fn evaluation_after_training_is_of_the_best_step() {
    const STEPS: [&str; 8] = [
        "train.steps=6",
        "eval.on_regression=warn",
        "rollout.prompts_per_step=12",
        "eval.prompts=5",
        "eval.samples_per_prompt=1",
        "eval.every=2",
        "eval.monitor_prompts=10",
        "checkpoint.every=2",
    ];
    let home = tempfile::tempdir().unwrap();
    let run = home.path().join("run");
    let out = run.to_str().unwrap();
    let mut arguments = vec!["--plugin", "showo", "--optimizer", "grpo", "--device", "cpu", "--out", out];
    arguments.extend(STEPS.iter().flat_map(|setting| ["--set", setting]));
    unirl(&arguments);
    assert!(run.join("checkpoints/best").exists(), "no step was better than the base model");
    let collapse = ["--steps", "12", "--set", "update.learning_rate=0.05", "--allow-change"];
    let printed = String::from_utf8(unirl(&[&["--resume", out][..], &collapse].concat())).unwrap();

    let read = |path: &str| -> Value { serde_json::from_slice(&fs::read(run.join(path)).unwrap()).unwrap() };
    let report = read("report.json");
    let shown = read("checkpoints/best/training/state.json")["step"].as_u64().unwrap();
    assert!(shown < 12, "the last step is the best");
    assert_eq!((report["shown_step"].as_u64(), report["steps"].as_u64()), (Some(shown), Some(12)));
    assert!(
        printed.contains(&format!("base -> step {shown} (best of 12), 5 prompts per category")),
        "{printed}"
    );
    let figures = |name: &str| -> Value {
        let model = run.join("checkpoints").join(name);
        let arguments =
            ["eval", "--plugin", "showo", "--device", "cpu", "--json", "--prompts", "5", "--model"];
        serde_json::from_slice(&unirl(&[&arguments[..], &[model.to_str().unwrap()]].concat())).unwrap()
    };
    assert_eq!(figures("best"), report["trained"]);
    assert_ne!(figures("latest"), report["trained"]);
}
