//! Reading and writing PEFT's `adapter_config.json`.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use unirl::error::Context;
use unirl::{Error, Result};

use super::LoraConfig;

/// Keys that do not change what the adapters compute: provenance, training details, and parameters of options that are
/// refused if enabled.
const IGNORED_KEYS: [&str; 10] = [
    "auto_mapping",
    "eva_config",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Initializations that leave the base weights unchanged; all others modify them.
const NEUTRAL_INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

impl LoraConfig {
    /// The contents of `adapter_config.json`; `base` is the folder of the base model.
    pub fn to_peft(&self, base: &str) -> Value {
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "use_rslora": self.rslora,
            "rank_pattern": self.rank_pattern,
            "alpha_pattern": self.alpha_pattern,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": false,
            "target_modules": self.targets,
        })
    }

    /// Parses `adapter_config.json`: the LoRA options and the folder of the base model. Errors on every key whose feature is
    /// not supported.
    pub fn from_peft(json: &str) -> Result<(Self, String)> {
        let mut keys: Map<String, Value> = serde_json::from_str(json).context(|| "not a JSON object")?;
        let keys = &mut keys;
        let kind: String = required(keys, "peft_type", "`LORA`")?;
        if kind != "LORA" {
            return Err(Error::failure(format!("`peft_type`: expected `LORA`, got `{kind}`")));
        }
        let base = required(keys, "base_model_name_or_path", "the folder of the base model")?;
        let config = Self {
            rank: required(keys, "r", "a whole number")?,
            alpha: required(keys, "lora_alpha", "a number")?,
            targets: required(keys, "target_modules", "names or a regular expression")?,
            rslora: optional(keys, "use_rslora", "true or false")?.unwrap_or_default(),
            rank_pattern: optional(keys, "rank_pattern", "an object of ranks")?.unwrap_or_default(),
            alpha_pattern: optional(keys, "alpha_pattern", "an object of numbers")?.unwrap_or_default(),
            merge: false,
        };
        if config.rank < 1 {
            return Err(Error::failure(format!("`r`: expected at least 1, got {}", config.rank)));
        }
        let unsupported: Vec<String> =
            keys.iter().filter_map(|(key, value)| unsupported(key, value)).collect();
        if unsupported.is_empty() {
            return Ok((config, base));
        }
        let error = Error::failure("unsupported options: only LoRA and rsLoRA are supported");
        Err(unsupported.iter().fold(error, Error::cause).hint(
            "merge the adapters into the base model with Python and load the result: \
             `PeftModel.from_pretrained(base, adapters).merge_and_unload().save_pretrained(DIR)`",
        ))
    }
}

/// Why a remaining key is refused; `None` if it has no effect.
fn unsupported(key: &str, value: &Value) -> Option<String> {
    let neutral = match (key, value) {
        ("bias", Value::String(bias)) => bias == "none",
        ("init_lora_weights", Value::String(init)) => NEUTRAL_INITS.contains(&init.as_str()),
        ("init_lora_weights", Value::Bool(_)) | (_, Value::Null | Value::Bool(false)) => true,
        (_, Value::Array(items)) => items.is_empty(),
        (_, Value::Object(items)) => items.is_empty(),
        _ => false,
    };
    if neutral || IGNORED_KEYS.contains(&key) {
        return None;
    }
    let expected = match (key, value) {
        ("bias", _) => "\"none\"".into(),
        ("init_lora_weights", _) => format!("true, false, or one of {NEUTRAL_INITS:?}"),
        (_, Value::Bool(_)) => "false".into(),
        (_, Value::Array(_)) => "[]".into(),
        (_, Value::Object(_)) => "{}".into(),
        _ => "null".into(),
    };
    Some(format!("`{key}`: expected {expected}, got {}", truncated(value)))
}

/// A JSON value, truncated for an error message.
pub(super) fn truncated(value: &Value) -> String {
    let text = value.to_string();
    let start: String = text.chars().take(80).collect();
    if start.len() < text.len() { start + "…" } else { start }
}

/// Removes a key that may be absent or null.
fn optional<T: DeserializeOwned>(
    keys: &mut Map<String, Value>,
    key: &str,
    expected: &str,
) -> Result<Option<T>> {
    let value = keys.remove(key).unwrap_or_default();
    let invalid = |_| Error::failure(format!("`{key}`: expected {expected}, got {}", truncated(&value)));
    Option::deserialize(&value).map_err(invalid)
}

fn required<T: DeserializeOwned>(keys: &mut Map<String, Value>, key: &str, expected: &str) -> Result<T> {
    optional(keys, key, expected)?
        .ok_or_else(|| Error::failure(format!("`{key}`: expected {expected}, got nothing")))
}
