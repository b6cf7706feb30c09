//! `unirl doctor`.

#![allow(clippy::unwrap_used, reason = "a test: a wrong value ends it")]

mod common;

use common::{plugin_dir, program, shown, unirl};
use serde_json::Value;

/// The embedded models keep every promise; what cannot be asked of Janus is said.
#[test]
fn the_embedded_models_are_well() {
    for (plugin, skipped) in [("showo", 0), ("janus", 2)] {
        let output = unirl(["doctor", "--plugin", plugin, "--device", "cpu", "--json"]).output().unwrap();
        let shown_text = shown(&output);
        assert!(shown_text.starts_with("exit: 0"), "{shown_text}");
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(json["about"]["libtorch"], json["about"]["libtorch loaded"]);
        let findings = json["findings"].as_array().unwrap();
        let count = |outcome: &str| findings.iter().filter(|finding| finding["outcome"] == outcome).count();
        assert_eq!((count("fails"), count("skipped"), findings.len()), (0, skipped, 9), "{shown_text}");
        assert!(json["plugins"]["plugins"].as_array().unwrap().len() >= 5, "{shown_text}");
    }
}

/// A model that panics, one whose drawings have the wrong shape, and one that scores nothing.
#[test]
fn a_sick_model_is_told_with_a_hint() {
    let shown_text = ["panics", "wrong-shape", "nan"].map(|model| {
        let shown_text = shown(
            &unirl(["doctor", "--device", "cpu", "--plugin", &format!("fixture#{model}")]).output().unwrap(),
        );
        assert!(shown_text.starts_with("exit: 1"), "{shown_text}");
        let (_, findings) = shown_text.split_once("\nFAILS").unwrap();
        let place = findings.find(" at ").map(|at| at..findings[at..].find(": ").map_or(at, |end| at + end));
        let mut findings = findings.to_string();
        if let Some(place) = place {
            findings.replace_range(place, " at [PLACE]");
        }
        format!("{model}\nFAILS{findings}")
    });
    insta::assert_snapshot!(shown_text.join("\n"));
}

#[test]
fn without_a_model_it_tells_what_there_is() {
    let empty = tempfile::tempdir().unwrap();
    std::fs::write(empty.path().join("libunirl_plugin_torn.so"), "no library").unwrap();
    let output =
        program(["doctor", "--plugin-dir"]).arg(empty.path()).env("UNIRL_PLUGIN_PATH", plugin_dir()).output();
    let shown_text = shown(&output.unwrap());
    assert!(shown_text.starts_with("exit: 0"), "{shown_text}");
    for text in [
        "\nlibtorch loaded  2.",
        "\nGPU              none",
        "\nthreads          1\n",
        "refused: ",
        "model `showo`",
    ] {
        assert!(shown_text.contains(text), "{text}: {shown_text}");
    }
    let graphs = match unirl::cuda_graph::support() {
        Ok(()) => "compiled in".to_owned(),
        Err(why) => format!("none: {why}"),
    };
    assert!(shown_text.contains(&format!("\nCUDA graphs      {graphs}\n")), "{shown_text}");
    let wrong = [
        vec!["doctor", "--prompts", "3"],
        vec!["doctor", "--plugin", "showo", "--prompts", "0"],
        vec!["doctor", "--plugin", "shwo"],
    ];
    let wrong = wrong.map(|arguments| {
        let shown_text = shown(&program(arguments).env("UNIRL_PLUGIN_PATH", plugin_dir()).output().unwrap());
        shown_text.lines().filter(|line| !line.contains("searched for")).collect::<Vec<_>>().join("\n")
    });
    insta::assert_snapshot!(wrong.join("\n\n"));
}
