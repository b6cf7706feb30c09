//! Checkpoints: weights of published ones, both forms of configuration, and errors.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use unirl::Result;
use unirl::weights::{self, Expected, Weights};
use unirl_plugin_janus::config::{JanusConfig, LlamaConfig};
use unirl_plugin_janus::layout::Layout;
use unirl_plugin_janus::network::Network;

fn read(json: &Value) -> Result<JanusConfig> {
    JanusConfig::read(json, "config.json", &|_| None)
}

/// An original `config.json` of a model of width `width` with the `language_config` `language`.
fn original(width: i64, language: &Value) -> Value {
    let projector = |inputs: i64| json!({"params": {"projector_type": "mlp_gelu", "depth": 2, "input_dim": inputs, "n_embed": width}});
    json!({
        "model_type": "multi_modality",
        "vision_config": {"cls": "CLIPVisionTower", "params": {
            "image_size": 384, "model_name": "siglip_large_patch16_384", "select_feature": "same", "select_layer": -1,
        }},
        "aligner_config": projector(1024),
        "gen_vision_config": {"cls": "VQ-16", "params": {"image_token_size": 16384, "n_embed": 8}},
        "gen_aligner_config": projector(8),
        "gen_head_config": {"params": {"n_embed": width, "image_token_embed": width, "image_token_size": 16384}},
        "language_config": language,
    })
}

fn small_language() -> Value {
    json!({
        "model_type": "llama", "vocab_size": 102_400, "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16,
        "max_position_embeddings": 16384, "_attn_implementation": "flash_attention_2",
    })
}

fn original_1b() -> Value {
    original(2048, &small_language())
}

/// As published; the missing keys have the defaults of `LlamaConfig`.
fn original_7b() -> Value {
    original(
        4096,
        &json!({"model_type": "llama", "max_position_embeddings": 16384, "num_hidden_layers": 30, "vocab_size": 102_400}),
    )
}

fn transformers_1b() -> Value {
    json!({
        "model_type": "janus",
        "tie_word_embeddings": true, // a default that is wrong for every checkpoint
        "text_config": small_language(),
        "vision_config": {
            "model_type": "janus_vision_model", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
            "image_size": 384, "patch_size": 16, "mlp_ratio": 4.0, "projection_dim": 2048, "depth": 2,
            "num_image_tokens": 576, "hidden_act": "gelu", "layer_norm_eps": 1e-6,
        },
        "vq_config": {
            "model_type": "janus_vqgan", "embed_dim": 8, "num_embeddings": 16384, "projection_dim": 2048,
            "num_hidden_layers": 2, "image_token_embed_dim": 2048,
        },
    })
}

fn table(expected: Vec<Expected>) -> BTreeMap<String, Vec<i64>> {
    assert!(expected.iter().all(|e| e.required));
    let count = expected.len();
    let table: BTreeMap<_, _> = expected.into_iter().map(|e| (e.name, e.shape)).collect();
    assert_eq!(table.len(), count, "duplicate names");
    table
}

/// The published weights except those of the image tokenizer: the used ones, and the number of unused ones.
fn published(name: &str, layout: Layout) -> (BTreeMap<String, Vec<i64>>, usize) {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/keys"));
    let json = fs::read(folder.join(name)).unwrap();
    let mut table: BTreeMap<String, Vec<i64>> = serde_json::from_slice(&json).unwrap();
    let tokenizer = ["model.vqmodel.", "gen_vision_model."];
    table.retain(|name, _| !tokenizer.iter().any(|prefix| name.starts_with(prefix)));
    let all = table.len();
    table.retain(|name, _| !layout.unused(name));
    let unused = all - table.len();
    (table, unused)
}

#[test]
fn expected_weights_are_those_of_published_checkpoints() {
    for (name, layout, json, unused) in [
        ("janus_1_3b_original.json", Layout::Original, original_1b(), 13),
        ("janus_pro_1b_original.json", Layout::Original, original_1b(), 13),
        ("janus_pro_7b_original.json", Layout::Original, original_7b(), 13),
        ("janus_pro_1b_hf.json", Layout::Transformers, transformers_1b(), 0),
    ] {
        let expected = layout.expected(&Network::expected(&read(&json).unwrap()).unwrap());
        let published = published(name, layout);
        assert_eq!(published.1, unused, "{name}");
        assert_eq!(table(expected), published.0, "{name}");
    }
}

#[test]
fn config_forms_of_original_and_transformers_agree() {
    let config = read(&original_1b()).unwrap();
    assert_eq!(read(&transformers_1b()).unwrap(), config);
    assert_eq!((config.language.head_dim, config.image_tokens()), (128, 576));
    let large = read(&original_7b()).unwrap().language;
    let expected = LlamaConfig {
        vocab_size: 102_400,
        num_hidden_layers: 30,
        max_position_embeddings: 16384,
        ..LlamaConfig::default()
    };
    assert_eq!(large, expected);
}

#[test]
fn missing_config_keys_are_defaults_or_inferred_from_weights() {
    let mut json = original_1b();
    json["language_config"]["num_key_value_heads"] = Value::Null;
    json["gen_head_config"]["params"] = json!({});
    json["aligner_config"]["params"]["depth"] = Value::Null;
    json["gen_aligner_config"]["params"]["depth"] = Value::Null;
    let default = read(&json).unwrap();
    assert_eq!(default, read(&original_1b()).unwrap());
    let shape = |name: &str| match name {
        "model.generation_head.proj_out.bias" => Some(vec![96]),
        "model.aligner.fc1.bias"
        | "model.aligner.hidden_layers.0.bias"
        | "model.aligner.hidden_layers.1.bias"
        | "model.generation_aligner.fc1.bias" => Some(vec![2048]),
        _ => None,
    };
    let config = JanusConfig::read(&json, "config.json", &shape).unwrap();
    assert_eq!((config.aligner_depth, config.generation.aligner_depth), (3, 1));
    assert_eq!(config.generation.head_size, 96);
    let names: Vec<_> = Layout::Original
        .expected(&Network::expected(&config).unwrap())
        .into_iter()
        .map(|e| e.name)
        .filter(|name| name.contains("aligner.") && name.ends_with("bias"))
        .collect();
    assert_eq!(
        names,
        [
            "aligner.layers.0.bias",
            "aligner.layers.2.bias",
            "aligner.layers.4.bias",
            "gen_aligner.layers.0.bias"
        ]
    );

    // `select_layer` cuts the vision encoder.
    for (select, layers) in [(-1, 24), (-2, 23), (0, 24), (5, 5), (30, 24)] {
        let mut json = original_1b();
        json["vision_config"]["params"]["select_layer"] = select.into();
        assert_eq!(read(&json).unwrap().vision.num_hidden_layers, layers, "select_layer {select}");
    }
}

#[test]
fn unsupported_or_inconsistent_configs_are_refused() {
    let with = |json: Value, path: &[&str], value: Value| {
        let mut json = json;
        let (last, parents) = path.split_last().unwrap();
        let parent = parents.iter().fold(&mut json, |json, key| &mut json[*key]);
        parent[*last] = value;
        json
    };
    let mut flow = original_1b();
    flow["vision_gen_enc_config"] = json!({});
    let mut deepseek_vl = original_1b();
    for key in ["gen_vision_config", "gen_aligner_config", "gen_head_config"] {
        deepseek_vl[key] = Value::Null;
    }
    let scaled = json!({"rope_type": "linear", "factor": 4.0});
    let language = |key, value| with(original_1b(), &["language_config", key], value);
    for (json, expected) in [
        (flow, "`config.json`: this is JanusFlow, which has no image tokens"),
        (deepseek_vl, "`config.json`: this is DeepSeek-VL, which does not generate images"),
        (
            json!({"model_type": "llama"}),
            "`config.json`: `model_type`: expected `multi_modality` or `janus`, got `llama`",
        ),
        (json!({}), "`config.json`: `model_type`: expected `multi_modality` or `janus`, got none"),
        (
            language("rope_scaling", scaled.clone()),
            "`config.json`: `language_config`: `rope_scaling`: `rope_type`: expected \"default\", got \"linear\"",
        ),
        (
            with(transformers_1b(), &["text_config", "rope_parameters"], scaled),
            "`config.json`: `text_config`: `rope_parameters`: `rope_type`: expected \"default\", got \"linear\"",
        ),
        (
            language("num_key_value_heads", json!(3)),
            "`config.json`: `num_attention_heads`: expected a multiple of 3 key and value heads, got 16",
        ),
        (
            language("hidden_size", json!("wide")),
            "`config.json`: `language_config`: `hidden_size`: expected a whole number, got \"wide\"",
        ),
        (
            language("num_hidden_layers", json!(0)),
            "`config.json`: `num_hidden_layers`: expected 1 or more, got 0",
        ),
        (
            language("num_hidden_layers", json!(1_000_000_000)),
            "`config.json`: `language_config`: `num_hidden_layers`: expected at most 1000, got 1000000000",
        ),
        (
            with(original_1b(), &["aligner_config", "params", "depth"], json!(4_000_000_000_i64)),
            "`config.json`: `aligner_config`: `params`: `depth`: expected at most 1000, got 4000000000",
        ),
        (
            language("vocab_size", json!(i64::MAX)),
            "`config.json`: `language_config`: `vocab_size`: expected at most 67108864, got 9223372036854775807",
        ),
        (
            language("hidden_size", json!(1024)),
            "`config.json`: `aligner_config`: `params`: `n_embed`: expected 1024, got 2048",
        ),
        (
            with(original_1b(), &["aligner_config", "params", "projector_type"], json!("linear")),
            "`config.json`: `aligner_config`: `params`: `projector_type`: expected \"mlp_gelu\", got \"linear\"",
        ),
        (
            with(original_1b(), &["gen_head_config", "params", "image_token_size"], json!(8192)),
            "`config.json`: `gen_head_config`: `params`: `image_token_size`: expected 16384, got 8192",
        ),
        (
            with(transformers_1b(), &["vision_config", "image_size"], json!(380)),
            "`config.json`: `vision_config`: `num_image_tokens`: expected 529, got 576",
        ),
    ] {
        assert_eq!(read(&json).unwrap_err().message(), expected);
    }
}

/// A weights file with these names.
fn file(folder: &Path, names: &[&str]) -> Weights {
    let one = || Tensor::ones([1], (Kind::Float, Device::Cpu));
    let tensors: Vec<_> = names.iter().map(|name| ((*name).to_string(), one())).collect();
    let path = folder.join("model.safetensors");
    weights::write(&path, &tensors, &[]).unwrap();
    Weights::open(&path).unwrap()
}

#[test]
fn layout_is_detected_by_weight_names() {
    let folder = tempfile::tempdir().unwrap();
    let of = |names: &[&str]| Layout::of(&file(folder.path(), names));
    assert_eq!(
        of(&["gen_head.vision_head.bias", "language_model.lm_head.weight"]).unwrap(),
        Layout::Original
    );
    assert_eq!(of(&["model.generation_head.vision_head.bias"]).unwrap(), Layout::Transformers);
    let assert_refused = |names: &[&str], expected: &str| {
        let error = of(names).unwrap_err();
        assert!(error.message().ends_with(expected), "{error}");
    };
    assert_refused(
        &["vision_gen_enc_model.a", "vision_und_enc_model.b", "language_model.c"],
        "`: these are the weights of JanusFlow, which has no image tokens",
    );
    assert_refused(
        &["aligner.layers.0.bias", "language_model.c", "vision_model.d"],
        "`: these are the weights of DeepSeek-VL, which does not generate images",
    );
    assert_refused(
        &["showo.model.a"],
        "`: expected weights `gen_head.…` or `model.generation_head.…`, got none",
    );
}

#[test]
fn weight_mismatches_are_reported_by_the_names_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let config = read(&original_1b()).unwrap();
    let mut weights = file(
        folder.path(),
        &["gen_head.extra", "gen_embed.weight", "vision_model.vision_tower.attn_pool.latent"],
    );
    let error = Layout::Original.open(&mut weights, &Network::expected(&config).unwrap()).unwrap_err();
    assert!(error.message().ends_with("missing, 1 unexpected, 1 wrong shape"), "{error}");
    assert!(error.causes()[0].contains("`vision_model.vision_tower.blocks.0.attn.qkv.weight`"), "{error}");
    assert_eq!(error.causes()[1], "unexpected: `gen_head.extra`");
    assert_eq!(error.causes()[2], "wrong shape: `gen_embed.weight` expected [16384, 8], got [1]");
}
