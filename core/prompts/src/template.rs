//! A template: text with placeholders, such as `a photo of {a object}`, `{Count} {objects}`, `The {object.1} is {relation} ...`.

use unirl::error::{Error, Result, nearest};
use unirl::prompt::{Category, PromptSpec, Relation};

use super::english::{Plurals, article, capital, number_word};

/// The value of a placeholder.
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

/// A placeholder in a template, such as `{An object.2}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The value.
    pub place: Place,
    /// The object, from 0; `None` if the template gives no number.
    pub index: Option<usize>,
    article: bool,
    capital: bool,
}

/// A segment of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// Literal text.
    Text(String),
    /// A placeholder.
    Slot(Slot),
}

/// Text with placeholders.
///
/// The placeholders are `{object}`, `{objects}` (plural), `{count}`, `{color}` and `{relation}`. A suffix `.1` or `.2` selects
/// the object, a prefix `a` or `an` adds the indefinite article, and an upper-case first letter capitalizes the value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    segments: Vec<Segment>,
}

/// The spelling of plurals and relations.
pub(super) struct Spelling<'a> {
    pub(super) plurals: Plurals,
    pub(super) relation: &'a dyn Fn(Relation) -> String,
}

impl Template {
    /// Parses a template.
    pub fn parse(text: &str) -> Result<Self> {
        let invalid = |why: &str| Error::usage(format!("template `{text}`: {why}"));
        let mut segments = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            let (inner, after) = after.split_once('}').ok_or_else(|| invalid("unclosed `{`"))?;
            if !before.is_empty() {
                segments.push(Segment::Text(before.into()));
            }
            segments.push(Segment::Slot(
                slot(inner).map_err(|error| error.context(format!("template `{text}`")))?,
            ));
            rest = after;
        }
        if rest.contains('}') {
            return Err(invalid("`}` without `{`"));
        }
        if !rest.is_empty() {
            segments.push(Segment::Text(rest.into()));
        }
        Ok(Self { segments })
    }

    /// Returns text and placeholders in order.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// Returns the placeholders.
    pub fn slots(&self) -> impl Iterator<Item = Slot> + '_ {
        self.segments.iter().filter_map(|segment| match segment {
            Segment::Slot(slot) => Some(*slot),
            Segment::Text(_) => None,
        })
    }

    /// Errors if a placeholder has no value in the specs of a category.
    pub fn check(&self, category: Category) -> Result<()> {
        for slot in self.slots() {
            let name = slot.name();
            let invalid = |why: String| Error::usage(format!("placeholder `{{{name}}}`: {why}"));
            let available = match slot.place {
                Place::Object | Place::Objects => true,
                Place::Count => category == Category::Counting,
                Place::Color => category.names_colors(),
                Place::Relation => category == Category::Position,
            };
            if !available {
                return Err(invalid(format!("not available in `{}`", category.name())));
            }
            if slot.index.is_some_and(|index| index >= category.objects()) {
                return Err(invalid(format!("`{}` has {} object", category.name(), category.objects())));
            }
        }
        Ok(())
    }

    /// Fills the placeholders from a spec. A placeholder without a number refers to the first object.
    pub(super) fn fill(&self, spec: &PromptSpec, spelling: &Spelling<'_>) -> String {
        let fill = |segment: &Segment| match segment {
            Segment::Text(text) => text.clone(),
            Segment::Slot(slot) => slot.fill(spec, spelling),
        };
        self.segments.iter().map(fill).collect()
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

    /// Returns the name in a template, such as `object.1`.
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
        let error = Error::usage(format!("unknown placeholder `{{{inner}}}`"));
        let error = match nearest(name, PLACES.map(|(name, _)| name)) {
            Some(near) => error.hint(format!("did you mean `{{{near}}}`?")),
            None => error,
        };
        return Err(error.hint(
            "placeholders: `{object}`, `{objects}`, `{count}`, `{color}`, `{relation}`, with an optional suffix `.1` or `.2` and prefix `a `",
        ));
    };
    let capital = inner.starts_with(char::is_uppercase);
    Ok(Slot { place: *place, index, article, capital })
}
