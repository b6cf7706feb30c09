//! AdamW with f32 master weights, gradient clipping by global norm, warm-up and cosine decay.
//!
//! A step skips weights without gradient, such as those of generation in a step that trains understanding only: they do not
//! decay, and their bias correction does not count the step. The learning rate follows the steps of the run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use unirl::error::{Code, Error, Result};
use unirl::model::Parameter;
use unirl_torch::autograd::clear_gradient;
use unirl_torch::ops::{self, AdamWRates, AdamWTensors};

/// The number of values per fused update, 256 MiB in f32; a larger weight is updated alone.
pub(crate) const VALUES_AT_ONCE: usize = 1 << 26;

/// Options of the weight update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateOptions {
    /// Learning rate after warm-up.
    #[schemars(range(min = 0.0))]
    pub learning_rate: f64,
    /// Decay rate of the running mean of the gradient.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub beta1: f64,
    /// Decay rate of the running mean of the squared gradient.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub beta2: f64,
    /// Added to the denominator for numerical stability.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub epsilon: f64,
    /// Decoupled weight decay.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// Maximum global norm of the gradient; 0 disables clipping.
    #[serde(alias = "clip")]
    #[schemars(range(min = 0.0), extend("x-former-names" = ["clip"]))]
    pub max_grad_norm: f64,
    /// The number of warm-up steps, in which the learning rate rises linearly.
    #[serde(alias = "warmup")]
    #[schemars(extend("x-former-names" = ["warmup"]))]
    pub warmup_steps: u64,
    /// The learning rate of the last step as a share of `learning_rate`, reached by cosine decay; 1 disables the decay.
    #[serde(alias = "final_rate")]
    #[schemars(range(min = 0.0, max = 1.0), extend("x-former-names" = ["final_rate"]))]
    pub min_lr_ratio: f64,
}

impl Default for UpdateOptions {
    /// The learning rate of the paper and the usual settings of AdamW.
    fn default() -> Self {
        Self {
            learning_rate: 1e-5,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            max_grad_norm: 1.0,
            warmup_steps: 10,
            min_lr_ratio: 1.0,
        }
    }
}

/// The state of a weight in a checkpoint.
#[derive(Debug)]
pub(crate) struct SlotState {
    pub(crate) name: String,
    /// The weight, in f32.
    weight: Tensor,
    mean: Tensor,
    square: Tensor,
    /// The number of steps with a gradient.
    pub(crate) steps: u64,
}

impl SlotState {
    /// Returns the tensors with their names on disk.
    pub(crate) fn tensors(&self) -> [(&'static str, &Tensor); 3] {
        [("weight", &self.weight), ("mean", &self.mean), ("square", &self.square)]
    }

    /// The inverse of [`Self::tensors`].
    pub(crate) fn from_tensors(
        name: &str,
        steps: u64,
        mut read: impl FnMut(&'static str) -> Result<Tensor>,
    ) -> Result<Self> {
        let [weight, mean, square] = [read("weight")?, read("mean")?, read("square")?];
        Ok(Self { name: name.into(), weight, mean, square, steps })
    }
}

struct Slot {
    name: String,
    weight: Tensor,
    /// The f32 master copy of a weight of lower precision.
    master: Option<Tensor>,
    mean: Tensor,
    square: Tensor,
    /// The number of steps with a gradient.
    steps: u64,
}

/// AdamW over the parameters of a model.
pub struct AdamW {
    options: UpdateOptions,
    slots: Vec<Slot>,
    step: u64,
    total_steps: u64,
}

/// The report of an update.
#[derive(Debug, Clone, Copy)]
pub struct UpdateReport {
    /// The global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// The learning rate of the update.
    pub learning_rate: f64,
}

impl AdamW {
    /// Creates the optimizer for `parameters`, with a schedule that ends at `total_steps`.
    pub fn new(parameters: Vec<Parameter>, options: UpdateOptions, total_steps: u64) -> Self {
        let slots = parameters
            .into_iter()
            .map(|Parameter { name, tensor, .. }| {
                let master = (tensor.kind() != Kind::Float).then(|| tensor.detach().to_kind(Kind::Float));
                let like = master.as_ref().unwrap_or(&tensor).detach();
                let [mean, square] = [like.zeros_like(), like.zeros_like()];
                Slot { name, weight: tensor, master, mean, square, steps: 0 }
            })
            .collect();
        Self { options, slots, step: 0, total_steps }
    }

    /// Returns f32 copies of all weights.
    pub fn weights(&self) -> Vec<Tensor> {
        let copy = |slot: &Slot| slot.master.as_ref().unwrap_or(&slot.weight).detach().copy();
        self.slots.iter().map(copy).collect()
    }

    /// Restores weights returned by [`Self::weights`] and resets the moments. The schedule continues.
    pub fn restore(&mut self, weights: &[Tensor]) {
        tch::no_grad(|| {
            for (slot, weight) in self.slots.iter_mut().zip(weights) {
                slot.weight.copy_(weight);
                if let Some(master) = &mut slot.master {
                    master.copy_(weight);
                }
                let _ = slot.mean.zero_();
                let _ = slot.square.zero_();
                slot.steps = 0;
            }
        });
    }

    /// Returns the state for a checkpoint. It shares storage with the weights, so write it before the next update.
    pub(crate) fn state(&self) -> Vec<SlotState> {
        let state = |slot: &Slot| SlotState {
            name: slot.name.clone(),
            weight: slot.master.as_ref().unwrap_or(&slot.weight).detach(),
            mean: slot.mean.shallow_clone(),
            square: slot.square.shallow_clone(),
            steps: slot.steps,
        };
        self.slots.iter().map(state).collect()
    }

    /// Resumes after `step` steps with the state of a checkpoint.
    pub(crate) fn resume(&mut self, step: u64, states: &[SlotState]) -> Result<()> {
        let mismatch = |cause: String| {
            Error::failure("the checkpoint belongs to another model").cause(cause).hint(
                "use the model options, `model.checkpoint` and the plugin with which the run was started",
            )
        };
        if states.len() != self.slots.len() {
            return Err(mismatch(format!("expected {} weights, got {}", self.slots.len(), states.len())));
        }
        for (slot, state) in self.slots.iter_mut().zip(states) {
            let name = &slot.name;
            if state.name != *name {
                return Err(mismatch(format!("expected `{name}`, got `{}`", state.name)));
            }
            for (tensor_name, tensor) in state.tensors() {
                let (got, expected) = (tensor.size(), slot.weight.size());
                if got != expected {
                    return Err(mismatch(format!(
                        "{tensor_name} of `{name}`: expected shape {expected:?}, got {got:?}"
                    )));
                }
            }
            tch::no_grad(|| {
                slot.weight.copy_(&state.weight);
                if let Some(master) = &mut slot.master {
                    master.copy_(&state.weight);
                }
                slot.mean.copy_(&state.mean);
                slot.square.copy_(&state.square);
            });
            slot.steps = state.steps;
        }
        self.step = step;
        Ok(())
    }

    /// Clears all gradients.
    pub fn zero_grad(&mut self) {
        for slot in &mut self.slots {
            clear_gradient(&mut slot.weight);
        }
    }

    /// Applies the gradients. Errors if a gradient is not finite, naming the first such tensor.
    pub fn apply(&mut self) -> Result<UpdateReport> {
        tch::no_grad(|| {
            let gradient_norm = self.gradient_norm()?;
            let clip = self.options.max_grad_norm;
            let scale = if clip > 0.0 && gradient_norm > clip { clip / gradient_norm } else { 1.0 };
            self.step += 1;
            let learning_rate = self.learning_rate();
            let o = &self.options;
            let rates = AdamWRates {
                learning_rate,
                beta1: o.beta1,
                beta2: o.beta2,
                weight_decay: o.weight_decay,
                epsilon: o.epsilon,
            };
            let mut with_gradient: Vec<&mut Slot> =
                self.slots.iter_mut().filter(|slot| slot.weight.grad().defined()).collect();
            let mut remaining = &mut with_gradient[..];
            while !remaining.is_empty() {
                let count = chunk_len(remaining);
                let (chunk, others) = remaining.split_at_mut(count);
                update(chunk, rates, scale);
                remaining = others;
            }
            Ok(UpdateReport { gradient_norm, learning_rate })
        })
    }

    fn gradient_norm(&self) -> Result<f64> {
        let gradients: Vec<Tensor> =
            self.slots.iter().map(|slot| slot.weight.grad()).filter(Tensor::defined).collect();
        if gradients.is_empty() {
            return Ok(0.0);
        }
        let norm = ops::norm(&gradients.iter().collect::<Vec<_>>()).double_value(&[]);
        if norm.is_finite() {
            return Ok(norm);
        }
        let culprit = self
            .slots
            .iter()
            .find(|slot| {
                let gradient = slot.weight.grad();
                gradient.defined() && !bool::try_from(gradient.isfinite().all()).unwrap_or(false)
            })
            .map_or("the sum over all tensors", |slot| &slot.name);
        Err(Error::new(Code::NonFinite, format!("the gradient of `{culprit}` is not finite"))
            .hint("lower `update.learning_rate`"))
    }

    fn learning_rate(&self) -> f64 {
        let o = &self.options;
        let warm = (self.step as f64 / o.warmup_steps.max(1) as f64).min(1.0);
        let progress = (self.step as f64 / self.total_steps.max(1) as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        o.learning_rate * warm * (o.min_lr_ratio + (1.0 - o.min_lr_ratio) * cosine)
    }
}

/// Returns how many of the first slots are updated together. The limit bounds the memory of their f32 gradients.
fn chunk_len(slots: &[&mut Slot]) -> usize {
    let mut values = 0;
    let fitting = slots.iter().take_while(|slot| {
        values += slot.weight.numel();
        values <= VALUES_AT_ONCE
    });
    fitting.count().max(1)
}

/// Applies a step of AdamW to slots with a gradient, which is first multiplied by `scale`.
fn update(slots: &mut [&mut Slot], rates: AdamWRates, scale: f64) {
    let device = slots[0].weight.device();
    for slot in &mut *slots {
        slot.steps += 1;
    }
    let counts: Vec<f32> = slots.iter().map(|slot| slot.steps as f32).collect();
    let steps = Tensor::from_slice(&counts).to_device(device).unbind(0);
    let gradients: Vec<Tensor> = slots.iter().map(|slot| slot.weight.grad().to_kind(Kind::Float)).collect();
    let learning = AdamWTensors {
        weights: slots.iter().map(|slot| slot.master.as_ref().unwrap_or(&slot.weight)).collect(),
        gradients: gradients.iter().collect(),
        means: slots.iter().map(|slot| &slot.mean).collect(),
        squares: slots.iter().map(|slot| &slot.square).collect(),
        steps: steps.iter().collect(),
    };
    ops::adamw(&learning, rates, &Tensor::from((1.0 / scale) as f32).to_device(device));
    let (weights, masters): (Vec<&Tensor>, Vec<&Tensor>) =
        slots.iter().filter_map(|slot| Some((&slot.weight, slot.master.as_ref()?))).unzip();
    ops::copy(&weights, &masters);
}

#[cfg(test)]
mod tests {
    use unirl::model::ParameterGroup;

    use super::*;

    const F32: f64 = 1e-6; // a few roundings of numbers near 1

    fn parameter(values: &[f32], kind: Kind) -> Parameter {
        let tensor = Tensor::from_slice(values).to_kind(kind).set_requires_grad(true);
        Parameter { name: "w".into(), tensor, group: ParameterGroup::Shared }
    }

    #[test]
    fn restore_repeats_the_same_updates() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let p = parameter(&[1.0, -2.0], kind);
            let weight = p.tensor.shallow_clone();
            let options = UpdateOptions { learning_rate: 0.1, warmup_steps: 1, ..UpdateOptions::default() };
            let mut adam = AdamW::new(vec![p], options, 10);
            let start = adam.weights();
            let mut ends = Vec::new();
            for _ in 0..2 {
                for _ in 0..3 {
                    adam.zero_grad();
                    (&weight * &weight).sum(Kind::Float).backward();
                    adam.apply().unwrap();
                }
                ends.push(Vec::<f64>::try_from(weight.detach().to_kind(Kind::Double)).unwrap());
                adam.restore(&start);
            }
            assert_eq!(ends[0], ends[1]);
            assert_ne!(ends[0], [1.0, -2.0]);
            assert_eq!(Vec::<f64>::try_from(weight.detach().to_kind(Kind::Double)).unwrap(), [1.0, -2.0]);
        }
    }

    #[test]
    fn resume_continues_bit_exactly() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let options = UpdateOptions { learning_rate: 0.1, warmup_steps: 4, ..UpdateOptions::default() };
            let fresh = || {
                let p = parameter(&[1.0, -2.0], kind);
                let weight = p.tensor.shallow_clone();
                (AdamW::new(vec![p], options.clone(), 10), weight)
            };
            let step = |adam: &mut AdamW, weight: &Tensor| {
                adam.zero_grad();
                (weight * weight).sum(Kind::Float).backward();
                adam.apply().unwrap();
            };
            let (mut adam, weight) = fresh();
            (0..3).for_each(|_| step(&mut adam, &weight));
            let (mut other, same) = fresh();
            other.resume(3, &adam.state()).unwrap();
            for _ in 0..3 {
                step(&mut adam, &weight);
                step(&mut other, &same);
                assert!(weight.equal(&same), "bit-exact");
                assert!(adam.weights()[0].equal(&other.weights()[0]), "bit-exact");
            }
            let error = other.resume(3, &[]).unwrap_err();
            assert_eq!(error.causes(), ["expected 1 weights, got 0"]);
        }
    }

    #[test]
    fn apply_two_steps_match_numbers_by_hand() {
        // Constant gradient 2: both corrected moments are exact, so each step is lr·2/(2+eps) after the decay.
        let p = parameter(&[1.0], Kind::Float);
        let weight = p.tensor.shallow_clone();
        let options = UpdateOptions {
            learning_rate: 0.1,
            weight_decay: 0.5,
            max_grad_norm: 0.0,
            warmup_steps: 1,
            ..UpdateOptions::default()
        };
        let mut adam = AdamW::new(vec![p], options, 10);
        for _ in 0..2 {
            adam.zero_grad();
            (&weight * 2.0).sum(Kind::Float).backward();
            adam.apply().unwrap();
        }
        let expected = (1.0 * 0.95 - 0.1) * 0.95 - 0.1;
        assert!((weight.double_value(&[0]) - expected).abs() < 1e-6); // f32 rounding
    }

    #[test]
    fn apply_skips_weights_without_gradient() {
        let [p, q] = [parameter(&[1.0], Kind::Float), parameter(&[1.0], Kind::Float)];
        let weights = [p.tensor.shallow_clone(), q.tensor.shallow_clone()];
        let options = UpdateOptions {
            learning_rate: 0.4,
            beta1: 0.5,
            beta2: 0.5,
            weight_decay: 0.5,
            max_grad_norm: 0.0,
            warmup_steps: 4,
            ..UpdateOptions::default()
        };
        let mut adam = AdamW::new(vec![p, q], options, 10);
        let mut step = |learns: usize, gradient: f64| {
            let before = weights[1 - learns].copy();
            adam.zero_grad();
            (&weights[learns] * gradient).sum(Kind::Float).backward();
            let rate = adam.apply().unwrap().learning_rate;
            assert!(weights[1 - learns].equal(&before), "bit-exact");
            (rate, weights[learns].double_value(&[0]))
        };
        // The learning rate warms up with the steps of the run. The first step of a weight depends only on the sign of its
        // gradient.
        let first = 1.0 * (1.0 - 0.1 * 0.5) - 0.1;
        let other = 1.0 * (1.0 - 0.2 * 0.5) + 0.2;
        // The second step, with gradients 2 and 1: mean 1/2·1 + 1/2·1 = 1, square 1/2·2 + 1/2·1 = 3/2, each corrected by
        // 1 − (1/2)² = 3/4, is (4/3)/√2.
        let second = first * (1.0 - 0.3 * 0.5) - 0.3 * (4.0 / 3.0) / f64::sqrt(2.0);
        for ((learns, gradient), (rate, weight)) in
            [(0, 2.0), (1, -3.0), (0, 1.0)].into_iter().zip([(0.1, first), (0.2, other), (0.3, second)])
        {
            let got = step(learns, gradient);
            assert!((got.0 - rate).abs() < F32 && (got.1 - weight).abs() < F32, "{got:?}, {rate}, {weight}");
        }
    }

    #[test]
    fn gradient_norm_is_reported_before_clipping() {
        let p = parameter(&[0.0, 0.0], Kind::Float);
        let weight = p.tensor.shallow_clone();
        let mut adam = AdamW::new(vec![p], UpdateOptions::default(), 10);
        (&weight * Tensor::from_slice(&[3.0f32, 4.0])).sum(Kind::Float).backward();
        assert!((adam.apply().unwrap().gradient_norm - 5.0).abs() < 1e-6);
    }

    #[test]
    fn bf16_weights_are_updated_through_f32_masters() {
        let p = parameter(&[0.02], Kind::BFloat16);
        let weight = p.tensor.shallow_clone();
        let before = weight.double_value(&[0]);
        let mut adam = AdamW::new(
            vec![p],
            UpdateOptions { learning_rate: 1e-5, warmup_steps: 1, ..UpdateOptions::default() },
            100,
        );
        for _ in 0..100 {
            adam.zero_grad();
            weight.sum(Kind::Float).backward();
            adam.apply().unwrap();
        }
        assert!((before - weight.double_value(&[0]) - 1e-3).abs() < 1e-4); // bf16 has 8 bits of mantissa
    }

    #[test]
    fn non_finite_gradient_error_names_the_tensor() {
        let p = parameter(&[1.0], Kind::Float);
        let weight = p.tensor.shallow_clone();
        let mut adam = AdamW::new(vec![p], UpdateOptions::default(), 1);
        (&weight * f64::NAN).sum(Kind::Float).backward();
        assert!(adam.apply().unwrap_err().message().contains("`w`"));
    }
}
