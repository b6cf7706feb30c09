//! Random tasks from a list of objects: one at a time from a split, or many by a mix of categories.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::rng::{Rng, mix};
use super::{Category, Exclusion, Object, ObjectList, PromptSpec, PromptTemplates, Relation, Task};
use crate::error::{Error, Result, unknown_name};

/// Draws without anything fit before there is taken to be nothing.
const PATIENCE: usize = 10_000;

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

impl std::str::FromStr for Split {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "train" => Ok(Self::Train),
            "test" => Ok(Self::Test),
            "all" => Ok(Self::All),
            name => Err(unknown_name("split", name, &["train", "test", "all"])),
        }
    }
}

impl Split {
    /// Whether tasks of these facts belong to the split. What says the same in another order has the same place.
    pub fn holds(self, spec: &PromptSpec) -> bool {
        match self {
            _ if !spec.category.is_split() => true,
            Split::All => true,
            Split::Train => !is_test(spec),
            Split::Test => is_test(spec),
        }
    }
}

/// FNV-1a of the facts.
fn is_test(spec: &PromptSpec) -> bool {
    let hash = spec.key().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(hash).is_multiple_of(4)
}

fn random_facts(list: &ObjectList, category: Category, rng: &mut Rng) -> PromptSpec {
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
    PromptSpec { category, objects, relation }
}

/// As in `GenEval`, nobody is asked to paint a person.
fn paints_a_person(spec: &PromptSpec) -> bool {
    spec.objects.iter().any(|object| object.noun == "person" && object.color.is_some())
}

/// Random facts of a category. Fails for a list that is unfit or has nothing in the split.
pub fn sample(list: &ObjectList, category: Category, split: Split, rng: &mut Rng) -> Result<PromptSpec> {
    list.check()?;
    (0..PATIENCE)
        .map(|_| random_facts(list, category, rng))
        .find(|spec| split.holds(spec) && !paints_a_person(spec))
        .ok_or_else(|| {
            Error::usage(format!("the object list has no `{}` tasks in this split", category.name()))
                .hint("name more nouns and colors")
        })
}

/// How many tasks of each category, as shares.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mix([f64; 6]);

impl Default for Mix {
    /// As many of each.
    fn default() -> Self {
        Self([1.0; 6])
    }
}

impl std::str::FromStr for Mix {
    type Err = Error;

    /// `single=1,two=1,counting=2`: a category by its name or the first words of it; what is not named has no share.
    fn from_str(text: &str) -> Result<Self> {
        let mut shares = [0.0; 6];
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let wrong = || Error::usage(format!("mix `{part}`: expected `CATEGORY=SHARE`, e.g. `two=1`"));
            let (name, share) = part.split_once('=').ok_or_else(wrong)?;
            let share: f64 = share.trim().parse().map_err(|_| wrong())?;
            if !(share.is_finite() && share >= 0.0) {
                return Err(Error::usage(format!("mix `{part}`: expected a share of at least 0")));
            }
            let category = match name.trim() {
                "single" => Category::SingleObject,
                "two" => Category::TwoObject,
                "count" => Category::Counting,
                "color" => Category::Colors,
                "attr" | "attribute" => Category::ColorAttr,
                name => Category::from_name(name).ok_or_else(|| {
                    unknown_name(
                        "category",
                        name,
                        &["single", "two", "counting", "colors", "position", "attr"],
                    )
                })?,
            };
            shares[category as usize] = share;
        }
        if shares.iter().sum::<f64>() <= 0.0 {
            return Err(Error::usage(format!(
                "mix `{text}`: expected a share above 0 for one category at least"
            )));
        }
        Ok(Self(shares))
    }
}

/// What [`generate`] made.
#[derive(Debug)]
pub struct Generated {
    /// The tasks, categories in turn.
    pub tasks: Vec<Task>,
    /// Categories that had fewer different prompts than were asked for, and how many: from there on they repeat.
    pub repeated: Vec<(Category, usize)>,
}

/// `count` random tasks of a split, none of them excluded, their categories as near to the mix as whole numbers are, at every length
/// of the list. No prompt comes twice before its category has, in 10,000 draws, nothing new.
pub fn generate(
    list: &ObjectList,
    wording: &PromptTemplates,
    mix: Mix,
    (split, exclusion): (Split, &Exclusion),
    count: usize,
    seed: u64,
) -> Result<Generated> {
    list.check()?;
    let mut rng = Rng::new(seed);
    let total: f64 = mix.0.iter().sum();
    let mut given = [0_usize; 6];
    let mut seen: [HashSet<String>; 6] = Default::default();
    let mut generated = Generated { tasks: Vec::with_capacity(count), repeated: Vec::new() };
    while generated.tasks.len() < count {
        let due = (generated.tasks.len() + 1) as f64;
        let lack = |category: &Category| {
            let at = *category as usize;
            mix.0[at] / total * due - given[at] as f64
        };
        let category = Category::ALL
            .into_iter()
            .filter(|category| mix.0[*category as usize] > 0.0)
            .reduce(|most, next| if lack(&next) > lack(&most) { next } else { most })
            .unwrap_or(Category::SingleObject);
        let seen = &mut seen[category as usize];
        let fresh = (0..PATIENCE)
            .map(|_| wording.task(random_facts(list, category, &mut rng)))
            .filter(|task| split.holds(&task.spec) && !paints_a_person(&task.spec) && !exclusion.holds(task))
            .find(|task| !seen.contains(&task.prompt));
        let Some(task) = fresh else {
            if seen.is_empty() {
                return Err(Error::usage(format!("no `{}` prompt is left", category.name())).hint(
                    "every one is excluded: name more objects with `--objects`, or leave the category out with `--mix`",
                ));
            }
            if !generated.repeated.iter().any(|(known, _)| *known == category) {
                generated.repeated.push((category, seen.len()));
            }
            seen.clear();
            continue;
        };
        seen.insert(task.prompt.clone());
        given[category as usize] += 1;
        generated.tasks.push(task);
    }
    Ok(generated)
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
                    .map(|_| {
                        PromptTemplates::tiles()
                            .task(sample(&list(), category, split, &mut rng).unwrap())
                            .prompt
                    })
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
            let spec = sample(&list(), Category::Position, Split::Test, &mut rng).unwrap();
            let mut turned = spec.clone();
            turned.objects.reverse();
            turned.relation = turned.relation.map(Relation::opposite);
            assert!(Split::Test.holds(&turned), "{spec:?}");
        }
    }

    fn everyday(mix: &str, count: usize, seed: u64) -> Generated {
        let (list, wording) = (ObjectList::everyday(), PromptTemplates::find("paper").unwrap());
        generate(&list, &wording, mix.parse().unwrap(), (Split::All, &Exclusion::default()), count, seed)
            .unwrap()
    }

    #[test]
    fn a_seed_gives_the_same_tasks_in_the_mix_asked_for() {
        let made = everyday("two=1,position=2,attr=1", 400, 3).tasks;
        assert_eq!(made, everyday("two=1,position=2,attr=1", 400, 3).tasks);
        assert_ne!(made, everyday("two=1,position=2,attr=1", 400, 4).tasks);
        let count = |category| made.iter().filter(|task| task.spec.category == category).count();
        assert_eq!(Category::ALL.map(count), [0, 100, 0, 0, 200, 100]);
        let prompts: BTreeSet<_> = made.iter().map(|task| &task.prompt).collect();
        assert_eq!(prompts.len(), 400, "a prompt came twice");
        assert!(made.iter().all(|task| !paints_a_person(&task.spec)));
    }

    #[test]
    fn a_small_category_repeats_only_when_it_has_nothing_new() {
        let made = everyday("single=1", 400, 1);
        assert_eq!(made.repeated, [(Category::SingleObject, 160)]);
        let first: BTreeSet<_> = made.tasks[..160].iter().map(|task| &task.prompt).collect();
        assert_eq!(first.len(), 160);
    }

    #[test]
    fn mixes_are_checked() {
        let wrong = |text: &str| text.parse::<Mix>().unwrap_err().to_string();
        assert!(wrong("colours=1").contains("did you mean `colors`?"));
        assert!(wrong("two").contains("expected `CATEGORY=SHARE`"));
        assert!(wrong("two=-1").contains("at least 0"));
        assert!(wrong("two=0").contains("above 0"));
        assert_eq!("single=2, two=1".parse::<Mix>().unwrap(), Mix([2.0, 1.0, 0.0, 0.0, 0.0, 0.0]));
    }

    #[test]
    fn a_category_without_prompts_is_an_error() {
        let (list, wording) = (list(), PromptTemplates::tiles());
        let none = Exclusion::default();
        let all = generate(&list, wording, Mix::default(), (Split::All, &none), 60, 1).unwrap().tasks;
        let mut exclusion = Exclusion::default();
        exclusion.add(&all);
        let error = generate(&list, wording, Mix::default(), (Split::All, &exclusion), 60, 1).unwrap_err();
        assert_eq!(error.message(), "no `single_object` prompt is left");
    }
}
