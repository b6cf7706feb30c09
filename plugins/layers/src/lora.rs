//! Low-rank adapters (LoRA): `x·Wᵀ + s·x·Aᵀ·Bᵀ`, where only `A` and `B` learn, in PEFT's layout. The scale `s` is
//! `alpha/rank`, or `alpha/√rank` where they are rank-stabilised (rsLoRA).

use std::collections::BTreeMap;

use fancy_regex::Regex;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tch::Tensor;
use unirl::error::{Context, unknown_name};
use unirl::weights::{Init, Store};
use unirl::{Error, Result};

/// The text that targets every product but the output layer.
const ALL: &str = "all-linear";

/// Keys of `adapter_config.json` that do not change what the adapters compute: where they come from, what happened in
/// training, and defaults of options that are refused when they are on.
const WITHOUT_EFFECT: [&str; 10] = [
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

/// Initial values that leave the base as it is; all others change its weights, too.
const INITS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

/// Options of the adapters. The defaults are those of the authors' scripts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rows of `A`.
    #[schemars(range(min = 1))]
    pub rank: i64,
    /// The adapters are scaled by `alpha/rank`.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub alpha: f64,
    /// Which products of the transformer are adapted: the last parts of their names, a regular expression for whole names, or
    /// `all-linear`.
    pub targets: Targets,
    /// Scale by `alpha/√rank` (rsLoRA).
    pub rslora: bool,
    /// Other ranks by name: a regular expression for the last parts of a name, and the rank. The first that matches counts.
    #[schemars(with = "BTreeMap<String, i64>")]
    pub rank_pattern: Map<String, Value>,
    /// Other values of `alpha` in the same form.
    #[schemars(with = "BTreeMap<String, f64>")]
    pub alpha_pattern: Map<String, Value>,
    /// Save the whole model with the adapters added to its weights, instead of the adapters alone.
    pub merge: bool,
}

/// Which products are adapted, as PEFT's `target_modules`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a list of names, a regular expression or `all-linear`")]
pub enum Targets {
    /// Names, or their last parts.
    Names(Vec<String>),
    /// A regular expression for whole names, one name, or `all-linear`.
    Text(String),
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self {
            rank: 128,
            alpha: 512.0,
            targets: Targets::Names(vec!["q_proj".into(), "v_proj".into()]),
            rslora: false,
            rank_pattern: Map::new(),
            alpha_pattern: Map::new(),
            merge: false,
        }
    }
}

impl LoraConfig {
    /// Refuses options that mean nothing for `modules`, whose last parts are `known`: every target and every pattern has to
    /// match one.
    pub fn check(&self, modules: &[String], known: &[&str]) -> Result<()> {
        let place = |key: &str| format!("`model.options.lora.{key}`");
        let wrong = |key: &str, expected: &str, got: String| {
            Err(Error::usage(format!("{}: expected {expected}, got {got}", place(key))))
        };
        if self.rank < 1 {
            return wrong("rank", "at least 1", self.rank.to_string());
        }
        if !self.alpha.is_finite() {
            return wrong("alpha", "a finite number", self.alpha.to_string());
        }
        match &self.targets {
            Targets::Names(names) if names.is_empty() => {
                return wrong("targets", &format!("some of {}", known.join(", ")), "none".into());
            }
            Targets::Names(names) => {
                let unmatched = |name: &&String| !modules.iter().any(|module| ends_with(module, name));
                if let Some(name) = names.iter().find(unmatched) {
                    return Err(unknown_name("target of `model.options.lora`", name, known));
                }
            }
            Targets::Text(_) => {}
        }
        let as_usage =
            |error: Error| Error::usage(error.message()).context("cannot use `model.options.lora`");
        let adapted = self.plan(modules).map_err(as_usage)?;
        let adapted: Vec<&String> = modules
            .iter()
            .zip(&adapted)
            .filter(|(_, scaled)| scaled.is_some())
            .map(|(name, _)| name)
            .collect();
        for (key, patterns) in [("rank_pattern", &self.rank_pattern), ("alpha_pattern", &self.alpha_pattern)]
        {
            for pattern in patterns.keys() {
                let regex = suffix(key, pattern)?;
                if !adapted.iter().any(|module| regex.is_match(module).unwrap_or(false)) {
                    return wrong(
                        key,
                        "patterns of adapted products",
                        format!("`{pattern}`, which matches none"),
                    );
                }
            }
        }
        Ok(())
    }

    /// The adapter that each of `modules` has, if it has one.
    pub fn plan(&self, modules: &[String]) -> Result<Vec<Option<Scaled>>> {
        let whole = match &self.targets {
            Targets::Text(text) if text != ALL => {
                Some(regex("target_modules", text, &format!(r"\A(?:{text})\z"))?)
            }
            _ => None,
        };
        let targeted = |module: &str| match (&self.targets, &whole) {
            (Targets::Names(names), _) => Ok(names.iter().any(|name| ends_with(module, name))),
            (Targets::Text(text), Some(whole)) => Ok(ends_with(module, text) || matches(whole, module)?),
            (Targets::Text(_), None) => Ok::<_, Error>(true),
        };
        let ranks = patterns("rank_pattern", &self.rank_pattern, "a whole number above 0", |value| {
            value.as_i64().filter(|rank| *rank >= 1)
        })?;
        let alphas = patterns("alpha_pattern", &self.alpha_pattern, "a number", Value::as_f64)?;
        let plan = modules
            .iter()
            .map(|module| {
                if !targeted(module)? {
                    return Ok(None);
                }
                let rank = first(&ranks, module)?.unwrap_or(self.rank);
                let alpha = first(&alphas, module)?.unwrap_or(self.alpha);
                let share = if self.rslora { (rank as f64).sqrt() } else { rank as f64 };
                Ok(Some(Scaled { rank, scale: alpha / share }))
            })
            .collect::<Result<Vec<_>>>()?;
        if plan.iter().all(Option::is_none) {
            let targets = json!(self.targets);
            return Err(Error::failure(format!(
                "`target_modules`: {targets} matches no product of the model"
            )));
        }
        Ok(plan)
    }

    /// PEFT's `adapter_config.json`; `base` is the folder of the weights that are adapted.
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

    /// Reads PEFT's `adapter_config.json`: the adapters, and the folder of the weights that they adapt. Whatever else the file
    /// asks for is refused by its key.
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
            rank_pattern: optional(keys, "rank_pattern", "ranks by name")?.unwrap_or_default(),
            alpha_pattern: optional(keys, "alpha_pattern", "numbers by name")?.unwrap_or_default(),
            merge: false,
        };
        if config.rank < 1 {
            return Err(Error::failure(format!("`r`: expected at least 1, got {}", config.rank)));
        }
        let more: Vec<String> = keys.iter().filter_map(|(key, value)| unsupported(key, value)).collect();
        if more.is_empty() {
            return Ok((config, base));
        }
        let error = Error::failure("it asks for more than LoRA and rsLoRA");
        Err(more.iter().fold(error, Error::cause).hint(
            "merge the adapters into their base with Python and load the result: \
             `PeftModel.from_pretrained(base, adapters).merge_and_unload().save_pretrained(DIR)`",
        ))
    }
}

/// What is wrong with a further key of `adapter_config.json`, unless it has no effect.
fn unsupported(key: &str, value: &Value) -> Option<String> {
    let neutral = match (key, value) {
        ("bias", Value::String(bias)) => bias == "none",
        ("init_lora_weights", Value::String(init)) => INITS.contains(&init.as_str()),
        ("init_lora_weights", Value::Bool(_)) | (_, Value::Null | Value::Bool(false)) => true,
        (_, Value::Array(items)) => items.is_empty(),
        (_, Value::Object(items)) => items.is_empty(),
        _ => false,
    };
    if neutral || WITHOUT_EFFECT.contains(&key) {
        return None;
    }
    let expected = match (key, value) {
        ("bias", _) => "\"none\"".into(),
        ("init_lora_weights", _) => format!("true, false, or one of {INITS:?}"),
        (_, Value::Bool(_)) => "false".into(),
        (_, Value::Array(_)) => "[]".into(),
        (_, Value::Object(_)) => "{}".into(),
        _ => "null".into(),
    };
    Some(format!("`{key}`: expected {expected}, got {}", short(value)))
}

/// A value, cut to one line.
fn short(value: &Value) -> String {
    let text = value.to_string();
    let start: String = text.chars().take(80).collect();
    if start.len() < text.len() { start + "…" } else { start }
}

/// Takes a key that may be absent or null.
fn optional<T: DeserializeOwned>(
    keys: &mut Map<String, Value>,
    key: &str,
    expected: &str,
) -> Result<Option<T>> {
    let value = keys.remove(key).unwrap_or_default();
    let wrong = |_| Error::failure(format!("`{key}`: expected {expected}, got {}", short(&value)));
    Option::deserialize(&value).map_err(wrong)
}

fn required<T: DeserializeOwned>(keys: &mut Map<String, Value>, key: &str, expected: &str) -> Result<T> {
    optional(keys, key, expected)?
        .ok_or_else(|| Error::failure(format!("`{key}`: expected {expected}, got nothing")))
}

/// Whether `name` is the name of a module, or its last parts.
fn ends_with(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn regex(key: &str, text: &str, whole: &str) -> Result<Regex> {
    Regex::new(whole).map_err(|error| {
        Error::failure(format!("`{key}`: `{text}` is not a regular expression")).cause(error)
    })
}

/// PEFT matches the keys of patterns so.
fn suffix(key: &str, text: &str) -> Result<Regex> {
    regex(key, text, &format!(r"\A(?:.*\.)?(?:{text})\z"))
}

fn matches(regex: &Regex, module: &str) -> Result<bool> {
    regex.is_match(module).map_err(|error| Error::failure(format!("`{regex}` on `{module}`")).cause(error))
}

fn patterns<T>(
    key: &str,
    patterns: &Map<String, Value>,
    expected: &str,
    value: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(Regex, T)>> {
    let pattern = |(pattern, found): (&String, &Value)| {
        let value = value(found).ok_or_else(|| {
            Error::failure(format!("`{key}.{pattern}`: expected {expected}, got {}", short(found)))
        })?;
        Ok((suffix(key, pattern)?, value))
    };
    patterns.iter().map(pattern).collect()
}

/// The value of the first pattern that matches.
fn first<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        if matches(pattern, module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// Rank and scale of an adapter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scaled {
    /// Rows of `A`.
    pub rank: i64,
    /// What the product of both is multiplied by.
    pub scale: f64,
}

/// The adapter of one product.
pub struct Adapter {
    a: Tensor,
    b: Tensor,
    scale: f64,
}

impl Adapter {
    /// Takes the adapter of the product `module`, its name in the model that is adapted, from `store`, under PEFT's names.
    /// A fresh one adds nothing.
    pub fn take(store: &mut Store, module: &str, size: (i64, i64), scaled: Scaled) -> Result<Self> {
        let ((outputs, inputs), Scaled { rank, scale }) = (size, scaled);
        let name = |part: &str| format!("base_model.model.{module}.{part}.weight");
        Ok(Self {
            a: store.take(&name("lora_A"), &[rank, inputs], Init::Fan(inputs))?,
            b: store.take(&name("lora_B"), &[outputs, rank], Init::Zeros)?,
            scale,
        })
    }

    /// What it adds to the product of `x`.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        x.linear::<Tensor>(&self.a, None).linear::<Tensor>(&self.b, None) * self.scale
    }

    /// What it adds to the weight.
    pub fn weight(&self) -> Tensor {
        self.b.matmul(&self.a) * self.scale
    }

    /// Another handle of the same tensors.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self { a: self.a.shallow_clone(), b: self.b.shallow_clone(), scale: self.scale }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

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

    /// The modules that are adapted, without `model.layers.`.
    fn adapted(targets: &Value) -> Vec<String> {
        let config = read(json!({"target_modules": targets})).unwrap();
        let plan = config.plan(&modules()).unwrap();
        let adapted = modules().into_iter().zip(plan).filter(|(_, scaled)| scaled.is_some());
        adapted.map(|(module, _)| module.strip_prefix("model.layers.").unwrap().to_string()).collect()
    }

    #[test]
    fn target_modules_match_as_in_peft() {
        assert_eq!(adapted(&json!("all-linear")).len(), 36);
        assert_eq!(adapted(&json!(["q_proj", "fc1"])).len(), 24);
        assert_eq!(adapted(&json!("v_proj")).len(), 12);
        assert_eq!(adapted(&json!(["1.mlp.fc1"])), ["1.mlp.fc1"], "not that of layer 11");
        assert_eq!(adapted(&json!(["model.layers.3.self_attn.q_proj"])), ["3.self_attn.q_proj"]);
        assert_eq!(adapted(&json!(r"model\.layers\.[01]\..*\.(q|v)_proj")).len(), 4);
        assert_eq!(adapted(&json!(r"^(?!.*layers\.\d\.).*fc1$")), ["10.mlp.fc1", "11.mlp.fc1"], "lookahead");
        for nothing in [json!("layers.3"), json!("proj"), json!(["_proj"]), json!([])] {
            let error = read(json!({"target_modules": nothing})).unwrap().plan(&modules()).unwrap_err();
            assert!(error.message().contains("matches no product"), "{error}");
        }
        let error = read(json!({"target_modules": "(q_proj"})).unwrap().plan(&modules()).unwrap_err();
        assert!(error.message().contains("`(q_proj` is not a regular expression"), "{error}");
    }

    /// The first key that matches counts, as a regular expression for the end of the name.
    #[test]
    fn patterns_give_ranks_and_scales() {
        let config = read(json!({
            "target_modules": "all-linear",
            "rank_pattern": {"layers.1.self_attn.q_proj": 9, "q_proj": 2, r"mlp\..*": 16},
            "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 3.0, "(q|v)_proj": 6},
        }))
        .unwrap();
        for (rslora, share) in [(false, (|rank| rank) as fn(f64) -> f64), (true, f64::sqrt)] {
            let config = LoraConfig { rslora, ..config.clone() };
            let plan = config.plan(&modules()).unwrap();
            let of = |name: &str| {
                let at = modules().iter().position(|module| module.ends_with(name)).unwrap();
                plan[at].unwrap()
            };
            for (name, rank, alpha) in [
                ("layers.0.self_attn.q_proj", 2, 3.0),
                ("layers.1.self_attn.q_proj", 9, 6.0),
                ("layers.11.self_attn.q_proj", 2, 6.0),
                ("layers.0.self_attn.v_proj", 4, 6.0),
                ("layers.7.mlp.fc1", 16, 8.0),
            ] {
                assert_eq!(of(name), Scaled { rank, scale: alpha / share(rank as f64) }, "{name}");
            }
        }
        for (key, patterns) in [
            ("rank_pattern", json!({"q_proj": 0})),
            ("rank_pattern", json!({"q_proj": 1.5})),
            ("alpha_pattern", json!({"q_proj": "8"})),
            ("alpha_pattern", json!({"q_proj(": 8})),
        ] {
            let error = read(json!({key: patterns})).unwrap().plan(&modules()).unwrap_err();
            assert!(error.message().starts_with(&format!("`{key}")), "{error}");
        }
    }

    #[test]
    fn keys_without_effect_are_accepted() {
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
    fn every_other_key_is_refused_by_name() {
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
        assert_eq!(error.causes().len(), 2, "all of them in one error: {error}");
    }

    #[test]
    fn a_wrong_or_missing_value_names_its_key() {
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
    fn what_is_written_is_read_again() {
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
        assert!(again.0.rank_pattern.keys().eq(config.rank_pattern.keys()), "in their order");
    }
}
