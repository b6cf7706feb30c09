//! All or nothing: 1 for an answer with full marks under `bound`, else 0. Points for parts teach a model to be sure of a
//! part: of a drawing with two colours it keeps one object right. This rule pays only for the whole.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unirl::Result;
use unirl::judge::answer_is_right;
use unirl::reward::{Reward, RewardFunction, Sample};

/// `exact` has no options.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ExactConfig {}

struct Exact;

/// The rule.
pub fn new(_config: ExactConfig) -> Result<Box<dyn RewardFunction>> {
    Ok(Box::new(Exact))
}

impl RewardFunction for Exact {
    fn score(&self, samples: &[Sample]) -> Result<Vec<Reward>> {
        let score = |sample: &Sample| Reward {
            score: f64::from(answer_is_right(&sample.facts, &sample.answer)),
            max: 1.0,
            parts: BTreeMap::new(),
        };
        Ok(samples.iter().map(score).collect())
    }
}
