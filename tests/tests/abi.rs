//! The plugin ABI, tested with two shared libraries that are loaded like those of a user.

#![allow(clippy::unwrap_used, clippy::float_cmp, reason = "tests may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tracing::field::{Field, Visit};
use tracing::span;
use unirl::detector::Detection;
use unirl::error::Code;
use unirl::model::{
    Checkpoint, ImageSampling, Images, Masking, ModelSource, Policy, TextSampling, UnifiedModel, Workload,
};
use unirl::prompt::{Category, PromptSpec};
use unirl::reward::Sample;
use unirl::{Error, Result};
use unirl_benchmarks::tiles::{self, Tile, TileGrid};
use unirl_engine::plugin::{EntryKind, PluginState, Plugins};

fn plugin_dir() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

fn plugins() -> Plugins {
    Plugins::new(&[plugin_dir()])
}

fn source() -> ModelSource {
    ModelSource { checkpoint: Checkpoint::Fresh, device: Device::Cpu, seed: 0, dry: false }
}

fn model(entry: &str) -> Box<dyn UnifiedModel> {
    plugins().model(&format!("fixture/{entry}"), &json!({}), &source()).unwrap()
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn error<T>(result: Result<T>) -> Error {
    match result {
        Ok(_) => panic!("expected an error"),
        Err(error) => error,
    }
}

fn sample() -> Sample {
    Sample {
        spec: PromptSpec { category: Category::Counting, objects: vec![], relation: None },
        prompt: "two cats".into(),
        question: "how many?".into(),
        reference_answer: "two".into(),
        answer: "two".into(),
    }
}

#[test]
fn plugins_with_separate_root_modules_load_together() {
    let mut plugins = plugins();
    let constant = plugins.reward("constant", &json!({"score": 0.25})).unwrap();
    let two = plugins.reward("two", &Value::Null).unwrap();
    assert_eq!(constant.score(&[sample()], None).unwrap()[0].score, 0.25);
    assert_eq!(two.score(&[sample(), sample()], None).unwrap()[1].score, 2.0);
    let fixture = plugins.load("fixture").unwrap();
    let names: Vec<&str> = fixture.entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["tiles", "echo", "nan", "panics", "tight", "wrong-shape", "adversary", "constant"]);
    assert_eq!([0, 7].map(|at| fixture.entries[at].kind), [EntryKind::Detector, EntryKind::Reward]);
    let width = &fixture.entries[1].schema["properties"]["width"];
    assert_eq!(width["description"], "The width of the embedding.");
    assert_eq!(plugins.load("other").unwrap().entries.len(), 1);
}

#[test]
fn every_model_operation_crosses_the_abi() -> Result<()> {
    let mut model = model("echo");
    let (prompts, questions) = (texts(&["a", "b"]), texts(&["what?", "why?"]));
    assert_eq!(model.card().name, "echo");
    let images = model.generate(&prompts, &ImageSampling::default())?;
    assert_eq!(Vec::<i64>::try_from(images.tokens.get(0))?, [1, 2, 3, 4]);
    assert!(images.revealed_at.is_some());
    let pixels = model.pixels(&images)?;
    assert_eq!(model.encode(&pixels)?.tokens, images.tokens);
    let answers = model.answer(&images, &questions, &TextSampling::default())?;
    assert_eq!(answers.text, questions);
    let logits = model.image_logits(&prompts, &images, Policy::Current, &Masking::remask(0, None))?;
    assert_eq!(logits.logits.size(), [2, 4, 6]);
    assert!(model.tokenizer_loss(&pixels, 0.5)?.requires_grad());
    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path())?;
    assert!(dir.path().join("echo.pt").is_file());
    let refused = error(model.freeze_reference());
    assert_eq!(refused.code(), Code::Usage);
    assert_eq!(refused.message(), "plugin `fixture/echo` failed in `freeze_reference`");
    assert_eq!(
        (refused.causes(), refused.hints()),
        (&texts(&["echo has no reference"])[..], &texts(&["use another model"])[..])
    );
    Ok(())
}

#[test]
fn optional_trait_that_a_model_lacks_is_unsupported() {
    let workload = Workload { images: ImageSampling::default(), answers: TextSampling::default(), states: 1 };
    let refused = error(model("echo").footprint(&workload));
    assert_eq!(refused.code(), Code::Unsupported);
    assert_eq!(refused.message(), "plugin `fixture/echo` failed in `footprint`");
    assert_eq!(refused.causes(), texts(&["model `echo` does not support memory estimation"]));
}

#[test]
fn autograd_crosses_the_abi_and_respects_no_grad() -> Result<()> {
    let model = model("echo");
    let relaxed = Tensor::full([2, 4, 6], 1.0 / 6.0, (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let tokens = Tensor::zeros([2, 4], (Kind::Int64, Device::Cpu));
    let images = Images { relaxed: Some(relaxed.shallow_clone()), ..Images::from_tokens(tokens) };
    let questions = texts(&["x", "y"]);
    let answers = model.encode_answers(&questions)?;
    let logp = || model.answer_logp(&images, &questions, &answers, Policy::Current);
    assert!(!tch::no_grad(logp)?.logp.requires_grad());
    logp()?.logp.sum(Kind::Float).neg().backward();
    assert!(relaxed.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0);

    // Parameters are the leaves of the model: they share gradients, and the model sees an update made here.
    let parameters = model.parameters()?;
    assert!(parameters.iter().all(|p| p.tensor.grad().abs().sum(Kind::Float).double_value(&[]) > 0.0));
    let grad = parameters[1].tensor.grad();
    assert_eq!(model.parameters()?[1].tensor.grad().data_ptr(), grad.data_ptr());
    let before = logp()?.logp.sum(Kind::Float).double_value(&[]);
    tch::no_grad(|| {
        let mut leaf = parameters[1].tensor.shallow_clone();
        let _ = leaf.g_sub_(&(grad * 0.1));
    });
    assert!(logp()?.logp.sum(Kind::Float).double_value(&[]) > before);
    Ok(())
}

#[test]
fn plugin_panic_names_plugin_operation_and_line() {
    let mut model = model("panics");
    let error_ = error(model.generate(&texts(&["a"]), &ImageSampling::default()));
    assert_eq!(error_.code(), Code::Panic);
    assert_eq!(error_.message(), "plugin `fixture/panics` failed in `generate`");
    let cause = &error_.causes()[0];
    assert!(cause.starts_with("panicked at ") && cause.ends_with(": kaboom"), "{cause}");
    assert!(cause.contains("fixture-plugin/src/lib.rs:"), "{cause}");
    let leaf = Tensor::zeros([1], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    assert!((leaf * 2).requires_grad(), "no_grad is still active after the panic");
}

#[test]
fn panic_in_tch_names_the_calling_line() {
    let mut model = model("panics");
    let images = Images::from_tokens(Tensor::zeros([1, 4], (Kind::Int64, Device::Cpu)));
    let error = error(model.answer(&images, &texts(&["x"]), &TextSampling::default()));
    let cause = &error.causes()[0];
    assert!(cause.contains("fixture-plugin/src/lib.rs:"), "{cause}");
    assert!(!cause.contains("Exception raised from"), "{cause}");
}

#[test]
fn wrong_shape_or_nan_from_plugin_is_one_error() -> Result<()> {
    let wrong = error(model("wrong-shape").generate(&texts(&["a"]), &ImageSampling::default()));
    assert_eq!(
        wrong.to_string(),
        "plugin `fixture/wrong-shape` failed in `generate`\n  \
         caused by: `images.tokens`: expected [1, 4] i64, got [1, 3] i64"
    );
    let mut model = model("nan");
    let images = model.generate(&texts(&["a"]), &ImageSampling::default())?;
    let questions = texts(&["x"]);
    let answers = model.encode_answers(&questions)?;
    let nan = error(model.answer_logp(&images, &questions, &answers, Policy::Current));
    assert_eq!(nan.code(), Code::NonFinite);
    assert_eq!(nan.message(), "plugin `fixture/nan` failed in `answer_logp`");
    assert_eq!(nan.causes(), ["`logp`: expected finite values, got 2 NaN or infinite, the first at [0, 0]"]);
    Ok(())
}

#[test]
fn plugin_configuration_error_is_usage_error() {
    let mut plugins = plugins();
    let key = error(plugins.model("fixture/echo", &json!({"widht": 3}), &source()));
    assert_eq!(key.code(), Code::Usage);
    assert_eq!(key.message(), "plugin `fixture` failed to create model `echo`");
    assert_eq!(key.causes(), ["unknown key `model.options.widht`"]);
    assert_eq!(key.hints(), ["did you mean `model.options.width`?", "known in `model.options`: width"]);
    let value = error(plugins.model("fixture/echo", &json!({"width": "wide"}), &source()));
    assert_eq!(value.code(), Code::Usage);
    assert!(value.causes()[0].starts_with("`model.options.width`: expected a whole number"), "{value}");
    let entry = error(plugins.model("fixture/ecco", &json!({}), &source()));
    assert_eq!(entry.hints()[0], "did you mean `echo`?");
    let several = error(plugins.model("fixture", &json!({}), &source()));
    assert!(several.hints()[0].contains("`fixture/echo`, `fixture/nan`"), "{several}");
    let rule = error(plugins.reward("constent", &Value::Null));
    assert_eq!(rule.hints()[0], "did you mean `constant`?");
    for known in ["`constant` (plugin `fixture`)", "`two` (plugin `other`)"] {
        assert!(rule.hints()[1].contains(known), "{rule}");
    }
    let name = error(plugins.load("fixtur"));
    assert_eq!(name.code(), Code::Usage);
    assert_eq!(name.hints()[0], "did you mean `fixture`?");
}

#[test]
fn detector_output_crosses_the_abi_and_is_validated() -> Result<()> {
    let mut plugins = plugins();
    let mut scene = TileGrid::default();
    scene.tiles[5] = Some(Tile { shape: 2, color: 0 });
    scene.tiles[15] = Some(Tile { shape: 0, color: 4 });
    let pixels = tiles::render(&[scene, TileGrid::default()]);
    let (classes, colors) = (texts(&["square"]), texts(&["red"]));
    let detector = plugins.detector("tiles", &json!({"score": 0.5}))?;
    let square = Detection {
        class: "square".into(),
        score: 0.5,
        bounds: [8.0, 8.0, 16.0, 16.0],
        color: Some("red".into()),
    };
    assert_eq!(detector.detect(&pixels, &classes, &colors)?, [vec![square.clone()], vec![]]);
    let plain = Detection { color: None, ..square };
    assert_eq!(detector.detect(&pixels, &classes, &[])?, [vec![plain], vec![]]);

    let mut detect_error = |config: Value| {
        let detector = plugins.detector("tiles", &config).unwrap();
        error(detector.detect(&pixels, &classes, &colors)).to_string()
    };
    let failed = "plugin `fixture/tiles` failed in `detect`\n  caused by: ";
    for (config, why) in [
        (json!({"forgets": true}), "`detections`: expected 2 images, got 1"),
        (json!({"score": 1.5}), "`detections[0][0]`: `score`: expected a number in 0..=1, got 1.5"),
        (
            json!({"widen": -9.0}),
            "`detections[0][0]`: `box`: expected finite [x0, y0, x1, y1] with x0 <= x1 and y0 <= y1, \
             got [8.0, 8.0, 7.0, 16.0]",
        ),
    ] {
        assert_eq!(detect_error(config), format!("{failed}{why}"));
    }
    let name = error(plugins.detector("tyles", &Value::Null));
    assert_eq!((name.code(), name.message()), (Code::Usage, "unknown detector `tyles`"));
    assert_eq!(name.hints(), ["did you mean `tiles`?", "known: `tiles` (plugin `fixture`)"]);
    let none = plugin_dir().join("libunirl_plugin_other.so").display().to_string();
    assert_eq!(error(plugins.detector(&none, &Value::Null)).message(), "plugin `other` has no detector");
    Ok(())
}

static EVENTS: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Recorder;

impl tracing::Subscriber for Recorder {
    fn enabled(&self, metadata: &tracing::Metadata<'_>) -> bool {
        *metadata.level() <= tracing::Level::INFO
    }

    fn event(&self, event: &tracing::Event<'_>) {
        struct Line(String);
        impl Visit for Line {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                self.0.extend([field.name(), "=", &format!("{value:?}"), " "]);
            }
        }
        let mut line = Line(format!("{} ", event.metadata().level()));
        event.record(&mut line);
        EVENTS.lock().unwrap().push(line.0);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

#[test]
fn plugin_log_events_reach_the_host() -> Result<()> {
    tracing::subscriber::set_global_default(Recorder).unwrap();
    model("echo").generate(&texts(&["a", "b", "c"]), &ImageSampling::default())?;
    let events = EVENTS.lock().unwrap();
    let wanted = ["INFO", "generating batch=3", "unirl_plugin_fixture"];
    assert!(events.iter().any(|event| wanted.iter().all(|part| event.contains(part))), "{events:?}");
    Ok(())
}

/// The error from loading a changed copy of the fixture plugin.
fn load_error(dir: &Path, change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> Error {
    let bytes = fs::read(plugin_dir().join("libunirl_plugin_fixture.so")).unwrap();
    let path = dir.join("libunirl_plugin_fixture.so");
    fs::write(&path, change(bytes)).unwrap();
    error(Plugins::new(&[]).load(path.to_str().unwrap()).map(|_| ()))
}

/// Replaces every occurrence of `from` by `to`, which has the same length.
fn patch(mut bytes: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let positions: Vec<usize> = bytes
        .windows(from.len())
        .enumerate()
        .filter(|(_, w)| *w == from.as_bytes())
        .map(|(at, _)| at)
        .collect();
    assert!(!positions.is_empty(), "{from} is not in the file");
    for at in positions {
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    }
    bytes
}

#[test]
fn incompatible_plugin_is_refused_before_dlopen() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let abi = load_error(dir, |bytes| patch(bytes, "\nabi=1\n", "\nabi=9\n"));
    let path = dir.join("libunirl_plugin_fixture.so").canonicalize().unwrap();
    let path = path.display();
    assert_eq!(
        abi.message(),
        format!(
            "plugin `fixture` was built for a different plugin ABI\n  host:   abi 1\n  plugin: abi 9 ({path})"
        )
    );
    let torch = load_error(dir, |bytes| patch(bytes, "\ntorch=2.11.0\n", "\ntorch=2.9.10\n"));
    assert_eq!(
        torch.message(),
        format!(
            "plugin `fixture` was built for a different libtorch\n  host:   libtorch 2.11.0\n  \
             plugin: libtorch 2.9.10 ({path})"
        )
    );
    assert!(torch.hints()[0].starts_with("rebuild it"));
    let panic = load_error(dir, |bytes| patch(bytes, "\npanic=unwind\n", "\npanic=abort_\n"));
    assert!(panic.message().contains("a different panic strategy"), "{panic}");

    let not_a_plugin = format!("`{path}` is not a unirl plugin");
    let no_stamp = load_error(dir, |bytes| patch(bytes, "unirl-plugin-stamp-1\n", "unirl-plugin-stamp-x\n"));
    assert_eq!((no_stamp.message(), no_stamp.causes()), (&*not_a_plugin, &texts(&["it has no stamp"])[..]));
    let truncated = load_error(dir, |bytes| bytes[..bytes.len() * 3 / 4].to_vec());
    assert_eq!(
        (truncated.message(), truncated.causes()),
        (&*not_a_plugin, &texts(&["the file is truncated"])[..])
    );
    let text = load_error(dir, |_| b"#!/bin/sh\n".to_vec());
    assert_eq!(
        (text.message(), text.causes()),
        (&*not_a_plugin, &texts(&["it is not a shared library"])[..])
    );
    let tiny = load_error(dir, |bytes| bytes[..20].to_vec());
    assert_eq!(tiny.message(), not_a_plugin);
}

#[test]
fn discovery_reports_every_candidate_and_refuses_duplicate_names() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("libunirl_plugin_broken.so"), "text").unwrap();
    fs::copy(plugin_dir().join("libunirl_plugin_other.so"), dir.path().join("libunirl_plugin_copy.so"))
        .unwrap();
    let mut plugins = Plugins::new(&[plugin_dir(), dir.path().to_owned()]);
    plugins.load("other").unwrap();
    let reports = plugins.discover();
    let state = |name: &str| &reports.iter().find(|report| report.name == name).unwrap().state;
    assert!(matches!(state("fixture"), PluginState::Loaded));
    assert!(matches!(state("other"), PluginState::Loaded));
    let PluginState::Refused(broken) = state("broken") else { panic!("a text file was loaded") };
    assert!(broken.message().contains("is not a unirl plugin"));
    let PluginState::Refused(copy) = state("copy") else { panic!("two plugins with one name were loaded") };
    let text = copy.message();
    assert!(text.contains("libunirl_plugin_other.so") && text.contains("libunirl_plugin_copy.so"), "{text}");
}
