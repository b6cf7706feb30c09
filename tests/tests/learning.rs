//! The embedded base is what the demonstration needs, and training on its own images helps it.

#![allow(clippy::unwrap_used, reason = "a test: a wrong value ends it")]

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

/// Drawings well-formed and often wrong in a fact, and a reader that sees it: else its own reward teaches it nothing.
#[test]
fn builtin_models_generate_errors_and_recognize_them() {
    for plugin in ["showo", "janus"] {
        let report: Value =
            serde_json::from_slice(&unirl(&["eval", "--plugin", plugin, "--device", "cpu", "--json"]))
                .unwrap();
        let drawing = mean(&report, "t2i");
        assert!((0.45..=0.70).contains(&drawing), "{plugin}: T2I {drawing}");
        assert!(mean(&report, "mmu") >= 0.90, "{plugin}: MMU {report:#}");
        for (category, share) in report["mmu"]["by_category"].as_object().unwrap() {
            assert!(share.as_f64().unwrap() >= 0.85, "{plugin}: MMU of {category}: {share}");
        }
        let passed = report["wrong_passed"]["micro"].as_f64().unwrap();
        assert!(passed <= 0.10, "{plugin}: wrong drawings that pass: {passed}");
    }
}

/// What a short run came to: T2I before and after, and the mean reward of its first and last ten steps.
struct Learned {
    drawing: [f64; 2],
    reward: [f64; 2],
}

impl Learned {
    fn read(run: &Path) -> Self {
        let json = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
        let report = json(&fs::read_to_string(run.join("report.json")).unwrap());
        let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let rewards: Vec<f64> =
            metrics.lines().map(|line| json(line)["reward/mean"].as_f64().unwrap()).collect();
        let mean_of_ten = |rewards: &[f64]| rewards.iter().sum::<f64>() / 10.0;
        Self {
            drawing: ["base", "trained"].map(|what| mean(&report[what], "t2i")),
            reward: [mean_of_ten(&rewards[..10]), mean_of_ten(&rewards[rewards.len() - 10..])],
        }
    }

    fn gains(&self) -> [f64; 2] {
        [self.drawing, self.reward].map(|[before, after]| after - before)
    }
}

/// Rewards teach, and the same rewards on the wrong samples do not: 40 steps from the embedded model, 50 held-out prompts a
/// category.
///
/// Of seeds 1 to 10, measured so: T2I gains .088 on average (standard deviation .025, at least .057), the mean reward from
/// the first ten steps to the last ten .050 (.037, at least .008). With shuffled rewards T2I gains -.091 (.065, at most
/// -.023), the reward -.051 (.059, at most .032). The bounds on T2I lie between what every seed gained and what every
/// control lost; seed 6, which is run here, gained .093 and .086, its control -.237 and -.179.
#[test]
fn rewards_teach_and_shuffled_rewards_do_not() {
    const STEPS: [&str; 5] =
        ["train.steps=40", "rollout.prompts=12", "eval.prompts=50", "eval.pictures=0", "eval.batch=100"];
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
        Learned::read(&out).gains()
    });
    assert!(rewarded[0] >= 0.04, "T2I: {rewarded:?}");
    assert!(rewarded[1] >= 0.02, "reward: {rewarded:?}");
    assert!(control[0] <= 0.0, "T2I of the control: {control:?}");
    assert!(control[1] <= 0.0, "reward of the control: {control:?}");
}

/// Every optimizer runs to its end and leaves what the README promises; what it saves is the model that it evaluated.
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
            "rollout.prompts=6",
            "rollout.group=2",
            "train.sample_every=1",
            "eval.prompts=2",
            "eval.pictures=2",
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
        assert_eq!(lines[0]["reward/answer_mean"].is_f64(), split);
        if split {
            let has = |line: usize, name: &str| lines[line][name].is_f64();
            assert!(has(0, "loss/image") && !has(0, "loss/answer"), "drawing in the first step");
            assert!(has(1, "loss/answer") && !has(1, "loss/image"), "answering in the second");
        }

        assert!(out.join("checkpoints/step-000001").is_dir());
        let latest = out.join("checkpoints/latest");
        let again: Value = serde_json::from_slice(&unirl(&[
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
        assert_eq!(again, report["trained"], "{plugin}, {optimizer}");
        assert_ne!(report["base"], Value::Null);
    }
}
