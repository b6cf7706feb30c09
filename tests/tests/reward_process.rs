//! Rewards in separate processes: the protocol, and programs that hang, exit or write invalid output.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;

use common::{format_output, unirl};
use serde_json::Value;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/python-reward/reward.py");

const SAMPLES: &str = r#"{"category":"counting","prompt":"a photo of three stars","truth":"three stars","answer":"three stars"}
{"category":"counting","prompt":"a photo of three stars","truth":"three stars","answer":"two stars"}
"#;

/// Writes a Python program with `body` to `home` and returns its reward name.
fn script(home: &Path, name: &str, body: &str) -> String {
    let path = home.join(name);
    fs::write(&path, format!("#!/usr/bin/env python3\nimport json, os, sys, time\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    format!("cmd:{}", path.display())
}

/// The output of `unirl reward score` on [`SAMPLES`].
fn score(home: &Path, rule: &str, options: &str) -> String {
    score_samples(home, rule, options, SAMPLES)
}

/// The output of `unirl reward score` on `samples`, with `home` as the home directory.
fn score_samples(home: &Path, rule: &str, options: &str, samples: &str) -> String {
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
    format_output(&child.wait_with_output().unwrap()).replace(home.to_str().unwrap(), "[HOME]")
}

/// The program behind `cmd:` starts once per run, and counts its starts in a file.
#[test]
fn process_reward_scores_a_run() {
    let home = tempfile::tempdir().unwrap();
    let starts = home.path().join("starts");
    let body =
        format!("open({starts:?}, 'a').write('x')\nos.execv(sys.executable, [sys.executable, {EXAMPLE:?}])");
    let rule = script(home.path(), "counted.py", &body);
    let mut arguments = vec!["--plugin", "showo", "--optimizer", "grpo", "--device", "cpu", "--out", "run"];
    let settings = [
        "train.steps=2",
        "rollout.prompts_per_step=6",
        "rollout.group_size=2",
        "eval.prompts=0",
        "eval.samples_per_prompt=2",
    ];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    arguments.extend(["--reward", &rule]);
    let printed = format_output(&unirl(&arguments).current_dir(home.path()).output().unwrap());
    assert!(printed.starts_with("exit: 0"), "{printed}");
    let lines = |file: &str| -> Vec<Value> {
        let text = fs::read_to_string(home.path().join("run").join(file)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    assert_eq!(fs::read_to_string(&starts).unwrap(), "x");
    assert!(lines("metrics.jsonl").iter().all(|line| line["reward/mean"].as_f64().unwrap() > 0.0));
    for sample in lines("samples/trained.jsonl") {
        let words = sample["truth"].as_str().unwrap().split_whitespace().count();
        assert_eq!(sample["reward"]["max"], words as f64, "{sample}");
        assert!(sample["reward"]["why"].as_str().unwrap().ends_with("words"), "{sample}");
    }
}

/// A program that exits or hangs on its first batch is restarted and then returns rewards.
#[test]
fn process_reward_restarts_after_exit_or_hang() {
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
        let printed = score(home.path(), &rule, "timeout_seconds = 5.0");
        assert!(printed.starts_with("exit: 0"), "{printed}");
        assert!(printed.contains("restarting it"), "{printed}");
        assert!(
            printed.contains("{\"reward\":1.0,\"max\":1.0") && printed.contains("\"max\":0.0"),
            "{printed}"
        );
    }
}

#[test]
fn process_reward_errors_are_reported() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let reply_with = |reply: &str| format!("for line in sys.stdin:\n    print({reply}, flush=True)");
    let printed = [
        score(home, &script(home, "chatty.py", &reply_with("'scoring...'")), ""),
        score(home, &script(home, "short.py", &reply_with("json.dumps({'rewards': [None]})")), ""),
        score(home, &script(home, "keys.py", &reply_with("json.dumps({'reward': [None, None]})")), ""),
        score(
            home,
            &script(home, "unable.py", &reply_with("json.dumps({'error': 'no table for `counting`'})")),
            "",
        ),
        score(
            home,
            &script(home, "much.py", &reply_with("json.dumps({'rewards': [{'score': 3, 'max': 1}] * 2})")),
            "",
        ),
        score(home, &script(home, "ends.py", "sys.exit(1)"), ""),
        score(home, &script(home, "hangs.py", "time.sleep(600)"), "timeout_seconds = 0.2"),
        score(home, &script(home, "fine.py", &reply_with("''")), "timeout_seconds = 0.0"),
        score(home, &script(home, "fine.py", &reply_with("''")), "timeout = 1"),
        score(home, "cmd:nowhere.py", ""),
        {
            fs::write(home.join("plain.py"), "print()").unwrap();
            score(home, "cmd:plain.py", "")
        },
    ];
    insta::assert_snapshot!(printed.join("\n"));
}

const CASES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/cases/programs");

#[test]
fn process_reward_cases_are_scored_or_refused() {
    let home = tempfile::tempdir().unwrap();
    let printed = ["good", "two", "latin"]
        .map(|name| score(home.path(), &format!("cmd:{CASES}/{name}.py"), "").replace(CASES, "[CASES]"));
    insta::assert_snapshot!(printed.join("\n"));
}

/// A program that computes `reply` for each batch: code before the loop, in it, and after it.
fn replying(before: &str, with: &str, after: &str) -> String {
    format!(
        "{before}\nfor number, line in enumerate(sys.stdin):\n    n = len(json.loads(line)['samples'])\n    \
         reply = json.dumps({{'rewards': [{{'score': number, 'max': 3}}] * n}})\n    {with}\n{after}"
    )
}

#[test]
fn process_reward_unexpected_output_is_an_error() {
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
    let printed = forms.map(|(name, body)| {
        let rule = script(home, name, &body);
        score(home, &rule, "")
    });
    insta::assert_snapshot!(printed.join("\n"));

    // The message depends on the timing of the program.
    for (first, expected) in [("ready", "`ready`"), ("{\"rewards\": [null, null]}", "`{\"rewards\": [")] {
        let body = replying(&format!("print({first:?}, flush=True)"), plain, "");
        let printed = score(home, &script(home, "before.py", &body), "");
        assert!(printed.starts_with("exit: 1") && printed.contains(expected), "{printed}");
    }
    let body = replying("", "sys.stdout.write(reply); sys.stdout.flush()", "");
    let printed = score(home, &script(home, "no_end_of_line.py", &body), "timeout_seconds = 2.0");
    assert!(
        printed.starts_with("exit: 1") && printed.contains("missing line end after `{\"rewards\""),
        "{printed}"
    );
}

/// The extra line arrives during the second batch of 4096 samples or later.
#[test]
fn process_reward_extra_line_is_found_in_any_batch() {
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
        let printed = score_samples(home.path(), &rule, "", &samples);
        assert!(printed.starts_with("exit: 1\nstdout:\nstderr:\n"), "{name}: {printed}");
        assert!(printed.contains("the process wrote more than"), "{name}: {printed}");
    }
    let rule = script(home.path(), "right.py", &replying("", "print(reply, flush=True)", ""));
    let printed = score_samples(home.path(), &rule, "", &samples);
    assert!(printed.starts_with("exit: 0"), "{}", &printed[..200]);
    assert_eq!(printed.lines().filter(|line| line.starts_with("{\"reward\":3.0")).count(), 4096);
}

#[test]
fn process_reward_accepts_plain_numbers() {
    let home = tempfile::tempdir().unwrap();
    for reply in
        ["[0.5, 1]", " {'rewards': [0.5, 1]}", "{'rewards': [0.5, {'score': 1, 'max': 1, 'why': 'NaN'}]}"]
    {
        let body = format!("for line in sys.stdin:\n    print({:?}, flush=True)", reply.replace('\'', "\""));
        let printed = score(home.path(), &script(home.path(), "numbers.py", &body), "");
        assert!(printed.starts_with("exit: 0"), "{printed}");
        assert!(
            printed.contains("{\"reward\":0.5,\"max\":1.0")
                && printed.contains("{\"reward\":1.0,\"max\":1.0"),
            "{printed}"
        );
    }
}

#[test]
fn process_reward_invalid_reward_names_its_index() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let mut printed = Vec::new();
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
        printed.push(format!("{rewards}\n{}", score(home, &script(home, "numbers.py", &body), "")));
    }
    insta::assert_snapshot!(printed.join("\n"));
}

#[test]
fn process_reward_command_is_parsed_like_a_shell() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let body =
        "print(sys.argv[1:], file=sys.stderr)\n".to_string() + &replying("", "print(reply, flush=True)", "");
    fs::create_dir(home.join("my rules")).unwrap();
    script(home, "my rules/own.py", &body);
    script(home, "own.py", &body);
    fs::write(home.join("plain.py"), format!("import json, sys, time\n{body}")).unwrap();
    let mut printed = Vec::new();
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
        printed.push(format!("{rule}  {options}\n{}", score(home, rule, options)));
    }
    insta::assert_snapshot!(printed.join("\n"));
    let printed = score(home, "cmd:python3 nowhere.py", "");
    assert!(
        printed.contains("nowhere.py") && printed.contains("(exit status: 2), in 3 attempts"),
        "{printed}"
    );
}
