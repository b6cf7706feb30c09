//! Rewards: how much an answer of the model is worth, given what was asked for.
//!
//! A rule set is code ([`RewardFunction`], a plugin's), a TOML file ([`RuleFile`]) or a process ([`ProcessReward`]); several add up in a [`RewardSet`].

mod file;
mod matching;
mod process;
mod rules;
mod set;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::error::{Error, Result};
use crate::prompts::{PromptSpec, Record, Task};

pub use file::{
    Example, Keyword, LongAnswer, Loss, MatchOptions, Normalize, Pay, Penalties, RuleFile, ShippedOptions,
};
pub use matching::Match;
pub use process::{PREFIX as PROCESS, ProcessOptions, ProcessReward, command};
pub use set::{RewardSet, WeightedReward};

/// One drawing with its question and the model's answer, as a reward rule sees it: text and facts, never tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// What was to be drawn.
    #[serde(rename = "facts")]
    pub spec: PromptSpec,
    /// The prompt the image was drawn from.
    pub prompt: String,
    /// The question asked about the drawing.
    pub question: String,
    /// The right answer, had the drawing followed the prompt.
    #[serde(rename = "truth")]
    pub reference_answer: String,
    /// What the model answered.
    pub answer: String,
}

impl Sample {
    /// What the model answered about a drawing of a task.
    pub fn new(task: &Task, answer: impl Into<String>) -> Self {
        Self {
            spec: task.spec.clone(),
            prompt: task.prompt.clone(),
            question: task.question.clone(),
            reference_answer: task.reference_answer.clone(),
            answer: answer.into(),
        }
    }

    /// The sample of a line with an answer.
    pub fn from_record(record: &Record) -> Result<Self> {
        let answer = record.answer().ok_or_else(|| Error::usage("missing field `answer`"))?;
        Ok(Self::new(&record.task()?, answer))
    }
}

/// The worth of one sample under one rule set.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Reward {
    /// Points, in `0..=max`.
    pub score: f64,
    /// The points of a perfect answer; 0 where the rules have nothing to say.
    pub max: f64,
    /// Points by part, e.g. `noun`, `color`; they need not add up to `score`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, f64>,
    /// Why, in a sentence for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
}

impl Reward {
    /// Points without parts.
    pub fn new(score: f64, max: f64) -> Self {
        Self { score, max, ..Self::default() }
    }

    /// What a rule gives that has nothing to say about a sample: it counts neither for nor against it.
    pub fn abstain(why: impl Into<String>) -> Self {
        Self { why: why.into(), ..Self::default() }
    }

    /// Whether the rules had nothing to say.
    pub fn abstains(&self) -> bool {
        self.max <= 0.0
    }

    /// Whether the answer got every point.
    pub fn passes(&self) -> bool {
        !self.abstains() && self.score >= self.max
    }
}

/// A reward rule: the same samples always get the same rewards.
pub trait RewardFunction: Send {
    /// Whether [`RewardFunction::score`] is to be given the drawings.
    fn wants_pixels(&self) -> bool {
        false
    }

    /// One reward a sample, in order. `pixels [B,3,H,W]`, f32 in `0..=1`, are the drawings, where they are wanted.
    fn score(&self, samples: &[Sample], pixels: Option<&Tensor>) -> Result<Vec<Reward>>;

    /// Called after the last batch, for a rule that finds out only then that something was wrong.
    fn finish(&self) -> Result<()> {
        Ok(())
    }
}
