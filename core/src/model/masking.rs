//! How generated images are fed back to a model, and the log-probabilities that it returns.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::BatchSlice;
use crate::sampling::gather_logp;

/// Which distribution scores image tokens that guidance drew. Published work on reinforcement learning with guidance does
/// each of the three.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scoring {
    /// The conditional one alone (T2I-R1). Half the arithmetic, and biased: these are not the probabilities with which the
    /// tokens were drawn, so a token that only guidance made likely counts as an unlikely one.
    #[default]
    Conditional,
    /// The guided one, with gradient to both branches (ReasonGen-R1). Unbiased where tokens are drawn at temperature 1. Its
    /// gradient can also be followed by spoiling what the model draws without a prompt.
    Guided,
    /// The guided one, with gradient to the conditional branch alone. The probabilities are right and the gradient is not:
    /// what the unconditional branch would have contributed is left out.
    GuidedDetached,
}

/// How drawn images are fed back to obtain logits (§3.3: "following the original T2I training process").
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Masking {
    /// Masked models hide a random part of the tokens: one mask ratio for the batch, one pattern an image, both from the
    /// seed. Targets are the hidden positions. Autoregressive models score every token behind those before it, and ignore
    /// the seed.
    Remask {
        /// The only source of randomness.
        seed: u64,
        /// Which rows of a larger batch these are; none for a whole one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        part: Option<BatchSlice>,
        /// The scored distribution.
        #[serde(default)]
        scoring: Scoring,
        /// Guidance of a guided one.
        #[serde(default)]
        guidance: f64,
    },
    /// Every token is scored in the state in which it was drawn: before the step that `revealed_at` names. Targets are the
    /// tokens revealed at one of `steps`. For an autoregressive model, which does so in any case, this is `Remask`.
    Reveal {
        /// Which decoding steps to replay, each in `0..steps` of the sampling.
        steps: Vec<i64>,
        /// The scored distribution.
        #[serde(default)]
        scoring: Scoring,
        /// Guidance of a guided one.
        guidance: f64,
    },
    /// Training on data instead of drawings: as `Remask`, with one mask ratio an image, and the prompt dropped for a tenth
    /// of the images, from which guidance learns its unconditional branch.
    Pretrain {
        /// The only source of randomness.
        seed: u64,
    },
}

impl Masking {
    /// [`Masking::Remask`] as in the paper: by the conditional distribution.
    pub fn remask(seed: u64, part: Option<BatchSlice>) -> Self {
        Self::Remask { seed, part, scoring: Scoring::Conditional, guidance: 0.0 }
    }

    /// The distribution that is scored, and the guidance of a guided one.
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
    /// `[B,N]` bool: the positions that were to be predicted. Logits elsewhere mean nothing.
    pub targets: Tensor,
}

impl ImageLogits {
    /// The log-probabilities of image `tokens [B,N]`, of the targets alone.
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
    /// `[B,T]` bool, true where there is a token.
    pub mask: Tensor,
}
