//! Random tasks from an object list: single specs of a split, or a set with a mix of categories.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use unirl::error::{Error, Result, unknown_name};
use unirl::prompt::{Category, Object, PromptSpec, Relation};

use super::rng::{Rng, mix};
use super::{Exclusion, ObjectList, PromptTemplates, Task};

/// The number of rejected samples after which no valid one is assumed to exist.
const MAX_ATTEMPTS: usize = 10_000;

/// The split of the tasks into training and test.
///
/// The categories with many combinations (`two_object`, `colors`, `position`, `color_attr`) are split: a quarter of the
/// combinations is for testing. `single_object` and `counting` have too few, so both splits share them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Training tasks.
    Train,
    /// Held-out tasks.
    Test,
    /// Both splits.
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
    /// Whether a spec belongs to the split. Equivalent specs belong to the same split.
    pub fn holds(self, spec: &PromptSpec) -> bool {
        match self {
            _ if !spec.category.is_split() => true,
            Split::All => true,
            Split::Train => !is_test(spec),
            Split::Test => is_test(spec),
        }
    }
}

/// Whether a spec is for testing, by the FNV-1a hash of its key.
fn is_test(spec: &PromptSpec) -> bool {
    let hash = spec.key().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    mix(hash).is_multiple_of(4)
}

fn random_spec(list: &ObjectList, category: Category, rng: &mut Rng) -> PromptSpec {
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

/// Whether a person has a colour. As in `GenEval`, such specs are not generated.
fn has_colored_person(spec: &PromptSpec) -> bool {
    spec.objects.iter().any(|object| object.noun == "person" && object.color.is_some())
}

/// Samples a spec of a category. Errors if the list is invalid or has no specs in the split.
pub fn sample(list: &ObjectList, category: Category, split: Split, rng: &mut Rng) -> Result<PromptSpec> {
    list.check()?;
    (0..MAX_ATTEMPTS)
        .map(|_| random_spec(list, category, rng))
        .find(|spec| split.holds(spec) && !has_colored_person(spec))
        .ok_or_else(|| {
            Error::usage(format!("the object list has no `{}` tasks in this split", category.name()))
                .hint("add nouns and colors to the list")
        })
}

/// The shares of the categories.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mix([f64; 6]);

impl Default for Mix {
    /// Equal shares.
    fn default() -> Self {
        Self([1.0; 6])
    }
}

impl std::str::FromStr for Mix {
    type Err = Error;

    /// Parses shares such as `single=1,two=1,counting=2`. Categories have short names; those left out have no share.
    fn from_str(text: &str) -> Result<Self> {
        let mut shares = [0.0; 6];
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let invalid =
                || Error::usage(format!("mix `{part}`: expected `CATEGORY=SHARE`, such as `two=1`"));
            let (name, share) = part.split_once('=').ok_or_else(invalid)?;
            let share: f64 = share.trim().parse().map_err(|_| invalid())?;
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
                "mix `{text}`: expected a share above 0 for at least one category"
            )));
        }
        Ok(Self(shares))
    }
}

/// The result of [`generate`].
#[derive(Debug)]
pub struct Generated {
    /// The tasks, with interleaved categories.
    pub tasks: Vec<Task>,
    /// Categories whose prompts repeat, with the number of their different prompts.
    pub repeated: Vec<(Category, usize)>,
}

/// Generates `count` random tasks of a split, without excluded ones. Every prefix of the result is as close to the mix as whole
/// numbers allow. A prompt repeats only if 10,000 samples of its category contain no new one.
pub fn generate(
    list: &ObjectList,
    templates: &PromptTemplates,
    mix: Mix,
    (split, exclusion): (Split, &Exclusion),
    count: usize,
    seed: u64,
) -> Result<Generated> {
    list.check()?;
    let mut rng = Rng::new(seed);
    let total: f64 = mix.0.iter().sum();
    let mut counts = [0_usize; 6];
    let mut seen: [HashSet<String>; 6] = Default::default();
    let mut generated = Generated { tasks: Vec::with_capacity(count), repeated: Vec::new() };
    while generated.tasks.len() < count {
        let due = (generated.tasks.len() + 1) as f64;
        let deficit = |category: &Category| {
            let at = *category as usize;
            mix.0[at] / total * due - counts[at] as f64
        };
        let category = Category::ALL
            .into_iter()
            .filter(|category| mix.0[*category as usize] > 0.0)
            .reduce(|most, next| if deficit(&next) > deficit(&most) { next } else { most })
            .unwrap_or(Category::SingleObject);
        let seen = &mut seen[category as usize];
        let new = (0..MAX_ATTEMPTS)
            .map(|_| templates.task(random_spec(list, category, &mut rng)))
            .filter(|task| {
                split.holds(&task.spec) && !has_colored_person(&task.spec) && !exclusion.holds(task)
            })
            .find(|task| !seen.contains(&task.prompt));
        let Some(task) = new else {
            if seen.is_empty() {
                return Err(Error::usage(format!("all `{}` prompts are excluded", category.name()))
                    .hint("add objects with `--objects`, or leave the category out with `--mix`"));
            }
            if !generated.repeated.iter().any(|(known, _)| *known == category) {
                generated.repeated.push((category, seen.len()));
            }
            seen.clear();
            continue;
        };
        seen.insert(task.prompt.clone());
        counts[category as usize] += 1;
        generated.tasks.push(task);
    }
    Ok(generated)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn list() -> ObjectList {
        let words = |text: &str| text.split(' ').map(String::from).collect();
        ObjectList {
            nouns: words("circle square triangle diamond cross ring bar star"),
            colors: words("red green blue yellow orange purple pink white"),
        }
    }

    #[test]
    fn splits_are_disjoint_in_split_categories() {
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
    fn equivalent_specs_are_in_the_same_split() {
        let mut rng = Rng::new(1);
        for _ in 0..200 {
            let spec = sample(&list(), Category::Position, Split::Test, &mut rng).unwrap();
            let mut reversed = spec.clone();
            reversed.objects.reverse();
            reversed.relation = reversed.relation.map(Relation::opposite);
            assert!(Split::Test.holds(&reversed), "{spec:?}");
        }
    }

    fn everyday(mix: &str, count: usize, seed: u64) -> Generated {
        let (list, templates) = (ObjectList::everyday(), PromptTemplates::find("paper").unwrap());
        generate(&list, &templates, mix.parse().unwrap(), (Split::All, &Exclusion::default()), count, seed)
            .unwrap()
    }

    #[test]
    fn generate_is_deterministic_and_follows_the_mix() {
        let tasks = everyday("two=1,position=2,attr=1", 400, 3).tasks;
        assert_eq!(tasks, everyday("two=1,position=2,attr=1", 400, 3).tasks);
        assert_ne!(tasks, everyday("two=1,position=2,attr=1", 400, 4).tasks);
        let count = |category| tasks.iter().filter(|task| task.spec.category == category).count();
        assert_eq!(Category::ALL.map(count), [0, 100, 0, 0, 200, 100]);
        let prompts: BTreeSet<_> = tasks.iter().map(|task| &task.prompt).collect();
        assert_eq!(prompts.len(), 400, "a prompt repeats");
        assert!(tasks.iter().all(|task| !has_colored_person(&task.spec)));
    }

    #[test]
    fn generate_repeats_prompts_only_after_all_others() {
        let generated = everyday("single=1", 400, 1);
        assert_eq!(generated.repeated, [(Category::SingleObject, 160)]);
        let first: BTreeSet<_> = generated.tasks[..160].iter().map(|task| &task.prompt).collect();
        assert_eq!(first.len(), 160);
    }

    #[test]
    fn invalid_mixes_are_refused() {
        let error = |text: &str| text.parse::<Mix>().unwrap_err().to_string();
        assert!(error("colours=1").contains("did you mean `colors`?"));
        assert!(error("two").contains("expected `CATEGORY=SHARE`"));
        assert!(error("two=-1").contains("at least 0"));
        assert!(error("two=0").contains("above 0"));
        assert_eq!("single=2, two=1".parse::<Mix>().unwrap(), Mix([2.0, 1.0, 0.0, 0.0, 0.0, 0.0]));
    }

    #[test]
    fn generate_with_all_prompts_excluded_is_an_error() {
        let (list, templates) = (list(), PromptTemplates::tiles());
        let none = Exclusion::default();
        let all = generate(&list, templates, Mix::default(), (Split::All, &none), 60, 1).unwrap().tasks;
        let mut exclusion = Exclusion::default();
        exclusion.add(&all);
        let error = generate(&list, templates, Mix::default(), (Split::All, &exclusion), 60, 1).unwrap_err();
        assert_eq!(error.message(), "all `single_object` prompts are excluded");
    }
}
