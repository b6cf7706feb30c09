#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::{Map, Value, json};
use unirl::Result;

use super::{AdapterSpec, LoraConfig, Targets};

fn modules() -> Vec<String> {
    let parts = ["self_attn.q_proj", "self_attn.v_proj", "mlp.fc1"];
    (0..12).flat_map(|layer| parts.map(|part| format!("model.layers.{layer}.{part}"))).collect()
}

fn peft(changes: Value) -> Value {
    let mut json = json!({
        "peft_type": "LORA", "base_model_name_or_path": "base", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"],
    });
    let Value::Object(changes) = changes else { panic!("an object") };
    json.as_object_mut().unwrap().extend(changes);
    json
}

fn read(changes: Value) -> Result<LoraConfig> {
    LoraConfig::from_peft(&peft(changes).to_string()).map(|(config, _)| config)
}

/// The adapted modules, without `model.layers.`.
fn adapted(targets: &Value) -> Vec<String> {
    let config = read(json!({"target_modules": targets})).unwrap();
    let adapters = config.adapters_for(&modules()).unwrap();
    let adapted = modules().into_iter().zip(adapters).filter(|(_, adapter)| adapter.is_some());
    adapted.map(|(module, _)| module.strip_prefix("model.layers.").unwrap().to_string()).collect()
}

#[test]
fn lora_target_modules_match_as_in_peft() {
    assert_eq!(adapted(&json!("all-linear")).len(), 36);
    assert_eq!(adapted(&json!(["q_proj", "fc1"])).len(), 24);
    assert_eq!(adapted(&json!("v_proj")).len(), 12);
    assert_eq!(adapted(&json!(["1.mlp.fc1"])), ["1.mlp.fc1"], "not that of layer 11");
    assert_eq!(adapted(&json!(["model.layers.3.self_attn.q_proj"])), ["3.self_attn.q_proj"]);
    assert_eq!(adapted(&json!(r"model\.layers\.[01]\..*\.(q|v)_proj")).len(), 4);
    assert_eq!(adapted(&json!(r"^(?!.*layers\.\d\.).*fc1$")), ["10.mlp.fc1", "11.mlp.fc1"], "lookahead");
    for nothing in [json!("layers.3"), json!("proj"), json!(["_proj"]), json!([])] {
        let error = read(json!({"target_modules": nothing})).unwrap().adapters_for(&modules()).unwrap_err();
        assert!(error.message().contains("matches no linear layer"), "{error}");
    }
    let error = read(json!({"target_modules": "(q_proj"})).unwrap().adapters_for(&modules()).unwrap_err();
    assert!(error.message().contains("`(q_proj` is not a regular expression"), "{error}");
}

/// Keys are regular expressions for a suffix of the name; the first match applies.
#[test]
fn lora_patterns_set_rank_and_alpha() {
    let config = read(json!({
        "target_modules": "all-linear",
        "rank_pattern": {"layers.1.self_attn.q_proj": 9, "q_proj": 2, r"mlp\..*": 16},
        "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 3.0, "(q|v)_proj": 6},
    }))
    .unwrap();
    for (rslora, share) in [(false, (|rank| rank) as fn(f64) -> f64), (true, f64::sqrt)] {
        let config = LoraConfig { rslora, ..config.clone() };
        let adapters = config.adapters_for(&modules()).unwrap();
        let of = |name: &str| {
            let at = modules().iter().position(|module| module.ends_with(name)).unwrap();
            adapters[at].unwrap()
        };
        for (name, rank, alpha) in [
            ("layers.0.self_attn.q_proj", 2, 3.0),
            ("layers.1.self_attn.q_proj", 9, 6.0),
            ("layers.11.self_attn.q_proj", 2, 6.0),
            ("layers.0.self_attn.v_proj", 4, 6.0),
            ("layers.7.mlp.fc1", 16, 8.0),
        ] {
            assert_eq!(of(name), AdapterSpec { rank, scale: alpha / share(rank as f64) }, "{name}");
        }
    }
    for (key, patterns) in [
        ("rank_pattern", json!({"q_proj": 0})),
        ("rank_pattern", json!({"q_proj": 1.5})),
        ("alpha_pattern", json!({"q_proj": "8"})),
        ("alpha_pattern", json!({"q_proj(": 8})),
    ] {
        let error = read(json!({key: patterns})).unwrap().adapters_for(&modules()).unwrap_err();
        assert!(error.message().starts_with(&format!("`{key}")), "{error}");
    }
}

#[test]
fn peft_keys_without_effect_are_ignored() {
    for changes in [
        json!({"peft_version": "0.17.0", "revision": "main", "task_type": "FEATURE_EXTRACTION"}),
        json!({"inference_mode": true, "auto_mapping": {"base_model_class": "PhiForCausalLM"}}),
        json!({"lora_dropout": 0.05, "bias": "none", "init_lora_weights": true, "modules_to_save": null}),
        json!({"init_lora_weights": "gaussian", "megatron_config": null, "megatron_core": "megatron.core"}),
        json!({"init_lora_weights": "eva", "eva_config": {"rho": 2.0}, "qalora_group_size": 16}),
        json!({"use_dora": false, "use_rslora": null, "rank_pattern": {}, "alpha_pattern": null, "loftq_config": {}}),
        json!({"of_a_later_version": null, "another": false, "a_third": [], "a_fourth": {}}),
    ] {
        assert_eq!(read(changes.clone()).unwrap(), read(json!({})).unwrap(), "{changes}");
    }
}

#[test]
fn peft_unsupported_keys_are_refused_by_name() {
    for (key, value) in [
        ("use_dora", json!(true)),
        ("use_qalora", json!(true)),
        ("lora_bias", json!(true)),
        ("fan_in_fan_out", json!(true)),
        ("bias", json!("all")),
        ("bias", json!("lora_only")),
        ("init_lora_weights", json!("pissa")),
        ("init_lora_weights", json!("pissa_niter_16")),
        ("init_lora_weights", json!("olora")),
        ("init_lora_weights", json!("loftq")),
        ("modules_to_save", json!(["embed_tokens", "lm_head"])),
        ("exclude_modules", json!(["fc1"])),
        ("layers_to_transform", json!(3)),
        ("layers_to_transform", json!([0, 1])),
        ("layer_replication", json!([[0, 4], [2, 5]])),
        ("trainable_token_indices", json!([1, 2])),
        ("target_parameters", json!(["experts.weight"])),
        ("alora_invocation_tokens", json!([5])),
        ("loftq_config", json!({"loftq_bits": 4})),
        ("of_a_later_version", json!(0.5)),
    ] {
        let error = read(json!({key: value, "use_rslora": true})).unwrap_err();
        assert!(error.causes()[0].starts_with(&format!("`{key}`: expected ")), "{error}");
        assert!(error.causes()[0].ends_with(&format!("got {value}")), "{error}");
        assert!(error.hints()[0].contains("merge_and_unload"), "{error}");
    }
    let error = read(json!({"use_dora": true, "modules_to_save": ["lm_head"]})).unwrap_err();
    assert_eq!(error.causes().len(), 2, "one error lists every key: {error}");
}

#[test]
fn peft_invalid_or_missing_value_is_refused_by_key() {
    for (key, value) in [
        ("r", json!("8")),
        ("r", json!(0)),
        ("lora_alpha", json!([8])),
        ("lora_alpha", json!(null)),
        ("target_modules", json!(null)),
        ("target_modules", json!([1])),
        ("base_model_name_or_path", json!(null)),
        ("peft_type", json!("LOHA")),
        ("use_rslora", json!("yes")),
        ("rank_pattern", json!([4])),
    ] {
        let error = read(json!({key: value})).unwrap_err();
        assert!(error.message().starts_with(&format!("`{key}`: expected ")), "{error}");
    }
}

#[test]
fn peft_config_round_trips() {
    let config = LoraConfig {
        rank: 3,
        alpha: 5.5,
        targets: Targets::Text(r".*\.(q|v)_proj".into()),
        rslora: true,
        rank_pattern: Map::from_iter([
            ("v_proj".into(), json!(2)),
            ("b".into(), json!(7)),
            ("a".into(), json!(1)),
        ]),
        alpha_pattern: Map::from_iter([("q_proj".into(), json!(1.25))]),
        merge: false,
    };
    let json = config.to_peft("/base");
    let again = LoraConfig::from_peft(&json.to_string()).unwrap();
    assert_eq!(again, (config.clone(), "/base".to_string()));
    assert!(again.0.rank_pattern.keys().eq(config.rank_pattern.keys()), "same order");
}
