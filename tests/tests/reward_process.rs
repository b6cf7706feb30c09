//! A reward rule that is a program of its own: what it is asked, and what comes of one that hangs, ends or talks nonsense.

#![allow(clippy::unwrap_used, reason = "a test: a wrong value ends it")]

mod common;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use common::{shown, unirl};
use serde_json::Value;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/python-reward/reward.py");

const SAMPLES: &str = r#"{"category":"counting","prompt":"a photo of three stars","truth":"three stars","answer":"three stars"}
{"category":"counting","prompt":"a photo of three stars","truth":"three stars","answer":"two stars"}
"#;

/// A program in `home` with this body after its first line.
fn script(home: &Path, name: &str, body: &str) -> String {
    let path = home.join(name);
    fs::write(&path, format!("#!/usr/bin/env python3\nimport json, os, sys, time\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    format!("cmd:{}", path.display())
}

/// `unirl reward score` of two samples under a rule.
fn scored(home: &Path, rule: &str, options: &str) -> String {
    let config = home.join("rules.toml");
    fs::write(&config, format!("[reward]\nrules = [{{ name = {rule:?}, options = {{ {options} }} }}]\n"))
        .unwrap();
    let mut child = unirl(["reward", "score", "--config", config.to_str().unwrap()])
        .current_dir(home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(SAMPLES.as_bytes());
    shown(&child.wait_with_output().unwrap()).replace(home.to_str().unwrap(), "[HOME]")
}

#[test]
fn a_run_is_rewarded_by_a_program() {
    let home = tempfile::tempdir().unwrap();
    let rule = format!("cmd:{EXAMPLE}");
    let mut arguments = vec!["--plugin", "showo", "--optimizer", "grpo", "--device", "cpu", "--out", "run"];
    let settings =
        ["train.steps=2", "rollout.prompts=6", "rollout.group=2", "eval.prompts=0", "eval.pictures=2"];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    arguments.extend(["--reward", &rule]);
    let said = shown(&unirl(&arguments).current_dir(home.path()).output().unwrap());
    assert!(said.starts_with("exit: 0"), "{said}");
    let lines = |file: &str| -> Vec<Value> {
        let text = fs::read_to_string(home.path().join("run").join(file)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert!(lines("metrics.jsonl").iter().all(|line| line["reward/mean"].as_f64().unwrap() > 0.0));
    for sample in lines("samples/trained.jsonl") {
        let words = sample["truth"].as_str().unwrap().split_whitespace().count();
        assert_eq!(sample["reward"]["max"], words as f64, "{sample}");
        assert!(sample["reward"]["why"].as_str().unwrap().ends_with("words"), "{sample}");
    }
}

/// One that ends at its first batch, and one that hangs at it: each is started again, and answers then.
#[test]
fn a_program_that_ends_or_hangs_is_started_again() {
    let home = tempfile::tempdir().unwrap();
    let once = |what: &str| {
        format!(
            "for line in sys.stdin:\n    if not os.path.exists('{0}'):\n        open('{0}', 'w').close()\n        {1}\n    \
             print(json.dumps({{'rewards': [{{'score': 1, 'max': 1}}, None]}}), flush=True)",
            home.path().join(what.split('(').next().unwrap()).display(),
            what
        )
    };
    for what in ["os._exit(3)", "time.sleep(600)"] {
        let rule = script(home.path(), "flaky.py", &once(what));
        let said = scored(home.path(), &rule, "timeout_seconds = 5.0");
        assert!(said.starts_with("exit: 0"), "{said}");
        assert!(said.contains("it is started again"), "{said}");
        assert!(said.contains("{\"reward\":1.0,\"max\":1.0") && said.contains("\"max\":0.0"), "{said}");
    }
}

#[test]
fn what_is_wrong_with_a_program_is_told() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let answering = |reply: &str| format!("for line in sys.stdin:\n    print({reply}, flush=True)");
    let said = [
        scored(home, &script(home, "chatty.py", &answering("'scoring...'")), ""),
        scored(home, &script(home, "short.py", &answering("json.dumps({'rewards': [None]})")), ""),
        scored(home, &script(home, "keys.py", &answering("json.dumps({'reward': [None, None]})")), ""),
        scored(
            home,
            &script(home, "unable.py", &answering("json.dumps({'error': 'no table for `counting`'})")),
            "",
        ),
        scored(
            home,
            &script(home, "much.py", &answering("json.dumps({'rewards': [{'score': 3, 'max': 1}] * 2})")),
            "",
        ),
        scored(home, &script(home, "ends.py", "sys.exit(1)"), ""),
        scored(home, &script(home, "hangs.py", "time.sleep(600)"), "timeout_seconds = 0.2"),
        scored(home, &script(home, "fine.py", &answering("''")), "timeout_seconds = 0.0"),
        scored(home, &script(home, "fine.py", &answering("''")), "timeout = 1"),
        scored(home, "cmd:nowhere.py", ""),
        {
            fs::write(home.join("plain.py"), "print()").unwrap();
            scored(home, "cmd:plain.py", "")
        },
    ];
    insta::assert_snapshot!(said.join("\n"));
}
