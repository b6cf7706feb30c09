//! The layers that the transformers and the projectors are made of.

use tch::Tensor;
use unirl::Result;
use unirl::weights::{Init, Store};

pub(crate) struct Linear {
    pub(crate) weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn take(store: &mut Store, name: &str, inputs: i64, outputs: i64) -> Result<Self> {
        let bias = Some(store.take(&format!("{name}.bias"), &[outputs], Init::Zeros)?);
        Ok(Self { bias, ..Self::unbiased(store, name, inputs, outputs)? })
    }

    pub(crate) fn unbiased(store: &mut Store, name: &str, inputs: i64, outputs: i64) -> Result<Self> {
        let weight = store.take(&format!("{name}.weight"), &[outputs, inputs], Init::Normal)?;
        Ok(Self { weight, bias: None })
    }

    pub(crate) fn apply(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, self.bias.as_ref())
    }

    /// Another handle of the same tensors.
    pub(crate) fn handle(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.as_ref().map(Tensor::shallow_clone) }
    }
}

pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn take(store: &mut Store, name: &str, width: i64, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: store.take(&format!("{name}.weight"), &[width], Init::Ones)?,
            bias: store.take(&format!("{name}.bias"), &[width], Init::Zeros)?,
            eps,
        })
    }

    pub(crate) fn apply(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)
    }
}
