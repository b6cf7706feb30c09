//! `unirl eval`: shards, resumption, receipts; and the drift guard of a run.

#![allow(clippy::unwrap_used, reason = "a test: a wrong value ends it")]

use std::fs;
use std::path::Path;
use std::process::Command;

use insta::assert_snapshot;
use serde_json::Value;
use tempfile::TempDir;

/// Exit status, stdout and stderr of the command in `folder`.
fn unirl(folder: &Path, arguments: &[&str]) -> String {
    let plugins = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let output = Command::new(env!("CARGO_BIN_EXE_unirl-under-test"))
        .args(arguments)
        .arg("--plugin-dir")
        .arg(plugins)
        .current_dir(folder)
        .env("CUDA_VISIBLE_DEVICES", "")
        .env("OMP_NUM_THREADS", "1") // small as it is, it gains nothing from two and waits for them
        .output()
        .unwrap();
    format!(
        "exit: {}\nstdout:\n{}stderr:\n{}",
        output.status.code().unwrap(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

const SMALL: [&str; 8] =
    ["eval", "--plugin", "showo", "--prompts", "3", "--set", "eval.batch=4", "--device=cpu"];

fn eval(folder: &Path, arguments: &[&str]) -> String {
    unirl(folder, &[&SMALL, arguments].concat())
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Three ways to the same receipt: at once, in two shards, and in two goes of which the first was cut short.
#[test]
fn shards_and_resumption_change_nothing() {
    let home = TempDir::new().unwrap();
    let at = |name: &str| home.path().join(name);
    let done = eval(home.path(), &["--out", "whole"]);
    assert!(done.starts_with("exit: 0") && done.contains("T2I->MMU"), "{done}");

    let half = eval(home.path(), &["--out", "shards", "--shard", "2/2"]);
    assert!(half.contains("2 of 5 parts are there: the receipt is written with the last"), "{half}");
    assert!(!at("shards/receipt.json").exists());
    eval(home.path(), &["--out", "shards", "--shard", "1/2"]);

    eval(home.path(), &["--out", "cut"]);
    fs::remove_file(at("cut/receipt.json")).unwrap();
    fs::remove_file(at("cut/parts/00003.json")).unwrap();
    let kept = fs::metadata(at("cut/parts/00002.json")).unwrap().modified().unwrap();
    eval(home.path(), &["--out", "cut"]);
    assert_eq!(fs::metadata(at("cut/parts/00002.json")).unwrap().modified().unwrap(), kept);

    let whole = fs::read_to_string(at("whole/receipt.json")).unwrap();
    assert_eq!(fs::read_to_string(at("shards/receipt.json")).unwrap(), whole);
    assert_eq!(fs::read_to_string(at("cut/receipt.json")).unwrap(), whole);

    // What is printed without a folder is what the receipt says.
    let printed = eval(home.path(), &["--json"]);
    let printed = printed.strip_prefix("exit: 0\nstdout:\n").unwrap().split("stderr:").next().unwrap();
    assert_eq!(serde_json::from_str::<Value>(printed).unwrap(), read(&at("whole/receipt.json"))["figures"]);
}

#[test]
fn a_receipt_is_verified() {
    let home = TempDir::new().unwrap();
    eval(home.path(), &["--out", "e"]);
    let receipt = home.path().join("e/receipt.json");
    let text = fs::read_to_string(&receipt).unwrap();
    let verify = |arguments: &[&str]| unirl(home.path(), &[&["eval", "verify"], arguments].concat());
    let good = verify(&["e/receipt.json", "--plugin", "showo"]);
    assert!(good.starts_with("exit: 0") && good.contains(", those of the model"), "{good}");
    let other = verify(&["e/receipt.json", "--plugin", "janus"]);
    assert!(
        other.starts_with("exit: 1") && other.contains("the model is not that of the receipt"),
        "{other}"
    );

    let altered = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        fs::write(home.path().join("altered.json"), text.replacen(from, to, 1)).unwrap();
        verify(&["altered.json"])
    };
    let weights = read(&receipt)["plan"]["model"]["weights"].as_str().unwrap().to_string();
    let wrong = if weights.starts_with('0') { "1" } else { "0" };
    let texts = [
        altered("\"strict\": true", "\"strict\": fals3"),
        altered("\"strict\": true", "\"strict\": false"),
        altered(&weights, &format!("{wrong}{}", &weights[1..])),
        altered("a photo of", "a phota of"),
        altered("\"form\": 1", "\"form\": 2"),
        verify(&["nowhere.json"]),
        verify(&["e/plan.json"]),
        eval(home.path(), &["--out", "e", "--seed", "3"]),
        eval(home.path(), &["--out", "x", "--shard", "3/2"]),
        eval(home.path(), &["--out", "."]),
        eval(home.path(), &["--set", "eval.best=t2y"]),
    ];
    assert_snapshot!(texts.join("\n"));
}

fn guarded(home: &TempDir, settings: &[&str]) -> (String, Vec<Value>) {
    let mut arguments =
        vec!["--plugin", "showo", "--optimizer", "sft", "--device=cpu", "--steps", "4", "--out", "run"];
    let small = [
        "eval.prompts=0",
        "train.sample_every=0",
        "eval.every=2",
        "eval.every_prompts=10",
        "rollout.prompts=6",
        "rollout.group=2",
    ];
    arguments.extend(small.iter().chain(settings).flat_map(|setting| ["--set", setting]));
    let said = unirl(home.path(), &arguments);
    assert!(said.starts_with("exit: 0"), "{said}");
    let text = fs::read_to_string(home.path().join("run/metrics.jsonl")).unwrap();
    (said, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// A learning rate at which the model falls apart at once.
const RUINOUS: &str = "update.learning_rate=0.05";

#[test]
fn the_guard_stops_a_run_that_falls() {
    let home = TempDir::new().unwrap();
    let (said, metrics) = guarded(&home, &[RUINOUS, "eval.guard=stop"]);
    assert_eq!(metrics.len(), 2, "{said}");
    assert!(said.contains("stopped by the guard: ") && said.contains(" fell from "), "{said}");
    let report = read(&home.path().join("run/report.json"));
    assert_eq!(report["steps"], 2);
    assert!(home.path().join("run/checkpoints/latest").canonicalize().unwrap().ends_with("step-000002"));
}

#[test]
fn the_guard_goes_back_to_the_best_weights() {
    let home = TempDir::new().unwrap();
    let (said, metrics) = guarded(&home, &[RUINOUS, "eval.guard=rollback", "update.warmup=1"]);
    assert!(said.contains("back to the weights of the best step"), "{said}");
    assert_eq!(metrics.iter().filter(|line| line["eval/rollback"] == 1.0).count(), 2);
    // It fell at the last step, too: what is saved is the base.
    let figures = |arguments: &[&str]| {
        let said = eval(home.path(), &[&["--json"], arguments].concat());
        said.split("stderr:").next().unwrap().to_string()
    };
    assert_eq!(figures(&["--model", "run/checkpoints/latest"]), figures(&[]));
}

#[test]
fn the_guard_warns_keeps_the_best_and_leaves_the_run_as_it_was() {
    let home = TempDir::new().unwrap();
    let (_, watched) = guarded(&home, &["checkpoint.every=3"]);
    assert!(watched[1]["eval/t2i"].is_number() && watched[0]["eval/t2i"].is_null());
    let steps = home.path().join("run/checkpoints");
    if steps.join("best").exists() {
        assert!(steps.join("best/config.json").is_file());
    }
    assert!(steps.join("step-000003").is_dir() && steps.join("step-000004").is_dir());
    let other = TempDir::new().unwrap();
    let (_, unwatched) = guarded(&other, &["eval.every=0"]);
    for (one, other) in watched.iter().zip(&unwatched) {
        for name in ["reward/mean", "loss/answer", "update/gradient_norm"] {
            assert_eq!(one[name], other[name], "{name}");
        }
    }
}
