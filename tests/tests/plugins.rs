//! `unirl plugins`: a new crate, and what examining it finds.

#![allow(clippy::unwrap_used, reason = "a test: a wrong value ends it")]

mod common;

use std::fs;
use std::path::Path;

use common::{program, shown, unirl};
use insta::assert_snapshot;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

/// The examples are what the command writes, so that a change of one is a change of the other. Without `--unirl` a crate
/// builds with the checkout of the program, never with whatever a registry has under the name.
#[test]
fn the_examples_are_what_new_writes() {
    for kind in ["model", "reward"] {
        let home = tempfile::tempdir().unwrap();
        let name = format!("my-{kind}");
        let arguments = ["plugins", "new", &name, "--kind", kind];
        let shown_text = shown(&program(arguments).current_dir(home.path()).output().unwrap());
        assert!(shown_text.starts_with("exit: 0"), "{shown_text}");
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
fn what_new_refuses() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("taken")).unwrap();
    let shown_text = [
        &["Bad_Name", "--kind", "model"][..],
        &["my-model", "--kind", "modl"],
        &["taken", "--kind", "model"],
        &["mine", "--kind", "model", "--unirl", "a\"b"],
        &["mine"],
    ]
    .map(|arguments| {
        let arguments = [&["plugins", "new"], arguments].concat();
        shown(&program(arguments).current_dir(home.path()).output().unwrap())
    });
    assert_snapshot!(shown_text.join("\n"));
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "nothing is left behind");
}

/// The example and the models that come along; Janus reads images in another space than it draws them, which two checks are about.
#[test]
fn what_we_ship_keeps_its_promises() {
    for (plugin, kept) in [("my_model", 16), ("showo", 16), ("janus", 14), ("rewards", 15), ("my_reward", 5)]
    {
        let shown_text = shown(&unirl(["plugins", "check", plugin, "--device", "cpu"]).output().unwrap());
        assert!(shown_text.starts_with("exit: 0"), "{shown_text}");
        assert_eq!(shown_text.matches("\nok ").count(), kept, "{shown_text}");
    }
}

/// A bug each in the example, and what is said of it: the check that finds it, and a part of what it says.
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
fn every_bug_planted_in_the_example_is_found() {
    let shown_text = shown(&unirl(["plugins", "check", "mutants", "--device", "cpu"]).output().unwrap());
    assert!(shown_text.starts_with("exit: 1"), "{shown_text}");
    for (bug, check, text) in BUGS {
        let (_, findings) = shown_text
            .split_once(&format!("model `{bug}`\n"))
            .unwrap_or_else(|| panic!("{bug}: {shown_text}"));
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
