//! The paper's points, each bound to where it belongs: a colour to its object, a number to its noun, a relation to its
//! direction (`a left of b` and `b right of a` are the same). An answer that names more than was asked for gets nothing.
//!
//! Full marks here are what the answer judge calls right: both use `unirl::scene::answer`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unirl::Result;
use unirl::reward::{Reward, RewardFunction, Sample};
use unirl::scene::Category;
use unirl::scene::answer::mark;

/// `bound` has no options.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct BoundConfig {}

struct Bound;

/// The rule.
pub fn new(_config: BoundConfig) -> Result<Box<dyn RewardFunction>> {
    Ok(Box::new(Bound))
}

/// The parts that a category has.
fn parts(category: Category) -> &'static [&'static str] {
    match category {
        Category::SingleObject | Category::TwoObject => &["noun"],
        Category::Counting => &["noun", "number"],
        Category::Colors => &["color"],
        Category::Position => &["noun", "relation"],
        Category::ColorAttr => &["color", "noun"],
    }
}

impl RewardFunction for Bound {
    fn score(&self, samples: &[Sample]) -> Result<Vec<Reward>> {
        let score = |sample: &Sample| {
            let marks = mark(&sample.facts, &sample.answer);
            let points = |part: &str| match part {
                "noun" => marks.nouns,
                "number" => marks.numbers,
                "color" => marks.colors,
                _ => marks.relations,
            };
            Reward {
                score: marks.score().into(),
                max: marks.max.into(),
                parts: parts(sample.facts.category)
                    .iter()
                    .map(|part| ((*part).into(), points(part).into()))
                    .collect(),
            }
        };
        Ok(samples.iter().map(score).collect())
    }
}
