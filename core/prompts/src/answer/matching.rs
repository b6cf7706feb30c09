//! Compares a parsed answer with the spec of its prompt.

use unirl::prompt::{Category, PromptSpec};

use super::{AnswerParser, Claim, ParsedAnswer, Placement, Vocabulary, Words};
use crate::plural;

/// The parts of a spec that an answer states, with one entry per object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AnswerMatch {
    /// The noun is named.
    pub nouns: Vec<bool>,
    /// The number is stated of its noun.
    pub numbers: Vec<bool>,
    /// The colour is stated of its noun only, or without a noun if the spec has one object.
    pub colors: Vec<bool>,
    /// The relation is stated in the right direction.
    pub relation: bool,
    /// What the answer states beyond the spec, such as `` names `cat` ``, or why it makes no clear statement.
    pub more: Option<String>,
}

impl AnswerMatch {
    /// Compares an answer with a spec.
    pub fn of(spec: &PromptSpec, answer: &ParsedAnswer) -> Self {
        let claims = relevant(spec, &answer.claims);
        let more = answer.doubt.clone().or_else(|| extra(spec, &claims));
        let mut found = Self { more, ..Self::default() };
        let mut taken: Vec<Option<usize>> = Vec::new();
        for object in &spec.objects {
            let names = |(index, claim): &(usize, &Claim)| {
                claim.noun.as_ref() == Some(&object.noun) && !taken.contains(&Some(*index))
            };
            let has_color = |claim: &Claim| claim.colors.first() == object.color.as_ref();
            // Prefer the claim with the right colour.
            let named = || answer.claims.iter().enumerate().filter(names);
            let index = named()
                .find(|(_, claim)| has_color(claim))
                .or_else(|| named().next())
                .map(|(index, _)| index);
            taken.push(index);
            let claim = index.map(|index| &answer.claims[index]);
            // A colour or a number without a noun belongs to the object of a spec with one object.
            let bare = claims.first().filter(|claim| spec.objects.len() == 1 && claim.noun.is_none());
            let bare_count =
                answer.claims.iter().filter(|claim| claim.noun.is_none()).find_map(|claim| claim.count);
            let number = match claim {
                Some(claim) => claim.count.or(bare_count) == Some(object.count),
                None => claims.len() == 1 && bare.and_then(|claim| claim.count) == Some(object.count),
            };
            let counted = spec.category == Category::Counting && number;
            let colored = claim.or(bare.copied().filter(|_| spec.category == Category::Colors));
            found.nouns.push(claim.is_some() || counted);
            found.numbers.push(number);
            found.colors.push(object.color.is_some() && colored.is_some_and(has_color));
        }
        if let (Some(expected), [Some(first), Some(second)]) = (spec.relation, taken.as_slice()) {
            // "The dog is on the left and the cat is on the right": both placements state the same relation.
            let states = |place: &Placement, subject: usize, relation| {
                place.subject == Some(subject) && place.relation == Some(relation)
            };
            let forward = |place: &Placement| states(place, *first, expected);
            let backward = |place: &Placement| states(place, *second, expected.opposite());
            let agrees = |place: &Placement| match place.object {
                None => forward(place) || backward(place),
                Some(object) => {
                    (forward(place) && object == *second) || (backward(place) && object == *first)
                }
            };
            let agree = answer.placements.iter().all(agrees);
            found.relation = agree && !answer.placements.is_empty();
            if answer.placements.len() > 1 && !agree {
                found.more.get_or_insert_with(|| "states several positions".into());
            }
        }
        found
    }

    /// Whether the answer states everything that the question asks for and nothing else.
    pub fn is_correct(&self, category: Category) -> bool {
        let all = |found: &[bool]| found.iter().all(|found| *found);
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

/// Returns the claims without those that only announce the others: `There are two objects: ...`, `three items: three vases`.
fn relevant<'c>(spec: &PromptSpec, claims: &'c [Claim]) -> Vec<&'c Claim> {
    let is_bare = |claim: &&Claim| claim.noun.is_none() && claim.colors.is_empty() && claim.count.is_some();
    let named: Vec<&Claim> = claims.iter().filter(|claim| claim.noun.is_some()).collect();
    let mut bare: Vec<u32> = claims.iter().filter(is_bare).filter_map(|claim| claim.count).collect();
    bare.dedup();
    let expected = match (spec.category, named.as_slice(), bare.as_slice()) {
        (Category::Counting, [one], [count]) => Some(one.count.unwrap_or(*count)),
        (Category::Counting, ..) => None,
        _ => Some(spec.objects.len() as u32),
    };
    let announces = |claim: &&Claim| is_bare(claim) && claim.count == expected;
    claims.iter().filter(|claim| !announces(claim)).collect()
}

/// Returns what an answer states beyond the spec: more objects, several colours of an object, an unexpected number.
fn extra(spec: &PromptSpec, claims: &[&Claim]) -> Option<String> {
    for claim in claims {
        if spec.category.names_colors() && claim.colors.len() > 1 {
            return Some(format!("states {} colors", claim.colors.len()));
        }
        // "A pair of skis" is one object.
        let pair = claim.paired && claim.noun.as_ref().is_some_and(|noun| plural(noun) == *noun);
        let count = claim.count.filter(|count| *count > 1 && !pair);
        if spec.category != Category::Counting
            && let Some(many) =
                count.map(|count| count.to_string()).or(claim.several.then(|| "several".into()))
        {
            return Some(format!("states that there are {many}"));
        }
    }
    if claims.len() <= spec.objects.len() {
        return None;
    }
    let known = |noun: &&String| spec.objects.iter().any(|object| object.noun == **noun);
    let other = claims.iter().filter_map(|claim| claim.noun.as_ref()).find(|noun| !known(noun));
    Some(match other {
        Some(noun) => format!("names `{noun}`"),
        None => format!("names {} objects", claims.len()),
    })
}

/// Parses an answer with the default vocabulary and compares it with a spec.
pub fn match_answer(spec: &PromptSpec, answer: &str) -> AnswerMatch {
    AnswerMatch::of(spec, &AnswerParser::new(spec, &Vocabulary::default()).parse(&Words::of_answer(answer)))
}
