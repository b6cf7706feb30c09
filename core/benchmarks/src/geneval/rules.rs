//! The verdict on one image.
//!
//! Every number is f32, as in the original, whose detections are arrays of f32.

use std::collections::BTreeMap;

use serde::Serialize;
use unirl::detector::Detection;
use unirl::error::{Error, Result};
use unirl::prompt::{Category, Relation};

use super::{Include, Metadata};

/// A detection counts if its score is above this: `threshold` of `evaluate_images.py`.
pub const THRESHOLD: f32 = 0.3;

/// The threshold for prompts of the tag `counting`: `counting_threshold` of `evaluate_images.py`.
pub const COUNTING_THRESHOLD: f32 = 0.9;

/// The scores above which detections count.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Thresholds {
    /// For prompts of every tag but `counting`.
    pub objects: f32,
    /// For prompts of the tag `counting`.
    pub counting: f32,
}

impl Default for Thresholds {
    fn default() -> Self {
        Self { objects: THRESHOLD, counting: COUNTING_THRESHOLD }
    }
}

impl Thresholds {
    /// Returns the given thresholds; those of `GenEval` by default. Errors for values that no score can exceed.
    pub fn new(objects: Option<f32>, counting: Option<f32>) -> Result<Self> {
        for (name, value) in [("threshold", objects), ("counting-threshold", counting)] {
            if let Some(value) = value
                && !(0.0..1.0).contains(&value)
            {
                return Err(Error::usage(format!("`--{name}`: expected a number in [0, 1), got {value}")));
            }
        }
        let default = Self::default();
        Ok(Self {
            objects: objects.unwrap_or(default.objects),
            counting: counting.unwrap_or(default.counting),
        })
    }

    /// Returns the threshold of a tag.
    pub fn of(&self, tag: Category) -> f32 {
        if tag == Category::Counting { self.counting } else { self.objects }
    }
}

/// The number of detections per class that are kept, by score: `max_objects` of `evaluate_images.py`.
///
/// The script also suppresses overlapping boxes with the limit `max_overlap` of 1.0. At 1.0 its code computes no overlap and
/// removes nothing, not even duplicate boxes, so there is no suppression here.
pub const MAX_OBJECTS: usize = 16;

/// The share of the summed sizes by which two centres can differ along an axis without a relation: `position_threshold` of
/// `evaluate_images.py`.
pub const POSITION_MARGIN: f32 = 0.1;

/// The offset in pixels, after subtracting the margin, below which there is no relation; a literal in `relative_position` of
/// `evaluate_images.py`.
pub const NO_OFFSET: f32 = 1e-3;

/// The share of the whole offset that must remain along an axis for a relation to hold; a literal in `relative_position` of
/// `evaluate_images.py`.
pub const POSITION_SHARE: f32 = 0.5;

/// The verdict on an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Whether every clause holds.
    pub correct: bool,
    /// A line for every clause that fails; empty if the image is correct.
    pub reason: String,
    /// The detections that counted, by class, the highest score first.
    pub kept: BTreeMap<String, Vec<Detection>>,
}

/// Applies the clauses of a prompt to the detections of its image.
///
/// Extra objects are allowed unless `exclude` forbids them, which only counting prompts do. Errors if a clause requires a colour
/// and a detection has none.
pub fn judge(metadata: &Metadata, detections: &[Detection], thresholds: &Thresholds) -> Result<Judgement> {
    let kept = keep(thresholds.of(metadata.tag), detections);
    let of_class = |class: &str| kept.get(class).map_or(&[][..], Vec::as_slice);
    let mut reasons = Vec::new();
    let mut groups: Vec<Group> = Vec::new();
    for include in &metadata.include {
        let all = of_class(&include.class);
        let found = &all[..all.len().min(include.count)];
        let failure = failure(include, found, &groups)?;
        groups.push((&include.class, failure.is_none().then_some(found)));
        reasons.extend(failure);
    }
    for exclude in &metadata.exclude {
        let found = of_class(&exclude.class).len();
        if found >= exclude.count {
            reasons.push(format!("expected fewer than {} `{}`, found {found}", exclude.count, exclude.class));
        }
    }
    Ok(Judgement { correct: reasons.is_empty(), reason: reasons.join("\n"), kept })
}

/// The class of a clause with the objects that satisfy it; `None` if the clause failed.
type Group<'a> = (&'a str, Option<&'a [Detection]>);

/// Returns the detections that count. Of equal scores the later comes first, like a reversed stable sort.
fn keep(threshold: f32, detections: &[Detection]) -> BTreeMap<String, Vec<Detection>> {
    let mut kept: BTreeMap<String, Vec<Detection>> = BTreeMap::new();
    for detection in detections.iter().rev().filter(|detection| detection.score > threshold) {
        kept.entry(detection.class.clone()).or_default().push(detection.clone());
    }
    for class in kept.values_mut() {
        class.sort_by(|one, other| other.score.total_cmp(&one.score));
        class.truncate(MAX_OBJECTS);
    }
    kept
}

/// Returns why a clause fails, or `None` if it holds. `found` has at most as many objects as the clause requires; `groups`
/// belong to the earlier clauses.
fn failure(include: &Include, found: &[Detection], groups: &[Group]) -> Result<Option<String>> {
    let Include { class, count, color, position } = include;
    if found.len() < *count {
        return Ok(Some(format!("expected {count} `{class}`, found {}", found.len())));
    }
    if let Some(color) = color {
        let colors = colors(found)?;
        let matching = colors.iter().filter(|other| *other == color).count();
        if matching < *count {
            return Ok(Some(format!("expected {count} {color} `{class}`, found {}", colors.join(", "))));
        }
    }
    let Some(position) = position else { return Ok(None) };
    let required = position.relation;
    let (target_class, targets) = groups.get(position.target).copied().unwrap_or_default();
    let expected = format!("expected `{class}` {} `{target_class}`", required.words());
    let Some(targets) = targets else {
        return Ok(Some(format!("{expected}, whose own clause failed")));
    };
    for object in found {
        for target in targets {
            let relations = relations(object.bounds, target.bounds);
            if !relations.contains(&required) {
                let words: Vec<&str> = relations.into_iter().map(Relation::words).collect();
                let found = if words.is_empty() { "no clear relation".into() } else { words.join(" and ") };
                return Ok(Some(format!("{expected}, found {found}")));
            }
        }
    }
    Ok(None)
}

fn colors(found: &[Detection]) -> Result<Vec<&str>> {
    if let Some(without) = found.iter().find(|detection| detection.color.is_none()) {
        return Err(Error::usage(format!(
            "the prompt requires a color of `{}`, but its detection of score {} has no `color`",
            without.class, without.score
        ))
        .hint("add the output of a color classifier to the detection: `\"color\": \"red\"`"));
    }
    Ok(found.iter().filter_map(|detection| detection.color.as_deref()).collect())
}

/// Returns the relations of the first box to the second: none, one or two.
pub fn relations(first: [f32; 4], second: [f32; 4]) -> Vec<Relation> {
    let centre = |bounds: [f32; 4], axis: usize| f32::midpoint(bounds[axis], bounds[axis + 2]);
    let size = |bounds: [f32; 4], axis: usize| (bounds[axis + 2] - bounds[axis]).abs();
    let offset = [0, 1].map(|axis| centre(first, axis) - centre(second, axis));
    let remaining = [0, 1].map(|axis| {
        let margin = POSITION_MARGIN * (size(first, axis) + size(second, axis));
        (offset[axis].abs() - margin).max(0.0) * offset[axis].signum()
    });
    if remaining.iter().all(|rest| rest.abs() < NO_OFFSET) {
        return Vec::new();
    }
    let length = (offset[0] * offset[0] + offset[1] * offset[1]).sqrt();
    let [x, y] = remaining.map(|rest| rest / length);
    Relation::ALL
        .into_iter()
        .filter(|relation| match relation {
            Relation::LeftOf => x < -POSITION_SHARE,
            Relation::RightOf => x > POSITION_SHARE,
            Relation::Above => y < -POSITION_SHARE,
            Relation::Below => y > POSITION_SHARE,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(class: &str, score: f32, bounds: [f32; 4]) -> Detection {
        Detection { class: class.into(), score, bounds, color: None }
    }

    fn of(class: &str, score: f32) -> Detection {
        at(class, score, [0.0, 0.0, 10.0, 10.0])
    }

    fn colored(class: &str, score: f32, color: &str) -> Detection {
        Detection { color: Some(color.into()), ..of(class, score) }
    }

    /// Returns the reason; empty if the image is correct.
    fn reason(metadata: &str, detections: &[Detection]) -> String {
        let judged = judge(&Metadata::parse(metadata).unwrap(), detections, &Thresholds::default()).unwrap();
        assert_eq!(judged.correct, judged.reason.is_empty());
        judged.reason
    }

    const ONE: &str = r#"{"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": ""}"#;
    const COUNT: &str = r#"{"tag": "counting", "include": [{"class": "dog", "count": 2}], "exclude": [{"class": "dog", "count": 3}], "prompt": ""}"#;
    const RED: &str =
        r#"{"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}], "prompt": ""}"#;
    const PLACE: &str = r#"{"tag": "position", "include": [{"class": "cat", "count": 1}, {"class": "dog", "count": 1, "position": ["left of", 0]}], "prompt": ""}"#;

    #[test]
    fn score_must_exceed_the_threshold() {
        assert_eq!(reason(ONE, &[of("dog", 0.3)]), "expected 1 `dog`, found 0");
        assert_eq!(reason(ONE, &[of("dog", 0.301)]), "");
        assert_eq!(reason(COUNT, &[of("dog", 0.95), of("dog", 0.9)]), "expected 2 `dog`, found 1");
        assert_eq!(reason(COUNT, &[of("dog", 0.95), of("dog", 0.91)]), "");
    }

    #[test]
    fn thresholds_depend_on_the_tag() {
        let correct = |metadata: &str, score: f32, thresholds: Thresholds| {
            let found = [of("dog", score), of("dog", score)];
            judge(&Metadata::parse(metadata).unwrap(), &found, &thresholds).unwrap().correct
        };
        let chosen = Thresholds::new(Some(0.6), Some(0.7)).unwrap();
        assert!(
            correct(ONE, 0.5, Thresholds::default())
                && !correct(ONE, 0.5, chosen)
                && correct(ONE, 0.61, chosen)
        );
        assert!(!correct(COUNT, 0.75, Thresholds::default()) && correct(COUNT, 0.75, chosen));
        assert!(!correct(COUNT, 0.7, chosen));
        for wrong in [-0.1, 1.0, 30.0, f32::NAN] {
            assert!(
                Thresholds::new(Some(wrong), None).is_err() && Thresholds::new(None, Some(wrong)).is_err()
            );
        }
    }

    #[test]
    fn extra_objects_fail_only_counting() {
        assert_eq!(reason(ONE, &[of("dog", 0.9), of("dog", 0.8), of("cat", 0.9)]), "");
        let three = [of("dog", 0.95), of("dog", 0.95), of("dog", 0.95)];
        assert_eq!(reason(COUNT, &three), "expected fewer than 3 `dog`, found 3");
        // Duplicate boxes count twice: the suppression of the original does nothing at its limit of 1.0.
        assert_eq!(reason(COUNT, &three[..2]), "");
    }

    #[test]
    fn sixteen_detections_of_a_class_are_kept_by_score() {
        let mut many: Vec<Detection> = (0..20).map(|i| of("dog", 0.4 + i as f32 / 100.0)).collect();
        many[3].score = many[19].score;
        many[3].color = Some("red".into());
        let judged = judge(&Metadata::parse(ONE).unwrap(), &many, &Thresholds::default()).unwrap();
        let kept = &judged.kept["dog"];
        assert_eq!(kept.len(), MAX_OBJECTS);
        assert_eq!((&kept[0], &kept[1]), (&many[19], &many[3]));
        assert!(kept.is_sorted_by(|one, other| one.score >= other.score));
    }

    #[test]
    fn colors_are_checked_for_the_highest_scores_only() {
        assert_eq!(reason(RED, &[colored("dog", 0.9, "red"), of("dog", 0.8)]), "");
        let blue = [colored("dog", 0.9, "blue"), colored("dog", 0.8, "red")];
        assert_eq!(reason(RED, &blue), "expected 1 red `dog`, found blue");
        assert_eq!(reason(RED, &[of("cat", 0.9)]), "expected 1 `dog`, found 0");
        let error =
            judge(&Metadata::parse(RED).unwrap(), &[of("dog", 0.75)], &Thresholds::default()).unwrap_err();
        assert!(error.message().contains("`dog`, but its detection of score 0.75 has no `color`"), "{error}");
    }

    #[test]
    fn position_requires_that_the_target_clause_holds() {
        let cat = at("cat", 0.9, [50.0, 0.0, 60.0, 10.0]);
        let [left, right] = [0.0, 100.0].map(|x| at("dog", 0.9, [x, 0.0, x + 10.0, 10.0]));
        assert_eq!(reason(PLACE, &[cat.clone(), left.clone()]), "");
        assert_eq!(reason(PLACE, &[cat.clone(), right]), "expected `dog` left of `cat`, found right of");
        assert_eq!(
            reason(PLACE, std::slice::from_ref(&left)),
            "expected 1 `cat`, found 0\nexpected `dog` left of `cat`, whose own clause failed"
        );
        let twin = Detection { class: "dog".into(), ..cat.clone() };
        assert_eq!(reason(PLACE, &[cat, twin]), "expected `dog` left of `cat`, found no clear relation");
        // With several objects, every pair must satisfy the relation.
        let pairs = PLACE.replace(r#""count": 1"#, r#""count": 2"#);
        let row = |class: &str, x: f32, score: f32| at(class, score, [x, 0.0, x + 10.0, 10.0]);
        let mut four =
            [row("dog", 0.0, 0.9), row("dog", 20.0, 0.8), row("cat", 60.0, 0.9), row("cat", 90.0, 0.8)];
        assert_eq!(reason(&pairs, &four), "");
        four[1] = row("dog", 75.0, 0.8);
        assert_eq!(reason(&pairs, &four), "expected `dog` left of `cat`, found right of");
    }

    #[test]
    fn relations_have_a_margin_and_can_be_two() {
        let unit = |x: f32, y: f32| [x, y, x + 10.0, y + 10.0];
        let middle = unit(0.0, 0.0);
        assert_eq!(relations(unit(-30.0, 0.0), middle), [Relation::LeftOf]);
        assert_eq!(relations(unit(30.0, 5.0), middle), [Relation::RightOf]);
        assert_eq!(relations(unit(-30.0, -30.0), middle), [Relation::LeftOf, Relation::Above]);
        assert_eq!(relations(unit(30.0, 30.0), middle), [Relation::RightOf, Relation::Below]);
        assert_eq!(relations(middle, middle), []);
        // A tenth of both widths is 2: an offset of 1.9 is within the margin, and of 4 only half remains.
        assert_eq!(relations(unit(1.9, 0.0), middle), []);
        assert_eq!(relations(unit(4.0, 0.0), middle), []);
        assert_eq!(relations(unit(4.1, 0.0), middle), [Relation::RightOf]);
    }
}
