//! Memory of a call, reckoned from sizes: what each operation of the transformer keeps, counted by hand.

use unirl::model::{Cost, ImageSampling, TextSampling};

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
    pub(crate) config: &'a CheckpointConfig,
    /// Of a weight or an activation.
    pub(crate) bytes: i64,
    pub(crate) checkpointing: bool,
    /// Whether the weights stay as they are, beside adapters: then their products keep no inputs for a gradient.
    pub(crate) frozen: bool,
    /// Rows before the text of understanding.
    pub(crate) prefix: i64,
}

impl Sizes<'_> {
    fn text(&self) -> i64 {
        self.config.max_text_len + 1
    }

    fn image(&self) -> i64 {
        self.config.num_vq_tokens + 2
    }

    /// Keys and values of rows in all layers.
    fn cache(&self, rows: i64) -> i64 {
        2 * self.config.phi.hidden_size * rows * self.config.phi.num_hidden_layers * self.bytes
    }

    /// What is alive inside a layer for `rows` behind `past` others: rows before and behind the norms, queries, keys and
    /// values before and behind theirs, what was attended to, and both sides of the activation.
    fn layer(&self, rows: i64, past: i64) -> i64 {
        let (width, inner) = (self.config.phi.hidden_size, self.config.phi.intermediate_size);
        ((6 * width + 2 * inner) * rows + 2 * width * (rows + past)) * self.bytes
    }

    /// Who sees whom: as booleans, as f32, and in the type of the scores.
    fn mask(&self, rows: i64, past: i64) -> i64 {
        rows * (rows + past) * (1 + 4 + 4 + self.bytes)
    }

    /// What the transformer keeps of rows for their gradient.
    fn kept(&self, rows: i64, past: i64) -> i64 {
        let layers = self.config.phi.num_hidden_layers;
        let kept = match self.checkpointing {
            true => layers * self.config.phi.hidden_size * rows * self.bytes + self.layer(rows, past),
            false if self.frozen => {
                layers * (self.layer(rows, past) - self.config.phi.intermediate_size * rows * self.bytes)
            }
            false => layers * self.layer(rows, past),
        };
        // On the way back, the gradients of one layer's are alive too.
        kept + self.layer(rows, past) + self.mask(rows, past)
    }

    /// One array of code logits in f32.
    fn codes(&self) -> i64 {
        self.config.num_vq_tokens * self.config.codebook_size * 4
    }

    pub(crate) fn generate(&self, sampling: &ImageSampling) -> Cost {
        let branches = if sampling.guidance > 0.0 { 2 } else { 1 };
        let rows = branches * (self.layer(self.image(), self.text()) + self.mask(self.image(), self.text()));
        Cost {
            // Of the block of each prompt, of the empty one, and of each row behind them.
            cache: self.cache(self.text()) * (2 + branches),
            activations: rows + DRAWN * self.codes(),
        }
    }

    pub(crate) fn answer(&self, sampling: &TextSampling) -> Cost {
        let rows = self.prefix + QUESTION;
        Cost {
            // A longer cache is made from the one before it.
            cache: 2 * self.cache(rows + sampling.max_tokens),
            activations: self.layer(rows, 0) + self.mask(rows, 0) + 4 * self.config.vocab_size * 4,
        }
    }

    pub(crate) fn image_logits(&self, states: i64) -> Cost {
        let text = self.kept(self.text(), 0);
        let image = states * (self.kept(self.image(), self.text()) + self.codes());
        Cost { cache: states * self.cache(self.text()), activations: text + image + COMPLETED * self.codes() }
    }

    pub(crate) fn answer_logp(&self, sampling: &TextSampling) -> Cost {
        let rows = self.prefix + QUESTION + sampling.max_tokens;
        let head = 3 * sampling.max_tokens * self.config.vocab_size * 4;
        Cost { cache: 0, activations: self.kept(rows, 0) + head }
    }
}
