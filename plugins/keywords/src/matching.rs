//! Matching of the keywords of a rule file in an answer.

use unirl::error::{Error, Result};
use unirl::prompt::{Category, PromptSpec, Relation};
use unirl_prompts::answer::{AnswerMatch, Vocabulary, Words};
use unirl_prompts::{Place, Plurals, Segment, Slot, Template, number_word};

use super::file::{Keyword, Match, MatchOptions};

/// A compiled keyword of the file.
pub(super) struct Compiled {
    template: Template,
    how: Match,
    pub(super) points: f64,
    pub(super) part: String,
    pub(super) for_each: bool,
}

impl Compiled {
    pub(super) fn new(keyword: &Keyword, category: Category) -> Result<Self> {
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

/// A keyword for the spec of a sample.
#[derive(Debug)]
pub(super) struct Target {
    /// The label in explanations.
    pub(super) label: String,
    how: How,
}

#[derive(Debug)]
enum How {
    /// Any of these spellings occurs.
    Spelled(Match, Vec<Words>),
    /// The parsed answer states it of this object.
    Bound(Place, usize),
}

impl Target {
    /// Creates the target of a keyword. `object` is the object of placeholders without a number.
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

    /// Whether the target needs the parsed answer.
    pub(super) fn is_bound(&self) -> bool {
        matches!(self.how, How::Bound(..))
    }

    /// Whether the answer matches. `from` is the end of the previous keyword, for `order`.
    pub(super) fn matches(
        &self,
        answer: &Words,
        parsed: &AnswerMatch,
        negation: bool,
        from: &mut usize,
    ) -> bool {
        let at = |list: &[bool], index: usize| list.get(index).copied().unwrap_or(false);
        match &self.how {
            How::Bound(Place::Count, index) => at(&parsed.numbers, *index),
            How::Bound(Place::Color, index) => at(&parsed.colors, *index),
            How::Bound(Place::Relation, _) => parsed.relation,
            How::Bound(_, index) => at(&parsed.nouns, *index),
            How::Spelled(how, spellings) => {
                let phrase = |spelling: &Words, start: usize| {
                    let fits = |at: &usize| {
                        answer.starts_with(*at, spelling) && !(negation && answer.is_negated(*at))
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

/// Errors if a keyword is not valid for its category or its kind of match.
fn check(template: &Template, how: Match, category: Category) -> Result<()> {
    template.check(category)?;
    if template.segments().is_empty() {
        return Err(Error::usage("`word` is empty"));
    }
    let single = matches!(template.segments(), [Segment::Slot(_)]);
    if how == Match::Bound && !single {
        return Err(Error::usage(
            "`match = \"bound\"`: expected `word` to be a single placeholder, such as `{color}`",
        )
        .hint("use `match = \"phrase\"` for other words"));
    }
    Ok(())
}

/// Whether a keyword has an object placeholder without a number, so that it applies to each object.
fn is_for_each(template: &Template) -> bool {
    template.slots().any(|slot| slot.index.is_none() && slot.place != Place::Relation)
}

/// Returns every spelling of a keyword, the default one first.
fn spellings(
    template: &Template,
    object: usize,
    spec: &PromptSpec,
    reading: &MatchOptions,
    vocabulary: &Vocabulary,
) -> Vec<String> {
    template.segments().iter().fold(vec![String::new()], |starts, segment| {
        let next = match segment {
            Segment::Text(text) => vec![text.to_lowercase()],
            Segment::Slot(slot) => words(*slot, object, spec, reading, vocabulary),
        };
        starts.iter().flat_map(|start| next.iter().map(move |end| format!("{start}{end}"))).collect()
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
