//! The prompt parser: turns a prompt back into its spec.

use std::collections::HashMap;
use std::sync::LazyLock;

use unirl::error::{Error, Result};
use unirl::prompt::{Category, Object, PromptSpec, Relation};

use super::Plurals;
use super::english::{number, singular};
use super::lexicon::{COLORS, EVERYDAY, RELATIONS};
use super::objects::check_word;

/// Colours of prompts in addition to [`COLORS`].
#[rustfmt::skip]
const MORE_COLORS: [&str; 24] = [
    "gray", "grey", "silver", "gold", "golden", "beige", "tan", "teal", "turquoise", "cyan", "magenta", "maroon", "navy",
    "violet", "indigo", "lavender", "lime", "olive", "crimson", "scarlet", "burgundy", "khaki", "bronze", "ivory",
];

/// Modifiers that are part of a colour.
#[rustfmt::skip]
const SHADES: [&str; 16] = [
    "light", "dark", "bright", "pale", "deep", "hot", "neon", "pastel", "sky", "royal", "baby", "forest", "navy", "lime",
    "olive", "mint",
];

const OPENINGS: [&str; 4] = ["a photo of ", "photo of ", "a picture of ", "an image of "];

fn part_at<'t>(text: &'t str, joint: &str) -> Option<(&'t str, &'t str)> {
    text.split_once(&format!(" {joint} "))
}

/// Returns the noun after its article.
fn bare(phrase: &str) -> Option<&str> {
    ["a ", "an ", "the "]
        .iter()
        .find_map(|article| phrase.strip_prefix(article))
        .filter(|noun| !noun.is_empty())
}

fn plain(phrase: &str) -> Option<Object> {
    bare(phrase).map(Object::one)
}

fn colored(phrase: &str) -> Option<Object> {
    let phrase = bare(phrase)?;
    let (color, noun) = phrase.split_at(color(phrase)?);
    Some(Object { color: Some(color.into()), ..Object::one(noun.trim_start()) })
}

/// The length of the colour that a phrase begins with: `light blue` of `light blue chair`. The noun is left over.
fn color(phrase: &str) -> Option<usize> {
    let mut found = None;
    let mut end = 0;
    for word in phrase.split(' ') {
        end += word.len();
        if end >= phrase.len() {
            break;
        }
        if COLORS.contains(&word) || MORE_COLORS.contains(&word) {
            found = Some(end);
        }
        if !SHADES.contains(&word) {
            break;
        }
        end += 1;
    }
    found
}

fn counted(phrase: &str) -> Option<Object> {
    static KNOWN: LazyLock<HashMap<String, &'static str>> = LazyLock::new(|| {
        let plurals = [Plurals::Geneval, Plurals::English];
        let of = |plurals: Plurals| EVERYDAY.map(|(noun, _)| (plurals.of(noun), noun));
        plurals.into_iter().flat_map(of).collect()
    });
    let (count, many) = phrase.split_once(' ')?;
    let count = number(count)?;
    let noun = match KNOWN.get(many) {
        _ if count == 1 => many.to_string(),
        Some(known) => (*known).to_string(),
        None => singular(many),
    };
    Some(Object { count, ..Object::one(noun) })
}

/// Parses a prompt of a category in the words of `GenEval` or the paper, such as `a photo of a train above of an elephant`.
///
/// The singular of a counted noun is known for everyday objects and derived by the rules of English for others. A colour
/// must be known and can have a modifier (`light blue`). A noun must be valid in an object list.
pub fn parse_prompt(category: Category, prompt: &str) -> Result<PromptSpec> {
    let lower = prompt.to_lowercase();
    let text = lower.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = text.trim_end_matches('.');
    let text = OPENINGS.iter().find_map(|opening| text.strip_prefix(opening)).unwrap_or(text);
    let objects = match category {
        Category::SingleObject => plain(text).map(|object| (vec![object], None)),
        Category::Counting => counted(text).map(|object| (vec![object], None)),
        Category::Colors => colored(text).map(|object| (vec![object], None)),
        Category::TwoObject => pair(text, plain),
        Category::ColorAttr => pair(text, colored),
        Category::Position => RELATIONS
            .iter()
            .filter_map(|(words, relation)| Some((part_at(text, words)?, *relation)))
            .min_by_key(|((first, _), _)| first.len())
            .and_then(|((first, second), relation)| {
                Some((vec![plain(first)?, plain(second)?], Some(relation)))
            }),
    };
    let not_parsed = || {
        let form = match category {
            Category::SingleObject => "a photo of a dog",
            Category::TwoObject => "a photo of a dog and a bench",
            Category::Counting => "a photo of three dogs",
            Category::Colors => "a photo of a brown dog",
            Category::Position => "a photo of a dog left of a bench",
            Category::ColorAttr => "a photo of a brown dog and a red bench",
        };
        Error::usage(format!("cannot parse the prompt `{prompt}` as `{}`", category.name()))
            .hint(format!("write a prompt like `{form}`, or add the key `facts`"))
    };
    let (objects, relation) = objects.ok_or_else(not_parsed)?;
    for object in &objects {
        check_word(&object.noun).map_err(|error| not_parsed().cause(error.message()))?;
    }
    let spec = PromptSpec { category, objects, relation };
    spec.check()?;
    Ok(spec)
}

fn pair(text: &str, object: impl Fn(&str) -> Option<Object>) -> Option<(Vec<Object>, Option<Relation>)> {
    let (first, second) = part_at(text, "and")?;
    Some((vec![object(first)?, object(second)?], None))
}

#[cfg(test)]
mod tests {
    use super::super::rng::Rng;
    use super::super::{ObjectList, PromptTemplates, Split, sample};
    use super::*;

    /// All shipped templates and lists, 2,000 tasks of each category.
    #[test]
    fn parse_inverts_the_templates() {
        let mut rng = Rng::new(5);
        let words = |text: &str| text.split(' ').map(String::from).collect();
        let shapes = ObjectList { nouns: words("circle star ring bar"), colors: words("red blue white") };
        for list in [ObjectList::everyday(), shapes] {
            for name in ["paper", "evaluation", "tiles"] {
                let templates = PromptTemplates::find(name).unwrap();
                for category in Category::ALL {
                    for _ in 0..2000 {
                        let spec = sample(&list, category, Split::All, &mut rng).unwrap();
                        let prompt = templates.task(spec.clone()).prompt;
                        assert_eq!(parse_prompt(category, &prompt).unwrap(), spec, "{prompt}");
                    }
                }
            }
        }
    }

    #[test]
    fn parse_prompt_of_another_form_is_refused() {
        let error = |category, prompt: &str| parse_prompt(category, prompt).unwrap_err().to_string();
        assert!(error(Category::Counting, "a photo of some dogs").contains("a photo of three dogs"));
        assert!(error(Category::Position, "a photo of a dog near a cat").contains("as `position`"));
        assert!(error(Category::TwoObject, "").contains("cannot parse the prompt ``"));
        assert!(error(Category::Counting, "a photo of zero dogs").contains("expected at least 1"));
    }

    #[test]
    fn parse_invalid_noun_or_color_is_refused() {
        for (category, prompt) in [
            (Category::Counting, "three cats and two dogs"),
            (Category::Counting, "a photo of two dogs on a bench"),
            (Category::Counting, "a photo of two hundred dogs"),
            (Category::SingleObject, "a photo of a dog and a cat"),
            (Category::SingleObject, "a photo of a dog, sitting"),
            (Category::TwoObject, "a photo of a dog and a cat and a bench"),
            (Category::TwoObject, "a photo of a dog and a cat that sleeps"),
            (Category::Colors, "a photo of a kitchen table"),
            (Category::Colors, "a photo of a shiny red car"),
            (Category::Colors, "a photo of a red"),
            (Category::Colors, "a photo of an orange"),
            (Category::Colors, "a photo of a dark dog"),
            (Category::ColorAttr, "a photo of a brown dog and a wooden bench"),
            (Category::Position, "a photo of a dog left of a cat above a bench"),
        ] {
            let error = parse_prompt(category, prompt).unwrap_err();
            assert!(error.message().starts_with("cannot parse the prompt"), "{prompt}: {error}");
            assert!(error.hints()[0].contains("add the key `facts`"), "{prompt}: {error}");
        }
    }

    #[test]
    fn parse_accepts_color_modifiers() {
        for (prompt, color, noun) in [
            ("a photo of a light blue chair", "light blue", "chair"),
            ("a photo of a dark gray hot dog", "dark gray", "hot dog"),
            ("a photo of a navy blue wine glass", "navy blue", "wine glass"),
            ("a photo of a navy coat", "navy", "coat"),
            ("a photo of an orange orange", "orange", "orange"),
            ("a photo of a teal teddy bear", "teal", "teddy bear"),
            ("a photo of a golden retriever", "golden", "retriever"),
        ] {
            let object = &parse_prompt(Category::Colors, prompt).unwrap().objects[0];
            assert_eq!((object.color.as_deref(), object.noun.as_str()), (Some(color), noun));
        }
    }

    #[test]
    fn parse_accepts_other_openings_and_digits() {
        let spec = parse_prompt(Category::Position, "An image of a dog  to the left of the bench.").unwrap();
        assert_eq!(spec.relation, Some(Relation::LeftOf));
        assert_eq!(spec.objects[1].noun, "bench");
        let spec = parse_prompt(Category::Counting, "a photo of 3 geese").unwrap();
        assert_eq!((spec.objects[0].count, &*spec.objects[0].noun), (3, "goose"));
    }
}
