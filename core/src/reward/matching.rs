//! How a keyword of a rule file is found in an answer.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::file::MatchOptions;
use super::rules::Compiled;
use crate::error::{Error, Result};
use crate::prompts::answer::{AnswerMatch, Vocabulary, Words};
use crate::prompts::{Category, Place, Plurals, PromptSpec, Relation, Segment, Slot, Template, number_word};

/// How a keyword is looked for. All ignore case; all but `substring` see whole words, marks aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Match {
    /// Its letters occur anywhere, inside of other words too (`car` in `carrot`).
    Substring,
    /// Each of its words occurs somewhere.
    Word,
    /// Its words occur together, in their order.
    #[default]
    Phrase,
    /// As `phrase`, and behind the keyword before it in the file.
    Order,
    /// It is said where it belongs: an object is named, a number or colour is said of its object, a relation holds between
    /// both objects in its direction. The keyword is one place, such as `{color}`.
    Bound,
}

/// A keyword for the facts of a sample.
#[derive(Debug)]
pub(super) struct Wanted {
    /// As people read it.
    pub(super) label: String,
    how: How,
}

#[derive(Debug)]
enum How {
    /// Any of these spellings.
    Spelled(Match, Vec<Words>),
    /// What the grammar understood of this object.
    Bound(Place, usize),
}

impl Wanted {
    /// What a keyword of the file wants of an object, where it does not say of which.
    pub(super) fn new(
        keyword: &Compiled,
        object: usize,
        spec: &PromptSpec,
        reading: &MatchOptions,
        vocabulary: &Vocabulary,
    ) -> Self {
        let (template, how) = (&keyword.template, keyword.how);
        let bound = (how == Match::Bound).then(|| template.slots().next()).flatten();
        let spellings = spellings(template, object, spec, reading, vocabulary);
        let word = spellings.first().cloned().unwrap_or_default();
        let noun = |index: usize| spec.objects.get(index).map_or("", |object| &object.noun);
        let Some(slot) = bound else {
            let spellings = spellings.iter().map(|spelling| Words::of(spelling)).collect();
            return Self { label: format!("`{word}`"), how: How::Spelled(how, spellings) };
        };
        let index = slot.index.unwrap_or(object);
        let label = match slot.place {
            Place::Count | Place::Color => format!("`{word}` at `{}`", noun(index)),
            Place::Relation => format!("`{word}` from `{}` to `{}`", noun(0), noun(1)),
            _ => format!("`{word}`"),
        };
        Self { label, how: How::Bound(slot.place, index) }
    }

    /// Whether the keyword needs what the grammar understood.
    pub(super) fn is_bound(&self) -> bool {
        matches!(self.how, How::Bound(..))
    }

    /// Whether the answer has it. `from` is where the keyword before it ended, for those in order.
    pub(super) fn found(&self, answer: &Words, said: &AnswerMatch, denials: bool, from: &mut usize) -> bool {
        let at = |list: &[bool], index: usize| list.get(index).copied().unwrap_or(false);
        match &self.how {
            How::Bound(Place::Count, index) => at(&said.numbers, *index),
            How::Bound(Place::Color, index) => at(&said.colors, *index),
            How::Bound(Place::Relation, _) => said.relation,
            How::Bound(_, index) => at(&said.nouns, *index),
            How::Spelled(how, spellings) => {
                let phrase = |spelling: &Words, start: usize| {
                    let fits = |at: &usize| {
                        answer.starts_with(*at, spelling) && !(denials && answer.is_negated(*at))
                    };
                    (start..answer.len()).find(fits).map(|at| at + spelling.len())
                };
                match how {
                    Match::Substring => {
                        spellings.iter().any(|spelling| answer.text().contains(spelling.text()))
                    }
                    Match::Word => spellings.iter().any(|spelling| {
                        !spelling.is_empty()
                            && spelling.iter().all(|word| phrase(&Words::of(word), 0).is_some())
                    }),
                    Match::Order => {
                        match spellings.iter().filter_map(|spelling| phrase(spelling, *from)).min() {
                            Some(end) => {
                                *from = end;
                                true
                            }
                            None => false,
                        }
                    }
                    Match::Phrase | Match::Bound => {
                        spellings.iter().any(|spelling| phrase(spelling, 0).is_some())
                    }
                }
            }
        }
    }
}

/// Refuses a keyword that its category or its match does not allow.
pub(super) fn check(template: &Template, how: Match, category: Category) -> Result<()> {
    template.check(category)?;
    if template.segments().is_empty() {
        return Err(Error::usage("`word` is empty"));
    }
    let single = matches!(template.segments(), [Segment::Slot(_)]);
    if how == Match::Bound && !single {
        return Err(Error::usage("`match = \"bound\"`: expected `word` to be one place, such as `{color}`")
            .hint("use `match = \"phrase\"` for other words"));
    }
    Ok(())
}

/// Whether a keyword speaks of an object without saying which: it stands for each in turn.
pub(super) fn is_for_each(template: &Template) -> bool {
    template.slots().any(|slot| slot.index.is_none() && slot.place != Place::Relation)
}

/// Every spelling of a keyword, the plainest first.
fn spellings(
    template: &Template,
    object: usize,
    spec: &PromptSpec,
    reading: &MatchOptions,
    vocabulary: &Vocabulary,
) -> Vec<String> {
    template.segments().iter().fold(vec![String::new()], |begun, part| {
        let next = match part {
            Segment::Text(text) => vec![text.to_lowercase()],
            Segment::Slot(slot) => words(*slot, object, spec, reading, vocabulary),
        };
        begun.iter().flat_map(|start| next.iter().map(move |end| format!("{start}{end}"))).collect()
    })
}

fn words(
    slot: Slot,
    object: usize,
    spec: &PromptSpec,
    reading: &MatchOptions,
    vocabulary: &Vocabulary,
) -> Vec<String> {
    let object = spec.objects.get(slot.index.unwrap_or(object));
    let plurals = |name: &String| [Plurals::English.of(name), Plurals::Geneval.of(name)];
    match (slot.place, object) {
        (Place::Object, Some(object)) => {
            let names = vocabulary.names(&object.noun);
            let many: Vec<String> =
                if reading.plurals { names.iter().flat_map(plurals).collect() } else { Vec::new() };
            names.into_iter().chain(many).collect()
        }
        (Place::Objects, Some(object)) => vocabulary.names(&object.noun).iter().flat_map(plurals).collect(),
        (Place::Count, Some(object)) => {
            let digits = reading.numbers.then(|| object.count.to_string());
            std::iter::once(number_word(object.count)).chain(digits).collect()
        }
        (Place::Color, Some(object)) => {
            object.color.as_deref().map(|color| vocabulary.colors(color)).unwrap_or_default()
        }
        (Place::Relation, _) => {
            let more: &[&str] = match spec.relation {
                _ if !reading.usual_synonyms => &[],
                Some(Relation::LeftOf) => &["left side of"],
                Some(Relation::RightOf) => &["right side of"],
                Some(Relation::Above) => &["over", "on top of"],
                Some(Relation::Below) => &["under", "beneath", "underneath"],
                None => &[],
            };
            spec.relation.map(Relation::words).iter().chain(more).map(ToString::to_string).collect()
        }
        (_, None) => Vec::new(),
    }
}
