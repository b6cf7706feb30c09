//! What is no error and spoils a run all the same: counted, and said when it begins.

use serde::{Deserialize, Serialize};

use crate::metrics::Line;

/// Nats a token at which a policy has left its reference: the KL terms are too weak for the learning rate.
const DIVERGED: f64 = 1.0;

/// Steps at which something was wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainWarnings {
    /// No group had unequal rewards: advantages are zero, and nothing was learned.
    pub equal_rewards: u64,
    /// The divergence from the reference policy was above 1 nat a token.
    pub diverged: u64,
}

impl TrainWarnings {
    /// Counts a step that was done before.
    pub(super) fn count(&mut self, line: &Line) {
        self.equal_rewards += u64::from(equal_rewards(line));
        self.diverged += u64::from(divergence(line).is_some());
    }

    /// Counts a step, and warns at the first, tenth, hundredth time and so on.
    pub(super) fn watch(&mut self, line: &Line) {
        let before = *self;
        self.count(line);
        let step = line.step;
        if self.equal_rewards > before.equal_rewards && is_power_of_ten(self.equal_rewards) {
            tracing::warn!(
                "step {step}: every group has equal rewards, so there is nothing to learn (so far at {} of the steps): larger \
                 groups, a higher temperature or finer rules would tell samples apart",
                self.equal_rewards
            );
        }
        if self.diverged > before.diverged
            && is_power_of_ten(self.diverged)
            && let Some((name, value)) = divergence(line)
        {
            tracing::warn!(
                "step {step}: `{name}` is {value:.2} nats a token (so far above {DIVERGED} at {} of the steps): lower \
                 `update.learning_rate`, or raise the KL coefficients",
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
    fn steps_are_counted_by_what_was_wrong() {
        let line = |metrics: &[(&str, f64)]| Line {
            step: 1,
            metrics: metrics.iter().map(|(name, value)| ((*name).to_string(), *value)).collect(),
        };
        let mut alarms = TrainWarnings::default();
        alarms.watch(&line(&[("reward/informative", 0.0), ("kl/answer", 0.2)]));
        alarms.watch(&line(&[("reward/informative", 0.5), ("kl/image", 1.5)]));
        alarms.watch(&line(&[("reward/informative", 0.0), ("kl/answer", 2.0), ("kl/image", 1.5)]));
        alarms.watch(&line(&[("reward/mean", 0.5)]));
        assert_eq!(alarms, TrainWarnings { equal_rewards: 2, diverged: 2 });
    }

    #[test]
    fn warnings_get_rarer() {
        let told: Vec<u64> = (0..=1000).filter(|count| is_power_of_ten(*count)).collect();
        assert_eq!(told, [1, 10, 100, 1000]);
    }
}
