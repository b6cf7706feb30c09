//! Memory estimation of each call.

use unirl::model::{Cost, ImageSampling, TextSampling};
use unirl_layers::footprint::{GENERATION_LOGITS, StackSizes, sampled_logits, scored_logits};
use unirl_layers::guidance::Guidance;

use crate::config::JanusConfig;

/// Text tokens of a prompt, and of a question with the system prompt: upper bounds for UniRL's.
const PROMPT: i64 = 48;
const QUESTION: i64 = 96;
/// Tensors of the size of the code logits that are alive at once when images are scored: logits of policy and reference,
/// log-probabilities, and the gradients of some.
const SCORING_LOGITS: i64 = 6;
/// Tensors of the size of the decoder's last level that are alive at once.
const DECODER_ACTIVATIONS: i64 = 4;

/// The sizes that determine the memory of a call.
pub(crate) struct Sizes<'a> {
    config: &'a JanusConfig,
    language: StackSizes,
    vision: StackSizes,
}

impl<'a> Sizes<'a> {
    pub(crate) fn new(config: &'a JanusConfig, bytes: i64, checkpointing: bool) -> Self {
        let (language, vision) = (&config.language, &config.vision);
        let width = language.hidden_size;
        let queries = language.num_attention_heads * language.head_dim;
        let keys = language.num_key_value_heads * language.head_dim;
        // Inputs, outputs and products of both norms, which compute in f32.
        let norms = 6 * width + if bytes < 4 { 4 * width } else { 0 };
        // Queries and the attention output, which is copied once; keys and values repeated for grouped heads.
        let attention = 3 * queries + if keys < queries { 2 * queries } else { 0 };
        Self {
            config,
            language: StackSizes {
                layers: language.num_hidden_layers,
                width,
                kv_width: keys,
                activations: norms + attention + 4 * language.intermediate_size,
                weight_grad_inputs: 0,
                bytes,
                checkpointing,
                frozen: false,
            },
            vision: StackSizes {
                layers: vision.num_hidden_layers,
                width: vision.hidden_size,
                kv_width: vision.hidden_size,
                activations: 6 * vision.hidden_size + 2 * vision.intermediate_size,
                weight_grad_inputs: 0,
                bytes,
                checkpointing: false,
                frozen: false,
            },
        }
    }

    fn image(&self) -> i64 {
        self.config.image_tokens()
    }

    /// Rows of an image and a question.
    fn question(&self) -> i64 {
        self.image() + QUESTION
    }

    /// Bytes of one token's code logits in f32.
    fn codes(&self) -> i64 {
        self.config.generation.codebook_size * 4
    }

    pub(crate) fn generate(&self, sampling: &ImageSampling) -> Cost {
        let branches = if Guidance::FromUnconditional(sampling.guidance).is_active() { 2 } else { 1 };
        let rows = PROMPT + self.image();
        let prompts = self.language.prefill(PROMPT);
        let step = self.language.layer(1, 0) + self.language.mask(1, rows);
        let pixels = self.config.vision.image_size.pow(2);
        let decoded = DECODER_ACTIVATIONS * pixels * self.config.vq.base_channels * 4;
        Cost {
            // The prefilled cache of the prompt and the static cache of prompt and image.
            cache: branches * (self.language.cache(PROMPT) + self.language.cache(rows)),
            activations: (branches * prompts.max(step) + GENERATION_LOGITS * self.codes()).max(decoded),
        }
    }

    pub(crate) fn answer(&self, sampling: &TextSampling) -> Cost {
        let rows = self.question();
        let prefill = self.language.prefill(rows);
        Cost {
            cache: 2 * self.language.cache(rows + sampling.max_tokens),
            activations: prefill.max(self.vision.layer(self.image(), 0))
                + sampled_logits(self.config.language.vocab_size),
        }
    }

    pub(crate) fn image_logits(&self, states: i64) -> Cost {
        let rows = PROMPT + self.image();
        let logits = SCORING_LOGITS * self.image() * self.codes();
        Cost { cache: 0, activations: states * self.language.backward(rows, 0) + logits }
    }

    pub(crate) fn answer_logp(&self, sampling: &TextSampling) -> Cost {
        let rows = self.question() + sampling.max_tokens;
        let head = scored_logits(sampling.max_tokens, self.config.language.vocab_size);
        Cost {
            cache: 0,
            activations: self.language.backward(rows, 0) + self.vision.backward(self.image(), 0) + head,
        }
    }
}
