//! A second plugin in the process: a reward that is always 2.

use unirl::reward::{Reward, RewardFunction, Sample};
use unirl::{Result, Tensor};

#[derive(Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
struct Two {}

impl RewardFunction for Two {
    fn score(&self, samples: &[Sample], _: Option<&Tensor>) -> Result<Vec<Reward>> {
        Ok(samples.iter().map(|_| Reward::new(2.0, 2.0)).collect())
    }
}

unirl::register_reward!("two", Two, |config| Ok(Box::new(config)));
unirl::export_plugin!();
