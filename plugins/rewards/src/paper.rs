//! The paper's rule (Table 2): a point for every keyword of the truth that occurs in the answer.
//!
//! The match ignores case and is a plain substring match, as the paper describes it: it does not see which object has
//! which colour, who is left of whom, or what else is named. A model that learns to swap or to list everything is not
//! found out by it; the rule set `bound` is for that. One addition: a noun's plural counts where it does not contain
//! the singular (`knives`).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unirl::Result;
use unirl::reward::{Reward, RewardFunction, Sample};
use unirl::scene::{Category, Facts, number_word, plural};

/// `paper` has no options.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PaperConfig {}

struct Paper;

/// The rule.
pub fn new(_config: PaperConfig) -> Result<Box<dyn RewardFunction>> {
    Ok(Box::new(Paper))
}

/// The keywords of the facts, each with its part; one of its spellings is enough.
fn keywords(facts: &Facts) -> Vec<(&'static str, Vec<String>)> {
    let mut keywords = Vec::new();
    for object in &facts.objects {
        if facts.category != Category::Colors {
            keywords.push(("noun", vec![object.noun.to_lowercase(), plural(&object.noun).to_lowercase()]));
        }
        if facts.category == Category::Counting {
            keywords.push(("number", vec![number_word(object.count)]));
        }
        if let Some(color) = &object.color {
            keywords.push(("color", vec![color.to_lowercase()]));
        }
    }
    keywords.extend(facts.relation.map(|relation| ("relation", vec![relation.words().into()])));
    keywords
}

impl RewardFunction for Paper {
    fn score(&self, samples: &[Sample]) -> Result<Vec<Reward>> {
        let score = |sample: &Sample| {
            let answer = sample.answer.to_lowercase();
            let mut reward = Reward { score: 0.0, max: 0.0, parts: BTreeMap::new() };
            for (part, spellings) in keywords(&sample.facts) {
                let found = spellings.iter().any(|spelling| answer.contains(spelling.as_str()));
                let points = f64::from(u8::from(found));
                reward.score += points;
                reward.max += 1.0;
                *reward.parts.entry(part.into()).or_default() += points;
            }
            reward
        };
        Ok(samples.iter().map(score).collect())
    }
}
