//! Rewards: how much an answer of the model is worth, given what was asked for.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::scene::Facts;

/// One drawing with its question and the model's answer, as a reward rule sees it: text and facts, never tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// What was to be drawn.
    pub facts: Facts,
    /// The prompt the image was drawn from.
    pub prompt: String,
    /// The question asked about the drawing.
    pub question: String,
    /// The right answer, had the drawing followed the prompt.
    pub truth: String,
    /// What the model answered.
    pub answer: String,
}

/// The worth of one sample under one rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reward {
    /// Points, in `0..=max`.
    pub score: f64,
    /// The points of a perfect answer, greater than 0.
    pub max: f64,
    /// Points by part, e.g. `noun`, `color`; they need not add up to `score`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub parts: BTreeMap<String, f64>,
}

impl Reward {
    /// Whether the answer got every point.
    pub fn passes(&self) -> bool {
        self.score >= self.max
    }
}

/// A reward rule: the same samples always get the same rewards.
pub trait RewardFunction: Send {
    /// One reward a sample, in order.
    fn score(&self, samples: &[Sample]) -> Result<Vec<Reward>>;
}

/// A rule and its weight in a [`RuleSet`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedRule {
    /// The name of a rule of a loaded plugin, e.g. `bound`.
    pub name: String,
    /// The factor of its score.
    #[serde(default = "one")]
    pub weight: f64,
}

fn one() -> f64 {
    1.0
}

/// Several weighted rules that act as one.
pub struct RuleSet {
    rules: Vec<(WeightedRule, Box<dyn RewardFunction>)>,
}

impl RuleSet {
    /// Refuses an empty set and weights that are not finite and positive.
    pub fn new(rules: Vec<(WeightedRule, Box<dyn RewardFunction>)>) -> Result<Self> {
        if rules.is_empty() {
            return Err(Error::usage("the rule set is empty").hint("name one: `{ name = \"bound\" }`"));
        }
        for (rule, _) in &rules {
            if !(rule.weight.is_finite() && rule.weight > 0.0) {
                return Err(Error::usage(format!(
                    "weight of reward rule `{}`: expected a positive number, got {}",
                    rule.name, rule.weight
                )));
            }
        }
        Ok(Self { rules })
    }

    /// The weighted sum of all rules; with several, parts are prefixed with their rule's name.
    pub fn score(&self, samples: &[Sample]) -> Result<Vec<Reward>> {
        let mut totals = vec![Reward { score: 0.0, max: 0.0, parts: BTreeMap::new() }; samples.len()];
        for (rule, function) in &self.rules {
            let rewards = function.score(samples)?;
            if rewards.len() != samples.len() {
                return Err(Error::failure(format!(
                    "reward rule `{}`: expected {} rewards, got {}",
                    rule.name,
                    samples.len(),
                    rewards.len()
                )));
            }
            for (total, reward) in totals.iter_mut().zip(rewards) {
                if !(reward.score.is_finite() && reward.max.is_finite() && reward.max > 0.0) {
                    return Err(Error::failure(format!(
                        "reward rule `{}`: expected finite scores and a positive maximum, got {} of {}",
                        rule.name, reward.score, reward.max
                    )));
                }
                total.score += rule.weight * reward.score;
                total.max += rule.weight * reward.max;
                for (part, points) in reward.parts {
                    let name = if self.rules.len() == 1 { part } else { format!("{}/{part}", rule.name) };
                    total.parts.insert(name, points);
                }
            }
        }
        Ok(totals)
    }
}
