//! How generated images are fed back to a model, and the log-probabilities that it returns.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::BatchSlice;
use crate::sampling::gather_logp;

/// The distribution that scores image tokens sampled with guidance. Published work uses each of the three.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scoring {
    /// The conditional distribution (T2I-R1). It needs half the computation and is biased: the tokens were sampled from the
    /// guided distribution, so a token that is likely only with guidance counts as unlikely.
    #[default]
    Conditional,
    /// The guided distribution, with gradient to both branches (ReasonGen-R1). Unbiased for tokens sampled at temperature 1.
    /// The optimizer can also follow its gradient by degrading unconditional generation.
    Guided,
    /// The guided distribution, with gradient to the conditional branch only. The probabilities are correct; the gradient
    /// lacks the contribution of the unconditional branch.
    GuidedDetached,
}

/// How generated images are fed back to obtain logits (§3.3: "following the original T2I training process").
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Masking {
    /// Masked models mask a random part of the tokens: one mask ratio per batch and one pattern per image, both from the
    /// seed. The targets are the masked positions. Autoregressive models score every token given those before it, and
    /// ignore the seed.
    Remask {
        /// The only source of randomness.
        seed: u64,
        /// The rows of a larger batch that these are; `None` for the whole batch.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        part: Option<BatchSlice>,
        /// The scored distribution.
        #[serde(default)]
        scoring: Scoring,
        /// The guidance of a guided distribution.
        #[serde(default)]
        guidance: f64,
    },
    /// Every token is scored in the state in which it was sampled: before the step in `revealed_at`. The targets are the
    /// tokens revealed at one of `steps`. For an autoregressive model this equals `Remask`.
    Reveal {
        /// The decoding steps to score, each in `0..steps` of the sampling.
        steps: Vec<i64>,
        /// The scored distribution.
        #[serde(default)]
        scoring: Scoring,
        /// The guidance of a guided distribution.
        guidance: f64,
    },
    /// Training on data instead of generated images: as `Remask`, but with one mask ratio per image, and without the prompt
    /// for a tenth of the images, which trains the unconditional branch of guidance.
    Pretrain {
        /// The only source of randomness.
        seed: u64,
    },
}

impl Masking {
    /// Returns [`Masking::Remask`] as in the paper: scored by the conditional distribution.
    pub fn remask(seed: u64, part: Option<BatchSlice>) -> Self {
        Self::Remask { seed, part, scoring: Scoring::Conditional, guidance: 0.0 }
    }

    /// Returns the scored distribution, and the guidance of a guided one.
    pub fn scoring(&self) -> (Scoring, f64) {
        match self {
            Self::Remask { scoring, guidance, .. } | Self::Reveal { scoring, guidance, .. } => {
                (*scoring, *guidance)
            }
            Self::Pretrain { .. } => (Scoring::Conditional, 0.0),
        }
    }
}

/// Logits over the image codebook.
#[derive(Debug)]
pub struct ImageLogits {
    /// `[B,N,K]` f32.
    pub logits: Tensor,
    /// `[B,N]` bool: the positions to predict. Logits at other positions have no meaning.
    pub targets: Tensor,
}

impl ImageLogits {
    /// Returns the log-probabilities of image `tokens [B,N]` at the targets.
    pub fn logp(self, tokens: &Tensor) -> TokenLogp {
        let logp = gather_logp(&self.logits, tokens);
        TokenLogp { logp: logp.where_self(&self.targets, &logp.zeros_like()), mask: self.targets }
    }
}

/// Log-probabilities of given tokens.
#[derive(Debug)]
pub struct TokenLogp {
    /// `[B,T]` f32, 0 where `mask` is false.
    pub logp: Tensor,
    /// `[B,T]` bool, false for padding.
    pub mask: Tensor,
}
