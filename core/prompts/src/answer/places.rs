//! Resolves placements from the order in which an answer mentions objects and positions.

use unirl::prompt::Relation;

use super::Placement;

/// The events that matter to placements, in the order of the text. A claim is an index into the claims.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Event {
    Claim(usize),
    Place { relation: Option<Relation>, from: Origin },
    Is,
    And,
    Clause,
    Sentence,
}

/// What a position is relative to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Origin {
    /// The image: `on the left`.
    Image,
    /// The next object: `left of the dog`.
    Next,
    /// An object mentioned before: `above it`.
    Pronoun,
}

fn claim(event: &Event) -> Option<usize> {
    if let Event::Claim(index) = event { Some(*index) } else { None }
}

fn is_place(event: &Event) -> bool {
    matches!(event, Event::Place { .. })
}

/// Returns the placements of an answer, sentence by sentence.
pub(super) fn placements(events: &[Event]) -> Vec<Placement> {
    let mut placements = Vec::new();
    let mut start = 0;
    for sentence in events.split(|event| *event == Event::Sentence) {
        let mut placed: Vec<usize> = Vec::new();
        for (at, event) in sentence.iter().enumerate() {
            let Event::Place { relation, from } = *event else { continue };
            let (before, after) = (&sentence[..at], &sentence[at + 1..]);
            let mut next = after.iter().take_while(|event| !is_place(event)).filter_map(claim);
            let (subject, object) = match from {
                Origin::Pronoun => pronoun(&events[..start + at]),
                Origin::Next => match next.next() {
                    // `To the left of the cat is a dog`: the subject follows.
                    Some(object) => {
                        (before.iter().rev().find_map(claim).or_else(|| next.next()), Some(object))
                    }
                    None => (in_image(before, after, &placed), None),
                },
                Origin::Image => (in_image(before, after, &placed), None),
            };
            placed.extend(subject.filter(|_| object.is_none()));
            placements.push(Placement { subject, relation, object });
        }
        start += sentence.len() + 1;
    }
    placements
}

/// Returns the object at a position in the image: `a dog on the left`, or `on the left is a dog`.
fn in_image(before: &[Event], after: &[Event], placed: &[usize]) -> Option<usize> {
    let free = |index: &usize| !placed.contains(index);
    let same_clause = |event: &&Event| !is_place(event) && **event != Event::Clause;
    let in_clause = before.iter().rev().take_while(same_clause).filter_map(claim).find(free);
    let earlier = || before.iter().rev().filter_map(claim).find(free);
    let next = after.iter().take_while(|event| !is_place(event)).find_map(claim);
    let ends_here = !matches!(after.first(), Some(Event::Claim(_) | Event::Is | Event::Place { .. }));
    let inverted = after.first() == Some(&Event::Is);
    match in_clause {
        Some(subject) => Some(subject),
        None if inverted => next.or_else(earlier),
        None if ends_here => earlier().or(next),
        None => next,
    }
}

/// Returns subject and object of `a dog to the left of it`, from the events before the pronoun.
fn pronoun(before: &[Event]) -> (Option<usize>, Option<usize>) {
    let is_new = before.iter().rev().take_while(|event| !matches!(event, Event::Clause | Event::Sentence));
    let has_subject = is_new.into_iter().any(|event| claim(event).is_some());
    let mut latest = before.iter().rev().filter_map(claim);
    let last = latest.next();
    let earlier = latest.find(|index| Some(*index) != last);
    if has_subject { (last, earlier) } else { (earlier, last) }
}
