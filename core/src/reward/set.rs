//! Several rule sets that act as one.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Reward, RewardFunction, Sample};
use crate::error::{Error, Result};

/// A rule set and its weight in a sum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct WeightedReward {
    /// The name of a rule of a loaded plugin, e.g. `bound`; the path of a rule file, `FILE.toml`; or of a plugin
    /// file; or `cmd:PATH`, a program, perhaps with arguments: `cmd:python3 reward.py`.
    pub name: String,
    /// The factor of its score.
    #[serde(default = "one")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub weight: f64,
    /// Options of a plugin's rule, `unirl schema --plugin NAME` shows them; or of a program, `args` and `timeout_seconds`.
    #[serde(default, skip_serializing_if = "toml::Table::is_empty")]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub options: toml::Table,
}

fn one() -> f64 {
    1.0
}

impl WeightedReward {
    /// A rule by its name, of weight 1.
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: name.into(), weight: 1.0, options: toml::Table::new() }
    }
}

/// Several weighted rules that act as one.
pub struct RewardSet {
    rules: Vec<(WeightedReward, Box<dyn RewardFunction>)>,
}

impl RewardSet {
    /// Refuses an empty set and two of a name.
    pub fn new(rules: Vec<(WeightedReward, Box<dyn RewardFunction>)>) -> Result<Self> {
        if rules.is_empty() {
            return Err(Error::usage("the rule set is empty").hint("name one: `{ name = \"bound\" }`"));
        }
        for (index, (rule, _)) in rules.iter().enumerate() {
            if rules[..index].iter().any(|(other, _)| other.name == rule.name) {
                return Err(Error::usage(format!("reward rule `{}` is named twice", rule.name))
                    .hint("name it once, with its `weight`"));
            }
        }
        Ok(Self { rules })
    }

    /// Whether one of the rules wants the drawings.
    pub fn wants_pixels(&self) -> bool {
        self.rules.iter().any(|(_, function)| function.wants_pixels())
    }

    /// The weighted sum of all rules that do not abstain. With several, the parts are what each rule adds to the sum, under
    /// its name, and its own parts behind that. `pixels` are for the rules that want them.
    pub fn score(&self, samples: &[Sample], pixels: Option<&Tensor>) -> Result<Vec<Reward>> {
        if let [(rule, function)] = self.rules.as_slice() {
            let mut rewards = checked(rule, samples, function.score(samples, pixels)?)?;
            for reward in &mut rewards {
                reward.score *= rule.weight;
                reward.max *= rule.weight;
            }
            return Ok(rewards);
        }
        let mut totals = vec![Reward::default(); samples.len()];
        for (rule, function) in &self.rules {
            let rewards = checked(rule, samples, function.score(samples, pixels)?)?;
            for (total, reward) in totals.iter_mut().zip(rewards) {
                add(total, rule, reward);
            }
        }
        Ok(totals)
    }

    /// To be called after the last batch: whether a rule finds that something was wrong.
    pub fn finish(&self) -> Result<()> {
        self.rules.iter().try_for_each(|(_, function)| function.finish())
    }
}

fn add(total: &mut Reward, rule: &WeightedReward, reward: Reward) {
    let name = rule.label();
    if !total.why.is_empty() {
        total.why.push_str("; ");
    }
    total.why.push_str(&format!("{name}: {}", reward.why));
    if reward.abstains() {
        return;
    }
    total.score += rule.weight * reward.score;
    total.max += rule.weight * reward.max;
    total.parts.insert(name.into(), rule.weight * reward.score);
    for (part, points) in reward.parts {
        total.parts.insert(format!("{name}/{part}"), points);
    }
}

impl WeightedReward {
    /// What parts are called: a file by its stem, a plugin's rule by its name.
    fn label(&self) -> &str {
        let name = self.name.rsplit(['/', '#']).next().unwrap_or(&self.name);
        name.split('.').next().unwrap_or(name)
    }
}

/// What sums of parts may be off by.
const ROUNDING: f64 = 1e-9;

fn checked(rule: &WeightedReward, samples: &[Sample], rewards: Vec<Reward>) -> Result<Vec<Reward>> {
    let wrong = |what: String| Error::failure(format!("reward rule `{}`: {what}", rule.name));
    if rewards.len() != samples.len() {
        return Err(wrong(format!("expected {} rewards, got {}", samples.len(), rewards.len())));
    }
    let fits = |reward: &Reward| {
        let most = reward.max + ROUNDING * reward.max.abs();
        reward.max.is_finite()
            && (0.0..=most).contains(&reward.score)
            && reward.parts.values().all(|points| points.is_finite())
    };
    match rewards.iter().enumerate().find(|(_, reward)| !fits(reward)) {
        Some((index, reward)) => Err(wrong(format!(
            "`rewards[{index}]`: expected points from 0 to their maximum, got {} of {}",
            reward.score, reward.max
        ))),
        None => Ok(rewards),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompts::{Category, PromptSpec};

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

    /// 2·(1 of 2) + 0.5·(3 of 4) = 3.5 of 6; who abstains adds nothing to either.
    #[test]
    fn weights_add_up_and_abstentions_do_not_count() {
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
    fn unfit_sets_and_rewards_are_refused() {
        let message = |result: Result<RewardSet>| result.err().unwrap().message().to_string();
        assert_eq!(message(set(&[])), "the rule set is empty");
        let twice = [("a", 1.0, Reward::new(1.0, 1.0)), ("a", 2.0, Reward::new(1.0, 1.0))];
        assert_eq!(message(set(&twice)), "reward rule `a` is named twice");
        for wrong in [Reward::new(f64::NAN, 1.0), Reward::new(1.0, 0.0), Reward::new(1.0, -1.0)] {
            assert!(set(&[("a", 1.0, wrong)]).unwrap().score(&[sample()], None).is_err());
        }
    }
}
