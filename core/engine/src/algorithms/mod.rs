//! The post-training algorithms of the paper, one file each: [`sft`], [`grpo`] and [`grpo_split`]. `--optimizer` selects one;
//! the AdamW step that follows is in [`crate::optim`].
//!
//! `rollout` generates images, answers about them and scores the answers. [`objective`] holds the mathematics. `image_term`
//! is the log-likelihood of the image tokens, shared by two algorithms.
//!
//! A custom algorithm implements [`Algorithm`] and is registered with [`register_algorithm!`](crate::register_algorithm) in
//! a program that calls `unirl_cli::main`: `examples/my-optimizer`.

pub mod grpo;
pub mod grpo_split;
mod image_term;
pub mod metrics;
pub mod objective;
mod passes;
mod reader;
mod reading;
mod registry;
mod right_answers;
mod rollout;
pub mod sft;
mod straight_through;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;

use tch::Tensor;
use unirl::error::{Code, Error, Result};
use unirl::model::Images;
use unirl::reward::Reward;

pub use image_term::{ImageTerm, MaskingKind};
pub(crate) use metrics::component_metrics;
pub use passes::Terms;
pub(crate) use passes::passes;
pub use reader::ReaderWeights;
pub use reading::Reading;
pub use registry::{AlgorithmEntry, Decoupled, all, check_fits, find};
pub use right_answers::RightAnswer;
pub(crate) use rollout::pixels;
pub use rollout::{Iteration, MicroBatch, Phases, Rollout, Scored, Stream};
pub use straight_through::StraightThrough;

/// A post-training algorithm: turns the images, answers and rewards of one iteration into gradients.
pub trait Algorithm {
    /// Runs the model on the tasks of the iteration and backpropagates the loss. The caller zeroes the gradients before and
    /// applies the update after.
    fn accumulate(&self, iteration: &mut Iteration<'_>) -> Result<Outcome>;

    /// Returns the terms of the loss, from which the memory plan is derived.
    fn terms(&self) -> Terms<'_>;
}

/// The result of an iteration, for the metrics and the sample grids.
#[derive(Debug)]
pub struct Outcome {
    /// Scalars under the names documented in [`crate::metrics`].
    pub metrics: BTreeMap<&'static str, f64>,
    /// The images that were scored, `[B,N]` tokens.
    pub images: Images,
    /// The answers about these images.
    pub answers: Vec<String>,
    /// The rewards of the answers.
    pub rewards: Vec<Reward>,
}

/// Backpropagates a scalar. Errors if it is not finite.
pub fn backward(loss: &Tensor, name: &str) -> Result<()> {
    let value = loss.double_value(&[]);
    if !value.is_finite() {
        return Err(Error::new(Code::NonFinite, format!("`{name}` is {value}"))
            .hint("lower `update.learning_rate` or raise `beta`"));
    }
    Ok(loss.f_backward()?)
}

/// For the exported macro only.
#[doc(hidden)]
pub mod __private {
    pub use super::registry::{options, resolve};
    pub use inventory;
    pub use unirl::Result;
}
