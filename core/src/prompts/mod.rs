//! Scenes: what is to be drawn, as facts, and as the prompt, question and answer made from them (§3.2, Table 1).

pub mod answer;
mod english;
mod exclude;
mod generate;
mod jsonl;
mod lexicon;
mod objects;
mod parse;
pub mod rng;
mod template;
mod templates;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use english::{Plurals, article, number_word, plural};
pub use exclude::Exclusion;
pub use generate::{Mix, Split, generate, sample};
pub use jsonl::{Record, read_jsonl, read_records, write_jsonl};
pub use lexicon::synonyms;
pub use objects::ObjectList;
pub use template::{Place, Segment, Slot, Template};
pub use templates::{PromptTemplates, TemplateFile};

/// `GenEval`'s six kinds of prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// One object.
    SingleObject,
    /// Two different objects.
    TwoObject,
    /// Two to four objects of a kind.
    Counting,
    /// One object of a colour.
    Colors,
    /// Two objects, one left of, right of, above or below the other.
    Position,
    /// Two objects, each of a colour.
    ColorAttr,
}

impl Category {
    /// All six, in the order of the paper's tables.
    pub const ALL: [Category; 6] = [
        Category::SingleObject,
        Category::TwoObject,
        Category::Counting,
        Category::Colors,
        Category::Position,
        Category::ColorAttr,
    ];

    /// `GenEval`'s tag, e.g. `single_object`.
    pub fn name(self) -> &'static str {
        match self {
            Category::SingleObject => "single_object",
            Category::TwoObject => "two_object",
            Category::Counting => "counting",
            Category::Colors => "colors",
            Category::Position => "position",
            Category::ColorAttr => "color_attr",
        }
    }

    /// The category of a tag.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|category| category.name() == name)
    }

    /// How many kinds of objects its facts have.
    pub fn objects(self) -> usize {
        match self {
            Category::SingleObject | Category::Counting | Category::Colors => 1,
            Category::TwoObject | Category::Position | Category::ColorAttr => 2,
        }
    }

    /// Whether its tasks are many enough to be split into those of training and those of the evaluation.
    pub fn is_split(self) -> bool {
        !matches!(self, Category::SingleObject | Category::Counting)
    }

    /// Whether its facts name colours.
    pub fn names_colors(self) -> bool {
        matches!(self, Category::Colors | Category::ColorAttr)
    }
}

/// Where the first object lies, seen from the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// In the same row, nearer to the left edge.
    LeftOf,
    /// In the same row, nearer to the right edge.
    RightOf,
    /// In the same column, nearer to the top.
    Above,
    /// In the same column, nearer to the bottom.
    Below,
}

impl Relation {
    /// All four.
    pub const ALL: [Relation; 4] = [Relation::LeftOf, Relation::RightOf, Relation::Above, Relation::Below];

    /// The words of a prompt, e.g. `left of`.
    pub fn words(self) -> &'static str {
        match self {
            Relation::LeftOf => "left of",
            Relation::RightOf => "right of",
            Relation::Above => "above",
            Relation::Below => "below",
        }
    }

    /// The relation seen from the other object.
    #[must_use]
    pub fn opposite(self) -> Self {
        match self {
            Relation::LeftOf => Relation::RightOf,
            Relation::RightOf => Relation::LeftOf,
            Relation::Above => Relation::Below,
            Relation::Below => Relation::Above,
        }
    }
}

/// Objects of a kind that a prompt asks for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Object {
    /// The noun in the singular, e.g. `wine glass`.
    pub noun: String,
    /// How many.
    pub count: u32,
    /// The colour, where the prompt names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
}

impl Object {
    /// One object, its colour left open.
    pub fn one(noun: impl Into<String>) -> Self {
        Self { noun: noun.into(), count: 1, color: None }
    }
}

/// What a prompt asks for: all that a judge or a reward rule knows of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PromptSpec {
    /// The kind of prompt.
    pub category: Category,
    /// The objects in the order of the prompt.
    pub objects: Vec<Object>,
    /// Where the first object lies, seen from the second; only for [`Category::Position`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relation: Option<Relation>,
}

impl PromptSpec {
    /// One text for all facts that ask for the same scene: `a left of b` and `b right of a` have the same.
    pub fn key(&self) -> String {
        let one = |object: &Object| match self.category {
            Category::Counting => format!("{} {}", object.count, object.noun),
            _ => format!("{} {}", object.noun, object.color.as_deref().unwrap_or_default()),
        };
        let mut objects: Vec<String> = self.objects.iter().map(one).collect();
        let mut relation = self.relation;
        if !objects.is_sorted() {
            objects.reverse();
            relation = relation.map(Relation::opposite);
        }
        format!("{}|{}|{}", self.category.name(), objects.join("|"), relation.map_or("", Relation::words))
    }
}

/// Facts with the texts made from them; a [`PromptTemplates`] makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// What is to be drawn.
    pub spec: PromptSpec,
    /// What the model draws from.
    pub prompt: String,
    /// What the model is asked about the drawing.
    pub question: String,
    /// The right answer to `question` about a right drawing.
    pub reference_answer: String,
    /// The key words of the answer (the paper's Table 2).
    pub keywords: Vec<String>,
}
