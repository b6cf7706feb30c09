//! Reading an answer: from text to claims (so many of that noun in that colour, this left of that), and from claims to what
//! of the facts they state.
//!
//! One grammar serves the reward rules that bind a word to its object, and the answer judge. It has no closed list of
//! objects: a word that is no number, colour, place or word of `roles.rs` names an object, so that everything named beyond
//! what was asked for is seen. An unknown word before a known noun describes it (`a rusty bench`); behind it, it makes
//! another object of it (`a dog house`).

mod matching;
mod parser;
mod places;
mod roles;
mod words;

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use super::lexicon::{COLORS, EVERYDAY, SHAPES, canonical, color_spellings, synonyms};
use super::{Plurals, PromptSpec, Relation, plural};
use parser::Parser;
use roles::{Role, joint_role, role};

pub use matching::{AnswerMatch, match_answer};
pub use words::Words;

/// One mention of objects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Claim {
    /// The noun, as the facts spell it if it was asked for; `None` for a bare colour or number.
    pub noun: Option<String>,
    /// How many, if stated.
    pub count: Option<u32>,
    /// Stated to be more than one, without a number.
    pub several: bool,
    /// Counted in pairs.
    pub paired: bool,
    /// Colours stated of it, as the facts spell them.
    pub colors: Vec<String>,
}

/// One statement of where something lies; indices point into [`ParsedAnswer::claims`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// What lies there.
    pub subject: Option<usize>,
    /// The relation, `None` for one that no prompt asks for (`diagonal`, `next to`) or that is negated.
    pub relation: Option<Relation>,
    /// Seen from what; `None` for a place in the image (`on the left`).
    pub object: Option<usize>,
}

/// An answer as claims.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParsedAnswer {
    /// The objects in the order of mention. One mentioned twice counts as two unless `the` refers back to it; one that is
    /// negated does not count.
    pub claims: Vec<Claim>,
    /// Where they lie.
    pub placements: Vec<Placement>,
    /// Why the answer commits to nothing, if it hedges or takes back what it states.
    pub doubt: Option<String>,
}

/// Other names of objects and colours, and words to ignore.
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

/// The spellings of a noun: itself and both plurals.
fn spellings(name: &str) -> impl Iterator<Item = Words> {
    let many = [Plurals::English.of(name), Plurals::Geneval.of(name)];
    std::iter::once(name.to_string()).chain(many).map(|spelling| Words::of(&spelling))
}

/// Objects that are known whatever was asked for: by their first word, the longest spelling first.
fn known_objects() -> &'static HashMap<String, Vec<(Words, &'static str)>> {
    static KNOWN: LazyLock<HashMap<String, Vec<(Words, &'static str)>>> = LazyLock::new(|| {
        let mut known: HashMap<String, Vec<(Words, &str)>> = HashMap::new();
        // `orange` is a colour and `saw` a verb, unless they are asked for.
        let all = EVERYDAY.iter().filter(|(noun, _)| !["orange", "saw"].contains(noun));
        for (noun, others) in all {
            for spelling in others.iter().chain([noun]).flat_map(|name| spellings(name)) {
                let first = spelling.get(0).unwrap_or_default().to_string();
                known.entry(first).or_default().push((spelling, noun));
            }
        }
        for list in known.values_mut() {
            list.sort_by_key(|(spelling, _)| std::cmp::Reverse(spelling.len()));
        }
        known
    });
    &KNOWN
}

/// Reads the answers about some facts: tolerant of case, articles, punctuation, plurals and digits.
///
/// The facts lend their nouns (so that `orange juice` is no colour) and their colours; a noun or colour by another name
/// counts as its own.
#[derive(Debug)]
pub struct AnswerParser {
    /// Spellings with the noun that they stand for, the longest first.
    nouns: Vec<(Words, String)>,
    colors: Vec<(Words, String)>,
    ignore: Vec<String>,
    /// Names of the lexicon that mean a noun that was asked for.
    asked: HashMap<String, String>,
    /// Where a shape was asked for, every shape is an object; elsewhere `square` describes one.
    shapes: Vec<String>,
}

impl AnswerParser {
    /// The parser of answers about `facts`.
    pub fn new(spec: &PromptSpec, vocabulary: &Vocabulary) -> Self {
        let mut colors: Vec<(Words, String)> = Vec::new();
        for color in spec.objects.iter().filter_map(|object| object.color.as_ref()) {
            colors
                .extend(vocabulary.colors(color).iter().map(|spelling| (Words::of(spelling), color.clone())));
        }
        // Where colours are asked for, "orange" is one; elsewhere it is the fruit.
        let is_color = |spelling: &Words| {
            let own = || colors.iter().any(|(color, _)| color.text() == spelling.text());
            spec.category.names_colors()
                && spelling.len() == 1
                && (own() || role(spelling.text()) == Some(Role::Color))
        };
        let mut nouns: Vec<(Words, String)> = Vec::new();
        let mut asked = HashMap::new();
        for object in &spec.objects {
            for name in vocabulary.names(&object.noun) {
                let fits = |spelling: &Words| !spelling.is_empty() && !is_color(spelling);
                nouns.extend(spellings(&name).filter(fits).map(|spelling| (spelling, object.noun.clone())));
            }
            if vocabulary.usual_synonyms {
                asked.insert(canonical(&object.noun), object.noun.clone());
            }
        }
        nouns.sort_by_key(|(spelling, _)| std::cmp::Reverse(spelling.len()));
        colors.sort_by_key(|(spelling, _)| std::cmp::Reverse(spelling.len()));
        let ignore = vocabulary.ignore.iter().map(|word| word.to_lowercase()).collect();
        let has_shape = spec.objects.iter().any(|object| SHAPES.contains(&object.noun.as_str()));
        let shapes =
            SHAPES.iter().filter(|_| has_shape).flat_map(|shape| [(*shape).into(), plural(shape)]).collect();
        Self { nouns, colors, ignore, asked, shapes }
    }

    /// The object whose name begins at `index`, with the length of the name: one that was asked for, or one of the lexicon
    /// with a longer name (`hot dog`, where a dog was asked for).
    fn object<'p>(&'p self, words: &Words, index: usize) -> Option<(&'p str, usize)> {
        let at = |spelling: &Words| words.starts_with(index, spelling);
        let asked = self.nouns.iter().find(|(spelling, _)| at(spelling));
        let asked = asked.map(|(spelling, noun)| (noun.as_str(), spelling.len()));
        let listed = words.get(index).and_then(|first| known_objects().get(first));
        let listed = listed.into_iter().flatten().find(|(spelling, _)| at(spelling));
        let listed = listed.map(|(spelling, noun)| {
            (self.asked.get(*noun).map_or(spelling.text(), String::as_str), spelling.len())
        });
        [asked, listed].into_iter().flatten().rev().max_by_key(|(_, length)| *length)
    }

    /// Reads an answer.
    pub fn parse(&self, words: &Words) -> ParsedAnswer {
        let mut parser = Parser::default();
        let mut index = 0;
        while let Some(word) = words.get(index) {
            let at = |(spelling, _): &&(Words, String)| words.starts_with(index, spelling);
            if let Some(mark) = words.mark(index) {
                parser.mark(mark);
                index += 1;
            } else if let Some((noun, length)) = self.object(words, index) {
                parser.noun(noun, true);
                index += length;
            } else if let Some((spelling, color)) = self.colors.iter().find(at) {
                parser.color(color);
                index += spelling.len();
            } else {
                if self.shapes.iter().any(|shape| shape == word) {
                    parser.noun(word, true);
                } else if let Some((role, length)) = joint_role(words, index) {
                    parser.word(word, Some(role), words.get(index + length));
                    index += length - 1;
                } else if !self.ignore.iter().any(|ignored| ignored == word) {
                    parser.word(word, role(word), words.get(index + 1));
                }
                index += 1;
            }
        }
        parser.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Category, Object};
    use super::*;

    fn spec(
        category: Category,
        objects: &[(&str, u32, Option<&str>)],
        relation: Option<Relation>,
    ) -> PromptSpec {
        let object = |(noun, count, color): &(&str, u32, Option<&str>)| Object {
            noun: (*noun).into(),
            count: *count,
            color: color.map(Into::into),
        };
        PromptSpec { category, objects: objects.iter().map(object).collect(), relation }
    }

    fn right(spec: &PromptSpec, answer: &str) -> bool {
        match_answer(spec, answer).is_right(spec.category)
    }

    #[test]
    fn the_reader_is_tolerant() {
        let three = spec(Category::Counting, &[("wine glass", 3, None)], None);
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
        let couch = spec(Category::TwoObject, &[("couch", 1, None), ("computer mouse", 1, None)], None);
        assert!(right(&couch, "A wooden sofa. A mouse."));
        assert!(right(&couch, "there is a couch and a computer mouse"));
        let gray = spec(Category::Colors, &[("tv", 1, Some("gray"))], None);
        assert!(right(&gray, "The television is grey."));
    }

    #[test]
    fn colours_and_nouns_may_share_a_word() {
        let fruit = spec(Category::Colors, &[("orange", 1, Some("orange"))], None);
        assert!(right(&fruit, "an orange orange"));
        assert!(right(&fruit, "The orange is orange."));
        assert!(!right(&fruit, "the orange is red"));
        let juice = spec(Category::SingleObject, &[("orange juice", 1, None)], None);
        assert!(right(&juice, "Orange juice"));
        let two = spec(Category::Colors, &[("car", 1, Some("light blue"))], None);
        assert!(right(&two, "the car is light blue") && !right(&two, "the car is blue"));
    }

    #[test]
    fn a_denial_is_no_claim() {
        let circle = spec(Category::SingleObject, &[("circle", 1, None)], None);
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
        let green = spec(Category::Colors, &[("fork", 1, Some("green"))], None);
        for wrong in ["not green", "the fork is not green", "the fork isn't green", "The fork is never green"]
        {
            assert!(!right(&green, wrong), "{wrong}");
        }
        assert!(right(&green, "no, it's green"));
    }

    #[test]
    fn both_forms_of_a_relation_are_right() {
        let objects = [("star", 1, None), ("ring", 1, None)];
        let left = spec(Category::Position, &objects, Some(Relation::LeftOf));
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
            let said = match_answer(&left, answer);
            assert!(
                !said.relation && said.nouns.iter().filter(|said| **said).count() == nouns,
                "{answer}: {said:?}"
            );
        }
    }

    #[test]
    fn what_is_too_much_is_told() {
        let circle = spec(Category::SingleObject, &[("circle", 1, None)], None);
        let more = |spec: &PromptSpec, answer: &str| match_answer(spec, answer).more.unwrap_or_default();
        assert_eq!(more(&circle, "a circle and a star"), "names `star`");
        assert_eq!(more(&circle, "a circle and a circle"), "names 2 objects");
        assert_eq!(more(&circle, "two circles"), "states that there are 2");
        let green = spec(Category::Colors, &[("fork", 1, Some("green"))], None);
        assert_eq!(more(&green, "red orange green"), "states 3 colours");
    }

    /// Fragments that a wrapper, a clause or a slice of bytes could stumble over, in any order.
    #[test]
    fn made_up_answers_never_panic() {
        #[rustfmt::skip]
        const FRAGMENTS: [&str; 48] = [
            "<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "{", "<", "\\", "a", "the", "star", "ring", "two", "3", "3.5",
            "1.", "2)", "4294967295", "99999999999", " ", "\n", ".", ",", "?", ":", " - ", "not", "no", "isn't", "n’t", "red", "orange",
            "left", "of", "above", "it", "respectively", "pairs of", "dozen", "one", "with", "fur", "on", "anything but", "İ", "🪑", "T.V.",
        ];
        let mut rng = crate::prompts::rng::Rng::new(41);
        let objects = [("star", 1, None), ("ring", 1, None)];
        let spec = spec(Category::Position, &objects, Some(Relation::LeftOf));
        for _ in 0..20_000 {
            let words = (0..=rng.below(12)).map(|_| FRAGMENTS[rng.below(FRAGMENTS.len())]);
            let answer = words.collect::<Vec<_>>().join(["", " "][rng.below(2)]);
            match_answer(&spec, &answer);
        }
    }
}
