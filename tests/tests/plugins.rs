//! `unirl plugins`: a new crate, and what examining it finds.

#![allow(clippy::unwrap_used, reason = "a test: a wrong value ends it")]

mod common;

use std::fs;
use std::path::Path;

use common::{program, shown, unirl};
use insta::assert_snapshot;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

/// The examples are what the command writes, so that a change of one is a change of the other.
#[test]
fn the_examples_are_what_new_writes() {
    for kind in ["model", "reward"] {
        let home = tempfile::tempdir().unwrap();
        let name = format!("my-{kind}");
        let arguments = ["plugins", "new", &name, "--kind", kind, "--unirl", "../../core"];
        let said = shown(&program(arguments).current_dir(home.path()).output().unwrap());
        assert!(said.starts_with("exit: 0"), "{said}");
        for file in ["Cargo.toml", "src/lib.rs"] {
            let read = |folder: &Path| fs::read_to_string(folder.join(&name).join(file)).unwrap();
            assert_eq!(read(home.path()), read(Path::new(EXAMPLES)), "{file}");
        }
        let code = fs::read_to_string(home.path().join(&name).join("src/lib.rs")).unwrap();
        assert!(code.lines().count() <= 250, "{} lines", code.lines().count());
    }
}

#[test]
fn what_new_refuses() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("taken")).unwrap();
    let said = [
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
    assert_snapshot!(said.join("\n"));
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 1, "nothing is left behind");
}

/// The example and the models that come along; Janus reads images in another space than it draws them, which two checks are about.
#[test]
fn what_we_ship_keeps_its_promises() {
    for (plugin, kept) in [("my_model", 16), ("showo", 16), ("janus", 14), ("rewards", 15), ("my_reward", 5)]
    {
        let said = shown(&unirl(["plugins", "check", plugin, "--device", "cpu"]).output().unwrap());
        assert!(said.starts_with("exit: 0"), "{said}");
        assert_eq!(said.matches("\nok ").count(), kept, "{said}");
    }
}
