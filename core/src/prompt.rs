//! The structured content of prompts, which rewards see.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The six categories of prompts of `GenEval`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Category {
    /// One object.
    SingleObject,
    /// Two different objects.
    TwoObject,
    /// Two to four objects of one kind.
    Counting,
    /// One object with a colour.
    Colors,
    /// Two objects, one left of, right of, above or below the other.
    Position,
    /// Two objects with a colour each.
    ColorAttr,
}

impl Category {
    /// All six, in the order of the tables of the paper.
    pub const ALL: [Category; 6] = [
        Category::SingleObject,
        Category::TwoObject,
        Category::Counting,
        Category::Colors,
        Category::Position,
        Category::ColorAttr,
    ];

    /// Returns the `GenEval` tag, such as `single_object`.
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

    /// Returns the category of a tag.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|category| category.name() == name)
    }

    /// Returns the number of kinds of objects in a spec.
    #[doc(hidden)] // for the host
    pub fn objects(self) -> usize {
        match self {
            Category::SingleObject | Category::Counting | Category::Colors => 1,
            Category::TwoObject | Category::Position | Category::ColorAttr => 2,
        }
    }

    /// Whether the tasks are split into training and test tasks. Categories with few tasks are not.
    #[doc(hidden)] // for the host
    pub fn is_split(self) -> bool {
        !matches!(self, Category::SingleObject | Category::Counting)
    }

    /// Whether the specs have colours.
    #[doc(hidden)] // for the host
    pub fn names_colors(self) -> bool {
        matches!(self, Category::Colors | Category::ColorAttr)
    }
}

/// The position of the first object relative to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Relation {
    /// In the same row, closer to the left edge.
    LeftOf,
    /// In the same row, closer to the right edge.
    RightOf,
    /// In the same column, closer to the top.
    Above,
    /// In the same column, closer to the bottom.
    Below,
}

impl Relation {
    /// All four.
    pub const ALL: [Relation; 4] = [Relation::LeftOf, Relation::RightOf, Relation::Above, Relation::Below];

    /// Returns the words of a prompt, such as `left of`.
    pub fn words(self) -> &'static str {
        match self {
            Relation::LeftOf => "left of",
            Relation::RightOf => "right of",
            Relation::Above => "above",
            Relation::Below => "below",
        }
    }

    /// Returns the relation of the second object to the first.
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

/// The objects of one kind in a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Object {
    /// The noun in the singular, such as `wine glass`.
    pub noun: String,
    /// The number of objects.
    pub count: u32,
    /// The colour, if the prompt names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
}

impl Object {
    /// Returns one object without a colour.
    pub fn one(noun: impl Into<String>) -> Self {
        Self { noun: noun.into(), count: 1, color: None }
    }
}

/// The structured content of a prompt. Judges and rewards know the prompt by its spec.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PromptSpec {
    /// The category.
    pub category: Category,
    /// The objects in the order of the prompt.
    pub objects: Vec<Object>,
    /// The position of the first object relative to the second; only for [`Category::Position`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relation: Option<Relation>,
}

impl PromptSpec {
    /// Returns a key that equivalent specs share, such as `a left of b` and `b right of a`.
    #[doc(hidden)] // for the host
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

    /// Errors if the spec does not fit its category, such as a wrong number of objects or a missing colour or relation.
    pub fn check(&self) -> Result<()> {
        let name = self.category.name();
        if self.objects.len() != self.category.objects() {
            return Err(Error::usage(format!(
                "`facts.objects`: expected {} for `{name}`, got {}",
                self.category.objects(),
                self.objects.len()
            )));
        }
        if self.relation.is_some() != (self.category == Category::Position) {
            return Err(Error::usage(format!(
                "`facts.relation`: required for `position` and not allowed for other categories, got `{name}`"
            )));
        }
        for (index, object) in self.objects.iter().enumerate() {
            let place = format!("facts.objects[{index}]");
            if object.noun.is_empty() {
                return Err(Error::usage(format!("`{place}.noun` is empty")));
            }
            if object.color.is_some() != self.category.names_colors() {
                let rule = if self.category.names_colors() { "required" } else { "not allowed" };
                return Err(Error::usage(format!("`{place}.color`: {rule} for `{name}`")));
            }
            let counting = self.category == Category::Counting;
            if !(if counting { object.count > 0 } else { object.count == 1 }) {
                let expected = if counting { "at least 1" } else { "1" };
                return Err(Error::usage(format!(
                    "`{place}.count`: expected {expected} for `{name}`, got {}",
                    object.count
                )));
            }
        }
        Ok(())
    }
}
