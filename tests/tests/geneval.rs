//! `GenEval`: the rules against an independent implementation, the images of `unirl geneval draw`, and the verdicts and errors
//! of `unirl geneval judge`.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use common::plugin_dir;
use insta::assert_snapshot;
use serde_json::{Value, json};
use tch::Kind;
use tempfile::TempDir;
use unirl::detector::Detection;
use unirl_benchmarks::geneval::{Metadata, Thresholds, judge, read_metadata};
use unirl_benchmarks::tiles::judge;
use unirl_engine::image_io;
use unirl_engine::plugin::Plugins;
use unirl_prompts::read_jsonl;
use unirl_prompts::rng::Rng;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/geneval");

/// Runs `unirl geneval` in a directory. Returns exit status, stdout and stderr.
fn unirl(folder: &Path, arguments: &[&str]) -> String {
    common::format_output(
        &common::unirl([&["geneval"], arguments].concat()).current_dir(folder).output().unwrap(),
    )
}

// ---- the rules ----

/// An independent implementation of the rules, written from their description, over JSON and tuples.
mod independent {
    use super::{HashMap, Value};

    type Found = (f32, [f32; 4], String);

    /// The at most 16 detections of each class above the threshold, by descending score: sorted ascending, then reversed.
    fn filtered(tag: &str, detections: &[(String, Found)]) -> HashMap<String, Vec<Found>> {
        let limit: f32 = if tag == "counting" { 0.9 } else { 0.3 };
        let mut objects = HashMap::new();
        for (class, _) in detections {
            let of_class: Vec<&Found> =
                detections.iter().filter(|(c, _)| c == class).map(|(_, f)| f).collect();
            let mut order: Vec<usize> = (0..of_class.len()).collect();
            order.sort_by(|i, j| of_class[*i].0.partial_cmp(&of_class[*j].0).unwrap());
            order.reverse();
            order.retain(|i| of_class[*i].0 > limit);
            order.truncate(16);
            let chosen: Vec<Found> = order.into_iter().map(|i| of_class[i].clone()).collect();
            objects.insert(class.clone(), chosen);
        }
        objects
    }

    fn relative(a: [f32; 4], b: [f32; 4]) -> Vec<&'static str> {
        let (ax, ay) = (0.5 * (a[0] + a[2]), 0.5 * (a[1] + a[3]));
        let (bx, by) = (0.5 * (b[0] + b[2]), 0.5 * (b[1] + b[3]));
        let (off_x, off_y) = (ax - bx, ay - by);
        let wide = (a[2] - a[0]).abs() + (b[2] - b[0]).abs();
        let high = (a[3] - a[1]).abs() + (b[3] - b[1]).abs();
        let shrink = |off: f32, sizes: f32| {
            let rest = off.abs() - 0.1 * sizes;
            if rest <= 0.0 || off == 0.0 {
                0.0
            } else if off < 0.0 {
                -rest
            } else {
                rest
            }
        };
        let (rev_x, rev_y) = (shrink(off_x, wide), shrink(off_y, high));
        let mut positions = Vec::new();
        if rev_x.abs() < 1e-3 && rev_y.abs() < 1e-3 {
            return positions;
        }
        let norm = (off_x * off_x + off_y * off_y).sqrt();
        let (dx, dy) = (rev_x / norm, rev_y / norm);
        if dx < -0.5 {
            positions.push("left of");
        }
        if dx > 0.5 {
            positions.push("right of");
        }
        if dy < -0.5 {
            positions.push("above");
        }
        if dy > 0.5 {
            positions.push("below");
        }
        positions
    }

    /// Whether the image is correct, and the number of failed clauses.
    pub(super) fn evaluate(metadata: &Value, detections: &[(String, Found)]) -> (bool, usize) {
        let objects = filtered(metadata["tag"].as_str().unwrap(), detections);
        let empty = Vec::new();
        let (mut correct, mut faults) = (true, 0);
        let mut matched_groups: Vec<Option<Vec<Found>>> = Vec::new();
        for wanted in metadata["include"].as_array().unwrap() {
            let count = wanted["count"].as_u64().unwrap() as usize;
            let all = objects.get(wanted["class"].as_str().unwrap()).unwrap_or(&empty);
            let found: Vec<Found> = all.iter().take(count).cloned().collect();
            let mut matched = true;
            if found.len() < count {
                matched = false;
            } else {
                if let Some(color) = wanted["color"].as_str() {
                    let mut same = 0;
                    for (_, _, seen) in &found {
                        if seen == color {
                            same += 1;
                        }
                    }
                    if same < count {
                        matched = false;
                    }
                }
                if matched && let Some(position) = wanted["position"].as_array() {
                    let expected = position[0].as_str().unwrap();
                    match &matched_groups[position[1].as_u64().unwrap() as usize] {
                        None => matched = false,
                        Some(targets) => {
                            for (_, bounds, _) in &found {
                                for (_, target, _) in targets {
                                    if !relative(*bounds, *target).contains(&expected) {
                                        matched = false;
                                    }
                                }
                            }
                        }
                    }
                }
            }
            if matched {
                matched_groups.push(Some(found));
            } else {
                correct = false;
                faults += 1;
                matched_groups.push(None);
            }
        }
        if let Some(excludes) = metadata["exclude"].as_array() {
            for unwanted in excludes {
                let found = objects.get(unwanted["class"].as_str().unwrap()).unwrap_or(&empty).len();
                if found as u64 >= unwanted["count"].as_u64().unwrap() {
                    correct = false;
                    faults += 1;
                }
            }
        }
        (correct, faults)
    }
}

const CLASSES: [&str; 3] = ["dog", "cat", "bench"];
const COLORS: [&str; 2] = ["red", "blue"];
const TAGS: [&str; 6] = ["single_object", "two_object", "counting", "colors", "position", "color_attr"];

fn random_metadata(tag: &str, rng: &mut Rng) -> Value {
    let (one, other) = rng.two_below(CLASSES.len());
    let (one, other) = (CLASSES[one], CLASSES[other]);
    let color = |rng: &mut Rng| COLORS[rng.below(COLORS.len())];
    // Mostly one object, as in the original, and sometimes two.
    let count = 1 + usize::from(rng.chance(0.2));
    let mut line = json!({"tag": tag, "include": [{"class": one, "count": count}], "prompt": "a photo"});
    match tag {
        "counting" => {
            let count = 2 + rng.below(3);
            line["include"][0]["count"] = json!(count);
            line["exclude"] = json!([{"class": one, "count": count + 1}]);
        }
        "colors" => line["include"][0]["color"] = json!(color(rng)),
        "single_object" => {}
        _ => {
            line["include"].as_array_mut().unwrap().push(json!({"class": other, "count": 1}));
            if tag == "color_attr" {
                for clause in 0..2 {
                    line["include"][clause]["color"] = json!(color(rng));
                }
            }
            if tag == "position" {
                let words = ["left of", "right of", "above", "below"][rng.below(4)];
                line["include"][1]["position"] = json!([words, 0]);
            }
        }
    }
    line
}

/// Detections with scores on a grid that contains both thresholds, and boxes on grids of various steps.
fn random_detections(tag: &str, rng: &mut Rng) -> Vec<Detection> {
    let many = rng.chance(0.1);
    let count = if many { 30 } else { rng.below(8) };
    let step = [0.37, 5.0, 20.0][rng.below(3)];
    let edge = |rng: &mut Rng| rng.below(13) as f32 * step;
    (0..count)
        .map(|_| {
            let least = if tag == "counting" || many { 17 } else { 4 };
            let (x, y) = (edge(rng), edge(rng));
            Detection {
                class: CLASSES[if many { 0 } else { rng.below(CLASSES.len()) }].into(),
                score: (least + rng.below(21 - least)) as f32 / 20.0,
                bounds: [x, y, x + edge(rng), y + edge(rng)],
                color: Some(COLORS[rng.below(COLORS.len())].into()),
            }
        })
        .collect()
}

#[test]
fn geneval_rules_agree_with_independent_implementation() {
    let mut rng = Rng::new(17);
    let mut verdicts: BTreeMap<&str, [usize; 2]> = BTreeMap::new();
    for round in 0..4000 {
        let tag = TAGS[round % TAGS.len()];
        let metadata = random_metadata(tag, &mut rng);
        let detections = random_detections(tag, &mut rng);
        let tuples: Vec<_> = detections
            .iter()
            .map(|found| (found.class.clone(), (found.score, found.bounds, found.color.clone().unwrap())))
            .collect();
        let (correct, faults) = independent::evaluate(&metadata, &tuples);
        let judged =
            judge(&Metadata::parse(&metadata.to_string()).unwrap(), &detections, &Thresholds::default())
                .unwrap();
        assert_eq!(
            (judged.correct, judged.reason.lines().count()),
            (correct, faults),
            "{metadata}\n{detections:?}\n{}",
            judged.reason
        );
        verdicts.entry(tag).or_default()[usize::from(correct)] += 1;
    }
    // Both verdicts are frequent in every tag; otherwise agreement would be trivial.
    assert!(verdicts.len() == 6 && verdicts.values().flatten().all(|count| *count >= 25), "{verdicts:?}");
}

/// `GenEval`'s own file is not part of a checkout.
#[test]
fn geneval_metadata_round_trip_verbatim() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/geneval/evaluation_metadata.jsonl");
    if !path.is_file() {
        return;
    }
    let prompts = read_metadata(&path).unwrap();
    assert_eq!(prompts.len(), 553);
    let lines: Vec<&str> = prompts.iter().map(Metadata::line).collect();
    assert_eq!(lines.join("\n"), fs::read_to_string(&path).unwrap().trim_end());
    let asked = path.with_file_name("evaluation_metadata_qa.jsonl");
    if asked.is_file() {
        assert_eq!(read_metadata(&asked).unwrap().len(), 553);
    }
}

// ---- generation ----

/// The number of the 3,072 values of an image that may round differently in another batch. Measured: one value, in 2 of 48
/// images.
const MAX_ROUNDED: i64 = 8;

/// The contents of every file below a directory.
fn files(root: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(root).unwrap().display().to_string();
                all.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    all
}

fn generate(home: &Path, out: &str, count: &str, more: &[&str]) -> String {
    let metadata = format!("{EXAMPLE}/metadata.jsonl");
    let mut arguments = vec!["draw", "--plugin", "showo", "--device", "cpu", "--metadata", &metadata];
    arguments.extend(["--out", out, "--count", count]);
    arguments.extend(more);
    unirl(home, &arguments)
}

#[test]
fn geneval_images_are_generated_resumed_and_judged() {
    let home = TempDir::new().unwrap();
    let home = home.path();
    let printed = generate(home, "complete", "2", &["--seed", "3"]);
    assert_eq!(printed, "exit: 0\nstdout:\ncomplete\nstderr:\n");
    let complete = files(&home.join("complete"));
    let prompts = read_metadata(&Path::new(EXAMPLE).join("metadata.jsonl")).unwrap();
    assert_eq!(complete.len(), 1 + prompts.len() * 3);
    for (index, prompt) in prompts.iter().enumerate() {
        assert_eq!(complete[&format!("{index:05}/metadata.jsonl")], prompt.line().as_bytes());
        let image = |number: usize| &complete[&format!("{index:05}/samples/{number:04}.png")];
        assert_ne!(image(0), image(1));
    }

    // Another batch size changes the images only by rounding.
    let printed = generate(home, "parts", "2", &["--seed", "3", "--batch", "5"]);
    assert!(printed.starts_with("exit: 0"), "{printed}");
    let parts = home.join("parts");
    let before = files(&parts);
    assert!(before.keys().eq(complete.keys()));
    for name in before.keys().filter(|name| name.contains("/samples/")) {
        let [one, other] =
            ["complete", "parts"].map(|set| image_io::read(&home.join(set).join(name), 32).unwrap());
        let difference = (one - other).abs() * 255.0;
        let most = difference.max().double_value(&[]).round();
        let many = difference.gt(0.5).sum(Kind::Int64).int64_value(&[]);
        assert!(most <= 1.0 && many <= MAX_ROUNDED, "{name}: {many} values differ, by up to {most} of 255");
    }

    // After an interruption within a prompt or a file, the recorded batch size is used.
    fs::remove_file(parts.join("00002/samples/0001.png")).unwrap();
    fs::remove_dir_all(parts.join("00007")).unwrap();
    fs::remove_dir_all(parts.join("00011")).unwrap();
    fs::write(parts.join("00002/samples/.partial-x"), "half").unwrap();
    let untouched = fs::metadata(parts.join("00003/samples/0000.png")).unwrap().modified().unwrap();
    let printed = generate(home, "parts", "2", &["--seed", "3"]);
    assert_eq!(printed, "exit: 0\nstdout:\nparts\nstderr:\n9 of 12 prompts are already complete\n");
    assert!(files(&parts) == before, "the interruption changed the images");
    let same = fs::metadata(parts.join("00003/samples/0000.png")).unwrap().modified().unwrap();
    assert_eq!(same, untouched);
    let printed = generate(home, "other", "2", &["--seed", "4"]);
    assert!(printed.starts_with("exit: 0"), "{printed}");
    assert!(files(&home.join("other"))["00000/samples/0000.png"] != complete["00000/samples/0000.png"]);

    // The verdicts lie between those of the exact judge: strictly correct images pass, and images that pass are at least
    // leniently correct.
    let arguments =
        ["judge", "--images", "complete", "--detector", "tiles", "--out", "results.jsonl", "--json"];
    let printed = unirl(home, &arguments);
    let summary = printed.strip_prefix("exit: 0\nstdout:\n").unwrap().strip_suffix("stderr:\n").unwrap();
    let summary: Value = serde_json::from_str(summary).unwrap();
    let results: Vec<Value> = fs::read_to_string(home.join("results.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(results.len(), 24);
    let tasks = read_jsonl(&Path::new(EXAMPLE).join("metadata.jsonl")).unwrap();
    let mut right = 0;
    for (index, result) in results.iter().enumerate() {
        let filename = result["filename"].as_str().unwrap();
        assert_eq!(filename, format!("{:05}/samples/{:04}.png", index / 2, index % 2));
        assert_eq!(result["metadata"], prompts[index / 2].line());
        let pixels = image_io::read(&home.join("complete").join(filename), 32).unwrap();
        let exact = judge::judge(&tasks[index / 2].spec, &judge::recognize(&pixels).unwrap()[0]);
        let correct = result["correct"].as_bool().unwrap();
        assert!(correct >= exact.strict && correct <= exact.lenient, "{result}\n{exact:?}");
        assert_eq!(correct, result["reason"] == "");
        right += usize::from(correct);
    }
    assert_eq!(summary["images"], json!({"correct": right, "of": 24, "share": right as f64 / 24.0}));
    assert_eq!(summary["tags"].as_array().unwrap().len(), 6);

    // The prompts require colours from the detector.
    let blind = ["judge", "--images", "complete", "--detector", "tiles", "--set", "colors=false"];
    let printed = unirl(home, &blind);
    assert!(printed.starts_with("exit: 2") && printed.contains("has no `color`"), "{printed}");
    let silent =
        unirl(home, &["judge", "--images", "complete", "--detector", "tiles", "--set", "forgets=true"]);
    assert_snapshot!(silent);
}

// ---- the example ----

/// `examples/geneval/README.md` shows the output of the command. `UPDATE_EXAMPLES=1` writes new detections.
#[test]
fn geneval_example_matches_its_readme() {
    let home = TempDir::new().unwrap();
    let home = home.path();
    let folder = Path::new(EXAMPLE);
    let printed = generate(home, "images", "4", &[]);
    assert!(printed.starts_with("exit: 0"), "{printed}");
    if std::env::var_os("UPDATE_EXAMPLES").is_some() {
        let detector = Plugins::new(&[plugin_dir()]).detector("tiles", &Value::Null).unwrap();
        let palette = unirl_benchmarks::tiles::object_list();
        let mut text = String::new();
        for prompt in 0..12 {
            for image in 0..4 {
                let name = format!("{prompt:05}/samples/{image:04}.png");
                let pixels = image_io::read(&home.join("images").join(&name), 32).unwrap();
                let found = detector.detect(&pixels, &palette.nouns, &palette.colors).unwrap();
                let found = serde_json::to_string(&found[0]).unwrap(); // `Value` would convert the numbers to f64
                text += &format!("{{\"filename\":\"{name}\",\"detections\":{found}}}\n");
            }
        }
        fs::write(folder.join("detections.jsonl"), text).unwrap();
    }
    let detections = format!("{EXAMPLE}/detections.jsonl");
    let arguments = ["judge", "--images", "images", "--detections", &detections, "--out", "results.jsonl"];
    let printed = unirl(home, &arguments);
    let table = printed.strip_prefix("exit: 0\nstdout:\n").unwrap().strip_suffix("stderr:\n").unwrap();
    let page = fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(page.contains(&format!("```text\n{table}```\n")), "expected in the README:\n{table}");
    let results = fs::read_to_string(home.join("results.jsonl")).unwrap();
    if std::env::var_os("UPDATE_EXAMPLES").is_some() {
        fs::write(folder.join("results.jsonl"), &results).unwrap();
    }
    assert_eq!(results, fs::read_to_string(folder.join("results.jsonl")).unwrap());
}

// ---- the benchmark of a run ----

/// A run on the benchmark `geneval`: its prompts, its judge with a detector in every step, the drift monitor, the evaluation before
/// and after, and the sample images.
#[test]
fn training_on_geneval_is_measured_by_its_judge() {
    let home = TempDir::new().unwrap();
    let home = home.path();
    let metadata = format!("{EXAMPLE}/metadata.jsonl");
    let set = |key: &str, value: &str| format!("--set={key}={value}");
    let options = [
        set("benchmark.metadata", &metadata),
        set("benchmark.detector", "tiles"),
        set("train.sample_every", "1"),
        set("eval.prompts", "1"),
        set("eval.every", "1"),
        set("eval.on_regression", "\"warn\""),
        set("eval.monitor_prompts", "1"),
        set("eval.samples_per_prompt", "1"),
        set("rollout.prompts_per_step", "2"),
        set("rollout.group_size", "2"),
        set("rollout.images.steps", "2"),
    ];
    let train = |more: &[&str]| {
        let mut arguments = vec!["train", "--plugin", "showo", "--device=cpu", "--steps=2", "--out=run"];
        arguments.extend(options.iter().map(String::as_str));
        arguments.extend(more);
        common::format_output(&common::unirl(arguments).current_dir(home).output().unwrap())
    };
    let printed = train(&["--benchmark", "geneval"]);
    assert!(printed.starts_with("exit: 0"), "{printed}");

    let run = home.join("run");
    let read = |name: &str| fs::read_to_string(run.join(name)).unwrap();
    for line in read("metrics.jsonl").lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        for name in ["judge/right", "eval/t2i", "reward/mean"] {
            assert!(line[name].is_f64() || line["metrics"][name].is_f64(), "{name}: {line}");
        }
    }
    let tests = read_jsonl(metadata.as_ref()).unwrap();
    for name in ["eval/base.json", "eval/trained.json"] {
        let receipt: Value = serde_json::from_str(&read(name)).unwrap();
        assert_eq!(receipt["plan"]["image_judge"], "geneval by `tiles`");
        let verdicts = receipt["verdicts"].as_array().unwrap();
        assert_eq!(verdicts.len(), 6);
        for verdict in verdicts {
            let prompt = &verdict["task"]["prompt"];
            assert!(tests.iter().any(|test| test.prompt == *prompt), "{prompt}");
        }
    }
    assert!(run.join("samples/trained.png").is_file());
    assert!(read("config.toml").contains("name = \"geneval\""));
    let resumed = common::unirl(["train", "--resume", "run", "--steps=3", "--allow-change"]);
    let resumed = common::format_output(&{ resumed }.current_dir(home).output().unwrap());
    assert!(resumed.starts_with("exit: 0"), "{resumed}");
    assert_eq!(read("metrics.jsonl").lines().count(), 3);
}

#[test]
fn benchmark_errors_name_what_is_missing() {
    let home = TempDir::new().unwrap();
    let metadata = format!("{EXAMPLE}/metadata.jsonl");
    let set = |key: &str, value: &str| format!("--set={key}={value}");
    let mut outcomes = String::new();
    for arguments in [
        vec!["train".into(), "--benchmark=genevl".into()],
        vec!["train".into(), "--benchmark=geneval".into()],
        vec!["train".into(), "--benchmark=geneval".into(), set("benchmark.metadata", &metadata)],
        vec!["train".into(), set("benchmark.detector", "tiles")],
        vec![
            "train".into(),
            "--benchmark=geneval".into(),
            set("benchmark.metadata", &metadata),
            set("benchmark.detector", "tiles"),
            set("eval.every", "1"),
            set("eval.prompts", "0"),
            set("eval.best", "mmu"),
            "--out=run".into(),
        ],
        vec!["eval".into(), "--benchmark=geneval".into()],
    ] {
        let mut command =
            common::unirl(arguments.iter().map(String::as_str).chain(["--plugin=showo", "--device=cpu"]));
        let printed = common::format_output(&command.current_dir(home.path()).output().unwrap());
        let shown: Vec<String> =
            arguments.iter().map(|one: &String| one.replace(&metadata, "[METADATA]")).collect();
        outcomes += &format!("$ unirl {}\n{}\n", shown.join(" "), printed.replace(&metadata, "[METADATA]"));
    }
    assert!(!home.path().join("run").exists());
    assert_snapshot!(outcomes);
}

// ---- user errors ----

const DOG: &str =
    r#"{"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a photo of a dog"}"#;
const CAT: &str = r#"{"tag": "colors", "include": [{"class": "cat", "count": 1, "color": "red"}], "prompt": "a photo of a red cat"}"#;

/// Writes two prompts with two empty images each, which are never opened if detections are given.
fn image_dir(home: &Path) -> PathBuf {
    let root = home.join("set");
    let _ = fs::remove_dir_all(&root);
    for (index, line) in [DOG, CAT].iter().enumerate() {
        let folder = root.join(format!("{index:05}"));
        fs::create_dir_all(folder.join("samples")).unwrap();
        fs::write(folder.join("metadata.jsonl"), line).unwrap();
        fs::write(folder.join("grid.png"), "").unwrap();
        for image in ["0000.png", "0001.png", "notes.png", "0002.txt"] {
            fs::write(folder.join("samples").join(image), "").unwrap();
        }
    }
    fs::create_dir(root.join("extra")).unwrap();
    root
}

fn line(image: &str, detections: &str) -> String {
    format!("{{\"filename\": \"{image}\", \"detections\": [{detections}]}}\n")
}

fn four(first: &str, last: &str) -> String {
    let middle = line("00000/samples/0001.png", "") + &line("00001/samples/0000.png", "");
    line("00000/samples/0000.png", first) + &middle + &line("00001/samples/0001.png", last)
}

#[test]
fn geneval_judge_needs_no_model() {
    let home = TempDir::new().unwrap();
    image_dir(home.path());
    let dog = r#"{"class": "dog", "score": 0.5, "box": [0, 0, 9, 9]}"#;
    let cats = r#"{"class": "cat", "score": 0.7, "box": [0, 0, 9, 9], "color": "blue"}, {"class": "car", "score": 0.1, "box": [1, 2, 3, 4]}"#;
    fs::write(home.path().join("found.jsonl"), four(dog, cats)).unwrap();
    let judge = ["judge", "--images", "set", "--detections", "found.jsonl"];
    let table = unirl(home.path(), &[&judge[..], &["--out", "results.jsonl"]].concat());
    let summary = unirl(home.path(), &[&judge[..], &["--json"]].concat());
    let results = fs::read_to_string(home.path().join("results.jsonl")).unwrap();
    assert_snapshot!([table, summary, results].join("\n"));
}

#[test]
fn geneval_invalid_detections_are_refused() {
    let home = TempDir::new().unwrap();
    image_dir(home.path());
    let dog = |class: &str, score: &str, bounds: &str| {
        format!("{{\"class\": \"{class}\", \"score\": {score}, \"box\": {bounds}}}")
    };
    let good = dog("dog", "0.9", "[0, 0, 9, 9]");
    let mut texts = Vec::new();
    for found in [
        line("00000/samples/0000.png", &good),
        four(&dog("dog", "0.9", "[5, 0, 4, 9]"), ""),
        four(&dog("dog", "0.9", "[0, 0, 9]"), ""),
        four(&dog("dog", "0.9", "[0, 0, 1e300, 9]"), ""),
        four(&dog("dog", "90", "[0, 0, 9, 9]"), ""),
        four(&dog("mouse", "0.9", "[0, 0, 9, 9]"), ""),
        four(&dog("giraff", "0.9", "[0, 0, 9, 9]"), ""),
        four(&good, &dog("cat", "0.75", "[0, 0, 9, 9]")),
        four(&good, "") + &line("00000/samples/0000.png", ""),
        four(&good, "") + &line("set/00000/samples/0000.png", ""),
        four(&good, "") + "{\"filename\": \"00000/samples/0000.png\"}\n",
        four(&good, "") + "\n{\"filename\": \n",
    ] {
        fs::write(home.path().join("found.jsonl"), &found).unwrap();
        let printed = unirl(home.path(), &["judge", "--images", "set", "--detections", "found.jsonl"]);
        assert!(!printed.contains("internal error"), "{printed}");
        texts.push(format!("{found}\n{printed}"));
    }
    assert_snapshot!(texts.join("----\n"));
}

/// Judges one image per prompt by the detections in `tests/fixtures/cases`. Returns exit status, stdout and stderr.
fn judge_cases(home: &Path, detections: &str, more: &[&str]) -> String {
    let cases = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/cases/detections");
    let detections = format!("{cases}/{detections}.jsonl");
    let images = format!("{cases}/IMG");
    let printed = unirl(home, &[&["judge", "--images", &images, "--detections", &detections], more].concat());
    printed.replace(cases, "[CASES]")
}

#[test]
fn geneval_detection_colors_are_validated() {
    let home = TempDir::new().unwrap();
    let home = home.path();
    let right = judge_cases(home, "lower", &[]);
    assert!(right.contains("Overall          1.0000"), "{right}");
    // Case and whitespace are ignored.
    assert_eq!(judge_cases(home, "Upper", &[]), right);
    assert_snapshot!([judge_cases(home, "rednoun", &[]), judge_cases(home, "unknown", &[])].join("\n"));

    image_dir(home);
    for (color, hint) in [
        ("a photo of a red cat", "did you mean `red`?"),
        ("RED-colored", "did you mean `red`?"),
        ("bleu", "did you mean `blue`?"),
        ("turquoise", "did you mean `blue`?"),
        ("plaid", "`color` is one of: red, orange, "),
        (" ", "leave `color` out if no classifier was run"),
    ] {
        let cat = format!(r#"{{"class": "cat", "score": 0.9, "box": [0, 0, 9, 9], "color": "{color}"}}"#);
        fs::write(home.join("found.jsonl"), four("", &cat)).unwrap();
        let printed = unirl(home, &["judge", "--images", "set", "--detections", "found.jsonl"]);
        assert!(printed.starts_with("exit: 2") && printed.contains(hint), "{color}: {printed}");
        assert!(
            printed.contains("`found.jsonl`, line 4") && printed.contains("`detections[0]`"),
            "{printed}"
        );
    }
    let cat = r#"{"class": " Cat", "score": 0.9, "box": [0, 0, 9, 9], "color": "\tRed "}"#;
    fs::write(home.join("found.jsonl"), four("", cat)).unwrap();
    let printed = unirl(home, &["judge", "--images", "set", "--detections", "found.jsonl"]);
    assert!(printed.contains("colors           0.5000  1 of 2"), "{printed}");
}

#[test]
fn geneval_judge_accepts_jpeg() {
    let home = TempDir::new().unwrap();
    let home = home.path();
    let root = image_dir(home);
    let dog = r#"{"class": "dog", "score": 0.5, "box": [0, 0, 9, 9]}"#;
    for (ending, other) in [("jpg", "png"), ("jpeg", "jpg"), ("JPG", "jpeg")] {
        for image in ["00000/samples/0000", "00000/samples/0001", "00001/samples/0000", "00001/samples/0001"]
        {
            let path = |ending: &str| root.join(image).with_extension(ending);
            fs::rename(path(other), path(ending)).unwrap();
        }
        fs::write(home.join("found.jsonl"), four(dog, "").replace(".png", &format!(".{ending}"))).unwrap();
        let printed = unirl(home, &["judge", "--images", "set", "--detections", "found.jsonl"]);
        assert!(
            printed.starts_with("exit: 0") && printed.contains("single_object    0.5000  1 of 2"),
            "{printed}"
        );
    }
    fs::write(root.join("00001/samples/00.png"), "").unwrap();
    let twice = unirl(home, &["judge", "--images", "set", "--detections", "found.jsonl"]);
    assert!(twice.starts_with("exit: 2") && twice.contains("duplicate image number"), "{twice}");
}

#[test]
fn geneval_thresholds_and_subset_are_applied_and_recorded() {
    let home = TempDir::new().unwrap();
    let home = home.path();
    let root = image_dir(home);
    let dog = r#"{"class": "dog", "score": 0.5, "box": [0, 0, 9, 9]}"#;
    let cat = r#"{"class": "cat", "score": 0.25, "box": [0, 0, 9, 9], "color": "red"}"#;
    fs::write(home.join("found.jsonl"), four(dog, cat)).unwrap();
    let judge = |more: &[&str]| {
        unirl(home, &[&["judge", "--images", "set", "--detections", "found.jsonl"], more].concat())
    };
    let part = judge(&["--subset", "colors", "--threshold", "0.2", "--json", "--out", "results.jsonl"]);
    let results = fs::read_to_string(home.join("results.jsonl")).unwrap();
    let texts = [
        part,
        results,
        judge(&["--subset", "0", "--threshold", "0.6"]),
        judge(&["--threshold", "0.6"]),
        judge(&["--subset", "colours"]),
        judge(&["--subset", "counting"]),
        judge(&["--subset", "1-3"]),
        judge(&["--threshold", "30"]),
    ];
    fs::write(home.join("found.jsonl"), four("", "")).unwrap();
    let empty = judge(&[]);
    // Prompts outside of a subset of numbers may be missing.
    fs::remove_dir_all(root.join("00000")).unwrap();
    let alone = judge(&["--subset", "1"]);
    assert!(alone.starts_with("exit: 0") && alone.contains("colors           0.0000  0 of 2"), "{alone}");
    assert_snapshot!(texts.join("\n") + &empty);
}

/// A change to a valid image directory.
type Change = fn(&Path);

#[test]
fn geneval_incomplete_image_directories_are_refused() {
    let home = TempDir::new().unwrap();
    fs::write(home.path().join("found.jsonl"), four("", "")).unwrap();
    let mut texts = Vec::new();
    let changes: [(&str, Change); 9] = [
        ("no directory", |root| fs::remove_dir_all(root).unwrap()),
        ("no prompts", |root| {
            fs::remove_dir_all(root).unwrap();
            fs::create_dir(root).unwrap();
        }),
        ("a missing image", |root| fs::remove_file(root.join("00001/samples/0001.png")).unwrap()),
        ("no images", |root| fs::remove_dir_all(root.join("00000/samples")).unwrap()),
        ("a missing number", |root| fs::rename(root.join("00001"), root.join("00003")).unwrap()),
        ("fewer prompts than requested", |root| {
            fs::write(root.join("draw.json"), r#"{"prompts": 553, "count": 2}"#).unwrap();
        }),
        ("fewer images than requested", |root| {
            fs::write(root.join("draw.json"), r#"{"prompts": 2, "count": 4}"#).unwrap();
        }),
        ("no metadata", |root| fs::remove_file(root.join("00001/metadata.jsonl")).unwrap()),
        ("invalid metadata", |root| {
            fs::write(root.join("00001/metadata.jsonl"), "{\"tag\": \"colours\"").unwrap();
        }),
    ];
    for (what, change) in changes {
        change(&image_dir(home.path()));
        let printed = unirl(home.path(), &["judge", "--images", "set", "--detections", "found.jsonl"]);
        texts.push(format!("{what}\n{printed}"));
    }
    assert_snapshot!(texts.join("----\n"));
}

#[test]
fn geneval_invalid_arguments_are_refused() {
    let home = TempDir::new().unwrap();
    image_dir(home.path());
    fs::write(
        home.path().join("bad.jsonl"),
        format!("{DOG}\n\n{}\n", DOG.replace("\"count\": 1", "\"count\": \"one\"")),
    )
    .unwrap();
    fs::write(home.path().join("empty.jsonl"), "\n").unwrap();
    fs::write(home.path().join("good.jsonl"), format!("{DOG}\n")).unwrap();
    let judge = |more: &[&'static str]| [&["judge", "--images", "set"], more].concat();
    let generate = |more: &[&'static str]| [&["draw", "--plugin", "showo", "--device", "cpu"], more].concat();
    let small = ["--metadata", "good.jsonl", "--out", "images", "--count", "1", "--steps", "1"];
    let all = [
        judge(&[]),
        judge(&["--detections", "nowhere.jsonl"]),
        judge(&["--detections", "found.jsonl", "--detector", "tiles"]),
        judge(&["--detections", "found.jsonl", "--out", "no/such/results.jsonl"]),
        judge(&["--detector", "tyles"]),
        judge(&["--detector", "tiles", "--set", "scor=1"]),
        judge(&["--detector", "tiles", "--device", "gpu"]),
        judge(&["--detector", "tiles"]),
        generate(&["--metadata", "nowhere.jsonl", "--out", "images"]),
        generate(&["--metadata", "bad.jsonl", "--out", "images"]),
        generate(&["--metadata", "empty.jsonl", "--out", "images"]),
        generate(&["--metadata", "good.jsonl", "--out", "images", "--count", "0"]),
        generate(&["--metadata", "good.jsonl", "--out", "set"]),
        generate(&small),
        generate(&[&small[..], &["--guidance", "3"]].concat()),
        generate(&[&small[..], &["--batch", "0"]].concat()),
    ];
    let texts = all.map(|arguments| format!("{arguments:?}\n{}", unirl(home.path(), &arguments)));
    let texts = texts.join("----\n").replace(&plugin_dir().display().to_string(), "[PLUGINS]");
    assert_snapshot!(texts);
    // The metadata differ from those of the existing images.
    fs::write(home.path().join("good.jsonl"), format!("{CAT}\n")).unwrap();
    let printed = unirl(home.path(), &generate(&small));
    assert!(
        printed.starts_with("exit: 2") && printed.contains("differs from the metadata of prompt 0"),
        "{printed}"
    );
}
