//! How the images of a run are rewarded.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::WeightedReward;

/// The reward: who reads the generated images, what is asked about them, and how the answers are scored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RewardOptions {
    /// Rewards with their weights; the weighted scores are added. Rewards over a preset make `kind` `rules`, unless it is set.
    pub rules: Vec<WeightedReward>,
    /// Rewards of the answer term of `grpo-split`, if they differ from `rules`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_rules: Option<Vec<WeightedReward>>,
    /// What the image objective rewards: the answers about an image, or the probability of the right answer.
    pub kind: RewardKind,
    /// The weights that read the images of the image objective.
    pub reader: Reader,
    /// The share of the former weights that reader `ema` keeps in each step.
    #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
    pub ema_decay: f64,
    /// What the reader of the image objective sees.
    pub view: View,
    /// Questions about each image of the image objective: the question of the prompt, the same in other words, and questions
    /// about a part of the facts. The reward is that of the worst answer.
    #[schemars(range(min = 1))]
    pub questions: usize,
}

/// What the image objective rewards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RewardKind {
    /// The answers about an image, scored by `reward.rules`.
    #[default]
    Rules,
    /// The probability that the reader gives the right answer, in any of its right forms, in `0..=1`. No answer is sampled, and
    /// `reward.rules` score only the answer terms.
    Likelihood,
}

/// The weights that read the images of the image objective.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reader {
    /// The current policy, as in the paper: it can learn to call its own images right.
    #[default]
    Current,
    /// The base model. It needs memory for one more copy of the trained weights, and two while it reads.
    Reference,
    /// An exponential moving average of the policy, with `reward.ema_decay`. Memory as for `reference`.
    Ema,
}

/// What the reader of the image objective sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum View {
    /// The image as it was generated: its tokens, if generation and understanding share them.
    #[default]
    Tokens,
    /// The image decoded to 8 bits per channel and encoded again, so that a code that only tokens carry does not survive.
    Pixels,
}

impl Default for RewardOptions {
    fn default() -> Self {
        Self {
            rules: vec![WeightedReward::named("bound")],
            answer_rules: None,
            kind: RewardKind::Rules,
            reader: Reader::Current,
            ema_decay: 0.99,
            view: View::Tokens,
            questions: 1,
        }
    }
}
