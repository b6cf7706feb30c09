//! Reading an answer: text to claims (this many of that noun in that colour, this left of that), and claims to marks.
//!
//! One grammar serves the `bound` reward rule and the answer judge. It knows no list of nouns: what is neither number,
//! colour, relation nor filler is a noun, so that anything named beyond what was asked for is seen.

use super::english::{number, plural};
use super::lexicon::COLORS;
use super::{Category, Facts, Relation};

const DETERMINERS: [&str; 3] = ["a", "an", "the"];
const SEPARATORS: [&str; 9] = ["and", "with", "plus", "or", "but", "while", ",", "is", "are"];
/// Relations that no prompt asks for.
const ELSEWHERE: [&str; 6] = ["diagonal", "diagonally", "next", "beside", "near", "behind"];
const FILLERS: [&str; 32] = [
    "there", "this", "that", "it", "in", "of", "to", "on", "at", "from", "side", "image", "picture", "photo",
    "object", "objects", "item", "items", "main", "color", "colour", "colored", "number", "total", "shows",
    "contains", "has", "i", "see", "here", "s", "which",
];

/// One mention of objects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Claim {
    /// The noun, in the singular if it was asked for; `None` for a bare colour or number.
    pub noun: Option<String>,
    /// How many, if said.
    pub count: Option<u32>,
    /// Colours said of it.
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
    /// The objects in the order of mention; one mentioned twice counts as two.
    pub claims: Vec<Claim>,
    /// Where they lie.
    pub placements: Vec<Placement>,
}

/// The part of an answer between two separators.
#[derive(Default)]
struct Phrase {
    determined: bool,
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
        if phrase.nouns.is_empty() && (phrase.determined || phrase.count.is_some()) {
            // "an orange": the fruit.
            phrase.nouns.extend(phrase.colors.pop());
        }
        let noun = (!phrase.nouns.is_empty()).then(|| phrase.nouns.join(" "));
        if noun.is_none() && phrase.colors.is_empty() && phrase.count.is_none() {
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
        self.close();
        let subject = self.answer.claims.len().checked_sub(1);
        self.answer.placements.push(Placement { subject, relation, object: None });
    }

    fn word(&mut self, word: &str, is_color: bool) {
        if SEPARATORS.contains(&word) {
            self.close();
            self.predicate |= matches!(word, "is" | "are");
        } else if DETERMINERS.contains(&word) {
            self.phrase.determined = true;
        } else if relation(word).is_some() || ELSEWHERE.contains(&word) {
            self.place(relation(word));
        } else if is_color {
            self.phrase.colors.push(word.into());
        } else if let (Some(count), None) = (number(word), self.phrase.count) {
            self.phrase.count = Some(count);
        } else if !FILLERS.contains(&word) {
            self.phrase.nouns.push(word.into());
        }
    }
}

fn relation(word: &str) -> Option<Relation> {
    match word {
        "left" => Some(Relation::LeftOf),
        "right" => Some(Relation::RightOf),
        "above" | "over" | "top" => Some(Relation::Above),
        "below" | "under" | "beneath" | "underneath" => Some(Relation::Below),
        _ => None,
    }
}

/// Lower-case words; any punctuation that can end a clause becomes a comma.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for letter in text.chars().flat_map(char::to_lowercase) {
        if letter.is_alphanumeric() {
            if let Some(word) = words.last_mut() {
                word.push(letter);
            }
        } else {
            if matches!(letter, ',' | '.' | ';' | ':' | '\n' | '&' | '!') {
                words.push(",".into());
            }
            words.push(String::new());
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

impl Answer {
    /// Reads an answer. Tolerates case, articles, punctuation, plurals and digits; the facts lend their nouns (so that
    /// `orange juice` is no colour) and their colours.
    pub fn parse(text: &str, facts: &Facts) -> Self {
        let is_color = |word: &str| {
            COLORS.contains(&word) || facts.objects.iter().any(|object| object.color.as_deref() == Some(word))
        };
        let mut asked: Vec<(Vec<String>, &str)> = facts
            .objects
            .iter()
            .flat_map(|object| {
                [words(&object.noun), words(&plural(&object.noun))].map(|w| (w, &*object.noun))
            })
            .filter(|(spelling, _)| !matches!(spelling.as_slice(), [only] if is_color(only)))
            .filter(|(spelling, _)| !spelling.is_empty())
            .collect();
        asked.sort_by_key(|(spelling, _)| std::cmp::Reverse(spelling.len()));

        let text = words(text);
        let mut rest = text.as_slice();
        let mut parser = Parser::default();
        while let [word, after @ ..] = rest {
            if let Some((spelling, noun)) = asked.iter().find(|(spelling, _)| rest.starts_with(spelling)) {
                parser.phrase.nouns.push((*noun).into());
                rest = &rest[spelling.len()..];
            } else {
                parser.word(word, is_color(word));
                rest = after;
            }
        }
        parser.close();
        parser.answer
    }
}

/// What an answer is worth: a point for each keyword of the paper's Table 2, each only where it belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Marks {
    /// Nouns that were asked for and named.
    pub nouns: u32,
    /// Right numbers, each at its noun.
    pub numbers: u32,
    /// Right colours, each at its noun (or alone, where only one object was asked for).
    pub colors: u32,
    /// The right relation in the right direction.
    pub relations: u32,
    /// The points of a right answer.
    pub max: u32,
}

impl Marks {
    /// All points.
    pub fn score(self) -> u32 {
        self.nouns + self.numbers + self.colors + self.relations
    }

    /// Whether nothing is missing, wrong or too much.
    pub fn full(self) -> bool {
        self.score() == self.max
    }
}

impl Category {
    /// The number of keywords in a right answer (Table 2).
    pub fn keywords(self) -> u32 {
        match self {
            Category::SingleObject | Category::Colors => 1,
            Category::TwoObject | Category::Counting => 2,
            Category::Position => 3,
            Category::ColorAttr => 4,
        }
    }
}

/// Marks an answer. One that names more than was asked for gets nothing.
pub fn mark(facts: &Facts, answer: &str) -> Marks {
    let nothing = Marks { max: facts.category.keywords(), ..Marks::default() };
    let answer = Answer::parse(answer, facts);
    let counts = facts.category == Category::Counting;
    let says_more = |claim: &Claim| {
        let colored = matches!(facts.category, Category::Colors | Category::ColorAttr);
        (colored && claim.colors.len() > 1) || (!counts && claim.count.is_some_and(|count| count > 1))
    };
    if answer.claims.len() > facts.objects.len()
        || (facts.relation.is_some() && answer.placements.len() > 1)
        || answer.claims.iter().any(says_more)
    {
        return nothing;
    }

    let mut marks = nothing;
    let mut found: Vec<Option<usize>> = Vec::new();
    for object in &facts.objects {
        let names = |(index, claim): &(usize, &Claim)| {
            claim.noun.as_ref() == Some(&object.noun)
                && claim.count != Some(0)
                && !found.contains(&Some(*index))
        };
        let has_color = |claim: &Claim| claim.colors.first() == object.color.as_ref();
        // Of two claims for one noun, the one in the right colour.
        let named = || answer.claims.iter().enumerate().filter(names);
        let claim = named().find(|(_, claim)| has_color(claim)).or_else(|| named().next());
        found.push(claim.map(|(index, _)| index));
        let claim = claim.map(|(_, claim)| claim);
        if facts.category == Category::Colors {
            let bare = answer.claims.first().filter(|claim| claim.noun.is_none());
            marks.colors += u32::from(claim.or(bare).is_some_and(has_color));
        } else if let Some(claim) = claim {
            marks.nouns += 1;
            marks.numbers += u32::from(counts && claim.count == Some(object.count));
            marks.colors += u32::from(object.color.is_some() && has_color(claim));
        }
    }
    if let (Some(asked), [Some(first), Some(second)], [placement]) =
        (facts.relation, found.as_slice(), answer.placements.as_slice())
    {
        let said = (placement.subject, placement.relation, placement.object);
        let right = said == (Some(*first), Some(asked), Some(*second))
            || said == (Some(*second), Some(asked.opposite()), Some(*first));
        marks.relations = u32::from(right);
    }
    marks
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

    #[test]
    fn the_reader_is_tolerant() {
        let three = facts(Category::Counting, &[("wine glass", 3, None)], None);
        for right in [
            "Three wine glasses.",
            "there are 3 wine glasses in this image",
            "three wine glass",
            "The number of wine glasses is three",
        ] {
            assert!(mark(&three, right).full(), "{right}");
        }
        assert_eq!(mark(&three, "three glasses").score(), 0);
    }

    #[test]
    fn colours_and_nouns_may_share_a_word() {
        let fruit = facts(Category::Colors, &[("orange", 1, Some("orange"))], None);
        assert!(mark(&fruit, "an orange orange").full());
        assert!(mark(&fruit, "The orange is orange.").full());
        assert!(!mark(&fruit, "the orange is red").full());
        let juice = facts(Category::SingleObject, &[("orange juice", 1, None)], None);
        assert!(mark(&juice, "Orange juice").full());
    }

    #[test]
    fn a_denial_is_no_claim() {
        let circle = facts(Category::SingleObject, &[("circle", 1, None)], None);
        for wrong in ["no circle", "nothing", "", "not a circle", "a circle and more", "zero circles"] {
            assert!(!mark(&circle, wrong).full(), "{wrong}");
        }
    }

    #[test]
    fn both_forms_of_a_relation_are_right() {
        let objects = [("star", 1, None), ("ring", 1, None)];
        let left = facts(Category::Position, &objects, Some(Relation::LeftOf));
        assert!(mark(&left, "the star is to the left of the ring").full());
        assert!(mark(&left, "the ring is on the right side of the star").full());
        assert_eq!(mark(&left, "the ring is left of the star").score(), 2);
        assert_eq!(mark(&left, "the star is diagonal to the ring").score(), 2);
    }
}
