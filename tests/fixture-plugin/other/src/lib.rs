//! The second plugin in the process: a rule that always gives two points.

use std::collections::BTreeMap;

use unirl::Result;
use unirl::reward::{Reward, RewardFunction, Sample};

#[derive(Default, serde::Deserialize, schemars::JsonSchema)]
#[serde(default)]
struct Two {}

impl RewardFunction for Two {
    fn score(&self, samples: &[Sample]) -> Result<Vec<Reward>> {
        Ok(samples.iter().map(|_| Reward { score: 2.0, max: 2.0, parts: BTreeMap::new() }).collect())
    }
}

unirl::register_reward!("two", Two, |config| Ok(Box::new(config)));
unirl::export_plugin!();
