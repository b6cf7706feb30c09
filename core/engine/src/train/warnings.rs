//! Conditions that are no errors but can spoil a run. They are counted and logged.

use serde::{Deserialize, Serialize};

use crate::metrics::Line;

/// The KL in nats per token above which the policy has diverged: the KL terms are too weak for the learning rate.
const DIVERGED: f64 = 1.0;

/// The number of steps with each condition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainWarnings {
    /// All groups had zero reward variance: advantages are zero.
    pub equal_rewards: u64,
    /// The KL to the reference policy was above 1 nat per token.
    pub diverged: u64,
}

impl TrainWarnings {
    /// Counts a step without logging, when a run is resumed.
    pub(super) fn count(&mut self, line: &Line) {
        self.equal_rewards += u64::from(equal_rewards(line));
        self.diverged += u64::from(divergence(line).is_some());
    }

    /// Counts a step and warns at the first, tenth, hundredth occurrence and so on.
    pub(super) fn watch(&mut self, line: &Line) {
        let before = *self;
        self.count(line);
        let step = line.step;
        if self.equal_rewards > before.equal_rewards && is_power_of_ten(self.equal_rewards) {
            tracing::warn!(
                "step {step}: all groups have zero reward variance, so there is no learning signal (so far in {} of the steps): use \
                 larger groups, a higher sampling temperature or a finer-grained reward",
                self.equal_rewards
            );
        }
        if self.diverged > before.diverged
            && is_power_of_ten(self.diverged)
            && let Some((name, value)) = divergence(line)
        {
            tracing::warn!(
                "step {step}: `{name}` is {value:.2} nats per token (so far above {DIVERGED} in {} of the steps): lower \
                 `update.learning_rate` or raise `beta`",
                self.diverged
            );
        }
    }
}

fn equal_rewards(line: &Line) -> bool {
    line.metrics.get("reward/informative").is_some_and(|share| *share == 0.0)
}

fn divergence(line: &Line) -> Option<(&'static str, f64)> {
    ["kl/answer", "kl/image"]
        .into_iter()
        .filter_map(|name| Some((name, *line.metrics.get(name)?)))
        .find(|(_, value)| *value > DIVERGED)
}

fn is_power_of_ten(count: u64) -> bool {
    count > 0 && 10u64.pow(count.ilog10()) == count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watch_counts_steps_per_condition() {
        let line = |metrics: &[(&str, f64)]| Line {
            step: 1,
            metrics: metrics.iter().map(|(name, value)| ((*name).to_string(), *value)).collect(),
        };
        let mut warnings = TrainWarnings::default();
        warnings.watch(&line(&[("reward/informative", 0.0), ("kl/answer", 0.2)]));
        warnings.watch(&line(&[("reward/informative", 0.5), ("kl/image", 1.5)]));
        warnings.watch(&line(&[("reward/informative", 0.0), ("kl/answer", 2.0), ("kl/image", 1.5)]));
        warnings.watch(&line(&[("reward/mean", 0.5)]));
        assert_eq!(warnings, TrainWarnings { equal_rewards: 2, diverged: 2 });
    }

    #[test]
    fn warnings_are_logged_at_powers_of_ten() {
        let logged: Vec<u64> = (0..=1000).filter(|count| is_power_of_ten(*count)).collect();
        assert_eq!(logged, [1, 10, 100, 1000]);
    }
}
