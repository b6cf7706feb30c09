//! Rule files: rewards defined by keywords, how they are matched, and their points.

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unirl::error::{Error, Result};
use unirl::prompt::Category;
use unirl_base::{layers, settings};
use unirl_prompts::answer::Vocabulary;

/// A rule file (TOML). The reward abstains on a category without keywords.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuleFile {
    /// A description of the reward.
    pub description: String,
    /// Whether to divide the points by the maximum of the category.
    pub normalize: Normalize,
    /// How points are awarded.
    pub pay: Pay,
    /// How keywords are matched.
    pub reading: MatchOptions,
    /// Penalties.
    pub penalties: Penalties,
    /// Keywords of the category `single_object`.
    pub single_object: Vec<Keyword>,
    /// Keywords of the category `two_object`.
    pub two_object: Vec<Keyword>,
    /// Keywords of the category `counting`.
    pub counting: Vec<Keyword>,
    /// Keywords of the category `colors`.
    pub colors: Vec<Keyword>,
    /// Keywords of the category `position`.
    pub position: Vec<Keyword>,
    /// Keywords of the category `color_attr`.
    pub color_attr: Vec<Keyword>,
    /// Answers with their expected rewards, checked whenever the file is read.
    pub example: Vec<Example>,
}

/// Whether to normalize the points.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Normalize {
    /// Points are not changed, as in the paper: a category with more keywords has higher rewards.
    #[default]
    None,
    /// Points are divided by the maximum of the category: `0..=1`.
    Max,
}

/// How points are awarded for the keywords found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Pay {
    /// The points of each keyword.
    #[default]
    Points,
    /// 1 if all keywords are found without a penalty, else 0.
    All,
}

/// How keywords are matched.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "independent options of a file")]
pub struct MatchOptions {
    /// Whether the plural of an object matches. `bound` always accepts it.
    pub plurals: bool,
    /// Whether digits match a number. `bound` always accepts them.
    pub numbers: bool,
    /// Whether the usual synonyms of everyday objects and relations match (`sofa`, `under`).
    pub usual_synonyms: bool,
    /// Additional synonyms of objects and colours, such as `couch = ["davenport"]`.
    pub synonyms: BTreeMap<String, Vec<String>>,
    /// Whether a keyword after a negation (`not`, `no sign of`, `cannot find`) in the same clause is not matched. `bound` never
    /// matches it, `substring` always does.
    pub negation: bool,
    /// Additional words that `bound` and `penalties.extra` ignore, such as `["signage"]`.
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

/// How a keyword is matched. All ignore case; all but `substring` match whole words and ignore punctuation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Match {
    /// The keyword occurs anywhere, even inside other words (`car` in `carrot`).
    Substring,
    /// Each word of the keyword occurs somewhere.
    Word,
    /// The words of the keyword occur together and in order.
    #[default]
    Phrase,
    /// As `phrase`, and after the previous keyword of the file.
    Order,
    /// The answer states it of the right object: it names the object, gives the number or colour of its object, or states the
    /// relation of both objects in the right direction. The keyword must be a single placeholder, such as `{color}`.
    Bound,
}

/// Penalties. Rewards are clamped at 0.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Penalties {
    /// For an answer that states more than the prompt: another object, a second colour of an object, an unexpected number,
    /// or several positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra: Option<Loss>,
    /// For an answer that is too long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub long: Option<LongAnswer>,
    /// For an answer that contains the reference answer more than once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repeat: Option<Loss>,
}

/// The penalty of a long answer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LongAnswer {
    /// The maximum number of words without a penalty.
    pub words: usize,
    /// The penalty.
    pub lose: Loss,
}

/// A number of points, or `"all"`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "expected a number of points or \"all\"")]
pub enum Loss {
    /// A number of points.
    Points(#[schemars(extend("exclusiveMinimum" = 0.0))] f64),
    /// The whole reward.
    All(AllOfIt),
}

/// The word `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AllOfIt {
    /// The whole reward.
    All,
}

/// A keyword.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Keyword {
    /// Text with placeholders: `{object}`, `{objects}` (plural), `{count}`, `{color}`, `{relation}`. With two objects, `.1` or
    /// `.2` selects one; without it, the keyword applies to each object.
    pub word: String,
    /// How the keyword is matched.
    #[serde(default, rename = "match")]
    pub how: Match,
    /// The points of the keyword.
    #[serde(default = "one")]
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub points: f64,
    /// The reward component of its points. Default: `noun`, `number`, `color` or `relation` by its first placeholder, else
    /// `word`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
}

fn one() -> f64 {
    1.0
}

/// An answer with its expected reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Example {
    /// The category.
    pub category: Category,
    /// The prompt.
    pub prompt: String,
    /// The answer of the model.
    pub answer: String,
    /// The expected reward.
    #[schemars(range(min = 0.0))]
    pub reward: f64,
}

/// The options of the shipped rewards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ShippedOptions {
    /// Whether to normalize the points.
    pub normalize: Normalize,
}

impl RuleFile {
    /// Reads a rule file.
    pub fn read(path: &Path) -> Result<Self> {
        Self::from_table(layers::read(path)?)
            .map_err(|error| error.context(format!("rule file `{}`", path.display())))
    }

    /// Parses the text of a rule file.
    ///
    /// ```no_run,standalone_crate
    /// # use unirl::prompt::Category;
    /// # use unirl::reward::RewardFunction;
    /// # use unirl_keywords::RuleFile;
    /// # use unirl_prompts::PromptTemplates;
    /// let rules = RuleFile::parse(
    ///     r#"
    ///     [penalties]
    ///     extra = "all"                          # no points for an answer that names more than the prompt
    ///
    ///     [[counting]]
    ///     word = "{object}"
    ///     match = "bound"
    ///
    ///     [[counting]]
    ///     word = "{count}"
    ///     match = "bound"                        # the number must be stated of the object
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
    /// let spec = unirl_prompts::parse_prompt(Category::Counting, "a photo of two cups")?;
    /// let task = PromptTemplates::paper().task(spec);
    /// let reward = rules.score(&[task.sample("three cups")], None)?.remove(0);
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
                    .hint(format!("write `[[{key}]]` instead of `[{key}]`")));
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
