//! `unirl doctor`.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use common::{format_output, plugin_dir, program, unirl};
use serde_json::Value;

/// The builtin models pass every check; checks that do not apply to Janus are skipped.
#[test]
fn builtin_models_pass_doctor() {
    for (plugin, skipped) in [("showo", 0), ("janus", 2)] {
        let output = unirl(["doctor", "--plugin", plugin, "--device", "cpu", "--json"]).output().unwrap();
        let printed = format_output(&output);
        assert!(printed.starts_with("exit: 0"), "{printed}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["about"]["libtorch"], json["about"]["libtorch loaded"]);
        let findings = json["findings"].as_array().unwrap();
        let count = |outcome: &str| findings.iter().filter(|finding| finding["outcome"] == outcome).count();
        assert_eq!((count("fails"), count("skipped"), findings.len()), (0, skipped, 9), "{printed}");
        assert!(json["plugins"]["plugins"].as_array().unwrap().len() >= 5, "{printed}");
    }
}

/// Models that panic, generate images of the wrong shape, or return NaN scores.
#[test]
fn doctor_reports_failed_checks_with_hints() {
    let printed = ["panics", "wrong-shape", "nan"].map(|model| {
        let printed = format_output(
            &unirl(["doctor", "--device", "cpu", "--plugin", &format!("fixture#{model}")]).output().unwrap(),
        );
        assert!(printed.starts_with("exit: 1"), "{printed}");
        let (_, findings) = printed.split_once("\nFAILS").unwrap();
        let place = findings.find(" at ").map(|at| at..findings[at..].find(": ").map_or(at, |end| at + end));
        let mut findings = findings.to_string();
        if let Some(place) = place {
            findings.replace_range(place, " at [PLACE]");
        }
        format!("{model}\nFAILS{findings}")
    });
    insta::assert_snapshot!(printed.join("\n"));
}

#[test]
fn doctor_without_model_shows_installation() {
    let empty = tempfile::tempdir().unwrap();
    std::fs::write(empty.path().join("libunirl_plugin_torn.so"), "no library").unwrap();
    let output =
        program(["doctor", "--plugin-dir"]).arg(empty.path()).env("UNIRL_PLUGIN_PATH", plugin_dir()).output();
    let printed = format_output(&output.unwrap());
    assert!(printed.starts_with("exit: 0"), "{printed}");
    for text in [
        "\nlibtorch loaded  2.",
        "\nGPU              none",
        "\nthreads          1\n",
        "refused: ",
        "model `showo`",
    ] {
        assert!(printed.contains(text), "{text}: {printed}");
    }
    let graphs = match unirl_torch::cuda_graph::support() {
        Ok(()) => "compiled in".to_owned(),
        Err(why) => format!("none: {why}"),
    };
    assert!(printed.contains(&format!("\nCUDA graphs      {graphs}\n")), "{printed}");
    let wrong = [
        vec!["doctor", "--prompts", "3"],
        vec!["doctor", "--plugin", "showo", "--prompts", "0"],
        vec!["doctor", "--plugin", "shwo"],
    ];
    let wrong = wrong.map(|arguments| {
        let printed =
            format_output(&program(arguments).env("UNIRL_PLUGIN_PATH", plugin_dir()).output().unwrap());
        printed.lines().filter(|line| !line.contains("searched for")).collect::<Vec<_>>().join("\n")
    });
    insta::assert_snapshot!(wrong.join("\n\n"));
}
