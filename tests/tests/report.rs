//! The page of `unirl report`, as a browser sees it.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test: a wrong value ends it, what it leaves out it says"
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{program, shown, unirl};
use serde_json::Value;

fn browser() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|file| file.is_file())
}

/// What a browser made of a page: the console, the requests of the page itself, the picture.
struct Seen {
    console: Vec<String>,
    requests: BTreeSet<String>,
    picture: PathBuf,
}

fn look(browser: &Path, page: &Path) -> Seen {
    let folder = page.parent().unwrap();
    let [picture, log] = ["seen.png", "net.json"].map(|name| folder.join(name));
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1240,2600"])
        .args(["--disable-background-networking", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND"])
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .arg(format!("--screenshot={}", picture.display()))
        .arg(format!("--log-net-log={}", log.display()))
        .args(["--enable-logging=stderr", "--v=0"])
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(picture.is_file(), "{text}");
    let console = text.lines().filter(|line| line.contains("CONSOLE")).map(String::from).collect();
    let log: Value = serde_json::from_str(&fs::read_to_string(log).unwrap()).unwrap();
    // What the browser asks for on its own account has no origin.
    let of_page = |event: &Value| {
        let asked = &event["params"];
        let own = asked["initiator"].as_str()? != "not an origin";
        own.then(|| asked["url"].as_str().map(String::from))?
    };
    let requests = log["events"].as_array().unwrap().iter().filter_map(of_page).collect();
    Seen { console, requests, picture }
}

fn trained(home: &Path, name: &str, more: &[&str]) {
    let mut arguments = vec!["--plugin", "showo", "--optimizer", "grpo", "--device", "cpu", "--out", name];
    let settings = [
        "train.steps=6",
        "rollout.prompts=4",
        "rollout.group=2",
        "rollout.images.steps=4",
        "eval.prompts=2",
        "eval.pictures=2",
        "eval.every=2",
        "eval.every_prompts=2",
    ];
    arguments.extend(settings.iter().chain(more).flat_map(|setting| ["--set", setting]));
    let output = unirl(&arguments).current_dir(home).output().unwrap();
    assert!(output.status.success(), "{}", shown(&output));
}

fn report(home: &Path, arguments: &[&str]) -> String {
    shown(&program([&["report"], arguments].concat()).current_dir(home).output().unwrap())
}

#[test]
fn report_is_self_contained_and_shows_the_runs() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    trained(home, "one", &[]);
    trained(home, "two", &["update.learning_rate=1e-4", "train.seed=2"]);
    fs::remove_file(home.join("two/report.json")).unwrap(); // as if it were still running
    let printed = report(home, &["one", "two", "--out", "page.html"]);
    assert!(printed.ends_with("report: page.html\n"), "{printed}");

    let page = fs::read_to_string(home.join("page.html")).unwrap();
    for text in [
        "complete: 6 steps",
        "not at its end: 6 of 6 steps",
        "update.learning_rate: 0.0006 -&#62; 0.0001",
        "train.seed: 1 -&#62; 2",
        "T2I-&#62;MMU",
        "MMU on the guard&#39;s set",
        "reward of the drawings",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert_eq!(page.matches("data:image/png;base64,").count(), 4, "base and trained of both");
    assert_eq!(page.matches("<svg").count(), page.matches("<figure><figcaption>").count() - 4);

    let Some(browser) = browser() else {
        println!("SKIPPED: no browser; `./x browser` installs one");
        return;
    };
    let seen = look(&browser, &home.join("page.html"));
    assert!(seen.console.is_empty(), "{:?}", seen.console);
    assert!(
        seen.requests.iter().all(|url| url.starts_with("file:") || url.starts_with("data:")),
        "{:?}",
        seen.requests
    );
    // Both runs' colours and the drawings' are there: the page is not blank, nor its charts.
    let picture = image::open(&seen.picture).unwrap().to_rgb8();
    assert_eq!(picture.width(), 1240);
    let colors: BTreeSet<[u8; 3]> = picture.pixels().map(|pixel| pixel.0).collect();
    for color in [[0, 114, 178], [213, 94, 0]] {
        assert!(colors.contains(&color), "{color:?}");
    }

    // The test sees what it says that it sees.
    let bad = "<img src='http://127.0.0.1:9/x.png'><script>throw new Error('boom')</script>";
    fs::write(home.join("bad.html"), bad).unwrap();
    let seen = look(&browser, &home.join("bad.html"));
    assert!(seen.console.iter().any(|line| line.contains("boom")), "{:?}", seen.console);
    assert!(seen.requests.contains("http://127.0.0.1:9/x.png"), "{:?}", seen.requests);
}

#[test]
fn report_on_missing_or_invalid_run_fails() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("empty")).unwrap();
    trained(home.path(), "torn", &[]);
    fs::write(home.path().join("torn/metrics.jsonl"), "{\"step\": 1, \"reward/mean\": \"high\"}\n").unwrap();
    let printed = [&["nowhere"][..], &["empty"], &["torn"], &["torn", "--out", "no/page.html"], &[]];
    insta::assert_snapshot!(printed.map(|arguments| report(home.path(), arguments)).join("\n"));
}
