//! Low-rank adapters (LoRA): `x·Wᵀ + s·x·Aᵀ·Bᵀ`, where only `A` and `B` learn, in PEFT's layout. The scale `s` is
//! `alpha/rank`, or `alpha/√rank` where they are rank-stabilised (rsLoRA).

mod peft;

use std::collections::BTreeMap;

use fancy_regex::Regex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tch::Tensor;
use unirl::error::unknown_name;
use unirl::weights::{Init, Store};
use unirl::{Error, Result};

/// The text that targets every product but the output layer.
const ALL: &str = "all-linear";

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
            Error::failure(format!("`{key}.{pattern}`: expected {expected}, got {}", peft::short(found)))
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
mod tests;
