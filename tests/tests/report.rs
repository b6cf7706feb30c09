//! The HTML page of `unirl report`, also in a browser.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests may panic and report what they skip")]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{format_output, program, unirl};
use serde_json::Value;

fn browser() -> Option<PathBuf> {
    let names = ["chromium", "chromium-browser", "google-chrome"];
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .flat_map(|folder| names.map(|name| folder.join(name)))
        .find(|file| file.is_file())
}

/// A page rendered by a browser: messages of the console, requests of the page, and a screenshot.
struct Rendered {
    console: Vec<String>,
    requests: BTreeSet<String>,
    screenshot: PathBuf,
}

fn render(browser: &Path, page: &Path) -> Rendered {
    let folder = page.parent().unwrap();
    let [screenshot, log] = ["screenshot.png", "net.json"].map(|name| folder.join(name));
    let output = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1240,2600"])
        .args(["--disable-background-networking", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND"])
        .arg(format!("--user-data-dir={}", folder.join("profile").display()))
        .arg(format!("--screenshot={}", screenshot.display()))
        .arg(format!("--log-net-log={}", log.display()))
        .args(["--enable-logging=stderr", "--v=0"])
        .arg(format!("file://{}", page.display()))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(screenshot.is_file(), "{text}");
    let console = text.lines().filter(|line| line.contains("CONSOLE")).map(String::from).collect();
    let log: Value = serde_json::from_str(&fs::read_to_string(log).unwrap()).unwrap();
    // Requests of the browser itself have no origin.
    let of_page = |event: &Value| {
        let params = &event["params"];
        let of_page = params["initiator"].as_str()? != "not an origin";
        of_page.then(|| params["url"].as_str().map(String::from))?
    };
    let requests = log["events"].as_array().unwrap().iter().filter_map(of_page).collect();
    Rendered { console, requests, screenshot }
}

fn train(home: &Path, name: &str, more: &[&str]) {
    let mut arguments = vec!["--plugin", "showo", "--optimizer", "grpo", "--device", "cpu", "--out", name];
    let settings = [
        "train.steps=6",
        "rollout.prompts_per_step=4",
        "rollout.group_size=2",
        "rollout.images.steps=4",
        "eval.prompts=2",
        "eval.samples_per_prompt=2",
        "eval.every=2",
        "eval.monitor_prompts=2",
    ];
    arguments.extend(settings.iter().chain(more).flat_map(|setting| ["--set", setting]));
    let output = unirl(&arguments).current_dir(home).output().unwrap();
    assert!(output.status.success(), "{}", format_output(&output));
}

fn report(home: &Path, arguments: &[&str]) -> String {
    format_output(&program([&["report"], arguments].concat()).current_dir(home).output().unwrap())
}

#[test]
fn report_is_self_contained_and_shows_the_runs() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    train(home, "one", &[]);
    train(home, "two", &["update.learning_rate=1e-4", "train.seed=2"]);
    fs::remove_file(home.join("two/report.json")).unwrap(); // as in an unfinished run
    let printed = report(home, &["one", "two", "--out", "page.html"]);
    assert!(printed.ends_with("report: page.html\n"), "{printed}");

    let page = fs::read_to_string(home.join("page.html")).unwrap();
    for text in [
        "complete: 6 steps",
        "incomplete: 6 of 6 steps",
        "update.learning_rate: 0.0006 -&#62; 0.0001",
        "train.seed: 1 -&#62; 2",
        "T2I-&#62;MMU",
        "MMU (drift monitor)",
        "<i class=\"solid\"></i>mean reward",
        "<i class=\"dashed\"></i>correct images (judge)",
        "precision of the reward",
    ] {
        assert!(page.contains(text), "{text}");
    }
    assert_eq!(page.matches("data:image/png;base64,").count(), 4, "base and trained of both runs");
    assert_eq!(page.matches("<svg").count(), page.matches("<figure><figcaption>").count() - 4);

    let Some(browser) = browser() else {
        println!("SKIPPED: no browser; `./x browser` installs one");
        return;
    };
    let rendered = render(&browser, &home.join("page.html"));
    assert!(rendered.console.is_empty(), "{:?}", rendered.console);
    assert!(
        rendered.requests.iter().all(|url| url.starts_with("file:") || url.starts_with("data:")),
        "{:?}",
        rendered.requests
    );
    // The charts are visible: the page contains the colours of both runs.
    let screenshot = image::open(&rendered.screenshot).unwrap().to_rgb8();
    assert_eq!(screenshot.width(), 1240);
    let colors: BTreeSet<[u8; 3]> = screenshot.pixels().map(|pixel| pixel.0).collect();
    for color in [[0, 114, 178], [213, 94, 0]] {
        assert!(colors.contains(&color), "{color:?}");
    }

    // The test detects errors and requests of a bad page.
    let bad = "<img src='http://127.0.0.1:9/x.png'><script>throw new Error('boom')</script>";
    fs::write(home.join("bad.html"), bad).unwrap();
    let rendered = render(&browser, &home.join("bad.html"));
    assert!(rendered.console.iter().any(|line| line.contains("boom")), "{:?}", rendered.console);
    assert!(rendered.requests.contains("http://127.0.0.1:9/x.png"), "{:?}", rendered.requests);
}

#[test]
fn report_on_missing_or_invalid_run_fails() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("empty")).unwrap();
    train(home.path(), "torn", &[]);
    fs::write(home.path().join("torn/metrics.jsonl"), "{\"step\": 1, \"reward/mean\": \"high\"}\n").unwrap();
    let printed = [&["nowhere"][..], &["empty"], &["torn"], &["torn", "--out", "no/page.html"], &[]];
    insta::assert_snapshot!(printed.map(|arguments| report(home.path(), arguments)).join("\n"));
}
