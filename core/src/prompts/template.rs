//! Sentences with places for facts: `a photo of {a object}`, `{Count} {objects}`, `The {object.1} is {relation} ...`.

use super::english::{Plurals, article, capital, number_word};
use super::{Category, PromptSpec, Relation};
use crate::error::{Error, Result, nearest};

/// What a place is filled with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A noun in the singular.
    Object,
    /// A noun in the plural.
    Objects,
    /// A number in words.
    Count,
    /// A colour.
    Color,
    /// The relation between both objects.
    Relation,
}

const PLACES: [(&str, Place); 5] = [
    ("object", Place::Object),
    ("objects", Place::Objects),
    ("count", Place::Count),
    ("color", Place::Color),
    ("relation", Place::Relation),
];

/// A place in a template: `{An object.2}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// What goes there.
    pub place: Place,
    /// Of which object, from 0; `None` if the template does not say.
    pub index: Option<usize>,
    article: bool,
    capital: bool,
}

/// A part of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Text as it stands.
    Text(String),
    /// A place for a fact.
    Slot(Slot),
}

/// A sentence with places for facts.
///
/// `{object}`, `{objects}` (plural), `{count}`, `{color}` and `{relation}`; `.1` or `.2` behind it says of which object,
/// `a` or `an` before it adds the right article, and an upper-case first letter is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Segment>,
}

/// How places are spelled.
pub(super) struct Spelling<'a> {
    pub(super) plurals: Plurals,
    pub(super) relation: &'a dyn Fn(Relation) -> String,
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = |why: String| Error::usage(format!("template `{text}`: {why}"));
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (inner, after) =
                after.split_once('}').ok_or_else(|| wrong("a `{` without its `}`".into()))?;
            if !before.is_empty() {
                parts.push(Segment::Text(before.into()));
            }
            parts.push(Segment::Slot(
                slot(inner).map_err(|error| error.context(format!("template `{text}`")))?,
            ));
            rest = after;
        }
        if rest.contains('}') {
            return Err(wrong("a `}` without its `{`".into()));
        }
        if !rest.is_empty() {
            parts.push(Segment::Text(rest.into()));
        }
        Ok(Self { parts })
    }

    /// Text and places in order.
    pub fn parts(&self) -> &[Segment] {
        &self.parts
    }

    /// The places.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.parts.iter().filter_map(|part| match part {
            Segment::Slot(slot) => Some(*slot),
            Segment::Text(_) => None,
        })
    }

    /// Refuses places that the facts of a category do not fill.
    pub fn check(&self, category: Category) -> Result<()> {
        for slot in self.slots() {
            let name = slot.name();
            let wrong = |why: String| Error::usage(format!("`{{{name}}}` in `{}`: {why}", category.name()));
            let fits = match slot.place {
                Place::Object | Place::Objects => true,
                Place::Count => category == Category::Counting,
                Place::Color => category.names_colors(),
                Place::Relation => category == Category::Position,
            };
            if !fits {
                return Err(wrong("the facts of this category have none".into()));
            }
            if slot.index.is_some_and(|index| index >= category.objects()) {
                return Err(wrong(format!("the facts of this category have {} object", category.objects())));
            }
        }
        Ok(())
    }

    /// The sentence about `facts`; a place that does not say of which object takes the first.
    pub(super) fn fill(&self, spec: &PromptSpec, spelling: &Spelling<'_>) -> String {
        let part = |part: &Segment| match part {
            Segment::Text(text) => text.clone(),
            Segment::Slot(slot) => slot.fill(spec, spelling),
        };
        self.parts.iter().map(part).collect()
    }
}

impl Slot {
    fn fill(self, spec: &PromptSpec, spelling: &Spelling<'_>) -> String {
        let object = spec.objects.get(self.index.unwrap_or(0));
        let word = match (self.place, object) {
            (Place::Relation, _) => spec.relation.map(spelling.relation),
            (Place::Object, Some(object)) => Some(object.noun.clone()),
            (Place::Objects, Some(object)) => Some(spelling.plurals.of(&object.noun)),
            (Place::Count, Some(object)) => Some(number_word(object.count)),
            (Place::Color, Some(object)) => object.color.clone(),
            (_, None) => None,
        };
        let mut word = word.unwrap_or_default();
        if self.article {
            word = format!("{} {word}", article(&word));
        }
        if self.capital { capital(&word) } else { word }
    }

    /// As a template has it, e.g. `object.1`.
    pub fn name(self) -> String {
        let name = PLACES.iter().find(|(_, place)| *place == self.place).map_or("", |(name, _)| name);
        self.index.map_or_else(|| name.into(), |index| format!("{name}.{}", index + 1))
    }
}

fn slot(inner: &str) -> Result<Slot> {
    let lower = inner.to_lowercase();
    let (article, word) = match lower.split_once(' ') {
        Some(("a" | "an", word)) => (true, word.trim()),
        _ => (false, lower.as_str()),
    };
    let (name, index) = match word.split_once('.') {
        Some((name, "1")) => (name, Some(0)),
        Some((name, "2")) => (name, Some(1)),
        _ => (word, None),
    };
    let known = PLACES.iter().find(|(known, _)| *known == name);
    let Some((_, place)) = known else {
        let error = Error::usage(format!("unknown place `{{{inner}}}`"));
        let error = match nearest(name, PLACES.map(|(name, _)| name)) {
            Some(near) => error.hint(format!("did you mean `{{{near}}}`?")),
            None => error,
        };
        return Err(error.hint(
            "known: `{object}`, `{objects}`, `{count}`, `{color}`, `{relation}`; `.1` or `.2` behind it, `a` before it",
        ));
    };
    let capital = inner.starts_with(char::is_uppercase);
    Ok(Slot { place: *place, index, article, capital })
}
