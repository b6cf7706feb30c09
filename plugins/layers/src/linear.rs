//! Linear layers and layer normalization.

use std::ops::Range;

use tch::Tensor;
use unirl::Result;
use unirl::weights::{Init, Store};
use unirl_torch::ops;

use crate::lora::Adapter;

/// `x·Wᵀ + b`, plus a LoRA adapter.
pub struct Linear {
    /// The name in the checkpoint, without `.weight` and `.bias`.
    pub name: String,
    /// `[outputs,inputs]`.
    pub weight: Tensor,
    /// `[outputs]`, if the layer has a bias.
    pub bias: Option<Tensor>,
    /// The adapter, if one is attached.
    pub adapter: Option<Adapter>,
}

impl Linear {
    /// Takes `{name}.weight` and `{name}.bias` from `store`.
    pub fn take(store: &mut Store, name: &str, inputs: i64, outputs: i64) -> Result<Self> {
        let linear = Self::without_bias(store, name, inputs, outputs)?;
        let bias = Some(store.take(&format!("{name}.bias"), &[outputs], Init::Zeros)?);
        Ok(Self { bias, ..linear })
    }

    /// Takes `{name}.weight` from `store`.
    pub fn without_bias(store: &mut Store, name: &str, inputs: i64, outputs: i64) -> Result<Self> {
        let weight = store.take(&format!("{name}.weight"), &[outputs, inputs], Init::Normal)?;
        Ok(Self { name: name.into(), weight, bias: None, adapter: None })
    }

    /// `[…,inputs]` to `[…,outputs]`.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        apply_all(x, (&self.weight, self.bias.as_ref()), std::slice::from_ref(self)).remove(0)
    }

    /// [`Self::apply`], then GELU (tanh approximation).
    pub fn apply_gelu(&self, x: &Tensor) -> Tensor {
        match (&self.bias, &self.adapter) {
            (Some(bias), None) if !unirl_torch::autograd::gradient_enabled() => {
                ops::linear_gelu(x, &self.weight, bias)
            }
            _ => self.apply(x).gelu("tanh"),
        }
    }

    /// A layer that shares its tensors with this one.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self {
            name: self.name.clone(),
            weight: self.weight.shallow_clone(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
            adapter: self.adapter.as_ref().map(Adapter::shallow_clone),
        }
    }
}

/// Applies `layers` to the same rows in one product; `fused` holds their weights and biases, concatenated.
fn apply_all(x: &Tensor, fused: (&Tensor, Option<&Tensor>), layers: &[Linear]) -> Vec<Tensor> {
    let weights: Vec<&Tensor> = layers.iter().map(|layer| &layer.weight).collect();
    let biases: Vec<&Tensor> = layers.iter().filter_map(|layer| layer.bias.as_ref()).collect();
    let mut outputs = ops::linear(x, fused, &weights, &biases);
    for (output, layer) in outputs.iter_mut().zip(layers) {
        if let Some(adapter) = &layer.adapter {
            *output = &*output + adapter.apply(x);
        }
    }
    outputs
}

/// Linear layers of the same input, computed as one product. Their weights are views of one contiguous tensor, so that each
/// stays a parameter with its own name in the checkpoint.
pub struct FusedLinear {
    /// The layers; either all have a bias or none.
    pub layers: Vec<Linear>,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl FusedLinear {
    /// Moves the weights of `layers` into one tensor.
    pub fn new(mut layers: Vec<Linear>) -> Self {
        let weight = fuse(layers.iter_mut().map(|layer| &mut layer.weight).collect());
        let biases: Vec<&mut Tensor> = layers.iter_mut().filter_map(|layer| layer.bias.as_mut()).collect();
        let bias = (!biases.is_empty()).then(|| fuse(biases));
        Self { layers, weight, bias }
    }

    /// `[…,inputs]` to `[…,outputs]` of each layer.
    pub fn apply<const N: usize>(&self, x: &Tensor) -> [Tensor; N] {
        self.apply_range(x, 0..N)
    }

    /// [`Self::apply`] for a range of the layers.
    pub fn apply_range<const N: usize>(&self, x: &Tensor, range: Range<usize>) -> [Tensor; N] {
        let rows = |layers: &[Linear]| layers.iter().map(|layer| layer.weight.size()[0]).sum::<i64>();
        let (start, layers) = (rows(&self.layers[..range.start]), &self.layers[range]);
        let slice = |fused: &Tensor| fused.narrow(0, start, rows(layers));
        let (weight, bias) = (slice(&self.weight), self.bias.as_ref().map(slice));
        let outputs = apply_all(x, (&weight, bias.as_ref()), layers);
        outputs
            .try_into()
            .unwrap_or_else(|outputs: Vec<Tensor>| panic!("expected {N} outputs, got {}", outputs.len()))
    }

    /// A layer that shares its tensors with this one.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self {
            layers: self.layers.iter().map(Linear::shallow_clone).collect(),
            weight: self.weight.shallow_clone(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
        }
    }
}

/// Concatenates `tensors` and makes them views of the result. Undefined if they are, as in a dry run.
fn fuse(tensors: Vec<&mut Tensor>) -> Tensor {
    if tensors.iter().any(|tensor| !tensor.defined()) {
        return Tensor::new();
    }
    let fused = Tensor::cat(&tensors.iter().map(|tensor| tensor.detach()).collect::<Vec<_>>(), 0);
    let mut start = 0;
    for tensor in tensors {
        let rows = tensor.size()[0];
        tensor.set_data(&fused.narrow(0, start, rows));
        start += rows;
    }
    fused
}

/// Layer normalization over the last dimension.
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

    /// Normalizes `x […,D]`.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)
    }

    /// A layer that shares its tensors with this one.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), bias: self.bias.shallow_clone(), eps: self.eps }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn fused_linear_keeps_each_layer_a_trainable_leaf() {
        tch::manual_seed(1);
        let mut store = Store::fresh(Device::Cpu, Kind::Float);
        let layers = ["a", "b"].map(|name| Linear::take(&mut store, name, 3, 2).unwrap());
        let fused = FusedLinear::new(layers.into());
        let leaves = store.finish();
        let x = Tensor::rand([4, 3], (Kind::Float, Device::Cpu));
        let [_, second] = fused.apply(&x);
        second.sum(Kind::Float).backward();
        for (name, leaf) in &leaves {
            assert!(leaf.is_leaf() && leaf.is_contiguous(), "{name}");
            let has_gradient = leaf.grad().abs().max().double_value(&[]) > 0.0;
            assert_eq!(has_gradient, name.starts_with('b'), "{name}");
        }
        // An in-place update of a leaf changes the fused product.
        tch::no_grad(|| {
            let mut weight = leaves.into_iter().find(|(name, _)| name == "b.weight").unwrap().1;
            let _ = weight.fill_(1.0);
            let [second] = fused.apply_range(&x, 1..2);
            let [_, of_all] = fused.apply(&x);
            let expected = x.sum_dim_intlist([1i64].as_slice(), true, Kind::Float).expand([4, 2], false);
            for got in [second, of_all] {
                assert!((got - &expected).abs().max().double_value(&[]) < 1e-6); // a sum of three numbers below 1
            }
        });
    }
}
