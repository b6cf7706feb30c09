//! The answer parser: turns text into claims (a noun with its count and colours, a position), which are compared with a spec.
//!
//! One grammar serves the rewards that bind a word to its object and the answer judge. It has no closed list of objects: a word
//! that is no number, colour, position or word of `roles.rs` names an object, so that extra objects are noticed. An unknown
//! word before a known noun modifies it (`a rusty bench`); after the noun, it makes another object (`a dog house`).

mod matching;
mod parser;
mod places;
mod roles;
mod words;

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;

use parser::Parser;
use roles::{Role, joint_role, role};
use unirl::prompt::{PromptSpec, Relation};

use super::lexicon::{COLORS, EVERYDAY, SHAPES, canonical, color_spellings, synonyms};
use super::{Plurals, plural};

pub use matching::{AnswerMatch, match_answer};
pub use words::Words;

/// A mention of objects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Claim {
    /// The noun, in the spelling of the spec if it is in the spec; `None` for a colour or number without a noun.
    pub noun: Option<String>,
    /// The number of objects, if stated.
    pub count: Option<u32>,
    /// More than one, without a number.
    pub several: bool,
    /// Counted in pairs.
    pub paired: bool,
    /// The stated colours, in the spelling of the spec.
    pub colors: Vec<String>,
}

/// A statement of a position; indices point into [`ParsedAnswer::claims`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The object whose position is stated.
    pub subject: Option<usize>,
    /// The relation; `None` if it is negated or not one of the four (`diagonal`, `next to`).
    pub relation: Option<Relation>,
    /// The object that the position is relative to; `None` for a position in the image (`on the left`).
    pub object: Option<usize>,
}

/// An answer as claims.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ParsedAnswer {
    /// The objects in the order of mention. An object mentioned twice counts as two, unless `the` refers back to it. A negated
    /// object does not count.
    pub claims: Vec<Claim>,
    /// The positions.
    pub placements: Vec<Placement>,
    /// Why the answer makes no clear statement, if it hedges or contradicts itself.
    pub doubt: Option<String>,
}

/// Synonyms of objects and colours, and words to ignore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// Whether to accept the usual synonyms of everyday objects (`sofa` for `couch`).
    pub usual_synonyms: bool,
    /// Additional synonyms, by the noun or colour of the spec.
    pub synonyms: BTreeMap<String, Vec<String>>,
    /// Additional words that name no object.
    pub ignore: Vec<String>,
}

impl Default for Vocabulary {
    fn default() -> Self {
        Self { usual_synonyms: true, synonyms: BTreeMap::new(), ignore: Vec::new() }
    }
}

impl Vocabulary {
    fn with_synonyms<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a str> {
        let synonyms = self.synonyms.get(word).into_iter().flatten().map(String::as_str);
        std::iter::once(word).chain(synonyms)
    }

    /// Returns the names of a noun, in the singular and in lower case, the noun itself first.
    pub fn names(&self, noun: &str) -> Vec<String> {
        let usual = if self.usual_synonyms { synonyms(noun) } else { &[] };
        self.with_synonyms(noun).chain(usual.iter().copied()).map(str::to_lowercase).collect()
    }

    /// Returns the spellings of a colour, the colour itself first.
    pub fn colors(&self, color: &str) -> Vec<String> {
        self.with_synonyms(color).flat_map(color_spellings).collect()
    }
}

/// Returns the spellings of a noun: the noun and both plurals.
fn spellings(name: &str) -> impl Iterator<Item = Words> {
    let many = [Plurals::English.of(name), Plurals::Geneval.of(name)];
    std::iter::once(name.to_string()).chain(many).map(|spelling| Words::of(&spelling))
}

/// Returns the everyday objects by their first word, the longest spelling first.
fn known_objects() -> &'static HashMap<String, Vec<(Words, &'static str)>> {
    static KNOWN: LazyLock<HashMap<String, Vec<(Words, &'static str)>>> = LazyLock::new(|| {
        let mut known: HashMap<String, Vec<(Words, &str)>> = HashMap::new();
        // `orange` is a colour and `saw` a verb, unless they are in the spec.
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

/// Parses answers to the question of a spec. Case, articles, punctuation, plurals and digits do not matter.
///
/// The nouns of the spec take precedence (so that `orange juice` is no colour), and so do its colours. A synonym counts as the
/// noun or colour of the spec.
#[derive(Debug)]
pub struct AnswerParser {
    /// Spellings with their nouns, the longest first.
    nouns: Vec<(Words, String)>,
    colors: Vec<(Words, String)>,
    ignore: Vec<String>,
    /// Names of the lexicon with the nouns of the spec that they denote.
    spec_nouns: HashMap<String, String>,
    /// If the spec has a shape, every shape is an object; otherwise `square` is a modifier.
    shapes: Vec<String>,
}

impl AnswerParser {
    /// Creates the parser of answers about a spec.
    pub fn new(spec: &PromptSpec, vocabulary: &Vocabulary) -> Self {
        let mut colors: Vec<(Words, String)> = Vec::new();
        for color in spec.objects.iter().filter_map(|object| object.color.as_ref()) {
            colors
                .extend(vocabulary.colors(color).iter().map(|spelling| (Words::of(spelling), color.clone())));
        }
        // In categories with colours, "orange" is a colour; otherwise it is the fruit.
        let is_color = |spelling: &Words| {
            let in_spec = || colors.iter().any(|(color, _)| color.text() == spelling.text());
            spec.category.names_colors()
                && spelling.len() == 1
                && (in_spec() || role(spelling.text()) == Some(Role::Color))
        };
        let mut nouns: Vec<(Words, String)> = Vec::new();
        let mut spec_nouns = HashMap::new();
        for object in &spec.objects {
            for name in vocabulary.names(&object.noun) {
                let fits = |spelling: &Words| !spelling.is_empty() && !is_color(spelling);
                nouns.extend(spellings(&name).filter(fits).map(|spelling| (spelling, object.noun.clone())));
            }
            if vocabulary.usual_synonyms {
                spec_nouns.insert(canonical(&object.noun), object.noun.clone());
            }
        }
        nouns.sort_by_key(|(spelling, _)| std::cmp::Reverse(spelling.len()));
        colors.sort_by_key(|(spelling, _)| std::cmp::Reverse(spelling.len()));
        let ignore = vocabulary.ignore.iter().map(|word| word.to_lowercase()).collect();
        let has_shape = spec.objects.iter().any(|object| SHAPES.contains(&object.noun.as_str()));
        let shapes =
            SHAPES.iter().filter(|_| has_shape).flat_map(|shape| [(*shape).into(), plural(shape)]).collect();
        Self { nouns, colors, ignore, spec_nouns, shapes }
    }

    /// Returns the object whose name begins at `index`, with the length of the name: one of the spec, or one of the lexicon
    /// with a longer name (`hot dog`, if the spec has a dog).
    fn object<'p>(&'p self, words: &Words, index: usize) -> Option<(&'p str, usize)> {
        let at = |spelling: &Words| words.starts_with(index, spelling);
        let in_spec = self.nouns.iter().find(|(spelling, _)| at(spelling));
        let in_spec = in_spec.map(|(spelling, noun)| (noun.as_str(), spelling.len()));
        let in_lexicon = words.get(index).and_then(|first| known_objects().get(first));
        let in_lexicon = in_lexicon.into_iter().flatten().find(|(spelling, _)| at(spelling));
        let in_lexicon = in_lexicon.map(|(spelling, noun)| {
            (self.spec_nouns.get(*noun).map_or(spelling.text(), String::as_str), spelling.len())
        });
        [in_spec, in_lexicon].into_iter().flatten().rev().max_by_key(|(_, length)| *length)
    }

    /// Parses an answer.
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
    use unirl::prompt::{Category, Object};

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

    fn correct(spec: &PromptSpec, answer: &str) -> bool {
        match_answer(spec, answer).is_correct(spec.category)
    }

    #[test]
    fn parse_ignores_case_articles_punctuation_and_plurals() {
        let three = spec(Category::Counting, &[("wine glass", 3, None)], None);
        for answer in [
            "Three wine glasses.",
            "there are 3 wine glasses in this image",
            "three wine glass",
            "The number of wine glasses is three",
            "There are three large wineglasses in the picture!",
        ] {
            assert!(correct(&three, answer), "{answer}");
        }
        assert!(!correct(&three, "three glasses"));
        let couch = spec(Category::TwoObject, &[("couch", 1, None), ("computer mouse", 1, None)], None);
        assert!(correct(&couch, "A wooden sofa. A mouse."));
        assert!(correct(&couch, "there is a couch and a computer mouse"));
        let gray = spec(Category::Colors, &[("tv", 1, Some("gray"))], None);
        assert!(correct(&gray, "The television is grey."));
    }

    #[test]
    fn parse_distinguishes_colors_and_nouns_with_the_same_word() {
        let fruit = spec(Category::Colors, &[("orange", 1, Some("orange"))], None);
        assert!(correct(&fruit, "an orange orange"));
        assert!(correct(&fruit, "The orange is orange."));
        assert!(!correct(&fruit, "the orange is red"));
        let juice = spec(Category::SingleObject, &[("orange juice", 1, None)], None);
        assert!(correct(&juice, "Orange juice"));
        let two = spec(Category::Colors, &[("car", 1, Some("light blue"))], None);
        assert!(correct(&two, "the car is light blue") && !correct(&two, "the car is blue"));
    }

    #[test]
    fn negated_objects_are_not_claims() {
        let circle = spec(Category::SingleObject, &[("circle", 1, None)], None);
        for incorrect in [
            "no circle",
            "nothing",
            "",
            "not a circle",
            "a circle and more",
            "zero circles",
            "this isn't a circle",
        ] {
            assert!(!correct(&circle, incorrect), "{incorrect}");
        }
        assert!(correct(&circle, "a circle and no star"));
        let green = spec(Category::Colors, &[("fork", 1, Some("green"))], None);
        for incorrect in
            ["not green", "the fork is not green", "the fork isn't green", "The fork is never green"]
        {
            assert!(!correct(&green, incorrect), "{incorrect}");
        }
        assert!(correct(&green, "no, it's green"));
    }

    #[test]
    fn both_directions_of_a_relation_are_correct() {
        let objects = [("star", 1, None), ("ring", 1, None)];
        let left = spec(Category::Position, &objects, Some(Relation::LeftOf));
        for answer in [
            "the star is to the left of the ring",
            "the star is located on the left side of the ring",
            "the ring is on the right side of the star",
            "The star is on the left and the ring is on the right.",
        ] {
            assert!(correct(&left, answer), "{answer}");
        }
        for (answer, nouns) in [
            ("the ring is left of the star", 2),
            ("the star is diagonal to the ring", 2),
            ("the star is not left of the ring", 2),
            ("the star is left and right of the ring", 2),
            ("the star is on the left and the ring is on the left", 2),
            ("a star in front of a ring", 2),
        ] {
            let matched = match_answer(&left, answer);
            assert!(
                !matched.relation && matched.nouns.iter().filter(|named| **named).count() == nouns,
                "{answer}: {matched:?}"
            );
        }
    }

    #[test]
    fn extra_statements_are_reported() {
        let circle = spec(Category::SingleObject, &[("circle", 1, None)], None);
        let more = |spec: &PromptSpec, answer: &str| match_answer(spec, answer).more.unwrap_or_default();
        assert_eq!(more(&circle, "a circle and a star"), "names `star`");
        assert_eq!(more(&circle, "a circle and a circle"), "names 2 objects");
        assert_eq!(more(&circle, "two circles"), "states that there are 2");
        let green = spec(Category::Colors, &[("fork", 1, Some("green"))], None);
        assert_eq!(more(&green, "red orange green"), "states 3 colors");
    }

    /// Fragments that exercise wrappers, clauses and byte slicing, in random order.
    #[test]
    fn match_answer_never_panics_on_random_text() {
        #[rustfmt::skip]
        const FRAGMENTS: [&str; 48] = [
            "<think>", "</think>", "<answer>", "</answer>", "\\boxed{", "}", "{", "<", "\\", "a", "the", "star", "ring", "two", "3", "3.5",
            "1.", "2)", "4294967295", "99999999999", " ", "\n", ".", ",", "?", ":", " - ", "not", "no", "isn't", "n’t", "red", "orange",
            "left", "of", "above", "it", "respectively", "pairs of", "dozen", "one", "with", "fur", "on", "anything but", "İ", "🪑", "T.V.",
        ];
        let mut rng = crate::rng::Rng::new(41);
        let objects = [("star", 1, None), ("ring", 1, None)];
        let spec = spec(Category::Position, &objects, Some(Relation::LeftOf));
        for _ in 0..20_000 {
            let words = (0..=rng.below(12)).map(|_| FRAGMENTS[rng.below(FRAGMENTS.len())]);
            let answer = words.collect::<Vec<_>>().join(["", " "][rng.below(2)]);
            match_answer(&spec, &answer);
        }
    }
}
