//! Memory estimation of each call.

use unirl::model::{Cost, ImageSampling, TextSampling};
use unirl_layers::footprint::{GENERATION_LOGITS, StackSizes, sampled_logits, scored_logits};
use unirl_layers::guidance::Guidance;

use crate::config::CheckpointConfig;

/// Text tokens of a question, including the template: an upper bound for UniRL's questions.
const QUESTION: i64 = 48;
/// Tensors of the size of the code logits that are alive at once when images are completed: logits, noise, relaxed and hard
/// samples and their sums, one-hot known tokens, and the gradients of some.
const COMPLETION_LOGITS: i64 = 16;

/// The sizes that determine the memory of a call.
pub(crate) struct Sizes<'a> {
    config: &'a CheckpointConfig,
    stack: StackSizes,
    /// Rows before the question.
    prefix: i64,
}

impl<'a> Sizes<'a> {
    /// `bytes` is the size of a weight or activation, `prefix` the number of rows before the question. `frozen` weights are
    /// trained through adapters.
    pub(crate) fn new(
        config: &'a CheckpointConfig,
        prefix: i64,
        bytes: i64,
        checkpointing: bool,
        frozen: bool,
    ) -> Self {
        let (width, inner) = (config.phi.hidden_size, config.phi.intermediate_size);
        let stack = StackSizes {
            layers: config.phi.num_hidden_layers,
            width,
            kv_width: width,
            // Input and output of the norms, queries, keys and values before their norms, the attention output, and input
            // and output of the activation function.
            activations: 6 * width + 2 * inner,
            weight_grad_inputs: inner,
            bytes,
            checkpointing,
            frozen,
        };
        Self { config, stack, prefix }
    }

    fn text(&self) -> i64 {
        self.config.max_text_len + 1
    }

    fn image(&self) -> i64 {
        self.config.num_vq_tokens + 2
    }

    /// Bytes of the code logits in f32.
    fn codes(&self) -> i64 {
        self.config.num_vq_tokens * self.config.codebook_size * 4
    }

    pub(crate) fn generate(&self, sampling: &ImageSampling) -> Cost {
        let branches = if Guidance::BeyondConditional(sampling.guidance).is_active() { 2 } else { 1 };
        let rows = branches * self.stack.layer(self.image(), 0);
        Cost {
            // The text blocks of the prompt and of the empty prompt, and both with an image.
            cache: self.stack.cache(self.text()) * 2
                + self.stack.cache(self.text() + self.image()) * branches,
            activations: rows + GENERATION_LOGITS * self.codes(),
        }
    }

    pub(crate) fn answer(&self, sampling: &TextSampling) -> Cost {
        let rows = self.prefix + QUESTION;
        Cost {
            // The prefilled cache is copied into the larger static cache.
            cache: 2 * self.stack.cache(rows + sampling.max_tokens),
            activations: self.stack.prefill(rows) + sampled_logits(self.config.vocab_size),
        }
    }

    pub(crate) fn image_logits(&self, states: i64) -> Cost {
        let text = self.stack.backward(self.text(), 0);
        let image = states * self.stack.backward(self.image(), self.text());
        Cost {
            cache: states * self.stack.cache(self.text()),
            activations: text + image + COMPLETION_LOGITS * self.codes(),
        }
    }

    pub(crate) fn answer_logp(&self, sampling: &TextSampling) -> Cost {
        let rows = self.prefix + QUESTION + sampling.max_tokens;
        let head = scored_logits(sampling.max_tokens, self.config.vocab_size);
        Cost { cache: 0, activations: self.stack.backward(rows, 0) + head }
    }
}
