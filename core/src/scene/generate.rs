//! Random tasks from a list of objects, split into training and test by a stable hash.

use serde::{Deserialize, Serialize};

use super::rng::{Rng, mix};
use super::{Category, Facts, Object, Relation, Task};
use crate::error::{Error, Result};

/// The nouns and colours that tasks are made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectList {
    /// Nouns in the singular.
    pub nouns: Vec<String>,
    /// Colours.
    pub colors: Vec<String>,
}

impl ObjectList {
    /// Refuses lists of fewer than two nouns or colours, and repeated ones.
    pub fn new(nouns: Vec<String>, colors: Vec<String>) -> Result<Self> {
        let list = Self { nouns, colors };
        list.check()?;
        Ok(list)
    }

    fn check(&self) -> Result<()> {
        for (what, words) in [("nouns", &self.nouns), ("colors", &self.colors)] {
            if words.len() < 2 {
                return Err(Error::usage(format!(
                    "object list: expected at least 2 {what}, got {}",
                    words.len()
                )));
            }
            if let Some((_, twice)) =
                words.iter().enumerate().find(|(index, word)| words[..*index].contains(word))
            {
                return Err(Error::usage(format!("object list: `{twice}` is twice among the {what}")));
            }
        }
        Ok(())
    }
}

/// Which tasks to sample.
///
/// The categories with many combinations (`two_object`, `colors`, `position`, `color_attr`) are split: a quarter of
/// the combinations is for the test. `single_object` and `counting` have too few, so that both splits share them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Never seen in a test.
    Train,
    /// Never trained on.
    Test,
    /// Both.
    All,
}

impl Split {
    /// Whether tasks of these facts belong to the split.
    pub fn holds(self, facts: &Facts) -> bool {
        match (self, facts.category) {
            (Split::All, _) | (_, Category::SingleObject | Category::Counting) => true,
            (Split::Train, _) => !is_test(facts),
            (Split::Test, _) => is_test(facts),
        }
    }
}

/// FNV-1a of the facts. What says the same in another order (`a left of b`, `b right of a`) has one hash, so that no
/// test task is a rephrased training task.
fn is_test(facts: &Facts) -> bool {
    let mut objects: Vec<String> = facts
        .objects
        .iter()
        .map(|object| format!("{} {}", object.noun, object.color.as_deref().unwrap_or_default()))
        .collect();
    let mut relation = facts.relation;
    if !objects.is_sorted() {
        objects.reverse();
        relation = relation.map(Relation::opposite);
    }
    let key =
        format!("{}|{}|{}", facts.category.name(), objects.join("|"), relation.map_or("", Relation::words));
    let hash = key.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(hash).is_multiple_of(4)
}

fn random_facts(list: &ObjectList, category: Category, rng: &mut Rng) -> Facts {
    let (first, second) = rng.two_below(list.nouns.len());
    let (one, other) = rng.two_below(list.colors.len());
    let plain = |noun: usize| Object::one(&list.nouns[noun]);
    let colored =
        |noun: usize, color: usize| Object { color: Some(list.colors[color].clone()), ..plain(noun) };
    let objects = match category {
        Category::SingleObject => vec![plain(first)],
        Category::TwoObject | Category::Position => vec![plain(first), plain(second)],
        Category::Counting => vec![Object { count: 2 + rng.below(3) as u32, ..plain(first) }],
        Category::Colors => vec![colored(first, one)],
        Category::ColorAttr => vec![colored(first, one), colored(second, other)],
    };
    let relation = (category == Category::Position).then(|| Relation::ALL[rng.below(4)]);
    Facts { category, objects, relation }
}

/// A random task of a category. Fails for a list that is unfit or has nothing in the split.
pub fn sample(list: &ObjectList, category: Category, split: Split, rng: &mut Rng) -> Result<Task> {
    list.check()?;
    (0..10_000)
        .map(|_| random_facts(list, category, rng))
        .find(|facts| split.holds(facts))
        .map(Task::new)
        .ok_or_else(|| {
            Error::usage(format!("the object list has no `{}` tasks in this split", category.name()))
                .hint("name more nouns and colors")
        })
}

/// `count` random tasks, each of a random one of `categories` (of all six if there are none).
pub fn sample_batch(
    list: &ObjectList,
    categories: &[Category],
    split: Split,
    count: usize,
    rng: &mut Rng,
) -> Result<Vec<Task>> {
    let categories = if categories.is_empty() { &Category::ALL } else { categories };
    (0..count).map(|_| sample(list, categories[rng.below(categories.len())], split, rng)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn list() -> ObjectList {
        crate::tiles::object_list()
    }

    #[test]
    fn the_splits_share_nothing_where_they_can() {
        for category in [Category::TwoObject, Category::Colors, Category::Position, Category::ColorAttr] {
            let [train, test] = [Split::Train, Split::Test].map(|split| {
                let mut rng = Rng::new(7);
                (0..4000)
                    .map(|_| sample(&list(), category, split, &mut rng).unwrap().prompt)
                    .collect::<BTreeSet<_>>()
            });
            assert!(train.is_disjoint(&test), "{category:?}");
            let share = test.len() as f64 / (train.len() + test.len()) as f64;
            assert!((0.1..0.55).contains(&share), "{category:?}: {share}");
        }
    }

    #[test]
    fn rephrasing_stays_in_the_split() {
        let mut rng = Rng::new(1);
        for _ in 0..200 {
            let facts = sample(&list(), Category::Position, Split::Test, &mut rng).unwrap().facts;
            let mut turned = facts.clone();
            turned.objects.reverse();
            turned.relation = turned.relation.map(Relation::opposite);
            assert!(Split::Test.holds(&turned), "{facts:?}");
        }
    }

    #[test]
    fn a_seed_gives_the_same_batch() {
        let batch = |seed| sample_batch(&list(), &[], Split::All, 32, &mut Rng::new(seed)).unwrap();
        assert_eq!(batch(3), batch(3));
        assert_ne!(batch(3), batch(4));
    }

    #[test]
    fn unfit_lists_are_refused() {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(ObjectList::new(words(&["cat"]), words(&["red", "blue"])).is_err());
        let error = ObjectList::new(words(&["cat", "dog", "cat"]), words(&["red", "blue"])).unwrap_err();
        assert_eq!(error.message(), "object list: `cat` is twice among the nouns");
    }
}
