//! Rule sets as files: which keywords an answer must have, how they are found, and what they are worth.
//!
//! ```no_run
//! # use unirl::reward::{RewardFunction, RuleFile, Sample};
//! # use unirl::scene::{Category, Facts, Wording};
//! let rules = RuleFile::parse(
//!     r#"
//!     [penalties]
//!     extra = "all"                          # nothing for an answer that names more than was asked for
//!
//!     [[counting]]
//!     word = "{object}"
//!     match = "bound"
//!
//!     [[counting]]
//!     word = "{count}"
//!     match = "bound"                        # the number must be said of the object
//!     points = 2
//!
//!     [[example]]
//!     category = "counting"
//!     prompt = "a photo of three vases"
//!     answer = "There are 3 vases."
//!     reward = 3
//!     "#,
//! )?
//! .build()?;
//! let facts = Facts::parse(Category::Counting, "a photo of two cups")?;
//! let task = Wording::paper().task(facts);
//! let answer = "three cups".to_string();
//! let sample = Sample { facts: task.facts, prompt: task.prompt, question: task.question, truth: task.truth, answer };
//! let reward = rules.score(&[sample], None)?.remove(0);
//! assert_eq!((reward.score, reward.max), (1.0, 3.0));
//! assert_eq!(reward.why, "1 of 3: has `cup`; lacks `two` at `cup`");
//! # Ok::<(), unirl::Error>(())
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::matching::{Match, Wanted, check, is_for_each};
use super::{Reward, RewardFunction, Sample};
use crate::error::{Error, Result};
use crate::scene::answer::{Reader, Said, Vocabulary, Words};
use crate::scene::{Category, Facts, Place, Template, Wording};
use crate::table::{self, section};

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
    pub reading: Reading,
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
pub struct Reading {
    /// Whether the plural of an object counts for it; `bound` always takes it.
    pub plurals: bool,
    /// Whether digits count for a number; `bound` always takes them.
    pub numbers: bool,
    /// Whether the everyday objects and the relations go by their usual other names (`sofa`, `under`).
    pub usual_synonyms: bool,
    /// Other names of objects and colours, e.g. `couch = ["davenport"]`.
    pub synonyms: BTreeMap<String, Vec<String>>,
    /// Whether a keyword close behind `not`, `no` or `without` does not count; to `bound` it never does, to `substring` it
    /// always does.
    pub negation: bool,
    /// Words that `bound` and `penalties.extra` pass over, beside articles and the like, e.g. `["rusty"]`.
    pub ignore: Vec<String>,
}

impl Default for Reading {
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

impl Reading {
    fn vocabulary(&self) -> Vocabulary {
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
    Points(f64),
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
        Self::from_table(table::read(path)?)
            .map_err(|error| error.context(format!("rule file `{}`", path.display())))
    }

    /// Reads the text of a file.
    pub fn parse(text: &str) -> Result<Self> {
        let table = text.parse().map_err(|error: toml::de::Error| {
            Error::usage("not valid TOML").cause(error.to_string().trim_end())
        })?;
        Self::from_table(table)
    }

    fn from_table(table: toml::Table) -> Result<Self> {
        // Table by table first, so that an error names the inner one.
        for (key, value) in &table {
            match key.as_str() {
                "reading" => drop(section::<Reading>(key, value.clone())?),
                "penalties" => {
                    if let Some(long) = value.get("long") {
                        section::<LongAnswer>("penalties.long", long.clone())?;
                    }
                    section::<Penalties>(key, value.clone())?;
                }
                "example" => entries::<Example>(key, value)?,
                key if Category::from_name(key).is_some() => entries::<Keyword>(key, value)?,
                _ => {}
            }
        }
        section("rule file", toml::Value::Table(table))
    }

    fn keywords(&self, category: Category) -> &[Keyword] {
        match category {
            Category::SingleObject => &self.single_object,
            Category::TwoObject => &self.two_object,
            Category::Counting => &self.counting,
            Category::Colors => &self.colors,
            Category::Position => &self.position,
            Category::ColorAttr => &self.color_attr,
        }
    }

    /// The rules of the file. Refuses keywords that do not fit their category, and examples that do not hold.
    pub fn build(self) -> Result<Box<dyn RewardFunction>> {
        let normalize = self.normalize;
        self.build_with(ShippedOptions { normalize })
    }

    /// The rules with options laid over the file's; the examples hold for the file as it is.
    pub fn build_with(self, options: ShippedOptions) -> Result<Box<dyn RewardFunction>> {
        let losses = [self.penalties.extra, self.penalties.long.map(|long| long.lose), self.penalties.repeat];
        if losses
            .into_iter()
            .flatten()
            .any(|loss| matches!(loss, Loss::Points(points) if !is_positive(points)))
        {
            return Err(Error::usage("`penalties`: expected points above 0 or `\"all\"`"));
        }
        let mut keywords = Vec::new();
        for category in Category::ALL {
            let compiled = self.keywords(category).iter().enumerate().map(|(index, keyword)| {
                let place = || format!("`{}[{index}]`", category.name());
                Compiled::new(keyword, category).map_err(|error| error.context(place()))
            });
            keywords.push(compiled.collect::<Result<Vec<_>>>()?);
        }
        if keywords.iter().all(Vec::is_empty) {
            return Err(Error::usage("no category has a keyword")
                .hint("a category's keywords are tables such as `[[counting]]` with `word = \"{count}\"`"));
        }
        let vocabulary = self.reading.vocabulary();
        let mut rules = Rules { file: self, vocabulary, keywords };
        rules.check_examples()?;
        rules.file.normalize = options.normalize;
        Ok(Box::new(rules))
    }
}

/// Checks the entries of a list one by one, so that an error counts them.
fn entries<T: serde::de::DeserializeOwned>(key: &str, value: &toml::Value) -> Result<()> {
    let Some(list) = value.as_array() else {
        return Err(Error::usage(format!("`{key}`: expected a list of tables, got a {}", value.type_str()))
            .hint(format!("write `[[{key}]]` above each")));
    };
    for (index, entry) in list.iter().enumerate() {
        section::<T>(&format!("{key}[{index}]"), entry.clone())?;
    }
    Ok(())
}

fn is_positive(points: f64) -> bool {
    points.is_finite() && points > 0.0
}

/// A keyword of the file.
pub(super) struct Compiled {
    pub(super) template: Template,
    pub(super) how: Match,
    points: f64,
    part: String,
    for_each: bool,
}

impl Compiled {
    fn new(keyword: &Keyword, category: Category) -> Result<Self> {
        if !is_positive(keyword.points) {
            return Err(Error::usage(format!("`points`: expected a number above 0, got {}", keyword.points)));
        }
        let template = Template::parse(&keyword.word)?;
        check(&template, keyword.how, category)?;
        let place = template.slots().next().map(|slot| slot.place);
        let part = keyword.part.clone().unwrap_or_else(|| {
            match place {
                Some(Place::Object | Place::Objects) => "noun",
                Some(Place::Count) => "number",
                Some(Place::Color) => "color",
                Some(Place::Relation) => "relation",
                None => "word",
            }
            .into()
        });
        let for_each = category.objects() > 1 && is_for_each(&template);
        Ok(Self { template, how: keyword.how, points: keyword.points, part, for_each })
    }
}

/// The rules of a file, ready to score.
struct Rules {
    file: RuleFile,
    vocabulary: Vocabulary,
    /// By category.
    keywords: Vec<Vec<Compiled>>,
}

/// What is wanted of the answers about some facts. Samples of a group follow each other and share it.
struct Prepared<'r> {
    facts: Facts,
    truth: Words,
    wanted: Vec<(Wanted, &'r Compiled)>,
    max: f64,
    /// Where the grammar has a say.
    reader: Option<Reader>,
}

impl Rules {
    fn check_examples(&self) -> Result<()> {
        for (index, example) in self.file.example.iter().enumerate() {
            let place = || format!("`example[{index}]`");
            let facts =
                Facts::parse(example.category, &example.prompt).map_err(|error| error.context(place()))?;
            let task = Wording::paper().task(facts);
            let sample = Sample {
                facts: task.facts,
                prompt: example.prompt.clone(),
                question: task.question,
                truth: task.truth,
                answer: example.answer.clone(),
            };
            let reward = self.score_one(&self.prepare(&sample), &sample);
            if (reward.score - example.reward).abs() > 1e-9 {
                return Err(Error::usage(format!(
                    "{}: `{}` about `{}`: expected {}, got {}",
                    place(),
                    example.answer,
                    example.prompt,
                    example.reward,
                    reward.score
                ))
                .cause(reward.why)
                .hint("change the rule or the example"));
            }
        }
        Ok(())
    }

    fn prepare(&self, sample: &Sample) -> Prepared<'_> {
        let facts = &sample.facts;
        let mut wanted = Vec::new();
        for keyword in &self.keywords[facts.category as usize] {
            let objects = if keyword.for_each { facts.objects.len() } else { 1 };
            for object in 0..objects {
                let one = Wanted::new(keyword, object, facts, &self.file.reading, &self.vocabulary);
                wanted.push((one, keyword));
            }
        }
        let needs_grammar =
            self.file.penalties.extra.is_some() || wanted.iter().any(|(one, _)| one.is_bound());
        Prepared {
            facts: facts.clone(),
            truth: Words::of(&sample.truth),
            max: wanted.iter().map(|(_, keyword)| keyword.points).sum(),
            reader: needs_grammar.then(|| Reader::new(facts, &self.vocabulary)),
            wanted,
        }
    }

    fn score_one(&self, prepared: &Prepared<'_>, sample: &Sample) -> Reward {
        if prepared.wanted.is_empty() {
            return Reward::abstain(format!("no rules for `{}`", sample.facts.category.name()));
        }
        let answer = Words::of(&sample.answer);
        let said = match &prepared.reader {
            Some(reader) => Said::of(&prepared.facts, &reader.read(&answer)),
            None => Said::default(),
        };
        let mut reward = Reward { max: prepared.max, ..Reward::default() };
        let (mut has, mut lacks) = (String::with_capacity(64), String::with_capacity(64));
        let mut from = 0;
        for (wanted, keyword) in &prepared.wanted {
            let found = wanted.found(&answer, &said, self.file.reading.negation, &mut from);
            let points = if found { keyword.points } else { 0.0 };
            reward.score += points;
            match reward.parts.get_mut(&keyword.part) {
                Some(part) => *part += points,
                None => drop(reward.parts.insert(keyword.part.clone(), points)),
            }
            let list = if found { &mut has } else { &mut lacks };
            list.push_str(if list.is_empty() { "" } else { ", " });
            list.push_str(&wanted.label);
        }
        let complete = lacks.is_empty();
        let mut lost = String::new();
        for (loss, reason) in self.losses(prepared, &answer, said.more) {
            match loss {
                Loss::All(_) => reward.score = 0.0,
                Loss::Points(points) => reward.score = (reward.score - points).max(0.0),
            }
            lost.push_str(&match loss {
                Loss::All(_) => format!("; loses all: {reason}"),
                Loss::Points(points) => format!("; loses {points}: {reason}"),
            });
        }
        match (self.file.pay, self.file.normalize) {
            (Pay::All, _) => {
                reward.score = f64::from(u8::from(complete && lost.is_empty()));
                reward.max = 1.0;
            }
            (Pay::Points, Normalize::Max) => {
                reward.score /= prepared.max;
                reward.max = 1.0;
                reward.parts.values_mut().for_each(|points| *points /= prepared.max);
            }
            (Pay::Points, Normalize::None) => {}
        }
        let list =
            |title: &str, list: &str| if list.is_empty() { String::new() } else { format!("{title}{list}") };
        let has = list(" has ", &has);
        let lacks = list(if has.is_empty() { " lacks " } else { "; lacks " }, &lacks);
        reward.why = format!("{} of {}:{has}{lacks}{lost}", round(reward.score), round(reward.max));
        reward
    }

    /// What is taken away, and why.
    fn losses(&self, prepared: &Prepared<'_>, answer: &Words, more: Option<String>) -> Vec<(Loss, String)> {
        let penalties = &self.file.penalties;
        let mut losses = Vec::new();
        losses.extend(penalties.extra.zip(more));
        if let Some(long) = penalties.long {
            let words = answer.iter().filter(|word| *word != ",").count();
            if words > long.words {
                losses.push((long.lose, format!("{words} words of at most {}", long.words)));
            }
        }
        if let Some(repeat) = penalties.repeat {
            let times = (0..answer.len()).filter(|at| answer.starts_with(*at, &prepared.truth)).count();
            if times > 1 {
                losses.push((repeat, format!("says the right answer {times} times")));
            }
        }
        losses
    }
}

/// As people read it: at most four places.
fn round(points: f64) -> f64 {
    (points * 1e4).round() / 1e4
}

impl RewardFunction for Rules {
    fn score(&self, samples: &[Sample], _pixels: Option<&Tensor>) -> Result<Vec<Reward>> {
        let mut rewards = Vec::with_capacity(samples.len());
        for group in samples.chunk_by(|one, next| one.facts == next.facts && one.truth == next.truth) {
            let prepared = self.prepare(&group[0]);
            rewards.extend(group.iter().map(|sample| self.score_one(&prepared, sample)));
        }
        Ok(rewards)
    }
}
