//! The weighted sum of rewards.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use unirl::error::{Error, Result};
use unirl::reward::{Reward, RewardFunction, Sample};

/// A reward and its weight in a sum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedReward {
    /// The name of a reward of a loaded plugin, such as `bound`; the path of a rule file, `FILE.toml`; the path of a plugin
    /// file; or `cmd:` with a program and optional arguments, such as `cmd:python3 reward.py`.
    pub name: String,
    /// The weight of the reward.
    #[serde(default = "one")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub weight: f64,
    /// Options of a plugin reward, see `unirl schema --plugin NAME`; or `args` and `timeout_seconds` of a program.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub options: toml::Table,
}

fn one() -> f64 {
    1.0
}

impl WeightedReward {
    /// Returns a reward by name with weight 1.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), weight: 1.0, options: toml::Table::new() }
    }
}

/// The weighted sum of several rewards.
pub struct RewardSet {
    rewards: Vec<(WeightedReward, Box<dyn RewardFunction>)>,
}

impl RewardSet {
    /// Creates a set. Errors if it is empty or has duplicate names.
    pub fn new(rewards: Vec<(WeightedReward, Box<dyn RewardFunction>)>) -> Result<Self> {
        if rewards.is_empty() {
            return Err(Error::usage("no rewards are configured").hint("add one: `{ name = \"bound\" }`"));
        }
        for (index, (reward, _)) in rewards.iter().enumerate() {
            if rewards[..index].iter().any(|(other, _)| other.name == reward.name) {
                return Err(Error::usage(format!("duplicate reward `{}`", reward.name))
                    .hint("list it once and set its `weight`"));
            }
        }
        Ok(Self { rewards })
    }

    /// Whether any of the rewards needs the images.
    pub fn wants_pixels(&self) -> bool {
        self.rewards.iter().any(|(_, function)| function.wants_pixels())
    }

    /// Returns the weighted sum of all rewards that do not abstain. With several rewards, the components are the weighted score
    /// of each, under its name, and its own components as `NAME/COMPONENT`.
    pub fn score(&self, samples: &[Sample], pixels: Option<&Tensor>) -> Result<Vec<Reward>> {
        if let [(weighted, function)] = self.rewards.as_slice() {
            let mut rewards = checked(weighted, samples, function.score(samples, pixels)?)?;
            for reward in &mut rewards {
                reward.score *= weighted.weight;
                reward.max *= weighted.weight;
            }
            return Ok(rewards);
        }
        let mut totals = vec![Reward::default(); samples.len()];
        for (weighted, function) in &self.rewards {
            let rewards = checked(weighted, samples, function.score(samples, pixels)?)?;
            for (total, reward) in totals.iter_mut().zip(rewards) {
                add(total, weighted, reward);
            }
        }
        Ok(totals)
    }

    /// Called after the last batch, to report errors that are only known then.
    pub fn finish(&self) -> Result<()> {
        self.rewards.iter().try_for_each(|(_, function)| function.finish())
    }
}

fn add(total: &mut Reward, weighted: &WeightedReward, reward: Reward) {
    let name = weighted.label();
    if !total.why.is_empty() {
        total.why.push_str("; ");
    }
    total.why.push_str(&format!("{name}: {}", reward.why));
    if reward.abstains() {
        return;
    }
    total.score += weighted.weight * reward.score;
    total.max += weighted.weight * reward.max;
    total.parts.insert(name.into(), weighted.weight * reward.score);
    for (component, points) in reward.parts {
        total.parts.insert(format!("{name}/{component}"), points);
    }
}

impl WeightedReward {
    /// Returns the name of the component: the stem of a file, or the name of a plugin reward.
    fn label(&self) -> &str {
        let name = self.name.rsplit(['/', '#']).next().unwrap_or(&self.name);
        name.split('.').next().unwrap_or(name)
    }
}

/// Tolerance for the rounding of sums.
const ROUNDING: f64 = 1e-9;

/// Errors unless there is one valid reward per sample.
fn checked(weighted: &WeightedReward, samples: &[Sample], rewards: Vec<Reward>) -> Result<Vec<Reward>> {
    let invalid = |what: String| Error::failure(format!("reward `{}`: {what}", weighted.name));
    if rewards.len() != samples.len() {
        return Err(invalid(format!("expected {} rewards, got {}", samples.len(), rewards.len())));
    }
    let is_valid = |reward: &Reward| {
        let max = reward.max + ROUNDING * reward.max.abs();
        reward.max.is_finite()
            && (0.0..=max).contains(&reward.score)
            && reward.parts.values().all(|points| points.is_finite())
    };
    match rewards.iter().enumerate().find(|(_, reward)| !is_valid(reward)) {
        Some((index, reward)) => Err(invalid(format!(
            "`rewards[{index}]`: expected a score in 0..=max, got score {}, max {}",
            reward.score, reward.max
        ))),
        None => Ok(rewards),
    }
}

#[cfg(test)]
mod tests {
    use unirl::prompt::{Category, PromptSpec};

    use super::*;

    struct Fixed(Reward);

    impl RewardFunction for Fixed {
        fn score(&self, samples: &[Sample], _: Option<&Tensor>) -> Result<Vec<Reward>> {
            Ok(vec![self.0.clone(); samples.len()])
        }
    }

    fn set(rules: &[(&str, f64, Reward)]) -> Result<RewardSet> {
        let rule = |(name, weight, reward): &(&str, f64, Reward)| {
            let rule = WeightedReward { weight: *weight, ..WeightedReward::named(*name) };
            (rule, Box::new(Fixed(reward.clone())) as Box<dyn RewardFunction>)
        };
        RewardSet::new(rules.iter().map(rule).collect())
    }

    fn sample() -> Sample {
        let spec = PromptSpec { category: Category::Counting, objects: vec![], relation: None };
        let [prompt, question, reference_answer, answer] = std::array::from_fn(|_| String::new());
        Sample { spec, prompt, question, reference_answer, answer }
    }

    /// 2·(1 of 2) + 0.5·(3 of 4) = 3.5 of 6.
    #[test]
    fn score_sums_weighted_rewards_and_ignores_abstentions() {
        let half =
            Reward { parts: [("noun".to_string(), 1.0)].into(), why: "half".into(), ..Reward::new(1.0, 2.0) };
        let rules = [
            ("bound", 2.0, half),
            ("my/own.toml", 0.5, Reward { why: "most".into(), ..Reward::new(3.0, 4.0) }),
            ("silent", 1.0, Reward::abstain("nothing to say")),
        ];
        let total = set(&rules).unwrap().score(&[sample()], None).unwrap().remove(0);
        assert_eq!((total.score, total.max), (3.5, 6.0));
        let parts: Vec<(&str, f64)> =
            total.parts.iter().map(|(name, points)| (name.as_str(), *points)).collect();
        assert_eq!(parts, [("bound", 2.0), ("bound/noun", 1.0), ("own", 1.5)]);
        assert_eq!(total.why, "bound: half; own: most; silent: nothing to say");
        let silent = set(&rules[2..]).unwrap().score(&[sample()], None).unwrap().remove(0);
        assert!(silent.abstains() && !silent.passes());
    }

    #[test]
    fn invalid_sets_and_rewards_are_refused() {
        let message = |result: Result<RewardSet>| result.err().unwrap().message().to_string();
        assert_eq!(message(set(&[])), "no rewards are configured");
        let twice = [("a", 1.0, Reward::new(1.0, 1.0)), ("a", 2.0, Reward::new(1.0, 1.0))];
        assert_eq!(message(set(&twice)), "duplicate reward `a`");
        for invalid in [Reward::new(f64::NAN, 1.0), Reward::new(1.0, 0.0), Reward::new(1.0, -1.0)] {
            assert!(set(&[("a", 1.0, invalid)]).unwrap().score(&[sample()], None).is_err());
        }
    }
}
