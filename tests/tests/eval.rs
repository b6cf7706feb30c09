//! `unirl eval`: shards, resumption, receipts and judges; the drift monitor of a run.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::mpsc;

use insta::assert_snapshot;
use serde_json::Value;
use tempfile::TempDir;

/// Exit status, stdout and stderr of the command in a directory.
fn unirl(folder: &Path, arguments: &[&str]) -> String {
    common::format_output(&common::unirl(arguments).current_dir(folder).output().unwrap())
}

const SMALL: [&str; 8] =
    ["eval", "--plugin", "showo", "--prompts", "3", "--set", "eval.batch=4", "--device=cpu"];

fn eval(folder: &Path, arguments: &[&str]) -> String {
    unirl(folder, &[&SMALL, arguments].concat())
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The receipt is the same after one call, two shards, or an interrupted call and a second one.
#[test]
fn eval_shards_and_resumption_do_not_change_the_receipt() {
    let home = TempDir::new().unwrap();
    let at = |name: &str| home.path().join(name);
    let done = eval(home.path(), &["--out", "complete"]);
    assert!(done.starts_with("exit: 0") && done.contains("T2I->MMU"), "{done}");

    let half = eval(home.path(), &["--out", "shards", "--shard", "2/2"]);
    assert!(half.contains("2 of 5 chunks are complete; the receipt is written after the last one"), "{half}");
    assert!(!at("shards/receipt.json").exists());
    eval(home.path(), &["--out", "shards", "--shard", "1/2"]);

    eval(home.path(), &["--out", "cut"]);
    fs::remove_file(at("cut/receipt.json")).unwrap();
    fs::remove_file(at("cut/parts/00003.json")).unwrap();
    let kept = fs::metadata(at("cut/parts/00002.json")).unwrap().modified().unwrap();
    eval(home.path(), &["--out", "cut"]);
    assert_eq!(fs::metadata(at("cut/parts/00002.json")).unwrap().modified().unwrap(), kept);

    let complete = fs::read_to_string(at("complete/receipt.json")).unwrap();
    assert_eq!(fs::read_to_string(at("shards/receipt.json")).unwrap(), complete);
    assert_eq!(fs::read_to_string(at("cut/receipt.json")).unwrap(), complete);

    // Without `--out`, the printed figures are those of the receipt.
    let printed = eval(home.path(), &["--json"]);
    let printed = printed.strip_prefix("exit: 0\nstdout:\n").unwrap().split("stderr:").next().unwrap();
    assert_eq!(
        serde_json::from_str::<Value>(printed).unwrap(),
        read(&at("complete/receipt.json"))["figures"]
    );
}

#[test]
fn eval_verify_detects_altered_receipts() {
    let home = TempDir::new().unwrap();
    eval(home.path(), &["--out", "e"]);
    let receipt = home.path().join("e/receipt.json");
    let text = fs::read_to_string(&receipt).unwrap();
    let verify = |arguments: &[&str]| unirl(home.path(), &[&["eval", "verify"], arguments].concat());
    let good = verify(&["e/receipt.json", "--plugin", "showo"]);
    assert!(good.starts_with("exit: 0") && good.contains(", equal to those of the model"), "{good}");
    let other = verify(&["e/receipt.json", "--plugin", "janus"]);
    assert!(
        other.starts_with("exit: 1") && other.contains("the model is not that of the receipt"),
        "{other}"
    );

    let altered = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        fs::write(home.path().join("altered.json"), text.replacen(from, to, 1)).unwrap();
        verify(&["altered.json"])
    };
    let weights = read(&receipt)["plan"]["model"]["weights"].as_str().unwrap().to_string();
    let wrong = if weights.starts_with('0') { "1" } else { "0" };
    let texts = [
        altered("\"strict\": true", "\"strict\": fals3"),
        altered("\"strict\": true", "\"strict\": false"),
        altered(&weights, &format!("{wrong}{}", &weights[1..])),
        altered("a photo of", "a phota of"),
        altered("\"form\": 1", "\"form\": 2"),
        verify(&["nowhere.json"]),
        verify(&["e/plan.json"]),
        eval(home.path(), &["--out", "e", "--seed", "3"]),
        eval(home.path(), &["--out", "x", "--shard", "3/2"]),
        eval(home.path(), &["--out", "."]),
        eval(home.path(), &["--set", "eval.best=t2y"]),
    ];
    assert_snapshot!(texts.join("\n"));
}

/// GenEval's metadata and rules with a detector, and questions about another model's correct images.
#[test]
fn eval_geneval_prompts_with_a_detector() {
    let home = TempDir::new().unwrap();
    let metadata = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/geneval/metadata.jsonl");
    let run = |arguments: &[&str]| {
        let printed = unirl(home.path(), arguments);
        assert!(printed.starts_with("exit: 0"), "{printed}");
        printed
    };
    run(&[
        "geneval",
        "draw",
        "--plugin",
        "janus",
        "--metadata",
        metadata,
        "--out",
        "img",
        "--count",
        "2",
        "--device=cpu",
    ]);
    run(&[
        "geneval",
        "judge",
        "--images",
        "img",
        "--detector",
        "tiles",
        "--out",
        "results.jsonl",
        "--device=cpu",
    ]);
    let results = fs::read_to_string(home.path().join("results.jsonl")).unwrap();
    let lines: Vec<Value> = results.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let right = |prompt: &str| lines.iter().any(|line| line["prompt"] == prompt && line["correct"] == true);

    let evaluation =
        ["eval", "--plugin", "showo", "--metadata", metadata, "--detector", "tiles", "--device=cpu"];
    let with_references =
        [&evaluation[..], &["--references", "img", "--results", "results.jsonl", "--out", "e"]].concat();
    run(&with_references);
    let receipt = read(&home.path().join("e/receipt.json"));
    let judge = receipt["plan"]["image_judge"].as_str().unwrap();
    assert!(judge.starts_with("geneval by `tiles`, references "), "{judge}");
    let verdicts = receipt["verdicts"].as_array().unwrap();
    assert_eq!(verdicts.len(), 12);
    for verdict in verdicts {
        // The model is asked about a reference if and only if the other model generated a correct one.
        let prompt = verdict["task"]["prompt"].as_str().unwrap();
        assert_eq!(verdict["verdict"]["understood"].is_boolean(), right(prompt), "{prompt}");
        assert_eq!(verdict["verdict"]["strict"], verdict["verdict"]["lenient"]);
    }
    run(&["eval", "verify", "e/receipt.json"]);

    // Generation is judged without references as well.
    let alone = run(&[&evaluation[..], &["--json"]].concat());
    let figures: Value =
        serde_json::from_str(alone["exit: 0\nstdout:\n".len()..].split("stderr:").next().unwrap()).unwrap();
    assert_eq!(figures["t2i"], receipt["figures"]["t2i"]);
    assert_eq!(figures["mmu"]["macro"], Value::Null);

    // The receipt records thresholds.
    let strict =
        run(&[&evaluation[..], &["--threshold", "0.5", "--counting-threshold", "0.99999", "--out", "t"]]
            .concat());
    let judge = read(&home.path().join("t/receipt.json"))["plan"]["image_judge"].to_string();
    assert_eq!(judge, "\"geneval by `tiles`, thresholds 0.5 and 0.99999 for counting\"", "{strict}");

    let wrong = |arguments: &[&str]| unirl(home.path(), &[&evaluation[..], arguments].concat());
    fs::write(home.path().join("lost.jsonl"), results.replace("00000/samples", "00009/samples/none"))
        .unwrap();
    fs::write(home.path().join("bad.jsonl"), "{\"filename\": 3}\n").unwrap();
    let texts = [
        wrong(&["--references", "img", "--results", "lost.jsonl"]),
        wrong(&["--references", "img", "--results", "bad.jsonl"]),
        wrong(&["--references", "img", "--results", "nowhere.jsonl"]),
        wrong(&["--references", "img"]),
        unirl(home.path(), &["eval", "--plugin", "showo", "--metadata", metadata])
            .replace(metadata, "[METADATA]"),
        unirl(
            home.path(),
            &["eval", "--plugin", "showo", "--metadata", "results.jsonl", "--detector", "tils"],
        ),
    ];
    assert_snapshot!(texts.join("\n"));
}

/// Starts a judge that returns `replies` in turn and then repeats the last one. Returns its URL and the requests it receives.
fn endpoint(replies: Vec<(u16, &'static str)>) -> (String, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let (sender, requests) = mpsc::channel();
    std::thread::spawn(move || {
        for index in 0.. {
            let Ok((stream, _)) = listener.accept() else { return };
            let mut reader = BufReader::new(stream);
            let (mut head, mut length) = (String::new(), 0);
            loop {
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                if let Some(number) = line.to_lowercase().strip_prefix("content-length:") {
                    length = number.trim().parse().unwrap();
                }
                if line.trim().is_empty() {
                    break;
                }
                head += &line;
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).unwrap();
            let _ = sender.send(format!("{head}{}", String::from_utf8(body).unwrap()));
            let (status, reply) = replies[index.min(replies.len() - 1)];
            let text = format!(
                "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{reply}",
                reply.len()
            );
            reader.get_mut().write_all(text.as_bytes()).unwrap();
        }
    });
    (url, requests)
}

const YES: &str = r#"{"choices":[{"message":{"role":"assistant","content":"Yes."}}]}"#;
const NO: &str = r#"{"choices":[{"message":{"content":"no, it is not"}}]}"#;
const PERHAPS: &str = r#"{"choices":[{"message":{"content":"perhaps"}}]}"#;

#[test]
fn language_model_judges_each_answer_once() {
    let home = TempDir::new().unwrap();
    let (url, asked) = endpoint(vec![(503, "busy"), (200, NO), (200, YES)]);
    let judged = |url: &str| {
        let arguments =
            ["--json", "--judge-url", url, "--judge-model", "m", "--judge-cache", "replies.jsonl"];
        eval(home.path(), &arguments)
    };
    let printed = judged(&url);
    assert!(printed.starts_with("exit: 0"), "{printed}");
    let figures: Value =
        serde_json::from_str(printed["exit: 0\nstdout:\n".len()..].split("stderr:").next().unwrap()).unwrap();
    let counts = figures["mmu"]["counts"].as_object().unwrap().values();
    let right: u64 = counts.map(|count| count[0].as_u64().unwrap()).sum();
    // The verdict is no for the first question, which may occur several times, and yes for all others.
    assert!((15..=18).contains(&right), "{figures}");
    let asked: Vec<String> = asked.try_iter().collect();
    assert!(
        asked[0].starts_with("POST /v1/chat/completions ") && !asked[0].contains("authorization"),
        "{}",
        asked[0]
    );
    assert!(
        asked[0].contains("\"model\":\"m\"") && asked[0].contains("The right answer is: "),
        "{}",
        asked[0]
    );
    assert_eq!(asked[0], asked[1], "a failed request is repeated");
    let kept = fs::read_to_string(home.path().join("replies.jsonl")).unwrap();
    assert_eq!(kept.lines().count(), asked.len() - 1, "one line per request");
    assert_eq!(kept.matches("\"right\":false").count(), 1);
    // The endpoint is closed now: all verdicts come from the cache.
    assert_eq!(judged(&url).split("stderr:").next(), printed.split("stderr:").next());
}

#[test]
fn verdict_is_parsed_from_any_reply_format() {
    let home = TempDir::new().unwrap();
    let error = r#"{"error":{"message":"upstream overloaded","code":529}}"#;
    let (url, asked) = endpoint(vec![
        (200, r#"{"choices":[{"message":{"content":"<think>There is no bench. No?</think> Yes"}}]}"#),
        (200, r#"{"choices":[{"message":{"content":"**Yes**"}}]}"#),
        (200, error),
        (200, r#"{"choices":[{"message":{"content":"\"Yes\""}}]}"#),
        (200, r#"{"choices":[{"message":{"content":"perhaps"}}]}"#),
        (200, r#"{"choices":[{"message":{"content":"Answer: yes"}}]}"#),
        (200, "<html>bad gateway</html>"),
        (200, r#"{"choices":[{"message":{"content":"```json\n{\"answer\": \"yes\"}\n```"}}]}"#),
        (200, r#"{"choices":[{"message":{"content":null}}]}"#),
        (200, r#"{"choices":[{"message":{"content":[{"type":"text","text":"Yes"}]}}]}"#),
    ]);
    let printed =
        eval(home.path(), &["--json", "--judge-url", &url, "--judge-model", "m", "--judge-cache", "r.jsonl"]);
    assert!(printed.starts_with("exit: 0"), "{printed}");
    let figures: Value =
        serde_json::from_str(printed["exit: 0\nstdout:\n".len()..].split("stderr:").next().unwrap()).unwrap();
    assert_eq!((figures["mmu"]["macro"].as_f64(), figures.get("not_judged")), (Some(1.0), None), "{figures}");
    assert!(printed.contains("attempt 1 of 5: the response has no `choices`: {\"error\""), "{printed}");
    assert!(printed.contains("attempt 1 of 5: the response has no `choices`: <html>"), "{printed}");
    let asked: Vec<String> = asked.try_iter().collect();
    assert_eq!(asked[2], asked[3], "an error of the gateway is retried");
    assert!(
        asked[5].contains("Reply with one word: yes or no.") && !asked[4].contains("one word"),
        "{}",
        asked[5]
    );
}

#[test]
fn answer_without_verdict_counts_as_wrong_and_warns() {
    let home = TempDir::new().unwrap();
    let (url, asked) = endpoint(vec![(200, YES), (200, PERHAPS)]);
    let printed = eval(
        home.path(),
        &["--out", "e", "--judge-url", &url, "--judge-model", "m", "--judge-cache", "r.jsonl"],
    );
    assert!(printed.starts_with("exit: 0"), "{printed}");
    let receipt = read(&home.path().join("e/receipt.json"));
    let figures = &receipt["figures"];
    let not_judged = figures["not_judged"].as_u64().unwrap();
    assert!((30..36).contains(&not_judged), "{figures}");
    assert_eq!(asked.try_iter().count() as u64, 1 + 3 * not_judged, "three requests for each");
    assert!(
        printed.contains(&format!("the judge gave no verdict on {not_judged} answers; they count as wrong")),
        "{printed}"
    );
    assert!(printed.contains(&format!("not judged    {not_judged} answers")), "{printed}");
    let of_items: u64 = receipt["verdicts"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|line| line["verdict"].get("not_judged")?.as_u64())
        .sum();
    assert_eq!(of_items, not_judged);
    let verified = unirl(home.path(), &["eval", "verify", "e/receipt.json"]);
    assert!(verified.starts_with("exit: 0") && verified.contains("not judged"), "{verified}");
}

#[test]
fn judge_that_rejects_temperature_is_asked_without_it() {
    let home = TempDir::new().unwrap();
    let refusal =
        r#"{"error":{"message":"Unsupported value: 'temperature' does not support 0 with this model."}}"#;
    for status in [400, 200] {
        let (url, asked) = endpoint(vec![(status, refusal), (200, YES)]);
        let cache = format!("{status}.jsonl");
        let printed =
            eval(home.path(), &["--judge-url", &url, "--judge-model", "m", "--judge-cache", &cache]);
        assert!(printed.starts_with("exit: 0"), "{printed}");
        assert_eq!(
            printed.matches("the judge rejects the parameter `temperature`; continuing without it").count(),
            1,
            "{printed}"
        );
        let asked: Vec<String> = asked.try_iter().collect();
        assert!(asked[0].contains("\"temperature\":0"), "{}", asked[0]);
        assert!(asked[1..].iter().all(|asked| !asked.contains("temperature")));
    }
    let (url, asked) = endpoint(vec![(200, YES)]);
    let judge = ["--judge-url", &url, "--judge-model", "m", "--judge-cache", "r.jsonl"];
    let printed = eval(home.path(), &[&judge[..], &["--judge-temperature", "0.7", "--out", "e"]].concat());
    assert!(printed.starts_with("exit: 0"), "{printed}");
    assert!(asked.try_iter().all(|asked| asked.contains("\"temperature\":0.7")));
    let name = read(&home.path().join("e/receipt.json"))["plan"]["answer_judge"].to_string();
    assert!(name.contains(", temperature 0.7"), "{name}");
    let printed = eval(home.path(), &[&judge[..], &["--judge-temperature=-1"]].concat());
    assert!(
        printed.starts_with("exit: 2") && printed.contains("expected a number of at least 0, got -1"),
        "{printed}"
    );
}

#[test]
fn failing_judge_is_a_clear_error() {
    let home = TempDir::new().unwrap();
    let judged = |arguments: &[&str]| {
        eval(home.path(), &[&["--judge-model", "m", "--judge-cache", "r.jsonl"], arguments].concat())
    };
    let (refuses, _) = endpoint(vec![(401, "no such key")]);
    let (other, _) = endpoint(vec![(200, "<html>")]);
    let down = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let down = format!("http://{down}/v1");
    let texts = [
        (refuses.as_str(), judged(&["--judge-url", &refuses])),
        (other.as_str(), judged(&["--judge-url", &other])),
        (down.as_str(), judged(&["--judge-url", &down])),
        ("nowhere", judged(&["--judge-url", "localhost:8000"])),
        ("nowhere", judged(&["--judge-url", "http://x", "--judge-question", "papr"])),
    ]
    .map(|(url, text)| text.replace(url, "[URL]"));
    assert_snapshot!(texts.join("\n"));
}

fn monitored(home: &TempDir, settings: &[&str]) -> (String, Vec<Value>) {
    let mut arguments =
        vec!["--plugin", "showo", "--optimizer", "sft", "--device=cpu", "--steps", "4", "--out", "run"];
    let small = [
        "eval.prompts=0",
        "train.sample_every=0",
        "eval.every=2",
        "eval.monitor_prompts=10",
        "rollout.prompts_per_step=6",
        "rollout.group_size=2",
    ];
    arguments.extend(small.iter().chain(settings).flat_map(|setting| ["--set", setting]));
    let printed = unirl(home.path(), &arguments);
    assert!(printed.starts_with("exit: 0"), "{printed}");
    let text = fs::read_to_string(home.path().join("run/metrics.jsonl")).unwrap();
    (printed, text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// A learning rate at which the model collapses at once.
const COLLAPSE: &str = "update.learning_rate=0.05";

#[test]
fn drift_monitor_stops_a_regressing_run() {
    let home = TempDir::new().unwrap();
    let (printed, metrics) = monitored(&home, &[COLLAPSE, "eval.on_regression=stop"]);
    assert_eq!(metrics.len(), 2, "{printed}");
    assert!(printed.contains("stopped early: ") && printed.contains(" dropped from "), "{printed}");
    let report = read(&home.path().join("run/report.json"));
    assert_eq!(report["steps"], 2);
    assert_eq!((&report["shown_step"], report["stopped"].is_string()), (&2.into(), true), "{report}");
    assert!(printed.contains("no step was better than the base model"), "{printed}");
    assert!(home.path().join("run/checkpoints/latest").canonicalize().unwrap().ends_with("step-000002"));
}

#[test]
fn drift_monitor_rolls_back_to_the_best_weights() {
    let home = TempDir::new().unwrap();
    let (printed, metrics) =
        monitored(&home, &[COLLAPSE, "eval.on_regression=rollback", "update.warmup_steps=1"]);
    assert!(printed.contains("rolled back to the weights of the best step"), "{printed}");
    assert_eq!(metrics.iter().filter(|line| line["eval/rollback"] == 1.0).count(), 2);
    // The last step regressed as well, so the saved weights are those of the base.
    let figures = |arguments: &[&str]| {
        let printed = eval(home.path(), &[&["--json"], arguments].concat());
        printed.split("stderr:").next().unwrap().to_string()
    };
    assert_eq!(figures(&["--model", "run/checkpoints/latest"]), figures(&[]));
}

#[test]
fn drift_monitor_keeps_the_best_and_does_not_change_training() {
    let home = TempDir::new().unwrap();
    let (_, watched) = monitored(&home, &["checkpoint.every=3"]);
    for name in ["eval/t2i", "eval/reward", "eval/precision", "eval/precision_low", "eval/wrong_passed"] {
        assert!(watched[1][name].is_number() && watched[0][name].is_null(), "{name}");
    }
    let steps = home.path().join("run/checkpoints");
    if steps.join("best").exists() {
        assert!(steps.join("best/config.json").is_file());
    }
    assert!(steps.join("step-000003").is_dir() && steps.join("step-000004").is_dir());
    let other = TempDir::new().unwrap();
    let (_, unwatched) = monitored(&other, &["eval.every=0"]);
    for (one, other) in watched.iter().zip(&unwatched) {
        for name in ["reward/mean", "loss/answer", "update/gradient_norm"] {
            assert_eq!(one[name], other[name], "{name}");
        }
    }
}
