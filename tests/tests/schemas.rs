//! `schemas/` matches the code. `UPDATE_SCHEMAS=1 cargo test --release -p unirl-tests schemas` rewrites it.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::fs;
use std::path::Path;

#[test]
fn schemas_match_the_code() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas");
    for (file, arguments) in [
        ("run", vec!["run"]),
        ("pretrain", vec!["pretrain"]),
        ("rules", vec!["rules"]),
        ("wording", vec!["wording"]),
        ("metrics", vec!["metrics"]),
        ("sft", vec!["sft"]),
        ("grpo", vec!["grpo"]),
        ("grpo-split", vec!["grpo-split"]),
        ("plugin-showo", vec!["--plugin", "showo"]),
        ("plugin-janus", vec!["--plugin", "janus"]),
        ("plugin-rewards", vec!["--plugin", "rewards"]),
    ] {
        let output = common::unirl([vec!["schema"], arguments].concat()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let path = folder.join(format!("{file}.json"));
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            fs::write(&path, &output.stdout).unwrap();
        }
        assert_eq!(
            fs::read_to_string(&path).unwrap_or_default(),
            String::from_utf8(output.stdout).unwrap(),
            "`{}` is out of date: UPDATE_SCHEMAS=1 cargo test --release -p unirl-tests schemas",
            path.display()
        );
    }
}
