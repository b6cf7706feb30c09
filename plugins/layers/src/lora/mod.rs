//! Low-rank adapters (LoRA) in PEFT's layout: `x·Wᵀ + s·x·Aᵀ·Bᵀ`, where only `A` and `B` are trained. The scale `s` is
//! `alpha/rank`, or `alpha/√rank` for rank-stabilized LoRA (rsLoRA).

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

/// Targets every linear layer except the output head.
const ALL_LINEAR: &str = "all-linear";

/// LoRA options. The defaults are those of the UniRL authors' scripts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// The rank: rows of `A`.
    #[schemars(range(min = 1))]
    pub rank: i64,
    /// The adapters are scaled by `alpha/rank`.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub alpha: f64,
    /// The linear layers to adapt: suffixes of their names, a regular expression that matches the full name, or `all-linear`.
    pub targets: Targets,
    /// Scale by `alpha/√rank` (rsLoRA).
    pub rslora: bool,
    /// Ranks by layer: a regular expression for the suffix of a name, and the rank. The first match applies.
    #[schemars(with = "BTreeMap<String, i64>")]
    pub rank_pattern: Map<String, Value>,
    /// Values of `alpha` by layer, in the same form.
    #[schemars(with = "BTreeMap<String, f64>")]
    pub alpha_pattern: Map<String, Value>,
    /// Save the full model with the adapters merged into its weights, instead of the adapters alone.
    pub merge: bool,
}

/// The layers to adapt, as PEFT's `target_modules`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a list of names, a regular expression or `all-linear`")]
pub enum Targets {
    /// Names or their suffixes.
    Names(Vec<String>),
    /// A regular expression for full names, one name, or `all-linear`.
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
    /// Errors unless every target and every pattern matches one of `modules`, whose last name components are `known`.
    pub fn check(&self, modules: &[String], known: &[&str]) -> Result<()> {
        let invalid = |key: &str, expected: &str, got: String| {
            Err(Error::usage(format!("`model.options.lora.{key}`: expected {expected}, got {got}")))
        };
        if self.rank < 1 {
            return invalid("rank", "at least 1", self.rank.to_string());
        }
        if !self.alpha.is_finite() {
            return invalid("alpha", "a finite number", self.alpha.to_string());
        }
        match &self.targets {
            Targets::Names(names) if names.is_empty() => {
                return invalid("targets", &format!("one or more of {}", known.join(", ")), "none".into());
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
        let adapted = self.adapters_for(modules).map_err(as_usage)?;
        let adapted: Vec<&String> = modules
            .iter()
            .zip(&adapted)
            .filter(|(_, adapter)| adapter.is_some())
            .map(|(name, _)| name)
            .collect();
        for (key, patterns) in [("rank_pattern", &self.rank_pattern), ("alpha_pattern", &self.alpha_pattern)]
        {
            for pattern in patterns.keys() {
                let regex = suffix_regex(key, pattern)?;
                if !adapted.iter().any(|module| regex.is_match(module).unwrap_or(false)) {
                    return invalid(
                        key,
                        "patterns that match an adapted layer",
                        format!("`{pattern}`, which matches none"),
                    );
                }
            }
        }
        Ok(())
    }

    /// The adapter of each module; `None` for a module that is not adapted.
    pub fn adapters_for(&self, modules: &[String]) -> Result<Vec<Option<AdapterSpec>>> {
        let full = match &self.targets {
            Targets::Text(text) if text != ALL_LINEAR => {
                Some(compile("target_modules", text, &format!(r"\A(?:{text})\z"))?)
            }
            _ => None,
        };
        let targeted = |module: &str| match (&self.targets, &full) {
            (Targets::Names(names), _) => Ok(names.iter().any(|name| ends_with(module, name))),
            (Targets::Text(text), Some(full)) => Ok(ends_with(module, text) || is_match(full, module)?),
            (Targets::Text(_), None) => Ok::<_, Error>(true),
        };
        let ranks =
            compile_patterns("rank_pattern", &self.rank_pattern, "a whole number above 0", |value| {
                value.as_i64().filter(|rank| *rank >= 1)
            })?;
        let alphas = compile_patterns("alpha_pattern", &self.alpha_pattern, "a number", Value::as_f64)?;
        let adapters = modules
            .iter()
            .map(|module| {
                if !targeted(module)? {
                    return Ok(None);
                }
                let rank = first_match(&ranks, module)?.unwrap_or(self.rank);
                let alpha = first_match(&alphas, module)?.unwrap_or(self.alpha);
                let divisor = if self.rslora { (rank as f64).sqrt() } else { rank as f64 };
                Ok(Some(AdapterSpec { rank, scale: alpha / divisor }))
            })
            .collect::<Result<Vec<_>>>()?;
        if adapters.iter().all(Option::is_none) {
            let targets = json!(self.targets);
            return Err(Error::failure(format!(
                "`target_modules`: {targets} matches no linear layer of the model"
            )));
        }
        Ok(adapters)
    }
}

/// Whether `name` is the full name of a module or a suffix of it at a dot.
fn ends_with(module: &str, name: &str) -> bool {
    module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn compile(key: &str, text: &str, pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|error| {
        Error::failure(format!("`{key}`: `{text}` is not a regular expression")).cause(error)
    })
}

/// A pattern key as PEFT matches it: against a suffix of the module name.
fn suffix_regex(key: &str, text: &str) -> Result<Regex> {
    compile(key, text, &format!(r"\A(?:.*\.)?(?:{text})\z"))
}

fn is_match(regex: &Regex, module: &str) -> Result<bool> {
    let failed = |error| Error::failure(format!("cannot match `{regex}` against `{module}`")).cause(error);
    regex.is_match(module).map_err(failed)
}

fn compile_patterns<T>(
    key: &str,
    patterns: &Map<String, Value>,
    expected: &str,
    value: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(Regex, T)>> {
    let pattern = |(pattern, found): (&String, &Value)| {
        let value = value(found).ok_or_else(|| {
            Error::failure(format!("`{key}.{pattern}`: expected {expected}, got {}", peft::truncated(found)))
        })?;
        Ok((suffix_regex(key, pattern)?, value))
    };
    patterns.iter().map(pattern).collect()
}

/// The value of the first pattern that matches `module`.
fn first_match<T: Copy>(patterns: &[(Regex, T)], module: &str) -> Result<Option<T>> {
    for (pattern, value) in patterns {
        if is_match(pattern, module)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

/// Rank and scale of an adapter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdapterSpec {
    /// Rows of `A`.
    pub rank: i64,
    /// The factor of `B·A`.
    pub scale: f64,
}

/// The adapter of one linear layer.
pub struct Adapter {
    a: Tensor,
    b: Tensor,
    scale: f64,
}

impl Adapter {
    /// Takes the adapter of the layer `module` of the base model from `store`, under PEFT's names. `B` is initialized to
    /// zero, so that a fresh adapter adds nothing.
    pub fn take(store: &mut Store, module: &str, size: (i64, i64), spec: AdapterSpec) -> Result<Self> {
        let ((outputs, inputs), AdapterSpec { rank, scale }) = (size, spec);
        let name = |part: &str| format!("base_model.model.{module}.{part}.weight");
        Ok(Self {
            a: store.take(&name("lora_A"), &[rank, inputs], Init::Fan(inputs))?,
            b: store.take(&name("lora_B"), &[outputs, rank], Init::Zeros)?,
            scale,
        })
    }

    /// The adapter's contribution to the output for `x`.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        x.linear::<Tensor>(&self.a, None).linear::<Tensor>(&self.b, None) * self.scale
    }

    /// The adapter's contribution to the weight, for merging.
    pub fn delta_weight(&self) -> Tensor {
        self.b.matmul(&self.a) * self.scale
    }

    /// An adapter that shares its tensors with this one.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self { a: self.a.shallow_clone(), b: self.b.shallow_clone(), scale: self.scale }
    }
}

#[cfg(test)]
mod tests;
