//! The memory that a model needs.

use serde::{Deserialize, Serialize};

use super::{ImageSampling, TextSampling};

/// What is asked of a model at once, for its [`Footprint`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// How images are drawn.
    pub images: ImageSampling,
    /// How answers are drawn.
    pub answers: TextSampling,
    /// States of an image that are scored together: reveal steps, or 1 for a re-masking.
    pub states: i64,
}

/// Memory of one kind of call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Bytes an image for keys and values.
    pub cache: i64,
    /// Bytes an image for everything else, what is kept for a gradient included.
    pub activations: i64,
}

/// The memory of a model in bytes, as its plugin reckons it from sizes alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// Values of all weights.
    pub values: i64,
    /// Bytes of all weights.
    pub weights: i64,
    /// Values of the weights that learn in post-training.
    pub trainable: i64,
    /// Bytes of these.
    pub trainable_weights: i64,
    /// Values of the largest of them: the update works tensor by tensor.
    pub largest: i64,
    /// Bytes that [`UnifiedModel::freeze_reference`] takes.
    pub reference: i64,
    /// [`UnifiedModel::generate`].
    pub generate: Cost,
    /// [`UnifiedModel::answer`].
    pub answer: Cost,
    /// [`UnifiedModel::image_logits`] or [`UnifiedModel::image_logp`] with gradient, whichever takes more.
    pub image_logits: Cost,
    /// [`UnifiedModel::answer_logp`] with gradient.
    pub answer_logp: Cost,
}
