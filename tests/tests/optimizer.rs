//! The example `my-optimizer`: the command line with a custom algorithm.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::fs;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

/// The lines that the example may have.
const MAX_LINES: usize = 80;

fn my_optimizer(home: &TempDir, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_my-optimizer-under-test"));
    command.args(arguments).arg("--plugin-dir").arg(common::plugin_dir()).current_dir(home.path());
    command.env("CUDA_VISIBLE_DEVICES", "").env("OMP_NUM_THREADS", "1");
    common::format_output(&command.output().unwrap())
}

#[test]
fn algorithm_from_outside_trains_resumes_and_is_recorded() {
    let home = TempDir::new().unwrap();
    let train = ["--plugin=showo", "--device=cpu", "--optimizer=mean-baseline", "--out=run", "--steps=2"];
    let small = ["--set=eval.prompts=0", "--set=rollout.prompts_per_step=2", "--set=rollout.group_size=2"];
    let printed = my_optimizer(&home, &[&train[..], &small].concat());
    assert!(printed.starts_with("exit: 0"), "{printed}");
    let read = |name: &str| fs::read_to_string(home.path().join("run").join(name)).unwrap();
    for line in read("metrics.jsonl").lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        assert!(line["loss/policy"].is_f64() || line["metrics"]["loss/policy"].is_f64(), "{line}");
    }
    // Its defaults are recorded like those of the algorithms of the paper.
    let config: toml::Table = read("config.toml").parse().unwrap();
    assert_eq!(config["optimizer"]["mean-baseline"]["answer_weight"].as_float(), Some(1.0));
    let printed = my_optimizer(&home, &["--resume=run", "--steps=3", "--allow-change"]);
    assert!(printed.starts_with("exit: 0"), "{printed}");
}

#[test]
fn micro_batches_do_not_change_the_metrics_of_an_algorithm_from_outside() {
    let home = TempDir::new().unwrap();
    let loss = |out: &str, micro: &str| {
        let printed = my_optimizer(
            &home,
            &[
                "--plugin=showo",
                "--device=cpu",
                "--optimizer=mean-baseline",
                "--steps=1",
                &format!("--out={out}"),
                "--set=eval.prompts=0",
                "--set=rollout.prompts_per_step=2",
                "--set=rollout.group_size=2",
                &format!("--set=rollout.micro_batch={micro}"),
            ],
        );
        assert!(printed.starts_with("exit: 0"), "{printed}");
        let line = fs::read_to_string(home.path().join(out).join("metrics.jsonl")).unwrap();
        let line: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
        let metrics = if line["metrics"].is_object() { &line["metrics"] } else { &line };
        ["loss/policy", "reward/mean", "update/gradient_norm"].map(|name| metrics[name].as_f64().unwrap())
    };
    // f32 in two orders of summation.
    for (one, other) in loss("whole", "0").into_iter().zip(loss("parts", "1")) {
        assert!((one - other).abs() <= 1e-4 * one.abs().max(1.0), "{one} {other}");
    }
}

#[test]
fn options_of_an_algorithm_from_outside_are_checked_and_listed() {
    let home = TempDir::new().unwrap();
    let train = ["--plugin=showo", "--optimizer=mean-baseline"];
    let printed =
        my_optimizer(&home, &[&train[..], &["--set=optimizer.mean-baseline.answer_weigth=2"]].concat());
    assert!(
        printed.starts_with("exit: 2")
            && printed.contains("did you mean `optimizer.mean-baseline.answer_weight`?"),
        "{printed}"
    );
    let printed = my_optimizer(&home, &["--plugin=showo", "--optimizer=mean-baselin"]);
    assert!(printed.starts_with("exit: 2") && printed.contains("did you mean `mean-baseline`?"), "{printed}");
}

#[test]
fn the_example_is_short() {
    let source = include_str!("../../examples/my-optimizer/src/main.rs");
    assert!(source.lines().count() <= MAX_LINES, "{} lines", source.lines().count());
}
