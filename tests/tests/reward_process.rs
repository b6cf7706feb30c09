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
    scored_from(home, rule, options, SAMPLES)
}

/// The same of these samples. The home folder is `home`.
fn scored_from(home: &Path, rule: &str, options: &str, samples: &str) -> String {
    let config = home.join("rules.toml");
    fs::write(&config, format!("[reward]\nrules = [{{ name = {rule:?}, options = {{ {options} }} }}]\n"))
        .unwrap();
    let mut child = unirl(["reward", "score", "--config", config.to_str().unwrap()])
        .current_dir(home)
        .env("HOME", home)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _ = child.stdin.take().unwrap().write_all(samples.as_bytes());
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
    let shown_text = shown(&unirl(&arguments).current_dir(home.path()).output().unwrap());
    assert!(shown_text.starts_with("exit: 0"), "{shown_text}");
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
        let shown_text = scored(home.path(), &rule, "timeout_seconds = 5.0");
        assert!(shown_text.starts_with("exit: 0"), "{shown_text}");
        assert!(shown_text.contains("restarting it"), "{shown_text}");
        assert!(
            shown_text.contains("{\"reward\":1.0,\"max\":1.0") && shown_text.contains("\"max\":0.0"),
            "{shown_text}"
        );
    }
}

#[test]
fn what_is_wrong_with_a_program_is_told() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let answering = |reply: &str| format!("for line in sys.stdin:\n    print({reply}, flush=True)");
    let shown_text = [
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
    insta::assert_snapshot!(shown_text.join("\n"));
}

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/cases/programs");

#[test]
fn published_cases_are_scored_or_refused() {
    let home = tempfile::tempdir().unwrap();
    let shown_text = ["good", "two", "latin"]
        .map(|name| scored(home.path(), &format!("cmd:{CASES}/{name}.py"), "").replace(CASES, "[CASES]"));
    insta::assert_snapshot!(shown_text.join("\n"));
}

/// A reply for each batch, and what else there is to do with it: `{}` stands before the loop, in it and behind it.
fn replying(before: &str, with: &str, after: &str) -> String {
    format!(
        "{before}\nfor number, line in enumerate(sys.stdin):\n    n = len(json.loads(line)['samples'])\n    \
         reply = json.dumps({{'rewards': [{{'score': number, 'max': 3}}] * n}})\n    {with}\n{after}"
    )
}

#[test]
fn output_that_no_batch_asked_for_is_an_error() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let plain = "print(reply, flush=True)";
    let forms = [
        ("same_write.py", replying("", "print(reply + '\\n' + reply, flush=True)", "")),
        ("empty_line.py", replying("", "print(reply + '\\n', flush=True)", "")),
        ("late.py", replying("", "print(reply, flush=True); time.sleep(0.3); print(reply, flush=True)", "")),
        ("on_exit.py", replying("", plain, "print('all done')")),
        ("half_a_line_on_exit.py", replying("", plain, "sys.stdout.write('bye')")),
        ("twice_and_exit.py", replying("", "print(reply + '\\n' + reply, flush=True); sys.exit()", "")),
        ("half_a_line.py", replying("", "sys.stdout.write(reply[:20]); sys.exit(3)", "")),
        ("one_too_many.py", replying("", "print(json.dumps({'rewards': [1] * (n + 1)}), flush=True)", "")),
        ("endless.py", replying("", "print('x' * (65 << 20), flush=True)", "")),
        ("chatter.py", replying("", "[print(reply, flush=True) for _ in range(10 ** 6)]", "")),
    ];
    let shown_text = forms.map(|(name, body)| {
        let rule = script(home, name, &body);
        scored(home, &rule, "")
    });
    insta::assert_snapshot!(shown_text.join("\n"));

    // What is said of these depends on how fast they are.
    for (first, shown) in [("ready", "`ready`"), ("{\"rewards\": [null, null]}", "`{\"rewards\": [")] {
        let body = replying(&format!("print({first:?}, flush=True)"), plain, "");
        let shown_text = scored(home, &script(home, "before.py", &body), "");
        assert!(shown_text.starts_with("exit: 1") && shown_text.contains(shown), "{shown_text}");
    }
    let body = replying("", "sys.stdout.write(reply); sys.stdout.flush()", "");
    let shown_text = scored(home, &script(home, "no_end_of_line.py", &body), "timeout_seconds = 2.0");
    assert!(
        shown_text.starts_with("exit: 1") && shown_text.contains("missing line end after `{\"rewards\""),
        "{shown_text}"
    );
}

/// The line too many arrives while the second batch of 4096 samples is being answered, or after the last.
#[test]
fn a_line_too_many_is_found_in_any_batch() {
    let home = tempfile::tempdir().unwrap();
    let samples = SAMPLES.repeat(2 * 4096);
    for (name, with) in [
        (
            "first.py",
            "print(reply, flush=True)\n    if number == 0: time.sleep(0.1); print(reply, flush=True)",
        ),
        ("third.py", "print(reply, flush=True)\n    if number == 2: print(reply, flush=True)"),
        (
            "last.py",
            "print(reply, flush=True)\n    if number == 3: time.sleep(0.1); print(reply, flush=True)",
        ),
    ] {
        let rule = script(home.path(), name, &replying("", with, ""));
        let shown_text = scored_from(home.path(), &rule, "", &samples);
        assert!(shown_text.starts_with("exit: 1\nstdout:\nstderr:\n"), "{name}: {shown_text}");
        assert!(shown_text.contains("the process wrote more than"), "{name}: {shown_text}");
    }
    let rule = script(home.path(), "right.py", &replying("", "print(reply, flush=True)", ""));
    let shown_text = scored_from(home.path(), &rule, "", &samples);
    assert!(shown_text.starts_with("exit: 0"), "{}", &shown_text[..200]);
    assert_eq!(shown_text.lines().filter(|line| line.starts_with("{\"reward\":3.0")).count(), 4096);
}

#[test]
fn rewards_may_be_plain_numbers() {
    let home = tempfile::tempdir().unwrap();
    for reply in
        ["[0.5, 1]", " {'rewards': [0.5, 1]}", "{'rewards': [0.5, {'score': 1, 'max': 1, 'why': 'NaN'}]}"]
    {
        let body = format!("for line in sys.stdin:\n    print({:?}, flush=True)", reply.replace('\'', "\""));
        let shown_text = scored(home.path(), &script(home.path(), "numbers.py", &body), "");
        assert!(shown_text.starts_with("exit: 0"), "{shown_text}");
        assert!(
            shown_text.contains("{\"reward\":0.5,\"max\":1.0")
                && shown_text.contains("{\"reward\":1.0,\"max\":1.0"),
            "{shown_text}"
        );
    }
}

#[test]
fn what_is_no_reward_is_named_by_its_index() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let mut shown_text = Vec::new();
    for rewards in [
        "[1, NaN]",
        "[Infinity, 1]",
        "[1, -Infinity]",
        "[1, 1e999]",
        "[\"1\", 1]",
        "[1, true]",
        "[1, [1, 1]]",
        "[1, 2]",
        "[-0.5, 1]",
        "[{\"score\": 1, \"max\": 1}, {\"score\": NaN, \"max\": 1}]",
        "[{\"score\": \"1\", \"max\": 1}, null]",
        "[{\"score\": 1}, null]",
        "[{\"score\": 1, \"max\": 1, \"parts\": {\"noun\": \"1\"}}, null]",
        "[null, {\"score\": 1, \"max\": 1, \"why\": 3}]",
        "[null, {\"score\": 2, \"max\": 1, \"why\": \"a \\\\\"NaN\\\\\"\"}]",
        "[1, nan]",
    ] {
        let body = format!("for line in sys.stdin:\n    print('{{\"rewards\": {rewards}}}', flush=True)");
        shown_text.push(format!("{rewards}\n{}", scored(home, &script(home, "numbers.py", &body), "")));
    }
    insta::assert_snapshot!(shown_text.join("\n"));
}

#[test]
fn a_program_is_named_with_its_arguments_as_in_a_shell() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let body =
        "print(sys.argv[1:], file=sys.stderr)\n".to_string() + &replying("", "print(reply, flush=True)", "");
    fs::create_dir(home.join("my rules")).unwrap();
    script(home, "my rules/own.py", &body);
    script(home, "own.py", &body);
    fs::write(home.join("plain.py"), format!("import json, sys, time\n{body}")).unwrap();
    let mut shown_text = Vec::new();
    for (rule, options) in [
        ("cmd:python3 plain.py", ""),
        ("cmd:python3 -u plain.py --points '2 3' \"it's\"", ""),
        ("cmd:python3 plain.py first", "args = ['second', '~/third']"),
        ("cmd:my rules/own.py", ""),
        ("cmd:'my rules/own.py' --fast", ""),
        ("cmd:my\\ rules/own.py", ""),
        ("cmd:own.py", ""),
        ("cmd:~/own.py", ""),
        ("cmd:~/my rules/own.py", ""),
        ("cmd:python3 ~/plain.py ~/a a~/b ~me", ""),
        ("cmd:python3 'plain.py", ""),
        ("cmd:", ""),
        ("cmd:''", ""),
        ("cmd:pyhton3 plain.py", ""),
        ("cmd:plain.py", ""),
        ("cmd:my rules", ""),
    ] {
        shown_text.push(format!("{rule}  {options}\n{}", scored(home, rule, options)));
    }
    insta::assert_snapshot!(shown_text.join("\n"));
    let shown_text = scored(home, "cmd:python3 nowhere.py", "");
    assert!(
        shown_text.contains("nowhere.py") && shown_text.contains("(exit status: 2), 3 times"),
        "{shown_text}"
    );
}
