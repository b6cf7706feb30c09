//! Scenes: what is to be drawn, as facts, and as the prompt, question and answer made from them (§3.2, Table 1).

pub mod answer;
mod generate;
mod jsonl;
pub mod rng;
mod text;

use serde::{Deserialize, Serialize};

pub use generate::{ObjectList, Split, sample, sample_batch};
pub use jsonl::{read_jsonl, write_jsonl};
pub use text::{article, number_word, plural};

/// `GenEval`'s six kinds of prompts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
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

/// What a prompt asks for: all that a judge or a reward rule knows of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Facts {
    /// The kind of prompt.
    pub category: Category,
    /// The objects in the order of the prompt.
    pub objects: Vec<Object>,
    /// Where the first object lies, seen from the second; only for [`Category::Position`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relation: Option<Relation>,
}

/// Facts with the texts made from them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// What is to be drawn.
    pub facts: Facts,
    /// What the model draws from.
    pub prompt: String,
    /// What the model is asked about the drawing.
    pub question: String,
    /// The right answer to `question` about a right drawing.
    pub truth: String,
}
