//! Reading an answer: text to claims (this many of that noun in that colour, this left of that), and claims to what of the
//! facts they say.
//!
//! One grammar serves the reward rules that bind a word to its object, and the answer judge. It knows no list of nouns: what
//! is neither number, colour, relation nor one of the words below is a noun, so that anything named beyond what was asked
//! for is seen. An answer names its objects in phrases; commas, `and`, `is` and articles part them.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use super::english::number;
use super::lexicon::{COLORS, color_spellings, synonyms};
use super::{Category, Facts, Plurals, Relation};

/// What a word does in an answer. A word that is not listed is a number or a noun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Names nothing.
    Filler,
    /// Begins a phrase.
    Article,
    /// Ends a phrase.
    Separator,
    /// Ends a phrase; what follows is said of the object before it.
    Is,
    /// Makes a phrase say that something is not there, or not so.
    Denial,
    /// `isn't`: both.
    IsNot,
    /// One of `GenEval`'s colours.
    Color,
    /// Says where something lies; `None` where no prompt asks for it.
    Place(Option<Relation>),
}

/// The words of grammar, of the questions, of posture, and of size, age, material and look.
#[rustfmt::skip]
const ROLES: [(Role, &[&str]); 13] = [
    (Role::Article, &["a", "an", "the"]),
    (Role::Separator, &["and", "with", "plus", "or", "but", "while", ","]),
    (Role::Is, &["is", "are"]),
    (Role::Denial, &["not", "without", "never", "neither", "nor", "none", "nothing", "cannot"]),
    (Role::IsNot, &["isn", "aren"]),
    (Role::Color, &COLORS),
    (Role::Place(Some(Relation::LeftOf)), &["left"]),
    (Role::Place(Some(Relation::RightOf)), &["right"]),
    (Role::Place(Some(Relation::Above)), &["above", "over", "top"]),
    (Role::Place(Some(Relation::Below)), &["below", "under", "beneath", "underneath"]),
    (Role::Place(None), &["diagonal", "diagonally", "next", "beside", "near", "behind", "front", "inside", "between", "around"]),
    (Role::Filler, &[
        "there", "this", "that", "it", "in", "of", "to", "on", "at", "from", "side", "image", "picture", "photo", "object",
        "objects", "item", "items", "main", "color", "colour", "colored", "coloured", "number", "total", "shows",
        "contains", "has", "i", "see", "here", "s", "t", "which", "very", "its", "their",
    ]),
    (Role::Filler, &[
        "sitting", "standing", "lying", "laying", "resting", "located", "placed", "positioned", "hanging", "parked",
        "depicted", "shown", "small", "large", "big", "little", "tiny", "huge", "tall", "short", "long", "round", "old", "new",
        "young", "vintage", "modern", "single", "wooden", "metal", "metallic", "plastic", "ceramic", "leather", "woolen",
        "shiny", "bright", "dark", "light", "colorful", "colourful", "beautiful", "pretty", "cute", "lovely", "nice", "plain",
        "simple", "realistic",
    ]),
];

fn role(word: &str) -> Option<Role> {
    static ROLE_OF: LazyLock<HashMap<&str, Role>> = LazyLock::new(|| {
        ROLES.iter().flat_map(|(role, words)| words.iter().map(|word| (*word, *role))).collect()
    });
    ROLE_OF.get(word).copied()
}

/// One mention of objects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Claim {
    /// The noun, as the facts spell it if it was asked for; `None` for a bare colour or number.
    pub noun: Option<String>,
    /// How many, if said.
    pub count: Option<u32>,
    /// Colours said of it, as the facts spell them.
    pub colors: Vec<String>,
}

/// One statement of where something lies; indices point into [`Answer::claims`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// What lies there.
    pub subject: Option<usize>,
    /// The relation, `None` for one that no prompt asks for (`diagonal`, `next to`).
    pub relation: Option<Relation>,
    /// Seen from what.
    pub object: Option<usize>,
}

/// An answer, understood.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Answer {
    /// The objects in the order of mention; one mentioned twice counts as two, one that is denied as none.
    pub claims: Vec<Claim>,
    /// Where they lie.
    pub placements: Vec<Placement>,
}

/// What else things are called, and what is passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// Whether the everyday objects go by their usual synonyms, too (`sofa` for `couch`).
    pub usual_synonyms: bool,
    /// More synonyms, by the noun or colour of the facts.
    pub synonyms: BTreeMap<String, Vec<String>>,
    /// Words that name nothing, beside those that never do.
    pub ignore: Vec<String>,
}

impl Default for Vocabulary {
    fn default() -> Self {
        Self { usual_synonyms: true, synonyms: BTreeMap::new(), ignore: Vec::new() }
    }
}

impl Vocabulary {
    fn own<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a str> {
        let own = self.synonyms.get(word).into_iter().flatten().map(String::as_str);
        std::iter::once(word).chain(own)
    }

    /// Every name of a noun, in the singular, in lower case; its own first.
    pub fn names(&self, noun: &str) -> Vec<String> {
        let usual = if self.usual_synonyms { synonyms(noun) } else { &[] };
        self.own(noun).chain(usual.iter().copied()).map(str::to_lowercase).collect()
    }

    /// Every spelling of a colour, its own first.
    pub fn colors(&self, color: &str) -> Vec<String> {
        self.own(color).flat_map(color_spellings).collect()
    }
}

/// The words of a text in lower case; what can end a clause becomes a comma.
#[derive(Debug, Default)]
pub struct Words {
    text: String,
    spans: Vec<(u32, u32)>,
}

impl Words {
    /// Cuts a text; of a text beyond 4 GiB, its beginning.
    pub fn of(text: &str) -> Self {
        let mut words = Self { text: text.to_lowercase(), spans: Vec::with_capacity(text.len() / 4) };
        let mut start = None;
        for (at, letter) in words.text.char_indices() {
            let at = u32::try_from(at).unwrap_or(u32::MAX);
            if letter.is_alphanumeric() {
                start.get_or_insert(at);
                continue;
            }
            words.spans.extend(start.take().map(|start| (start, at)));
            if matches!(letter, ',' | '.' | ';' | ':' | '\n' | '&' | '!' | '?') {
                words.spans.push((at, at));
            }
        }
        let end = u32::try_from(words.text.len()).unwrap_or(u32::MAX);
        words.spans.extend(start.map(|start| (start, end)));
        words
    }

    /// How many there are, commas included.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// One of them; `,` for the end of a clause.
    pub fn get(&self, index: usize) -> Option<&str> {
        let (start, end) = *self.spans.get(index)?;
        if start == end { Some(",") } else { self.text.get(start as usize..end as usize) }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// Whether `phrase` stands at `index`.
    pub fn starts_with(&self, index: usize, phrase: &Words) -> bool {
        !phrase.is_empty() && (0..phrase.len()).all(|at| self.get(index + at) == phrase.get(at))
    }

    /// Whether one of the three words before `index`, in the same clause, denies what stands there.
    pub fn denied(&self, index: usize) -> bool {
        let before =
            (index.saturating_sub(3)..index).rev().map_while(|at| self.get(at).filter(|word| *word != ","));
        before.into_iter().any(|word| word == "no" || matches!(role(word), Some(Role::Denial | Role::IsNot)))
    }

    /// The text in lower case.
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The part of an answer between two separators.
#[derive(Default)]
struct Phrase {
    denied: bool,
    article: bool,
    count: Option<u32>,
    colors: Vec<String>,
    nouns: Vec<String>,
}

#[derive(Default)]
struct Parser {
    answer: Answer,
    phrase: Phrase,
    /// After `is`: a colour or number without a noun is said of the last claim.
    predicate: bool,
}

impl Parser {
    fn close(&mut self) {
        let mut phrase = std::mem::take(&mut self.phrase);
        if phrase.nouns.is_empty() && (phrase.article || phrase.count.is_some()) {
            // "an orange": the fruit.
            phrase.nouns.extend(phrase.colors.pop());
        }
        let noun = (!phrase.nouns.is_empty()).then(|| phrase.nouns.join(" "));
        let empty = noun.is_none() && phrase.colors.is_empty() && phrase.count.is_none();
        if empty || phrase.denied || phrase.count == Some(0) {
            return;
        }
        if noun.is_none()
            && self.predicate
            && let Some(last) = self.answer.claims.last_mut()
            && (last.count.is_none() || phrase.count.is_none())
        {
            last.count = last.count.or(phrase.count);
            last.colors.append(&mut phrase.colors);
            return;
        }
        self.predicate = false;
        if let Some(open) = self.answer.placements.last_mut()
            && open.object.is_none()
        {
            open.object = Some(self.answer.claims.len());
        }
        self.answer.claims.push(Claim { noun, count: phrase.count, colors: phrase.colors });
    }

    fn place(&mut self, relation: Option<Relation>) {
        if self.phrase.denied && self.phrase.nouns.is_empty() {
            // "is not left of": said of nothing.
            self.phrase.denied = false;
            self.answer.placements.push(Placement { subject: None, relation: None, object: None });
            return;
        }
        self.close();
        let subject = self.answer.claims.len().checked_sub(1);
        self.answer.placements.push(Placement { subject, relation, object: None });
    }

    fn word(&mut self, word: &str, role: Option<Role>) {
        match role {
            Some(Role::Filler) => {}
            Some(Role::Separator) => self.close(),
            Some(Role::Is) => {
                self.close();
                self.predicate = true;
            }
            Some(Role::IsNot) => {
                self.close();
                self.predicate = true;
                self.phrase.denied = true;
            }
            Some(Role::Denial) => {
                if !self.phrase.nouns.is_empty() || word == "nor" {
                    self.close();
                }
                self.phrase.denied = true;
            }
            Some(Role::Article) => {
                if !(self.phrase.nouns.is_empty() && self.phrase.colors.is_empty()) {
                    self.close();
                }
                self.phrase.article = true;
            }
            Some(Role::Place(relation)) => self.place(relation),
            Some(Role::Color) => self.phrase.colors.push(word.into()),
            None => match (number(word), self.phrase.count) {
                (Some(count), None) => self.phrase.count = Some(count),
                _ => self.phrase.nouns.push(word.into()),
            },
        }
    }
}

/// Reads the answers about some facts: tolerant of case, articles, punctuation, plurals and digits.
///
/// The facts lend their nouns (so that `orange juice` is no colour) and their colours; a noun or colour by another name
/// counts as its own.
#[derive(Debug)]
pub struct Reader {
    /// Spellings with the noun that they stand for, the longest first.
    nouns: Vec<(Words, String)>,
    colors: Vec<(Words, String)>,
    ignore: Vec<String>,
}

impl Reader {
    /// The reader for answers about `facts`.
    pub fn new(facts: &Facts, vocabulary: &Vocabulary) -> Self {
        let mut colors: Vec<(Words, String)> = Vec::new();
        for color in facts.objects.iter().filter_map(|object| object.color.as_ref()) {
            colors
                .extend(vocabulary.colors(color).iter().map(|spelling| (Words::of(spelling), color.clone())));
        }
        // Where colours are asked for, "orange" is one; elsewhere it is the fruit.
        let is_color = |spelling: &Words| {
            let own = || colors.iter().any(|(color, _)| color.text() == spelling.text());
            facts.category.names_colors()
                && spelling.len() == 1
                && (own() || role(spelling.text()) == Some(Role::Color))
        };
        let mut nouns: Vec<(Words, String)> = Vec::new();
        for object in &facts.objects {
            for name in vocabulary.names(&object.noun) {
                let many = [Plurals::English.of(&name), Plurals::Geneval.of(&name)];
                let spellings = std::iter::once(name).chain(many).map(|spelling| Words::of(&spelling));
                let spellings = spellings.filter(|spelling| !spelling.is_empty() && !is_color(spelling));
                nouns.extend(spellings.map(|spelling| (spelling, object.noun.clone())));
            }
        }
        nouns.sort_by_key(|(spelling, _)| std::cmp::Reverse(spelling.len()));
        colors.sort_by_key(|(spelling, _)| std::cmp::Reverse(spelling.len()));
        Self { nouns, colors, ignore: vocabulary.ignore.iter().map(|word| word.to_lowercase()).collect() }
    }

    /// Understands an answer.
    pub fn read(&self, words: &Words) -> Answer {
        let mut parser = Parser::default();
        let mut index = 0;
        while let Some(word) = words.get(index) {
            let at = |(spelling, _): &&(Words, String)| words.starts_with(index, spelling);
            if let Some((spelling, noun)) = self.nouns.iter().find(at) {
                parser.phrase.nouns.push(noun.clone());
                index += spelling.len();
            } else if let Some((spelling, color)) = self.colors.iter().find(at) {
                parser.phrase.colors.push(color.clone());
                index += spelling.len();
            } else {
                if !self.ignore.iter().any(|ignored| ignored == word) {
                    parser.word(word, role(word));
                }
                index += 1;
            }
        }
        parser.close();
        parser.answer
    }
}

/// What of the facts an answer says, each where it belongs; one entry an object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Said {
    /// The noun is named.
    pub nouns: Vec<bool>,
    /// The number is said of its noun.
    pub numbers: Vec<bool>,
    /// The colour is said of its noun alone (or stands alone, where only one object was asked for).
    pub colors: Vec<bool>,
    /// The relation is said in its direction.
    pub relation: bool,
    /// What the answer says beyond what was asked for, if anything, e.g. `` names `cat` ``.
    pub more: Option<String>,
}

impl Said {
    /// What of `facts` an answer says.
    pub fn of(facts: &Facts, answer: &Answer) -> Self {
        let mut said = Self { more: too_much(facts, answer), ..Self::default() };
        let mut found: Vec<Option<usize>> = Vec::new();
        for object in &facts.objects {
            let names = |(index, claim): &(usize, &Claim)| {
                claim.noun.as_ref() == Some(&object.noun) && !found.contains(&Some(*index))
            };
            let has_color = |claim: &Claim| claim.colors.first() == object.color.as_ref();
            // Of two claims for one noun, the one in the right colour.
            let named = || answer.claims.iter().enumerate().filter(names);
            let claim = named().find(|(_, claim)| has_color(claim)).or_else(|| named().next());
            found.push(claim.map(|(index, _)| index));
            let claim = claim.map(|(_, claim)| claim);
            let alone = facts.category == Category::Colors;
            let bare = answer.claims.first().filter(|claim| alone && claim.noun.is_none());
            said.nouns.push(claim.is_some());
            said.numbers.push(claim.is_some_and(|claim| claim.count == Some(object.count)));
            said.colors.push(object.color.is_some() && claim.or(bare).is_some_and(has_color));
        }
        if let (Some(asked), [first, second]) = (facts.relation, found.as_slice()) {
            // "The dog is on the left and the cat is on the right": the second says the same, of nothing.
            let forward = |place: &Placement| place.subject == *first && place.relation == Some(asked);
            let backward =
                |place: &Placement| place.subject == *second && place.relation == Some(asked.opposite());
            let whole = |place: &Placement| {
                (forward(place) && place.object == *second) || (backward(place) && place.object == *first)
            };
            let half = |place: &Placement| place.object.is_none() && (forward(place) || backward(place));
            let places = &answer.placements;
            let agree = places.iter().all(|place| whole(place) || half(place));
            said.relation = first.is_some() && second.is_some() && agree && places.iter().any(whole);
            if places.len() > 1 && !agree {
                said.more.get_or_insert_with(|| "says several positions".into());
            }
        }
        said
    }

    /// Whether everything that the question asks for is said, and nothing more.
    pub fn is_right(&self, category: Category) -> bool {
        let all = |said: &[bool]| said.iter().all(|said| *said);
        self.more.is_none()
            && match category {
                Category::SingleObject | Category::TwoObject => all(&self.nouns),
                Category::Counting => all(&self.numbers),
                Category::Colors => all(&self.colors),
                Category::Position => all(&self.nouns) && self.relation,
                Category::ColorAttr => all(&self.nouns) && all(&self.colors),
            }
    }
}

/// What an answer says beyond what was asked for: more objects, several colours of one, a number where none was asked for.
fn too_much(facts: &Facts, answer: &Answer) -> Option<String> {
    let asked = facts.objects.len();
    // "There are two objects: ...": a number of nothing, and the right one.
    let bare =
        |claim: &&Claim| claim.noun.is_none() && claim.colors.is_empty() && claim.count == Some(asked as u32);
    let skip = facts.category != Category::Counting;
    let claims: Vec<&Claim> = answer.claims.iter().filter(|claim| !(skip && bare(claim))).collect();
    for claim in &claims {
        if facts.category.names_colors() && claim.colors.len() > 1 {
            return Some(format!("says {} colours", claim.colors.len()));
        }
        if facts.category != Category::Counting
            && let Some(count) = claim.count
            && count > 1
        {
            return Some(format!("says that there are {count}"));
        }
    }
    if claims.len() <= asked {
        return None;
    }
    let known = |noun: &&String| facts.objects.iter().any(|object| object.noun == **noun);
    let other = claims.iter().filter_map(|claim| claim.noun.as_ref()).find(|noun| !known(noun));
    Some(match other {
        Some(noun) => format!("names `{noun}`"),
        None => format!("names {} objects", claims.len()),
    })
}

/// What of the facts an answer says, by the usual vocabulary.
pub fn understand(facts: &Facts, answer: &str) -> Said {
    Said::of(facts, &Reader::new(facts, &Vocabulary::default()).read(&Words::of(answer)))
}

#[cfg(test)]
mod tests {
    use super::super::Object;
    use super::*;

    fn facts(category: Category, objects: &[(&str, u32, Option<&str>)], relation: Option<Relation>) -> Facts {
        let object = |(noun, count, color): &(&str, u32, Option<&str>)| Object {
            noun: (*noun).into(),
            count: *count,
            color: color.map(Into::into),
        };
        Facts { category, objects: objects.iter().map(object).collect(), relation }
    }

    fn right(facts: &Facts, answer: &str) -> bool {
        understand(facts, answer).is_right(facts.category)
    }

    #[test]
    fn the_reader_is_tolerant() {
        let three = facts(Category::Counting, &[("wine glass", 3, None)], None);
        for answer in [
            "Three wine glasses.",
            "there are 3 wine glasses in this image",
            "three wine glass",
            "The number of wine glasses is three",
            "There are three large wineglasses in the picture!",
        ] {
            assert!(right(&three, answer), "{answer}");
        }
        assert!(!right(&three, "three glasses"));
        let couch = facts(Category::TwoObject, &[("couch", 1, None), ("computer mouse", 1, None)], None);
        assert!(right(&couch, "A wooden sofa. A mouse."));
        assert!(right(&couch, "there is a couch and a computer mouse"));
        let gray = facts(Category::Colors, &[("tv", 1, Some("gray"))], None);
        assert!(right(&gray, "The television is grey."));
    }

    #[test]
    fn colours_and_nouns_may_share_a_word() {
        let fruit = facts(Category::Colors, &[("orange", 1, Some("orange"))], None);
        assert!(right(&fruit, "an orange orange"));
        assert!(right(&fruit, "The orange is orange."));
        assert!(!right(&fruit, "the orange is red"));
        let juice = facts(Category::SingleObject, &[("orange juice", 1, None)], None);
        assert!(right(&juice, "Orange juice"));
        let two = facts(Category::Colors, &[("car", 1, Some("light blue"))], None);
        assert!(right(&two, "the car is light blue") && !right(&two, "the car is blue"));
    }

    #[test]
    fn a_denial_is_no_claim() {
        let circle = facts(Category::SingleObject, &[("circle", 1, None)], None);
        for wrong in [
            "no circle",
            "nothing",
            "",
            "not a circle",
            "a circle and more",
            "zero circles",
            "this isn't a circle",
        ] {
            assert!(!right(&circle, wrong), "{wrong}");
        }
        assert!(right(&circle, "a circle and no star"));
        let green = facts(Category::Colors, &[("fork", 1, Some("green"))], None);
        for wrong in ["not green", "the fork is not green", "the fork isn't green", "The fork is never green"]
        {
            assert!(!right(&green, wrong), "{wrong}");
        }
        assert!(right(&green, "no, it's green"));
    }

    #[test]
    fn both_forms_of_a_relation_are_right() {
        let objects = [("star", 1, None), ("ring", 1, None)];
        let left = facts(Category::Position, &objects, Some(Relation::LeftOf));
        for answer in [
            "the star is to the left of the ring",
            "the star is located on the left side of the ring",
            "the ring is on the right side of the star",
            "The star is on the left and the ring is on the right.",
        ] {
            assert!(right(&left, answer), "{answer}");
        }
        for (answer, nouns) in [
            ("the ring is left of the star", 2),
            ("the star is diagonal to the ring", 2),
            ("the star is not left of the ring", 2),
            ("the star is left and right of the ring", 2),
            ("the star is on the left and the ring is on the left", 2),
            ("a star in front of a ring", 2),
        ] {
            let said = understand(&left, answer);
            assert!(
                !said.relation && said.nouns.iter().filter(|said| **said).count() == nouns,
                "{answer}: {said:?}"
            );
        }
    }

    #[test]
    fn what_is_too_much_is_told() {
        let circle = facts(Category::SingleObject, &[("circle", 1, None)], None);
        let more = |facts: &Facts, answer: &str| understand(facts, answer).more.unwrap_or_default();
        assert_eq!(more(&circle, "a circle and a star"), "names `star`");
        assert_eq!(more(&circle, "a circle and a circle"), "names 2 objects");
        assert_eq!(more(&circle, "two circles"), "says that there are 2");
        let green = facts(Category::Colors, &[("fork", 1, Some("green"))], None);
        assert_eq!(more(&green, "red orange green"), "says 3 colours");
    }
}
