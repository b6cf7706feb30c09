//! `unirl plugins`: new crates and conformance checks.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::fs;
use std::path::Path;

use common::{format_output, program, unirl};
use insta::assert_snapshot;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

/// The command writes the examples. Without `--unirl`, a crate depends on the checkout of the program, never on a crate of that
/// name in a registry.
#[test]
fn plugins_new_writes_the_examples() {
    for kind in ["model", "reward"] {
        let home = tempfile::tempdir().unwrap();
        let name = format!("my-{kind}");
        let arguments = ["plugins", "new", &name, "--kind", kind];
        let printed = format_output(&program(arguments).current_dir(home.path()).output().unwrap());
        assert!(printed.starts_with("exit: 0"), "{printed}");
        for file in ["Cargo.toml", "src/lib.rs"] {
            let read = |folder: &Path| fs::read_to_string(folder.join(&name).join(file)).unwrap();
            let core = fs::canonicalize(format!("{EXAMPLES}/../core")).unwrap();
            let written = read(home.path()).replace(core.to_str().unwrap(), "../../core");
            assert_eq!(written, read(Path::new(EXAMPLES)), "{file}");
        }
        let code = fs::read_to_string(home.path().join(&name).join("src/lib.rs")).unwrap();
        assert!(code.lines().count() <= 250, "{} lines", code.lines().count());
    }
}

#[test]
fn plugins_new_refuses_invalid_arguments() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("taken")).unwrap();
    let printed = [
        &["Bad_Name", "--kind", "model"][..],
        &["my-model", "--kind", "modl"],
        &["taken", "--kind", "model"],
        &["mine", "--kind", "model", "--unirl", "a\"b"],
        &["mine"],
    ]
    .map(|arguments| {
        let arguments = [&["plugins", "new"], arguments].concat();
        format_output(&program(arguments).current_dir(home.path()).output().unwrap())
    });
    assert_snapshot!(printed.join("\n"));
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "no files are left behind");
}

/// The plugins of the tests are dependencies of this package, so cargo leaves them out of the directory of the program.
#[test]
fn plugins_list_shows_no_plugin_of_the_tests() {
    let home = tempfile::tempdir().unwrap();
    let output = program(["plugins", "list", "--json"]).env("HOME", home.path()).output().unwrap();
    let listed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> =
        listed["plugins"].as_array().unwrap().iter().map(|plugin| plugin["name"].as_str().unwrap()).collect();
    assert!(names.iter().all(|name| ["janus", "rewards", "showo"].contains(name)), "{names:?}");
}

/// Two checks do not apply to Janus, which has separate image representations for generation and understanding.
#[test]
fn shipped_plugins_pass_conformance_checks() {
    for (plugin, passed) in
        [("my_model", 16), ("showo", 16), ("janus", 14), ("rewards", 15), ("my_reward", 5)]
    {
        let printed =
            format_output(&unirl(["plugins", "check", plugin, "--device", "cpu"]).output().unwrap());
        assert!(printed.starts_with("exit: 0"), "{printed}");
        assert_eq!(printed.matches("\nok ").count(), passed, "{printed}");
    }
}

/// Bugs planted in the example, the check that finds each, and a part of its message.
const BUGS: [(&str, &str, &str); 18] = [
    ("no-shift", "generation: scoring reproduces the sampling probabilities", "nats per token: off by"),
    ("no-mask", "the rows of a batch are independent", "generated alone"),
    ("shared-reference", "the reference policy does not change", "after an update: off by"),
    (
        "drawing-ignores-the-seed",
        "the seed determines the samples",
        "the same seed generates different images",
    ),
    (
        "answering-ignores-the-seed",
        "the seed determines the samples",
        "the same seed samples different answers",
    ),
    ("detached-image", "the gradient of an answer reaches the image", "get no gradient"),
    ("part-ignored", "the rows of a batch are independent", "generated alone"),
    ("heated-logp", "understanding: scoring reproduces the sampling probabilities", "nats per token: off by"),
    (
        "image-not-scored",
        "understanding: scoring reproduces the sampling probabilities",
        "nats per token: off by",
    ),
    ("reference-not-used", "the reference policy does not change", "after an update: off by"),
    ("parameters-are-copies", "gradients reach the right parameter groups", "leaves no gradient in `Shared`"),
    ("saves-too-little", "a saved model loads with the same weights", "words"),
    ("loads-nothing", "a saved model loads with the same weights", "of the loaded model: off by"),
    ("no-end-token", "token ids are valid", "ends with token"),
    (
        "wrong-group",
        "gradients reach the right parameter groups",
        "no parameter is in a group that generation trains",
    ),
    ("leaks", "200 calls use no more memory than 20", "kB more after 200 calls"),
    ("checks-nothing", "invalid input is an error", "image tokens outside the codebook"),
    ("pixels-around-zero", "`pixels` and `encode` are valid", "expected values in 0..=1"),
];

#[test]
fn conformance_checks_find_every_planted_bug() {
    let printed = format_output(&unirl(["plugins", "check", "mutants", "--device", "cpu"]).output().unwrap());
    assert!(printed.starts_with("exit: 1"), "{printed}");
    for (bug, check, text) in BUGS {
        let (_, findings) =
            printed.split_once(&format!("model `{bug}`\n")).unwrap_or_else(|| panic!("{bug}: {printed}"));
        let findings = findings.split("\nmodel `").next().unwrap();
        let found = findings
            .split_once(&format!("FAILS    {check}\n"))
            .unwrap_or_else(|| panic!("{bug}: {findings}"))
            .1;
        let found = ["ok ", "FAILS ", "skipped "]
            .iter()
            .fold(found, |found, next| found.split(&format!("\n\n{next}")).next().unwrap());
        assert!(found.contains(text), "{bug}: {found}");
        assert!(found.contains("hint: "), "{bug}: {found}");
    }
}
