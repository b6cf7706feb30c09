//! Memory of a call, reckoned from sizes.

use unirl::model::{Cost, ImageSampling, TextSampling};
use unirl_layers::footprint::StackSizes;

use crate::config::CheckpointConfig;

/// Text tokens of a question, template included: more than the questions of the method have.
const QUESTION: i64 = 48;
/// Arrays of the size of the code logits that are alive at once where a batch is completed: logits, noise, the relaxed and
/// the hard draw and their sums, the one-hot of the known tokens, and the gradients of some.
const COMPLETED: i64 = 16;
/// The same where tokens are drawn: logits of both branches and their mixture, probabilities, their sums.
const DRAWN: i64 = 7;

/// What the memory of a call depends on.
pub(crate) struct Sizes<'a> {
    config: &'a CheckpointConfig,
    stack: StackSizes,
    /// Rows before the text of understanding.
    prefix: i64,
}

impl<'a> Sizes<'a> {
    /// Of weights and activations of so many `bytes`, with `prefix` rows before the text of understanding; `frozen` weights
    /// have adapters beside them, which learn in their place.
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
            keys: width,
            // Rows before and behind the norms, queries, keys and values before theirs, what was attended to, and both
            // sides of the activation.
            inside: 6 * width + 2 * inner,
            for_weights: inner,
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

    /// One array of code logits in f32.
    fn codes(&self) -> i64 {
        self.config.num_vq_tokens * self.config.codebook_size * 4
    }

    pub(crate) fn generate(&self, sampling: &ImageSampling) -> Cost {
        let branches = if sampling.guidance > 0.0 { 2 } else { 1 };
        let rows = branches * self.stack.layer(self.image(), 0);
        Cost {
            // Of the block of each prompt, of the empty one, and of each image behind them.
            cache: self.stack.cache(self.text()) * 2
                + self.stack.cache(self.text() + self.image()) * branches,
            activations: rows + DRAWN * self.codes(),
        }
    }

    pub(crate) fn answer(&self, sampling: &TextSampling) -> Cost {
        let rows = self.prefix + QUESTION;
        Cost {
            // What was read is copied to where there is room behind it.
            cache: 2 * self.stack.cache(rows + sampling.max_tokens),
            activations: self.stack.layer(rows, 0)
                + self.stack.mask(rows, 0)
                + 4 * self.config.vocab_size * 4,
        }
    }

    pub(crate) fn image_logits(&self, states: i64) -> Cost {
        let text = self.stack.kept(self.text(), 0);
        let image = states * self.stack.kept(self.image(), self.text());
        Cost {
            cache: states * self.stack.cache(self.text()),
            activations: text + image + COMPLETED * self.codes(),
        }
    }

    pub(crate) fn answer_logp(&self, sampling: &TextSampling) -> Cost {
        let rows = self.prefix + QUESTION + sampling.max_tokens;
        let head = 3 * sampling.max_tokens * self.config.vocab_size * 4;
        Cost { cache: 0, activations: self.stack.kept(rows, 0) + head }
    }
}
