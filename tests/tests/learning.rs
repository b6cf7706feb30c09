//! The embedded base is what the demonstration needs, and training on its own images helps it.

#![allow(clippy::unwrap_used, reason = "a test: a wrong value ends it")]

use std::fs;
use std::process::Command;

use serde_json::Value;

fn unirl(arguments: &[&str]) -> Vec<u8> {
    let plugins = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let output = Command::new(env!("CARGO_BIN_EXE_unirl-under-test"))
        .args(arguments)
        .arg("--plugin-dir")
        .arg(plugins)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

fn mean(report: &Value, figure: &str) -> f64 {
    report[figure]["macro"].as_f64().unwrap()
}

/// Drawings well-formed and often wrong in a fact, and a reader that sees it: else its own reward teaches it nothing.
#[test]
fn the_embedded_bases_draw_wrong_facts_and_see_them() {
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

/// Every optimizer runs to its end and leaves what the README promises; what it saves is the model that it evaluated.
#[test]
fn a_run_leaves_its_configuration_metrics_pictures_and_a_checkpoint_that_loads() {
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
            "eval.prompts=2",
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
