//! The layers that transformers and vision towers are made of.

use tch::Tensor;
use unirl::Result;
use unirl::weights::{Init, Store};

use crate::lora::Adapter;

/// `x·Wᵀ + b`, and what an adapter beside it adds.
pub struct Linear {
    /// In the checkpoint, before `.weight` and `.bias`.
    pub name: String,
    /// `[outputs,inputs]`.
    pub weight: Tensor,
    /// `[outputs]`, if it has one.
    pub bias: Option<Tensor>,
    /// Beside it, if one is attached.
    pub adapter: Option<Adapter>,
}

impl Linear {
    /// Takes `{name}.weight` and `{name}.bias` from `store`.
    pub fn take(store: &mut Store, name: &str, inputs: i64, outputs: i64) -> Result<Self> {
        let linear = Self::unbiased(store, name, inputs, outputs)?;
        let bias = Some(store.take(&format!("{name}.bias"), &[outputs], Init::Zeros)?);
        Ok(Self { bias, ..linear })
    }

    /// Takes `{name}.weight` alone from `store`.
    pub fn unbiased(store: &mut Store, name: &str, inputs: i64, outputs: i64) -> Result<Self> {
        let weight = store.take(&format!("{name}.weight"), &[outputs, inputs], Init::Normal)?;
        Ok(Self { name: name.into(), weight, bias: None, adapter: None })
    }

    /// `[…,inputs]` to `[…,outputs]`.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        let y = x.linear(&self.weight, self.bias.as_ref());
        match &self.adapter {
            Some(adapter) => y + adapter.apply(x),
            None => y,
        }
    }

    /// Another handle of the same tensors.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self {
            name: self.name.clone(),
            weight: self.weight.shallow_clone(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            adapter: self.adapter.as_ref().map(Adapter::handle),
        }
    }
}

/// Layer normalisation over the last dimension.
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    /// Takes `{name}.weight` and `{name}.bias` from `store`; `eps` is added to variances.
    pub fn take(store: &mut Store, name: &str, width: i64, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: store.take(&format!("{name}.weight"), &[width], Init::Ones)?,
            bias: store.take(&format!("{name}.bias"), &[width], Init::Zeros)?,
            eps,
        })
    }

    /// `[…,width]` to the same.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)
    }

    /// Another handle of the same tensors.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone(), eps: self.eps }
    }
}
