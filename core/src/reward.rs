//! Rewards: the scores of the answers of the model, given the spec of the prompt.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::error::Result;
use crate::prompt::PromptSpec;

/// The input of a reward: an answer with its question and prompt. A reward sees text and the spec, never tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// The spec of the prompt.
    #[serde(rename = "facts")]
    pub spec: PromptSpec,
    /// The prompt of the image.
    pub prompt: String,
    /// The question about the image.
    pub question: String,
    /// The correct answer, if the image follows the prompt.
    #[serde(rename = "truth")]
    pub reference_answer: String,
    /// The answer of the model.
    pub answer: String,
}

/// The reward of a sample.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reward {
    /// Points, in `0..=max`.
    pub score: f64,
    /// The points of a perfect answer; 0 to abstain.
    pub max: f64,
    /// The points from which an answer passes; `max` if there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass_at: Option<f64>,
    /// Points by component, such as `noun` or `color`; they need not add up to `score`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, f64>,
    /// An explanation in one sentence.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

impl Reward {
    /// Creates a reward without components.
    pub fn new(score: f64, max: f64) -> Self {
        Self { score, max, ..Self::default() }
    }

    /// Abstains: the sample counts neither for nor against the answer.
    pub fn abstain(why: impl Into<String>) -> Self {
        Self { why: why.into(), ..Self::default() }
    }

    /// Whether the reward function abstained.
    pub fn abstains(&self) -> bool {
        self.max <= 0.0
    }

    /// Whether the answer got full points, or those of `pass_at`.
    pub fn passes(&self) -> bool {
        !self.abstains() && self.score >= self.pass_at.unwrap_or(self.max)
    }
}

/// A reward function. It is deterministic: the same samples always get the same rewards.
pub trait RewardFunction: Send {
    /// Whether [`RewardFunction::score`] needs the images.
    fn wants_pixels(&self) -> bool {
        false
    }

    /// Returns one reward per sample, in order. `pixels [B,3,H,W]`, f32 in `0..=1`, are the images, if requested.
    fn score(&self, samples: &[Sample], pixels: Option<&Tensor>) -> Result<Vec<Reward>>;

    /// Called after the last batch, to report errors that are only known then.
    fn finish(&self) -> Result<()> {
        Ok(())
    }
}
