//! The post-training algorithms of the paper, one file each: [`sft`], [`grpo`] and [`grpo_split`]. `--optimizer` names them;
//! the AdamW step that follows is [`crate::update`].
//!
//! `rollout` generates, answers and scores; [`objective`] has the mathematics; `image_term` is the log-likelihood of the
//! image tokens, which two algorithms share.

pub mod grpo;
pub mod grpo_split;
mod image_term;
mod metrics;
pub mod objective;
mod passes;
mod registry;
mod rollout;
pub mod sft;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;

use tch::Tensor;

use crate::error::{Code, Error, Result};
use crate::model::Images;
use crate::reward::Reward;

pub use image_term::{ImageTerm, MaskingKind};
pub(crate) use metrics::part_metrics;
pub use passes::Terms;
pub(crate) use passes::passes;
pub use registry::{AlgorithmEntry, all, build, check_fits, find};
pub(crate) use rollout::pixels;
pub use rollout::{Iteration, Phases, Scored};

/// One post-training algorithm: turns the images, answers and rewards of one iteration into gradients.
pub trait Algorithm {
    /// Runs the model on the iteration's tasks, calls `backward` on the loss and returns what happened. The caller has
    /// zeroed the gradients and applies the update.
    fn accumulate(&self, iteration: &mut Iteration<'_>) -> Result<Outcome>;

    /// The terms of its loss, from which the memory plan is derived.
    fn terms(&self) -> Terms<'_>;
}

/// What an iteration did, for the metrics and the sample pictures.
#[derive(Debug)]
pub struct Outcome {
    /// Scalars under the names documented in [`crate::metrics`].
    pub metrics: BTreeMap<&'static str, f64>,
    /// The images the rewards belong to, `[B,N]` tokens.
    pub images: Images,
    /// The model's answers about them.
    pub answers: Vec<String>,
    /// The rewards of these answers.
    pub rewards: Vec<Reward>,
}

/// Backpropagates a scalar, refusing one that is not finite.
pub(crate) fn backward(loss: &Tensor, name: &str) -> Result<()> {
    let value = loss.double_value(&[]);
    if !value.is_finite() {
        return Err(Error::new(Code::NonFinite, format!("`{name}` is {value}"))
            .hint("lower `update.learning_rate`, or raise the KL coefficients"));
    }
    Ok(loss.f_backward()?)
}
