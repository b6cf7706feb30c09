//! The embedded base is what the demonstration needs, and training on its own images helps it.

#![allow(clippy::unwrap_used, reason = "a test: a wrong value ends it")]

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
fn the_embedded_base_draws_wrong_facts_and_sees_them() {
    let report: Value =
        serde_json::from_slice(&unirl(&["eval", "--plugin", "showo", "--device", "cpu", "--json"])).unwrap();
    let drawing = mean(&report, "t2i");
    assert!((0.45..=0.70).contains(&drawing), "T2I {drawing}");
    assert!(mean(&report, "mmu") >= 0.90, "MMU {report:#}");
    for (category, share) in report["mmu"]["by_category"].as_object().unwrap() {
        assert!(share.as_f64().unwrap() >= 0.85, "MMU of {category}: {share}");
    }
    let passed = report["wrong_passed"]["micro"].as_f64().unwrap();
    assert!(passed <= 0.10, "wrong drawings that pass: {passed}");
}
