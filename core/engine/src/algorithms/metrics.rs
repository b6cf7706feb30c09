//! Metrics of an iteration, under the names of [`crate::metrics`].

use std::collections::BTreeMap;

use tch::{Kind, Tensor};
use unirl::reward::Reward;

use super::objective::Weighting;

/// Adds the value of a micro-batch to a metric.
pub fn add(metrics: &mut BTreeMap<&'static str, f64>, name: &'static str, value: &Tensor) {
    *metrics.entry(name).or_default() += value.double_value(&[]);
}

/// Returns the mean reward as a share of the maximum, without abstained samples; 0 if all abstain.
pub fn mean_reward(rewards: &[Reward]) -> f64 {
    let shares: Vec<f64> = rewards.iter().filter(|r| !r.abstains()).map(|r| r.score / r.max).collect();
    shares.iter().sum::<f64>() / shares.len().max(1) as f64
}

/// Adds the reward metrics that every algorithm logs.
pub fn reward_metrics(
    rewards: &[Reward],
    scores: &Tensor,
    group: i64,
    metrics: &mut BTreeMap<&'static str, f64>,
) {
    let share = |count: usize| count as f64 / rewards.len() as f64;
    metrics.insert("reward/mean", mean_reward(rewards));
    metrics.insert("reward/pass", share(rewards.iter().filter(|r| r.passes()).count()));
    if group > 1 {
        let spread = Weighting::Advantage.weights(scores, group, 1.0).abs().gt(1e-6).to_kind(Kind::Float);
        metrics.insert("reward/informative", spread.mean(Kind::Float).double_value(&[]));
    }
}

/// Returns the mean of each reward component, and the share of samples on which the reward abstained.
pub(crate) fn component_metrics(rewards: &[Reward]) -> BTreeMap<String, f64> {
    let mut components: BTreeMap<String, (f64, usize)> = BTreeMap::new();
    for (name, points) in rewards.iter().flat_map(|reward| &reward.parts) {
        let (sum, count) = components.entry(format!("reward/part/{name}")).or_default();
        *sum += points;
        *count += 1;
    }
    let mut metrics: BTreeMap<String, f64> =
        components.into_iter().map(|(name, (sum, count))| (name, sum / count as f64)).collect();
    let abstained = rewards.iter().filter(|reward| reward.abstains()).count();
    if abstained > 0 {
        metrics.insert("reward/abstained".into(), abstained as f64 / rewards.len() as f64);
    }
    metrics
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn component_metrics_are_means_over_samples_with_the_component() {
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
        assert_eq!(
            component_metrics(&rewards),
            expected.map(|(name, value)| (name.to_string(), value)).into()
        );
    }
}
