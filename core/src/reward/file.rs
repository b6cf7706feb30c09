//! Rule sets as files: which keywords an answer must have, how they are found, and what they are worth.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::matching::Match;
use crate::error::{Error, Result};
use crate::prompts::Category;
use crate::prompts::answer::Vocabulary;
use crate::{config::layers, settings};

/// A rule set as it stands in a TOML file. A category without keywords abstains.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuleFile {
    /// What the rules are for.
    pub description: String,
    /// Whether points stay as they are or are divided by the category's maximum.
    pub normalize: Normalize,
    /// What is paid.
    pub pay: Pay,
    /// How answers are read.
    pub reading: MatchOptions,
    /// What is taken away.
    pub penalties: Penalties,
    /// Keywords about one object.
    pub single_object: Vec<Keyword>,
    /// Keywords about two objects.
    pub two_object: Vec<Keyword>,
    /// Keywords about several objects of a kind.
    pub counting: Vec<Keyword>,
    /// Keywords about an object of a colour.
    pub colors: Vec<Keyword>,
    /// Keywords about where an object lies, seen from another.
    pub position: Vec<Keyword>,
    /// Keywords about two objects of a colour each.
    pub color_attr: Vec<Keyword>,
    /// Answers with the reward that they must get: checked whenever the file is read.
    pub example: Vec<Example>,
}

/// Whether rewards keep the points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// Points as they are, as in the paper: a category with more keywords weighs more.
    #[default]
    None,
    /// Points divided by the maximum of the category: `0..=1`.
    Max,
}

/// What is paid for the keywords found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pay {
    /// The points of each.
    #[default]
    Points,
    /// 1 if all are found and nothing is taken away, else 0.
    All,
}

/// How answers are read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "switches of a file, each of its own")]
pub struct MatchOptions {
    /// Whether the plural of an object counts for it; `bound` always takes it.
    pub plurals: bool,
    /// Whether digits count for a number; `bound` always takes them.
    pub numbers: bool,
    /// Whether the everyday objects and the relations go by their usual other names (`sofa`, `under`).
    pub usual_synonyms: bool,
    /// Other names of objects and colours, e.g. `couch = ["davenport"]`.
    pub synonyms: BTreeMap<String, Vec<String>>,
    /// Whether a keyword behind a negation (`not`, `no sign of`, `cannot find`) in the same clause does not count; to `bound` it
    /// never does, to `substring` it always does.
    pub negation: bool,
    /// Words that `bound` and `penalties.extra` ignore, beside articles and the like, e.g. `["signage"]`.
    pub ignore: Vec<String>,
}

impl Default for MatchOptions {
    fn default() -> Self {
        Self {
            plurals: true,
            numbers: true,
            usual_synonyms: true,
            synonyms: BTreeMap::new(),
            negation: true,
            ignore: Vec::new(),
        }
    }
}

impl MatchOptions {
    pub(super) fn vocabulary(&self) -> Vocabulary {
        Vocabulary {
            usual_synonyms: self.usual_synonyms,
            synonyms: self.synonyms.clone(),
            ignore: self.ignore.clone(),
        }
    }
}

/// What is taken away; a reward never falls below 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Penalties {
    /// For an answer that says more than was asked for: another object, a second colour of one, a number where none was
    /// asked for, several positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra: Option<Loss>,
    /// For an answer that is far too long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub long: Option<LongAnswer>,
    /// For an answer that holds the right answer more than once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat: Option<Loss>,
}

/// When an answer is too long.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LongAnswer {
    /// The most words that cost nothing.
    pub words: usize,
    /// What more cost.
    pub lose: Loss,
}

/// Points that are lost, or `"all"`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number of points or \"all\"")]
pub enum Loss {
    /// So many points.
    Points(#[schemars(extend("exclusiveMinimum" = 0.0))] f64),
    /// The whole reward.
    All(AllOfIt),
}

/// The word `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AllOfIt {
    /// Everything.
    All,
}

/// A keyword.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Keyword {
    /// Text with places for facts: `{object}`, `{objects}` (plural), `{count}`, `{color}`, `{relation}`. With two objects,
    /// `.1` or `.2` says which; without it the keyword stands for each object in turn.
    pub word: String,
    /// How it is looked for.
    #[serde(default, rename = "match")]
    pub how: Match,
    /// What it is worth.
    #[serde(default = "one")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub points: f64,
    /// Under which name its points are logged: `noun`, `number`, `color` or `relation` by its first place, else `word`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
}

fn one() -> f64 {
    1.0
}

/// An answer with the reward that it must get.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// The category.
    pub category: Category,
    /// The prompt, from which the facts are read.
    pub prompt: String,
    /// What the model says.
    pub answer: String,
    /// What that is worth.
    #[schemars(range(min = 0.0))]
    pub reward: f64,
}

/// The options of the shipped rule sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ShippedOptions {
    /// Whether rewards keep the points.
    pub normalize: Normalize,
}

impl RuleFile {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_table(layers::read(path)?)
            .map_err(|error| error.context(format!("rule file `{}`", path.display())))
    }

    /// Reads the text of a file.
    ///
    /// ```no_run,standalone_crate
    /// # use unirl::reward::{RewardFunction, RuleFile, Sample};
    /// # use unirl::prompts::{Category, Facts, Wording};
    /// let rules = RuleFile::parse(
    ///     r#"
    ///     [penalties]
    ///     extra = "all"                          # nothing for an answer that names more than was asked for
    ///
    ///     [[counting]]
    ///     word = "{object}"
    ///     match = "bound"
    ///
    ///     [[counting]]
    ///     word = "{count}"
    ///     match = "bound"                        # the number must be said of the object
    ///     points = 2
    ///
    ///     [[example]]
    ///     category = "counting"
    ///     prompt = "a photo of three vases"
    ///     answer = "There are 3 vases."
    ///     reward = 3
    ///     "#,
    /// )?
    /// .build()?;
    /// let facts = Facts::parse(Category::Counting, "a photo of two cups")?;
    /// let task = Wording::paper().task(facts);
    /// let reward = rules.score(&[Sample::new(&task, "three cups")], None)?.remove(0);
    /// assert_eq!((reward.score, reward.max), (1.0, 3.0));
    /// assert_eq!(reward.why, "1 of 3: has `cup`; lacks `two` at `cup`");
    /// # Ok::<(), unirl::Error>(())
    /// ```
    pub fn parse(text: &str) -> Result<Self> {
        let table = text.parse().map_err(|error: toml::de::Error| {
            Error::usage("not valid TOML").cause(error.to_string().trim_end())
        })?;
        Self::from_table(table)
    }

    fn from_table(table: toml::Table) -> Result<Self> {
        for key in Category::ALL.map(Category::name).into_iter().chain(["example"]) {
            if table.get(key).is_some_and(toml::Value::is_table) {
                return Err(Error::usage(format!("`{key}`: expected a list of tables, got a table"))
                    .hint(format!("write `[[{key}]]` above each")));
            }
        }
        settings::read("", table)
    }

    pub(super) fn keywords(&self, category: Category) -> &[Keyword] {
        match category {
            Category::SingleObject => &self.single_object,
            Category::TwoObject => &self.two_object,
            Category::Counting => &self.counting,
            Category::Colors => &self.colors,
            Category::Position => &self.position,
            Category::ColorAttr => &self.color_attr,
        }
    }
}
