//! Low-rank adapters (LoRA): `x·Wᵀ + (alpha/rank)·x·Aᵀ·Bᵀ`, where only `A` and `B` learn, in PEFT's layout.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::Tensor;
use unirl::error::unknown_name;
use unirl::weights::{Init, Store};
use unirl::{Error, Result};

/// Options of the adapters. The defaults are those of the authors' scripts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LoraConfig {
    /// Rows of `A`.
    #[schemars(range(min = 1))]
    pub rank: i64,
    /// Its share of the rank is the factor of the adapters.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub alpha: f64,
    /// Which products of the transformer are adapted, by their names in the checkpoint.
    #[schemars(length(min = 1))]
    pub targets: Vec<String>,
    /// Save the whole model with the adapters added to its weights, instead of the adapters alone.
    pub merge: bool,
}

impl Default for LoraConfig {
    fn default() -> Self {
        Self { rank: 128, alpha: 512.0, targets: vec!["q_proj".into(), "v_proj".into()], merge: false }
    }
}

impl LoraConfig {
    /// Refuses what cannot be adapted; `known` are the products that adapters can stand beside.
    pub fn check(&self, known: &[&str]) -> Result<()> {
        let wrong = |key: &str, expected: &str, got: String| {
            Err(Error::usage(format!("`model.options.lora.{key}`: expected {expected}, got {got}")))
        };
        if self.rank < 1 {
            return wrong("rank", "at least 1", self.rank.to_string());
        }
        if !self.alpha.is_finite() {
            return wrong("alpha", "a finite number", self.alpha.to_string());
        }
        if self.targets.is_empty() {
            return wrong("targets", &format!("some of {}", known.join(", ")), "none".into());
        }
        match self.targets.iter().find(|target| !known.contains(&target.as_str())) {
            Some(wrong) => Err(unknown_name("target of `model.options.lora`", wrong, known)),
            None => Ok(()),
        }
    }

    /// PEFT's `adapter_config.json`; `base` is the folder of the weights that are adapted.
    pub fn to_peft(&self, base: &str) -> serde_json::Value {
        json!({
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": self.rank,
            "lora_alpha": self.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": false,
            "target_modules": self.targets,
        })
    }

    /// Reads PEFT's `adapter_config.json`: the adapters, and the folder of the weights that they adapt.
    pub fn from_peft(json: &str) -> std::result::Result<(Self, String), String> {
        #[derive(Deserialize)]
        struct Peft {
            #[serde(rename = "peft_type")]
            kind: String,
            base_model_name_or_path: String,
            r: i64,
            lora_alpha: f64,
            target_modules: Vec<String>,
        }
        let peft: Peft = serde_json::from_str(json).map_err(|error| error.to_string())?;
        if peft.kind != "LORA" {
            return Err(format!("`peft_type`: expected LORA, got {}", peft.kind));
        }
        let config =
            Self { rank: peft.r, alpha: peft.lora_alpha, targets: peft.target_modules, merge: false };
        Ok((config, peft.base_model_name_or_path))
    }
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
    pub fn take(store: &mut Store, module: &str, size: (i64, i64), config: &LoraConfig) -> Result<Self> {
        let (outputs, inputs) = size;
        let name = |part: &str| format!("base_model.model.{module}.{part}.weight");
        Ok(Self {
            a: store.take(&name("lora_A"), &[config.rank, inputs], Init::Fan(inputs))?,
            b: store.take(&name("lora_B"), &[outputs, config.rank], Init::Zeros)?,
            scale: config.alpha / config.rank as f64,
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
