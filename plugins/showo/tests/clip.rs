//! Numerical parity of the vision encoder with transformers, and of the projector with torch. The numbers were recorded by
//! `tests/fixtures/clip/make.py`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../layers/tests/compare/mod.rs"]
mod compare;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use compare::{close, gradient};
use tch::{Device, Kind, Tensor};
use unirl::weights::{Store, Weights, read_json};
use unirl_plugin_showo::clip::{self, Activation, Clip, ClipConfig, Projector};
use unirl_plugin_showo::mask;

/// Absolute, for features of up to 13: on the same processor the bits are equal; f32 differs from f64 by up to 4e-5, which
/// bounds the difference of another processor.
const FEATURES: f64 = 1e-4;
/// Projector rows of up to 1.2: the observed error of two layers is 2e-7.
const ROWS: f64 = 1e-5;
/// Absolute, for resized pixels: the same kernel, so that only the rounding of another processor differs.
const PIXELS: f64 = 1e-6;

fn fixture(name: &str) -> PathBuf {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/clip")).join(name)
}

struct Cases(BTreeMap<String, Tensor>);

impl Cases {
    fn open() -> Self {
        Self(Tensor::read_safetensors(fixture("cases.safetensors")).unwrap().into_iter().collect())
    }

    fn get(&self, name: &str) -> Tensor {
        self.0[name].shallow_clone()
    }

    /// A leaf tensor.
    fn pixels(&self, case: &str) -> Tensor {
        (self.get(&format!("{case}.pixels")).to_kind(Kind::Float) / 255.0).set_requires_grad(true)
    }
}

fn vision_encoder(activation: Activation) -> (Clip, Store) {
    let config = ClipConfig::read(&fixture("config.json")).unwrap();
    let mut store =
        Store::open(Weights::open(&fixture("model.safetensors")).unwrap(), Device::Cpu, Kind::Float).frozen();
    let clip = Clip::take(&mut store, ClipConfig { hidden_act: activation, ..config }).unwrap();
    (clip, store)
}

#[test]
fn clip_features_and_gradients_match_transformers() {
    let cases = Cases::open();
    let (clip, store) = vision_encoder(Activation::QuickGelu);
    for case in ["fits", "large", "small"] {
        let pixels = cases.pixels(case);
        let features = clip.features(&pixels);
        close(&format!("{case}: features"), &features, &cases.get(&format!("{case}.features")), FEATURES);
        (features * cases.get("all.weights")).sum(Kind::Float).backward();
        gradient(&format!("{case}: gradient"), &pixels.grad(), &cases.get(&format!("{case}.gradient")));
    }
    for (name, weight) in store.finish() {
        assert!(!weight.grad().defined(), "`{name}` is frozen");
    }
}

#[test]
fn clip_activation_gelu_is_exact() {
    let cases = Cases::open();
    let features = vision_encoder(Activation::Gelu).0.features(&cases.pixels("large"));
    close("features", &features, &cases.get("gelu.features"), FEATURES);
    let off = (features - cases.get("large.features")).abs().max().double_value(&[]);
    assert!(off > 100.0 * FEATURES, "the two activations differ measurably");
}

#[test]
fn resize_matches_torch() {
    let cases = Cases::open();
    close("resized", &clip::resize(&cases.pixels("large"), 28), &cases.get("large.resized"), PIXELS);
    let pixels = cases.pixels("fits");
    assert!(clip::resize(&pixels, 28).equal(&pixels), "no resize at the same size");
}

#[test]
fn projector_output_and_gradients_match_torch() {
    let cases = Cases::open();
    let weights = cases.0.iter().filter_map(|(name, tensor)| {
        let name = name.strip_prefix("projector.").filter(|name| name.starts_with("mm_projector."))?;
        Some((name.to_string(), tensor.shallow_clone()))
    });
    let weights: Vec<(String, Tensor)> =
        weights.map(|(name, tensor)| (name, tensor.set_requires_grad(true))).collect();
    let mut store = Store::of_tensors("cases.safetensors", weights);
    let projector = Projector::take(&mut store, 32, 24).unwrap();
    let input = cases.get("projector.input").set_requires_grad(true);
    let output = projector.apply(&input);
    close("output", &output, &cases.get("projector.output"), ROWS);
    output.square().sum(Kind::Float).backward();
    gradient("input", &input.grad(), &cases.get("projector.gradient.input"));
    let taken = store.finish();
    assert_eq!(taken.len(), 4);
    for (name, weight) in taken {
        gradient(&name, &weight.grad(), &cases.get(&format!("projector.gradient.{name}")));
    }
}

#[test]
fn clip_expects_the_published_weights_without_the_last_layer() {
    let mut plan = Store::plan();
    Clip::take(&mut plan, ClipConfig::default()).unwrap();
    let taken: BTreeMap<String, Vec<i64>> =
        plan.expected().into_iter().map(|expected| (expected.name, expected.shape)).collect();
    let mut table: BTreeMap<String, Vec<i64>> =
        read_json(&fixture("../keys/clip_vit_l_14_336.json")).unwrap();
    let full = table.len();
    table.retain(|name, _| {
        !name.starts_with("vision_model.encoder.layers.23.")
            && !name.starts_with("vision_model.post_layernorm.")
    });
    assert_eq!(full - table.len(), 16 + 2);
    assert_eq!(taken, table);
}

#[test]
fn clip_config_is_read_flat_or_nested() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        ClipConfig::read(&path)
    };
    let fields = r#""hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
        "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768"#;
    let large = ClipConfig::default();
    assert_eq!(read(&format!("{{{fields}}}")).unwrap(), large);
    let nested = format!(r#"{{"model_type": "clip", "image_size": 1, "vision_config": {{{fields}}}}}"#);
    assert_eq!(read(&nested).unwrap(), large);
    assert_eq!(read(&serde_json::to_string(&large).unwrap()).unwrap(), large);

    // transformers omits values that equal those of ViT-B/32.
    let base = ClipConfig {
        hidden_size: 768,
        intermediate_size: 3072,
        num_hidden_layers: 12,
        num_attention_heads: 12,
        image_size: 224,
        patch_size: 16,
        layer_norm_eps: 1e-5,
        hidden_act: Activation::Gelu,
    };
    assert_eq!(read(r#"{"vision_config": {"patch_size": 16, "hidden_act": "gelu"}}"#).unwrap(), base);

    let error = read(r#"{"vision_config": {"hidden_act": "relu"}}"#).unwrap_err();
    assert_eq!(error.message(), format!("cannot read `{}`", path.display()));
    assert_eq!(error.causes(), ["unknown variant `relu`, expected `quick_gelu` or `gelu`"]);
}

#[test]
fn clip_config_inconsistent_sizes_are_refused() {
    let large = ClipConfig::default;
    large().check("config.json").unwrap();
    let refusals = [
        (
            ClipConfig { num_hidden_layers: 0, ..large() },
            "`config.json`: `num_hidden_layers`: expected 1 or more, got 0",
        ),
        (
            ClipConfig { num_hidden_layers: 1 << 40, ..large() },
            "`config.json`: `num_hidden_layers`: expected at most 1000, got 1099511627776",
        ),
        (
            ClipConfig { hidden_size: 1000, ..large() },
            "`config.json`: `hidden_size`: expected a multiple of 16 heads, got 1000",
        ),
        (
            ClipConfig { image_size: 224, patch_size: 15, ..large() },
            "`config.json`: `image_size`: expected a multiple of 15 pixels, the edge of a patch, got 224",
        ),
    ];
    for (config, expected) in refusals {
        assert_eq!(config.check("config.json").unwrap_err().message(), expected);
    }
}

#[test]
fn mmu_clip_mask_shows_features_to_all_and_is_causal_otherwise() {
    // <mmu>, one row of a system prompt, <soi>, two features, <eoi>, two rows of text.
    let expected: [[u8; 8]; 8] = [
        [1, 0, 0, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 1, 1, 1, 1],
    ];
    let expected = Tensor::from_slice2(&expected).to_kind(Kind::Bool).unsqueeze(0);
    assert!(mask::mmu_clip(8, 1, 2, Device::Cpu).equal(&expected));
}
