//! The English of prompts and answers: articles, plurals and numbers.

use serde::{Deserialize, Serialize};

const NUMBERS: [&str; 21] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
];

/// Irregular plurals, by the last word of a noun.
#[rustfmt::skip]
const IRREGULAR: [(&str, &str); 44] = [
    ("person", "people"), ("man", "men"), ("woman", "women"), ("child", "children"), ("snowman", "snowmen"),
    ("mouse", "mice"), ("goose", "geese"), ("foot", "feet"), ("tooth", "teeth"), ("ox", "oxen"),
    ("knife", "knives"), ("wife", "wives"), ("leaf", "leaves"), ("loaf", "loaves"), ("wolf", "wolves"),
    ("shelf", "shelves"), ("bookshelf", "bookshelves"), ("scarf", "scarves"), ("calf", "calves"), ("elf", "elves"),
    ("half", "halves"), ("thief", "thieves"), ("potato", "potatoes"), ("tomato", "tomatoes"), ("hero", "heroes"),
    ("mango", "mangoes"), ("volcano", "volcanoes"), ("cactus", "cacti"), ("quiz", "quizzes"),
    ("scissors", "scissors"), ("skis", "skis"), ("sheep", "sheep"), ("deer", "deer"), ("fish", "fish"),
    ("goldfish", "goldfish"), ("series", "series"), ("aircraft", "aircraft"), ("broccoli", "broccoli"),
    ("pants", "pants"), ("jeans", "jeans"), ("shorts", "shorts"), ("glasses", "glasses"), ("sunglasses", "sunglasses"),
    ("binoculars", "binoculars"),
];

/// Nouns in `-ie`, whose plural looks like that of a noun in `-y`.
const IE: [&str; 8] = ["tie", "pie", "cookie", "movie", "hoodie", "brownie", "smoothie", "zombie"];

/// Beginnings with a vowel letter that sounds like a consonant, and the reverse.
const A_BEFORE: [&str; 8] = ["uni", "use", "usu", "uk", "eu", "ewe", "one", "once"];
const AN_BEFORE: [&str; 4] = ["hour", "honest", "heir", "unin"];

/// How plurals are spelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Plurals {
    /// English: `knives`, `benches`, `sheep`.
    #[default]
    English,
    /// As in `GenEval`: `es` after an `s`, else `s` (`knifes`, `benchs`, `sheeps`).
    Geneval,
}

impl Plurals {
    /// Returns the plural of a noun.
    pub fn of(self, noun: &str) -> String {
        match self {
            Plurals::English => plural(noun),
            Plurals::Geneval => format!("{noun}{}", if noun.ends_with('s') { "es" } else { "s" }),
        }
    }
}

/// Returns the text before the last word of `noun`, if that word is `last`.
fn before<'n>(noun: &'n str, last: &str) -> Option<&'n str> {
    noun.strip_suffix(last).filter(|start| start.is_empty() || start.ends_with([' ', '-']))
}

/// Returns the English plural of a noun: `stars`, `crosses`, `wine glasses`, `knives`.
pub fn plural(noun: &str) -> String {
    for (one, many) in IRREGULAR {
        if let Some(start) = before(noun, one) {
            return format!("{start}{many}");
        }
    }
    if let Some(stem) = noun.strip_suffix('y')
        && !stem.ends_with(['a', 'e', 'i', 'o', 'u'])
    {
        return format!("{stem}ies");
    }
    let hisses = ["s", "x", "z", "ch", "sh"].iter().any(|end| noun.ends_with(end));
    format!("{noun}{}", if hisses { "es" } else { "s" })
}

/// Returns the singular of a plural of either spelling. If English allows two (`houses`: `house`, `hous`), the more likely one.
pub(super) fn singular(many: &str) -> String {
    for (one, irregular) in IRREGULAR {
        if let Some(start) = before(many, irregular) {
            return format!("{start}{one}");
        }
    }
    let one = many.strip_suffix('s').unwrap_or(many);
    if let Some(stem) = many.strip_suffix("ies")
        && !IE.iter().any(|noun| before(one, noun).is_some())
    {
        return format!("{stem}y");
    }
    let whole_es = ["sses", "xes", "ches", "shes", "zzes"].iter().any(|end| many.ends_with(end));
    let bus = many.ends_with("uses") && !many.ends_with("ouses");
    if let Some(stem) = many.strip_suffix("es")
        && (whole_es || bus)
    {
        return stem.into();
    }
    if one.ends_with('s') { many.into() } else { one.into() }
}

/// Returns `a` or `an`, by the sound of the next word.
pub fn article(next: &str) -> &'static str {
    let starts = |known: &[&str]| known.iter().any(|start| next.starts_with(start));
    let vowel = next.starts_with(['a', 'e', 'i', 'o', 'u']) && !starts(&A_BEFORE);
    if vowel || starts(&AN_BEFORE) { "an" } else { "a" }
}

/// Returns a number in words up to twenty, and in digits above.
pub fn number_word(number: u32) -> String {
    NUMBERS.get(number as usize).map_or_else(|| number.to_string(), ToString::to_string)
}

/// The inverse of [`number_word`]; also accepts digits and `no`.
pub(super) fn number(word: &str) -> Option<u32> {
    if word == "no" {
        return Some(0);
    }
    NUMBERS.iter().position(|known| *known == word).map(|n| n as u32).or_else(|| word.parse().ok())
}

/// Whether a pair is one object: `a pair of scissors`.
pub(super) fn is_always_a_pair(noun: &str) -> bool {
    [
        "scissors",
        "pants",
        "jeans",
        "shorts",
        "trousers",
        "glasses",
        "sunglasses",
        "binoculars",
        "pliers",
        "tongs",
        "tweezers",
    ]
    .contains(&noun)
}

/// Returns `text` with its first letter in upper case.
pub(super) fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals_of_both_spellings() {
        let nouns = [
            "star",
            "cross",
            "wine glass",
            "knife",
            "bench",
            "toy",
            "cherry",
            "person",
            "bus",
            "sheep",
            "scissors",
            "tomato",
            "computer mouse",
        ];
        let expected = [
            "stars",
            "crosses",
            "wine glasses",
            "knives",
            "benches",
            "toys",
            "cherries",
            "people",
            "buses",
            "sheep",
            "scissors",
            "tomatoes",
            "computer mice",
        ];
        assert_eq!(nouns.map(plural), expected);
        let geneval = ["stars", "crosses", "wine glasses", "knifes", "benchs"];
        assert_eq!(
            [nouns[0], nouns[1], nouns[2], nouns[3], nouns[4]].map(|n| Plurals::Geneval.of(n)),
            geneval
        );
    }

    #[test]
    fn singular_inverts_both_spellings() {
        let nouns = ["star", "cross", "house", "vase", "bus", "box", "knife", "sheep", "bench", "toy", "tie"];
        for noun in nouns {
            assert_eq!(singular(&plural(noun)), noun);
        }
        for (many, noun) in
            [("sheeps", "sheep"), ("knifes", "knife"), ("benchs", "bench"), ("persons", "person")]
        {
            assert_eq!(singular(many), noun);
        }
    }

    #[test]
    fn article_follows_the_sound() {
        for (next, expected) in [
            ("apple", "an"),
            ("bench", "a"),
            ("umbrella", "an"),
            ("unicorn", "a"),
            ("uninteresting", "an"),
            ("ukulele", "a"),
            ("hourglass", "an"),
            ("one-way sign", "a"),
            ("orange", "an"),
        ] {
            assert_eq!(article(next), expected, "{next}");
        }
    }
}
