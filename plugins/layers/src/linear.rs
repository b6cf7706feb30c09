//! The layers that transformers and vision towers are made of.

use std::ops::Range;

use tch::Tensor;
use unirl::weights::{Init, Store};
use unirl::{Result, ops};

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
        products(x, (&self.weight, self.bias.as_ref()), std::slice::from_ref(self)).remove(0)
    }

    /// GELU, by tanh, of [`Self::apply`].
    pub fn apply_gelu(&self, x: &Tensor) -> Tensor {
        match (&self.bias, &self.adapter) {
            (Some(bias), None) if !unirl::autograd::gradient_enabled() => {
                ops::linear_gelu(x, &self.weight, bias)
            }
            _ => self.apply(x).gelu("tanh"),
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

/// What `parts`, whose weights and biases are those of `whole`, make of the same rows.
fn products(x: &Tensor, whole: (&Tensor, Option<&Tensor>), parts: &[Linear]) -> Vec<Tensor> {
    let weights: Vec<&Tensor> = parts.iter().map(|part| &part.weight).collect();
    let biases: Vec<&Tensor> = parts.iter().filter_map(|part| part.bias.as_ref()).collect();
    let mut made = ops::linear(x, whole, &weights, &biases);
    for (made, part) in made.iter_mut().zip(parts) {
        if let Some(adapter) = &part.adapter {
            *made = &*made + adapter.apply(x);
        }
    }
    made
}

/// Products of the same rows, done as one. Their weights lie one behind the other in one memory, which they stay parts of:
/// each learns, and has its name in the checkpoint.
pub struct FusedLinear {
    /// All have a bias, or none has.
    pub parts: Vec<Linear>,
    weight: Tensor,
    bias: Option<Tensor>,
}

impl FusedLinear {
    /// Moves the weights of `parts` into one memory.
    pub fn new(mut parts: Vec<Linear>) -> Self {
        let weight = moved(parts.iter_mut().map(|part| &mut part.weight).collect());
        let biases: Vec<&mut Tensor> = parts.iter_mut().filter_map(|part| part.bias.as_mut()).collect();
        let bias = (!biases.is_empty()).then(|| moved(biases));
        Self { parts, weight, bias }
    }

    /// `[…,inputs]` to `[…,outputs]` of each part.
    pub fn apply<const N: usize>(&self, x: &Tensor) -> [Tensor; N] {
        self.apply_some(x, 0..N)
    }

    /// The same of some parts.
    pub fn apply_some<const N: usize>(&self, x: &Tensor, range: Range<usize>) -> [Tensor; N] {
        let rows = |parts: &[Linear]| parts.iter().map(|part| part.weight.size()[0]).sum::<i64>();
        let (before, some) = (rows(&self.parts[..range.start]), &self.parts[range]);
        let within = |whole: &Tensor| whole.narrow(0, before, rows(some));
        let (weight, bias) = (within(&self.weight), self.bias.as_ref().map(within));
        let made = products(x, (&weight, bias.as_ref()), some);
        made.try_into()
            .unwrap_or_else(|made: Vec<Tensor>| panic!("{N} products asked for, {} made", made.len()))
    }

    /// Another handle of the same tensors.
    #[must_use]
    pub fn handle(&self) -> Self {
        Self {
            parts: self.parts.iter().map(Linear::handle).collect(),
            weight: self.weight.shallow_clone(),
            bias: self.bias.as_ref().map(Tensor::shallow_clone),
        }
    }
}

/// `tensors` one behind the other; they become parts of what is answered. Of a plan, whose tensors have no content, nothing.
fn moved(tensors: Vec<&mut Tensor>) -> Tensor {
    if tensors.iter().any(|tensor| !tensor.defined()) {
        return Tensor::new();
    }
    let whole = Tensor::cat(&tensors.iter().map(|tensor| tensor.detach()).collect::<Vec<_>>(), 0);
    let mut start = 0;
    for tensor in tensors {
        let rows = tensor.size()[0];
        tensor.set_data(&whole.narrow(0, start, rows));
        start += rows;
    }
    whole
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn joined_parts_stay_the_leaves_that_learn() {
        tch::manual_seed(1);
        let mut store = Store::fresh(Device::Cpu, Kind::Float);
        let parts = ["a", "b"].map(|name| Linear::take(&mut store, name, 3, 2).unwrap());
        let joined = FusedLinear::new(parts.into());
        let leaves = store.finish();
        let x = Tensor::rand([4, 3], (Kind::Float, Device::Cpu));
        let [_, second] = joined.apply(&x);
        second.sum(Kind::Float).backward();
        for (name, leaf) in &leaves {
            assert!(leaf.is_leaf() && leaf.is_contiguous(), "{name}");
            let reached = leaf.grad().abs().max().double_value(&[]) > 0.0;
            assert_eq!(reached, name.starts_with('b'), "{name}");
        }
        // What an update writes into a leaf is read by the product of all.
        tch::no_grad(|| {
            let mut weight = leaves.into_iter().find(|(name, _)| name == "b.weight").unwrap().1;
            let _ = weight.fill_(1.0);
            let [second] = joined.apply_some(&x, 1..2);
            let [_, of_all] = joined.apply(&x);
            let expected = x.sum_dim_intlist([1i64].as_slice(), true, Kind::Float).expand([4, 2], false);
            for got in [second, of_all] {
                assert!((got - &expected).abs().max().double_value(&[]) < 1e-6); // a sum of three numbers below 1
            }
        });
    }
}
