//! Memory estimation of weights and layers. The counts per row come from reading each layer's operations.

use unirl::model::Footprint;
use unirl::weights::Expected;

/// Tensors of the size of the code logits that are alive at once when codes are sampled: logits of both branches, guided
/// logits, probabilities and cumulative sums, which can be f64.
pub const GENERATION_LOGITS: i64 = 7;

/// Bytes of the logits of one answer token when it is sampled, of `vocabulary` tokens.
pub fn sampled_logits(vocabulary: i64) -> i64 {
    4 * vocabulary * 4
}

/// Bytes of the logits of `tokens` answer tokens when they are scored, and of their gradients.
pub fn scored_logits(tokens: i64, vocabulary: i64) -> i64 {
    3 * tokens * vocabulary * 4
}

/// The number of values of weights, without buffers that the model computes.
pub fn values(weights: &[Expected]) -> i64 {
    weights.iter().filter(|expected| expected.required).map(Expected::values).sum()
}

/// The part of a footprint that weights determine: `trained` ones and `frozen` values of `bytes` each, and `frozen_f32` values
/// in f32.
pub fn of_weights(trained: &[Expected], frozen: i64, frozen_f32: i64, bytes: i64) -> Footprint {
    let trainable = values(trained);
    Footprint {
        values: trainable + frozen + frozen_f32,
        weights: (trainable + frozen) * bytes + frozen_f32 * 4,
        trainable,
        trainable_weights: trainable * bytes,
        largest: trained.iter().map(Expected::values).max().unwrap_or(0),
        reference: trainable * bytes,
        ..Footprint::default()
    }
}

/// Sizes of a stack of attention layers.
#[derive(Debug, Clone, Copy)]
pub struct StackSizes {
    /// The number of layers.
    pub layers: i64,
    /// The width of a row between layers.
    pub width: i64,
    /// The width of a row's keys, and of its values.
    pub kv_width: i64,
    /// Values per row that are alive inside a layer, without keys and values.
    pub activations: i64,
    /// The part of `activations` that only the gradients of weights need.
    pub weight_grad_inputs: i64,
    /// Bytes of a weight or an activation.
    pub bytes: i64,
    /// Gradient checkpointing.
    pub checkpointing: bool,
    /// The weights are frozen, so that linear layers save no inputs for the backward pass.
    pub frozen: bool,
}

impl StackSizes {
    /// Bytes of the KV cache of `rows` in all layers.
    pub fn cache(&self, rows: i64) -> i64 {
        2 * self.kv_width * rows * self.layers * self.bytes
    }

    /// Bytes alive inside one layer for `rows` after `past` earlier rows.
    pub fn layer(&self, rows: i64, past: i64) -> i64 {
        (self.activations * rows + 2 * self.kv_width * (rows + past)) * self.bytes
    }

    /// Bytes of the attention mask: as bool, as f32, and in the type of the scores.
    pub fn mask(&self, rows: i64, past: i64) -> i64 {
        rows * (rows + past) * (1 + 4 + 4 + self.bytes)
    }

    /// Bytes alive in the forward pass of `rows` that follow no others.
    pub fn prefill(&self, rows: i64) -> i64 {
        self.layer(rows, 0) + self.mask(rows, 0)
    }

    /// Bytes saved for the backward pass of `rows`, with those of its largest step.
    pub fn backward(&self, rows: i64, past: i64) -> i64 {
        let saved = match self.checkpointing {
            true => self.layers * self.width * rows * self.bytes + self.layer(rows, past),
            false if self.frozen => {
                self.layers * (self.layer(rows, past) - self.weight_grad_inputs * rows * self.bytes)
            }
            false => self.layers * self.layer(rows, past),
        };
        // The backward pass also holds the gradients of one layer's activations.
        saved + self.layer(rows, past) + self.mask(rows, past)
    }
}
