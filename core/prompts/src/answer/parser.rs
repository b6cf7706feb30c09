//! Turns the words of an answer into claims: phrases, clauses and negations.

use unirl::prompt::Relation;

use super::places::{Event, Origin, placements};
use super::roles::{Role, is_participle, role};
use super::{Claim, ParsedAnswer};
use crate::english::{is_always_a_pair, number};

/// The maximum number of unknown words that modify the noun after them.
const MAX_MODIFIERS: usize = 3;

/// A noun of a phrase, or a word that can be part of one.
struct Word {
    text: String,
    /// A noun of the spec or of the lexicon.
    known: bool,
}

/// The words of an answer between two separators.
#[derive(Default)]
#[expect(clippy::struct_excessive_bools, reason = "independent properties of the phrase")]
struct Phrase {
    article: bool,
    definite: bool,
    count: Option<u32>,
    /// The count is the word `one`, possibly `one of`.
    one: bool,
    one_of: bool,
    several: bool,
    pairs: bool,
    /// Contains a word such as `hue`, or a part of an object such as `fur`.
    hue: bool,
    part: bool,
    /// Follows `in` or `on`.
    setting: bool,
    /// Contains a word for the image or a part of it.
    image: bool,
    /// Follows `of` after a noun: `a bottle of ...`.
    complement: bool,
    /// A colour is the last word, so the words before modify it.
    ends_in_color: bool,
    colors: Vec<String>,
    words: Vec<Word>,
}

/// What a phrase names.
enum Named {
    Object(String),
    /// A colour or a number without a noun.
    Attribute,
    /// A modifier, or the setting of the scene.
    Description,
}

impl Phrase {
    fn is_determined(&self) -> bool {
        self.article || self.definite || self.count.is_some()
    }

    fn take_named(&mut self, predicate: bool) -> Named {
        let joined =
            |words: &[Word]| words.iter().map(|word| word.text.as_str()).collect::<Vec<_>>().join(" ");
        if let Some(last) = self.words.iter().rposition(|word| word.known) {
            let first = self.words.iter().position(|word| word.known).unwrap_or(last);
            let is_one_noun = first == last && last + 1 == self.words.len() && last <= MAX_MODIFIERS;
            return Named::Object(if is_one_noun {
                self.words.swap_remove(last).text
            } else {
                joined(&self.words)
            });
        }
        if self.words.is_empty() {
            if self.setting && self.image {
                // `on a white background`
                return Named::Description;
            }
            let is_fruit = self.is_determined() && !self.hue && !self.part;
            let fruit = self.colors.pop_if(|color| is_fruit && color == "orange");
            return fruit.map_or(Named::Attribute, Named::Object);
        }
        if self.ends_in_color || self.part {
            return Named::Attribute;
        }
        let is_setting = |word: &Word| matches!(role(&word.text), Some(Role::Setting | Role::Measure));
        let describes = (predicate && !self.is_determined())
            || (self.setting && self.words.last().is_some_and(is_setting))
            || self.complement
            || self.one_of;
        if describes { Named::Description } else { Named::Object(joined(&self.words)) }
    }
}

#[derive(Default)]
struct Negation {
    /// It has negated something.
    has_content: bool,
    /// It negates `others`, and so no named object.
    of_others: bool,
}

/// A position as the last word so far, which can still turn out to be relative to an object.
#[derive(Clone, Copy, PartialEq, Default)]
enum OpenPlace {
    #[default]
    None,
    Alone,
    /// `left of`
    Of,
}

#[derive(Default)]
pub(super) struct Parser {
    answer: ParsedAnswer,
    phrase: Phrase,
    events: Vec<Event>,
    /// After `is`: a colour or number without a noun belongs to the last claim.
    predicate: bool,
    /// The negation of the current clause.
    negation: Option<Negation>,
    /// The last claim.
    last: usize,
    /// The numbers of claims and events before the current clause, and before the current sentence.
    clause: (usize, usize),
    sentence: (usize, usize),
    /// Colours before `for`.
    colors_for: Vec<String>,
    /// The next number is not exact.
    about: bool,
    /// The next number is a label: `object 1`.
    label: bool,
    open_place: OpenPlace,
}

impl Parser {
    fn doubt(&mut self, why: impl Into<String>) {
        self.answer.doubt.get_or_insert_with(|| why.into());
    }

    fn position(&self) -> (usize, usize) {
        (self.answer.claims.len(), self.events.len())
    }

    fn rewind(&mut self, (claims, events): (usize, usize)) {
        self.answer.claims.truncate(claims);
        self.last = self.answer.claims.len().saturating_sub(1);
        self.events.truncate(events);
    }

    /// Ends a phrase: it becomes a claim, or an attribute of the last claim.
    fn close(&mut self) {
        let mut phrase = std::mem::take(&mut self.phrase);
        let noun = match phrase.take_named(self.predicate) {
            Named::Object(noun) => Some(noun),
            Named::Attribute => None,
            Named::Description => return,
        };
        if noun.is_none() && phrase.colors.is_empty() && phrase.count.is_none() && !phrase.several {
            return;
        }
        if let Some(negation) = &mut self.negation {
            negation.has_content = true;
            return;
        }
        let count = phrase.count.or(phrase.pairs.then_some(1)).map(|count| match &noun {
            Some(noun) if phrase.pairs && !is_always_a_pair(noun) => count.saturating_mul(2),
            _ => count,
        });
        if count == Some(0) {
            return;
        }
        let claims = &mut self.answer.claims;
        if noun.is_none() {
            // `three vases, one red`: one of those already named.
            let is_many = |claim: &Claim| claim.noun.is_some() && claim.count.is_some_and(|count| count > 1);
            if phrase.one && claims.iter().any(is_many) {
                return;
            }
            if let Some(last) = claims.get_mut(self.last) {
                if phrase.part {
                    last.colors.append(&mut phrase.colors);
                    return;
                }
                if self.predicate && (last.count.is_none() || count.is_none()) {
                    last.count = last.count.or(count);
                    last.colors.append(&mut phrase.colors);
                    return;
                }
            }
        }
        self.predicate = false;
        let same = |claim: &Claim| claim.noun == noun && (count.is_none() || count == claim.count);
        let mentioned = phrase.definite && noun.is_some();
        let index = if let Some(index) = claims.iter().rposition(same).filter(|_| mentioned) {
            let known = &mut claims[index].colors;
            for color in std::mem::take(&mut phrase.colors) {
                if !known.contains(&color) {
                    known.push(color);
                }
            }
            index
        } else {
            claims.push(Claim {
                noun,
                count,
                several: phrase.several,
                paired: phrase.pairs,
                colors: phrase.colors,
            });
            claims.len() - 1
        };
        if claims[index].noun.is_some() {
            claims[index].colors.append(&mut self.colors_for);
        }
        self.last = index;
        self.events.push(Event::Claim(index));
    }

    fn negate(&mut self) {
        self.close();
        self.negation.get_or_insert_default();
    }

    fn end_clause(&mut self) {
        self.close();
        if let Some(Negation { has_content: false, of_others: false }) = self.negation.take() {
            // `A bench is not visible.`
            if self.answer.claims.len() > self.clause.0 {
                self.rewind(self.clause);
            } else if self.answer.claims.len() > self.sentence.0 {
                self.rewind(self.sentence);
            } else if !self.answer.claims.is_empty() {
                self.doubt("contradicts itself");
            }
        }
        self.open_place = OpenPlace::None;
        self.events.push(Event::Clause);
        self.clause = self.position();
    }

    fn end_sentence(&mut self, is_question: bool) {
        self.end_clause();
        if is_question {
            // A question states nothing.
            self.rewind(self.sentence);
        }
        self.events.push(Event::Sentence);
        self.predicate = false;
        self.sentence = self.position();
        self.clause = self.sentence;
    }

    /// Processes a punctuation mark.
    pub(super) fn mark(&mut self, mark: char) {
        self.label = false;
        match mark {
            '.' | '!' => self.end_sentence(false),
            '?' => self.end_sentence(true),
            ':' | '-' | '=' | '–' | '—' => {
                self.end_clause();
                self.predicate = true;
            }
            '&' | '/' | '|' | '+' => self.and(),
            _ => self.end_clause(),
        }
    }

    fn and(&mut self) {
        self.open_place = OpenPlace::None;
        self.close();
        self.events.push(Event::And);
    }

    fn is(&mut self) {
        self.open_place = OpenPlace::None;
        // `One is a spoon`: a pronoun.
        if self.phrase.one && self.phrase.words.is_empty() && self.phrase.colors.is_empty() {
            self.phrase.count = None;
        }
        self.close();
        self.events.push(Event::Is);
        self.predicate = true;
    }

    fn place(&mut self, relation: Option<Relation>) {
        self.close();
        match &mut self.negation {
            None => self.events.push(Event::Place { relation, from: Origin::Image }),
            Some(negation) if negation.has_content || self.answer.claims.len() == self.sentence.0 => {
                negation.has_content = true;
                return;
            }
            // `The dog is not left of the cat`: the position is negated, but both objects are named.
            Some(_) => {
                self.negation = None;
                self.events.push(Event::Place { relation: None, from: Origin::Image });
            }
        }
        self.open_place = OpenPlace::Alone;
    }

    /// Sets the origin of the last position.
    fn set_origin(&mut self, origin: Origin) {
        if let Some(Event::Place { from, .. }) = self.events.last_mut() {
            *from = origin;
        }
    }

    /// Begins or extends a phrase. A position before it is relative to it; `left` and `right` only with `of`.
    fn content(&mut self) {
        let is_side = matches!(
            self.events.last(),
            Some(Event::Place { relation: Some(Relation::LeftOf | Relation::RightOf), .. })
        );
        match std::mem::take(&mut self.open_place) {
            OpenPlace::Of => self.set_origin(Origin::Next),
            OpenPlace::Alone if !is_side => self.set_origin(Origin::Next),
            OpenPlace::Alone | OpenPlace::None => {}
        }
        self.phrase.ends_in_color = false;
    }

    fn number(&mut self, number: u32, word: &str) {
        self.content();
        if std::mem::take(&mut self.label) {
            return;
        }
        if std::mem::take(&mut self.about) {
            self.doubt("gives no exact number");
        }
        if self.phrase.count.is_some() && !self.phrase.words.is_empty() {
            self.close();
        }
        match self.phrase.count {
            None => {
                self.phrase.count = Some(number);
                self.phrase.one = word == "one";
            }
            Some(count) if count == number => {}
            Some(_) => self.doubt("gives several numbers"),
        }
    }

    /// Processes the name of an object. An unknown one can modify the next word.
    pub(super) fn noun(&mut self, text: &str, known: bool) {
        self.content();
        self.label = false;
        self.phrase.words.push(Word { text: text.into(), known });
    }

    /// Processes a colour in the spelling of the spec.
    pub(super) fn color(&mut self, color: &str) {
        self.content();
        self.phrase.colors.push(color.into());
        self.phrase.ends_in_color = true;
    }

    fn article(&mut self, definite: bool) {
        if !(self.phrase.words.is_empty() && self.phrase.colors.is_empty()) {
            self.close();
        }
        self.phrase.article |= !definite;
        self.phrase.definite |= definite;
    }

    fn of(&mut self) {
        if self.open_place == OpenPlace::Alone {
            self.open_place = OpenPlace::Of;
        } else if self.phrase.one && self.phrase.words.is_empty() {
            self.phrase.one_of = true;
        } else if !self.phrase.words.is_empty() {
            let after_noun = self.phrase.words.last().is_some_and(|word| word.known);
            self.close();
            self.phrase.complement = after_noun;
        }
    }

    /// `The car and the sign are blue and red, respectively`: one colour each.
    fn distribute_colors(&mut self) {
        self.close();
        let claims = &mut self.answer.claims;
        let colors = claims.last().map_or(0, |last| last.colors.len());
        let Some(start) = claims.len().checked_sub(colors).filter(|_| colors > 1) else { return };
        let Some((last, others)) = claims[start..].split_last_mut() else { return };
        if others.iter().all(|claim| claim.colors.is_empty()) {
            for (claim, color) in others.iter_mut().zip(last.colors.drain(..colors - 1)) {
                claim.colors.push(color);
            }
        }
    }

    /// Processes a word (or several words with one role) that is neither an object nor a colour of the spec. `next` is the
    /// word after it.
    pub(super) fn word(&mut self, word: &str, role: Option<Role>, next: Option<&str>) {
        let was_about = std::mem::take(&mut self.about);
        let was_label = std::mem::take(&mut self.label);
        let next_role = next.and_then(super::roles::role);
        match role {
            Some(Role::Filler) => {}
            Some(Role::Pronoun) => {
                if std::mem::take(&mut self.open_place) != OpenPlace::None {
                    self.set_origin(Origin::Pronoun);
                }
            }
            Some(Role::Image) => {
                self.open_place = OpenPlace::None;
                self.phrase.image = true;
                self.label = !word.ends_with('s');
            }
            // `a brown and white dog`
            Some(Role::And)
                if self.phrase.words.is_empty()
                    && !self.phrase.colors.is_empty()
                    && next_role == Some(Role::Color) => {}
            Some(Role::And) => self.and(),
            Some(Role::Clause) => self.end_clause(),
            Some(Role::Is) => self.is(),
            Some(Role::IsNot) => {
                self.is();
                self.negate();
            }
            Some(Role::Negation) => self.negate(),
            Some(Role::Doubt) => self.doubt(format!("hedges with `{word}`")),
            Some(Role::About) => self.about = true,
            Some(Role::Several) => {
                self.content();
                self.phrase.several = true;
            }
            Some(Role::Other) => match &mut self.negation {
                Some(negation) => negation.of_others = true,
                None if word == "other" => self.phrase.article = true,
                None => self.noun(word, false),
            },
            Some(Role::Article) => self.article(false),
            Some(Role::Definite) => self.article(true),
            Some(Role::Color) => self.color(word),
            Some(Role::Hue) => self.phrase.hue = true,
            // `with two black wheels`: neither another object nor the colour of the object.
            Some(Role::Part) => {
                self.phrase.part = true;
                self.phrase.count = None;
                self.phrase.colors.clear();
            }
            Some(Role::Cover) => self.phrase.part = true,
            Some(Role::Respectively) => self.distribute_colors(),
            // `right above`: an adverb.
            Some(Role::Place(_)) if word == "right" && matches!(next_role, Some(Role::Place(_))) => {}
            Some(Role::Place(relation)) => {
                self.place(relation);
                self.about = matches!(word, "over" | "under" | "around" | "above" | "below");
            }
            Some(Role::Side) if self.open_place != OpenPlace::None => {}
            Some(Role::Of) => self.of(),
            Some(Role::For) if self.phrase.words.is_empty() => {
                self.colors_for.append(&mut self.phrase.colors);
            }
            Some(Role::For) => self.close(),
            Some(Role::In) => {
                self.close();
                self.phrase.setting = true;
            }
            Some(Role::Pair) if next == Some("of") => self.phrase.pairs = true,
            Some(Role::Measure) if next == Some("of") => {}
            Some(Role::Number(count)) => self.number(count, word),
            None | Some(Role::Setting | Role::Side | Role::Pair | Role::Measure) => {
                (self.about, self.label) = (was_about, was_label);
                self.other_word(word);
                self.about = false;
            }
        }
    }

    /// Processes a number, a modifier or the name of an object.
    fn other_word(&mut self, word: &str) {
        let digits = word.strip_suffix('x').filter(|digits| digits.parse::<u32>().is_ok()).unwrap_or(word);
        match number(digits) {
            Some(count) => self.number(count, word),
            None if word.starts_with(|letter: char| letter.is_ascii_digit()) => {
                self.doubt("gives a number that is not whole");
            }
            None if self.phrase.words.last().is_some_and(|word| word.known) && is_participle(word) => {}
            None => self.noun(word, false),
        }
    }

    /// Returns the claims of the answer.
    pub(super) fn finish(mut self) -> ParsedAnswer {
        self.end_sentence(false);
        self.answer.placements = placements(&self.events);
        self.answer
    }
}
