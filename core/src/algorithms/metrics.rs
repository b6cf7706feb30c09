//! The metrics of an iteration, under the names of [`crate::metrics`].

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::objective::Weighting;
use crate::reward::Reward;

/// Adds the value of a micro-batch to a metric.
pub(crate) fn add(metrics: &mut BTreeMap<&'static str, f64>, name: &'static str, value: &Tensor) {
    *metrics.entry(name).or_default() += value.double_value(&[]);
}

/// The mean of rewards as shares of their maximum, over those that are not abstained from; 0 if there is none.
pub(crate) fn mean_reward(rewards: &[Reward]) -> f64 {
    let shares: Vec<f64> = rewards.iter().filter(|r| !r.abstains()).map(|r| r.score / r.max).collect();
    shares.iter().sum::<f64>() / shares.len().max(1) as f64
}

/// The reward figures that every optimizer logs.
pub(crate) fn reward_metrics(
    rewards: &[Reward],
    scores: &Tensor,
    group: i64,
    metrics: &mut BTreeMap<&'static str, f64>,
) {
    let share = |count: usize| count as f64 / rewards.len() as f64;
    metrics.insert("reward/mean", mean_reward(rewards));
    metrics.insert("reward/pass", share(rewards.iter().filter(|r| r.passes()).count()));
    let spread = Weighting::Advantage.weights(scores, group, 1.0).abs().gt(1e-6).to_kind(Kind::Float);
    metrics.insert("reward/informative", spread.mean(Kind::Float).double_value(&[]));
}

/// The mean points of the parts of rewards, and the share of drawings about which no rule had anything to say.
pub(crate) fn part_metrics(rewards: &[Reward]) -> BTreeMap<String, f64> {
    let mut parts: BTreeMap<String, (f64, usize)> = BTreeMap::new();
    for (name, points) in rewards.iter().flat_map(|reward| &reward.parts) {
        let (sum, count) = parts.entry(format!("reward/part/{name}")).or_default();
        *sum += points;
        *count += 1;
    }
    let mut figures: BTreeMap<String, f64> =
        parts.into_iter().map(|(name, (sum, count))| (name, sum / count as f64)).collect();
    let abstained = rewards.iter().filter(|reward| reward.abstains()).count();
    if abstained > 0 {
        figures.insert("reward/abstained".into(), abstained as f64 / rewards.len() as f64);
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_means_over_the_samples_that_have_them() {
        let reward = |parts: &[(&str, f64)]| Reward {
            parts: parts.iter().map(|(name, points)| ((*name).to_string(), *points)).collect(),
            ..Reward::new(1.0, 2.0)
        };
        let rewards = [
            reward(&[("noun", 1.0), ("color", 0.0)]),
            reward(&[("noun", 2.0)]),
            Reward::abstain("nothing to say"),
            reward(&[("noun", 0.0), ("color", 1.0)]),
        ];
        let expected = [("reward/abstained", 0.25), ("reward/part/color", 0.5), ("reward/part/noun", 1.0)];
        assert_eq!(part_metrics(&rewards), expected.map(|(name, value)| (name.to_string(), value)).into());
    }
}
