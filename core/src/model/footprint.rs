//! Memory estimates of a model.

use serde::{Deserialize, Serialize};

use super::{ImageSampling, TextSampling};
use crate::error::Result;

/// A model that estimates its memory.
pub trait MemoryEstimate {
    /// Estimates the memory of a workload without running it. A model without weights can do so, too.
    fn footprint(&self, workload: &Workload) -> Result<Footprint>;
}

/// The calls that a [`Footprint`] is estimated for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// Options of image generation.
    pub images: ImageSampling,
    /// Options of answer sampling.
    pub answers: TextSampling,
    /// The number of states of an image that are scored together: reveal steps, or 1 for re-masking.
    pub states: i64,
}

/// The memory of one kind of call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Bytes of the KV cache, per image.
    pub cache: i64,
    /// Bytes of everything else, per image, including what is saved for the backward pass.
    pub activations: i64,
}

/// The memory of a model, estimated by its plugin from the sizes alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// The number of parameters.
    pub values: i64,
    /// Bytes of all parameters.
    pub weights: i64,
    /// The number of parameters trained in post-training.
    pub trainable: i64,
    /// Bytes of the trained parameters.
    pub trainable_weights: i64,
    /// The number of values of the largest trained tensor: the update works tensor by tensor.
    pub largest: i64,
    /// Bytes that `freeze_reference` allocates.
    pub reference: i64,
    /// `generate`.
    pub generate: Cost,
    /// `answer`.
    pub answer: Cost,
    /// `image_logits` or `image_logp` with gradient, whichever needs more.
    pub image_logits: Cost,
    /// `answer_logp` with gradient.
    pub answer_logp: Cost,
}
