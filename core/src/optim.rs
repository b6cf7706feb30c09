//! The weight update: AdamW with f32 masters, global-norm clipping and warm-up.
//!
//! A weight without gradient in a step, such as one of drawing in a step of answering, is left alone: nothing decays, and
//! its bias correction does not count the step. The learning rate follows the steps of the run.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::autograd::clear_gradient;
use crate::error::{Code, Error, Result};
use crate::model::Parameter;
use crate::ops::{self, AdamWRates, AdamWTensors};

/// Values that are updated at once, 256 MiB in f32; a larger weight is updated alone.
pub(crate) const VALUES_AT_ONCE: usize = 1 << 26;

/// Options of the weight update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateOptions {
    /// Step size after warm-up.
    #[schemars(range(min = 0.0))]
    pub learning_rate: f64,
    /// Decay rate of the gradient's running mean.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub beta1: f64,
    /// Decay rate of the squared gradient's running mean.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub beta2: f64,
    /// Added to the root of the squared mean.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub epsilon: f64,
    /// Decoupled weight decay.
    #[schemars(range(min = 0.0))]
    pub weight_decay: f64,
    /// Largest global norm of the gradient; 0 does not clip.
    #[schemars(range(min = 0.0))]
    pub clip: f64,
    /// Steps in which the learning rate rises linearly.
    pub warmup: u64,
    /// Let the learning rate fall along a half cosine to this share at the last step; 1 keeps it.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub final_rate: f64,
}

impl Default for UpdateOptions {
    /// The paper's learning rate with AdamW's usual settings.
    fn default() -> Self {
        Self {
            learning_rate: 1e-5,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            clip: 1.0,
            warmup: 10,
            final_rate: 1.0,
        }
    }
}

/// A weight as a checkpoint keeps it.
#[derive(Debug)]
pub(crate) struct SlotState {
    pub(crate) name: String,
    /// In the precision in which it is updated.
    weight: Tensor,
    mean: Tensor,
    square: Tensor,
    /// Steps in which there was a gradient.
    pub(crate) steps: u64,
}

impl SlotState {
    /// The tensors, and what they are called on disk.
    pub(crate) fn parts(&self) -> [(&'static str, &Tensor); 3] {
        [("weight", &self.weight), ("mean", &self.mean), ("square", &self.square)]
    }

    /// The inverse of [`Self::parts`].
    pub(crate) fn from_parts(
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
    /// The f32 copy that is updated, where the weight itself is of a shorter kind.
    master: Option<Tensor>,
    mean: Tensor,
    square: Tensor,
    /// Steps in which there was a gradient.
    steps: u64,
}

/// AdamW over a model's parameters.
pub struct AdamW {
    options: UpdateOptions,
    slots: Vec<Slot>,
    step: u64,
    total_steps: u64,
}

/// What one update did.
#[derive(Debug, Clone, Copy)]
pub struct UpdateReport {
    /// The global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// The learning rate used.
    pub learning_rate: f64,
}

impl AdamW {
    /// An update rule for `parameters`, with a schedule that ends at `total_steps`.
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

    /// Copies of all weights, in the precision in which they are updated.
    pub fn weights(&self) -> Vec<Tensor> {
        let copy = |slot: &Slot| slot.master.as_ref().unwrap_or(&slot.weight).detach().copy();
        self.slots.iter().map(copy).collect()
    }

    /// Takes such copies back, and forgets moments: the next update is like the first, but for the schedule.
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

    /// What goes into a checkpoint: no copies, so it is to be written before the next update.
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

    /// Goes on after `step` steps, with what a checkpoint kept.
    pub(crate) fn resume(&mut self, step: u64, states: &[SlotState]) -> Result<()> {
        let other = |what: String| {
            Error::failure("the checkpoint is of another model").cause(what).hint(
                "the model's options, `model.checkpoint` and the plugin have to be those that the run began with",
            )
        };
        if states.len() != self.slots.len() {
            return Err(other(format!("expected {} weights, got {}", self.slots.len(), states.len())));
        }
        for (slot, state) in self.slots.iter_mut().zip(states) {
            let name = &slot.name;
            if state.name != *name {
                return Err(other(format!("expected `{name}`, got `{}`", state.name)));
            }
            for (part, tensor) in state.parts() {
                let (got, expected) = (tensor.size(), slot.weight.size());
                if got != expected {
                    return Err(other(format!(
                        "{part} of `{name}`: expected shape {expected:?}, got {got:?}"
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

    /// Forgets all gradients.
    pub fn zero_grad(&mut self) {
        for slot in &mut self.slots {
            clear_gradient(&mut slot.weight);
        }
    }

    /// Applies the gradients. The first gradient that is not finite is an error that names its tensor.
    pub fn apply(&mut self) -> Result<UpdateReport> {
        tch::no_grad(|| {
            let gradient_norm = self.gradient_norm()?;
            let clip = self.options.clip;
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
            let mut learning: Vec<&mut Slot> =
                self.slots.iter_mut().filter(|slot| slot.weight.grad().defined()).collect();
            let mut rest = &mut learning[..];
            while !rest.is_empty() {
                let together = at_once(rest);
                let (slots, others) = rest.split_at_mut(together);
                update(slots, rates, scale);
                rest = others;
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
        let warm = (self.step as f64 / o.warmup.max(1) as f64).min(1.0);
        let progress = (self.step as f64 / self.total_steps.max(1) as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        o.learning_rate * warm * (o.final_rate + (1.0 - o.final_rate) * cosine)
    }
}

/// How many of the first slots are updated at once: gradients of a shorter type are there in f32 as long.
fn at_once(slots: &[&mut Slot]) -> usize {
    let mut values = 0;
    let more = slots.iter().take_while(|slot| {
        values += slot.weight.numel();
        values <= VALUES_AT_ONCE
    });
    more.count().max(1)
}

/// A step of AdamW on slots that have a gradient, which is multiplied by `scale` before.
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
    let (shorter, masters): (Vec<&Tensor>, Vec<&Tensor>) =
        slots.iter().filter_map(|slot| Some((&slot.weight, slot.master.as_ref()?))).unzip();
    ops::copy(&shorter, &masters);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ParameterGroup;

    const F32: f64 = 1e-6; // a few roundings of numbers near 1

    fn parameter(values: &[f32], kind: Kind) -> Parameter {
        let tensor = Tensor::from_slice(values).to_kind(kind).set_requires_grad(true);
        Parameter { name: "w".into(), tensor, group: ParameterGroup::Shared }
    }

    #[test]
    fn what_is_restored_goes_the_same_way_again() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let p = parameter(&[1.0, -2.0], kind);
            let weight = p.tensor.shallow_clone();
            let options = UpdateOptions { learning_rate: 0.1, warmup: 1, ..UpdateOptions::default() };
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
    fn what_is_resumed_goes_on_as_if_nothing_had_been() {
        for kind in [Kind::Float, Kind::BFloat16] {
            let options = UpdateOptions { learning_rate: 0.1, warmup: 4, ..UpdateOptions::default() };
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
                assert!(weight.equal(&same), "to the bit");
                assert!(adam.weights()[0].equal(&other.weights()[0]), "to the bit");
            }
            let error = other.resume(3, &[]).unwrap_err();
            assert_eq!(error.causes(), ["expected 1 weights, got 0"]);
        }
    }

    #[test]
    fn two_steps_by_hand() {
        // Constant gradient 2: both corrected moments are exact, so each step is lr·2/(2+eps) after the decay.
        let p = parameter(&[1.0], Kind::Float);
        let weight = p.tensor.shallow_clone();
        let options = UpdateOptions {
            learning_rate: 0.1,
            weight_decay: 0.5,
            clip: 0.0,
            warmup: 1,
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
    fn without_a_gradient_a_weight_and_its_moments_stand_still() {
        let [p, q] = [parameter(&[1.0], Kind::Float), parameter(&[1.0], Kind::Float)];
        let weights = [p.tensor.shallow_clone(), q.tensor.shallow_clone()];
        let options = UpdateOptions {
            learning_rate: 0.4,
            beta1: 0.5,
            beta2: 0.5,
            weight_decay: 0.5,
            clip: 0.0,
            warmup: 4,
            ..UpdateOptions::default()
        };
        let mut adam = AdamW::new(vec![p, q], options, 10);
        let mut step = |learns: usize, gradient: f64| {
            let before = weights[1 - learns].copy();
            adam.zero_grad();
            (&weights[learns] * gradient).sum(Kind::Float).backward();
            let rate = adam.apply().unwrap().learning_rate;
            assert!(weights[1 - learns].equal(&before), "to the bit");
            (rate, weights[learns].double_value(&[0]))
        };
        // The rate warms up by the steps of the run. A first step of a weight goes by the sign of its gradient.
        let first = 1.0 * (1.0 - 0.1 * 0.5) - 0.1;
        let other = 1.0 * (1.0 - 0.2 * 0.5) + 0.2;
        // Its second, with gradients 2 and 1: mean 1/2·1 + 1/2·1 = 1, square 1/2·2 + 1/2·1 = 3/2, each corrected by
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
    fn clipping_reports_the_norm_before_it() {
        let p = parameter(&[0.0, 0.0], Kind::Float);
        let weight = p.tensor.shallow_clone();
        let mut adam = AdamW::new(vec![p], UpdateOptions::default(), 10);
        (&weight * Tensor::from_slice(&[3.0f32, 4.0])).sum(Kind::Float).backward();
        assert!((adam.apply().unwrap().gradient_norm - 5.0).abs() < 1e-6);
    }

    #[test]
    fn bf16_weights_move_through_their_masters() {
        let p = parameter(&[0.02], Kind::BFloat16);
        let weight = p.tensor.shallow_clone();
        let before = weight.double_value(&[0]);
        let mut adam = AdamW::new(
            vec![p],
            UpdateOptions { learning_rate: 1e-5, warmup: 1, ..UpdateOptions::default() },
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
    fn a_gradient_that_is_not_finite_names_its_tensor() {
        let p = parameter(&[1.0], Kind::Float);
        let weight = p.tensor.shallow_clone();
        let mut adam = AdamW::new(vec![p], UpdateOptions::default(), 1);
        (&weight * f64::NAN).sum(Kind::Float).backward();
        assert!(adam.apply().unwrap_err().message().contains("`w`"));
    }
}
