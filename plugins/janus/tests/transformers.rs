//! Agreement with Python's transformers on a tiny random model that it creates; the saved model loads there again.
//!
//! `./x transformers` installs it. Without it, the test is skipped with a message.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the output shows what was compared or skipped"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unirl::model::{Answers, Checkpoint, ImageSampling, Images, Masking, ModelSource, Policy, UnifiedModel};
use unirl_plugin_janus::checkpoint;
use unirl_plugin_janus::model::Janus;
use unirl_plugin_janus::options::JanusOptions;

/// The f32 error of another order of summation, relative to values of 1 to 10. The largest observed error is 1.8e-6.
const SAME: f64 = 2e-5;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// A Python with transformers.
fn python() -> Option<PathBuf> {
    let own = Path::new(ROOT).join(".transformers-venv/bin/python");
    if own.is_file() {
        return Some(own);
    }
    let there = Command::new("python3").args(["-c", "import torch, transformers"]).output();
    there.is_ok_and(|output| output.status.success()).then(|| "python3".into())
}

fn run(python: &Path, arguments: &[&Path]) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transformers/janus.py");
    let output = Command::new(python).arg(script).args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn load(folder: &Path, system_prompt: Option<&str>) -> Janus {
    let source = ModelSource {
        checkpoint: Checkpoint::Folder(folder.into()),
        device: Device::Cpu,
        seed: 0,
        dry: false,
    };
    let options = JanusOptions { system_prompt: system_prompt.map(String::from), ..JanusOptions::default() };
    Janus::from_parts(checkpoint::load(&options, &source).unwrap(), Device::Cpu).unwrap()
}

fn text(json: &Value) -> String {
    json.as_str().unwrap().into()
}

fn ids(json: &Value) -> Vec<i64> {
    json.as_array().unwrap().iter().map(|id| id.as_i64().unwrap()).collect()
}

#[track_caller]
fn close(what: &str, got: &Tensor, expected: &Tensor) {
    assert_eq!(got.size(), expected.size(), "{what}");
    let off = (got - expected).abs().max().double_value(&[]);
    let size = 1.0 + expected.abs().max().double_value(&[]);
    println!("{what}: differs by {off} of {size}");
    assert!(off <= SAME * size, "{what}: differs by {off} of {size}");
}

#[test]
fn transformers_agrees_and_loads_the_saved_model() {
    let Some(python) = python() else {
        eprintln!("SKIPPED: no Python with transformers; `./x transformers` installs one");
        return;
    };
    tch::set_num_threads(1); // the work is small
    let dir = tempfile::tempdir().unwrap();
    run(&python, &["make".as_ref(), dir.path()]);
    let folder = dir.path().join("model");
    let json: Value = serde_json::from_slice(&fs::read(dir.path().join("reference.json")).unwrap()).unwrap();
    let tensors = Tensor::read_safetensors(dir.path().join("reference.safetensors")).unwrap();
    let tensor = |name: &str| tensors.iter().find(|(known, _)| known == name).unwrap().1.shallow_clone();

    // Generation.
    let mut janus = load(&folder, None);
    let prompts: Vec<String> =
        json["prompts"].as_array().unwrap().iter().map(|prompt| text(&prompt["prompt"])).collect();
    for prompt in json["prompts"].as_array().unwrap() {
        let got = janus.prompting().generation_ids(&text(&prompt["prompt"])).unwrap();
        assert_eq!(got, ids(&prompt["ids"]), "{prompt}");
    }
    let guidance = json["guidance"].as_f64().unwrap();
    assert!(
        (janus.card().sampling.guidance - guidance).abs() < f64::EPSILON,
        "guidance of `generation_config.json`"
    );
    let greedy = ImageSampling { temperature: 0.0, guidance, ..ImageSampling::default() };
    let generated = janus.generate(&prompts, &greedy).unwrap();
    assert_eq!(generated.tokens, tensor("codes"));
    let scored =
        janus.image_logits(&prompts, &generated, Policy::Current, &Masking::remask(0, None)).unwrap();
    close("logits", &scored.logits, &tensor("logits"));
    let decoded = ((tensor("decoded") + 1.0) / 2.0).clamp(0.0, 1.0);
    close("pixels", &janus.pixels(&generated).unwrap(), &decoded);

    // Understanding, with and without the original's system prompt.
    let without = load(&folder, Some(""));
    let images = tensor("images");
    for record in json["questions"].as_array().unwrap() {
        let model = if text(&record["system"]).is_empty() { &without } else { &janus };
        let question = text(&record["question"]);
        assert_eq!(model.prompting().question(&question).unwrap(), ids(&record["ids"]), "{record}");
        let answers = model.encode_answers(&[text(&record["answer"])]).unwrap();
        assert_eq!(Vec::<i64>::try_from(answers.tokens.view([-1])).unwrap(), ids(&record["answer_ids"]));
        let pixels = images.narrow(0, record["image"].as_i64().unwrap(), 1);
        let image: Images = model.encode(&pixels).unwrap();
        let answers = Answers { text: vec![String::new()], ..answers };
        let logp = model.answer_logp(&image, &[question], &answers, Policy::Current).unwrap().logp;
        let expected: Vec<f64> =
            record["answer_logp"].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
        close("answer", &logp.view([-1]), &Tensor::from_slice(&expected).to_kind(Kind::Float));
    }

    // The saved model loads in transformers.
    let saved = dir.path().join("saved");
    fs::create_dir(&saved).unwrap();
    janus.save(&saved).unwrap();
    run(&python, &["check".as_ref(), &saved, dir.path()]);
}
