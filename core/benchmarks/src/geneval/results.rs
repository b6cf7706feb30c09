//! Result lines and figures, as the scripts of `GenEval` write and print them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;
use unirl::detector::Detection;
use unirl::error::{Context as _, Error, Result};
use unirl::prompt::Category;

use super::rules::{Judgement, Thresholds, judge};
use super::{Metadata, Prompt, Subset};

/// A line of the results file of `GenEval`: one image.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ResultLine {
    /// The path of the image below the directory of the set.
    pub filename: String,
    /// The category.
    pub tag: Category,
    /// The prompt.
    pub prompt: String,
    /// Whether the image is correct.
    pub correct: bool,
    /// Why the image is not correct.
    pub reason: String,
    /// The line of the prompt: JSON in a string.
    pub metadata: String,
    /// The detections that counted, `{class: [[x0, y0, x1, y1, score], ...]}`: JSON in a string.
    pub details: String,
    /// The score threshold, if the thresholds are not those of `GenEval`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
}

impl ResultLine {
    fn new(filename: &str, metadata: &Metadata, judged: Judgement, thresholds: Thresholds) -> Result<Self> {
        let numbers =
            |Detection { bounds: [x0, y0, x1, y1], score, .. }: &Detection| [*x0, *y0, *x1, *y1, *score];
        let details: BTreeMap<&str, Vec<[f32; 5]>> = judged
            .kept
            .iter()
            .map(|(class, found)| (class.as_str(), found.iter().map(numbers).collect()))
            .collect();
        Ok(Self {
            filename: filename.into(),
            tag: metadata.tag,
            prompt: metadata.prompt.clone(),
            correct: judged.correct,
            reason: judged.reason,
            metadata: metadata.line().into(),
            details: serde_json::to_string(&details).context(|| "cannot write detections as JSON")?,
            threshold: (thresholds != Thresholds::default()).then(|| thresholds.of(metadata.tag)),
        })
    }
}

/// A share of correct ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Share {
    /// The number of correct ones.
    pub correct: usize,
    /// The number of all.
    pub of: usize,
    /// `correct / of`.
    pub share: f64,
}

impl Share {
    fn count(hits: impl IntoIterator<Item = bool>) -> Self {
        let (mut correct, mut of) = (0, 0);
        for hit in hits {
            correct += usize::from(hit);
            of += 1;
        }
        Self { correct, of, share: correct as f64 / of.max(1) as f64 }
    }
}

/// The images of a tag.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct TagShare {
    /// The tag.
    pub tag: Category,
    /// Its images.
    #[serde(flatten)]
    pub images: Share,
}

/// The figures of a set.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The overall score of `GenEval`: the mean over the tags in the set.
    pub overall: f64,
    /// The images of each tag.
    pub tags: Vec<TagShare>,
    /// All images.
    pub images: Share,
    /// The prompts with at least one correct image.
    pub prompts: Share,
    /// The score thresholds.
    pub thresholds: Thresholds,
    /// The subset that was judged, if not all prompts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subset: Option<String>,
    /// The number of detections.
    #[serde(skip)]
    pub detections: DetectionCounts,
}

/// For each tag, the number of detections, the number of those that counted, and the highest score.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DetectionCounts(BTreeMap<Category, (usize, usize, f32)>);

impl DetectionCounts {
    /// Counts the detections of an image.
    pub fn add(&mut self, tag: Category, detections: &[Detection], threshold: f32) {
        let (all, kept, highest) = self.0.entry(tag).or_default();
        *all += detections.len();
        *kept += detections.iter().filter(|detection| detection.score > threshold).count();
        *highest = detections.iter().fold(*highest, |highest, detection| highest.max(detection.score));
    }

    /// Returns a warning if no detection counted, overall or for a tag.
    pub fn warnings(&self, thresholds: &Thresholds) -> Vec<String> {
        if !self.0.is_empty() && self.0.values().all(|(all, ..)| *all == 0) {
            return vec!["no image has detections, so every image is incorrect".into()];
        }
        let none_counted = self.0.iter().filter(|(_, (all, kept, _))| *all > 0 && *kept == 0);
        none_counted
            .map(|(tag, (all, _, highest))| {
                format!(
                    "none of the {all} detections of the tag `{}` counts: the highest score is {highest}, the threshold \
                     is {}",
                    tag.name(),
                    thresholds.of(*tag)
                )
            })
            .collect()
    }
}

/// Judges every image of a set. Errors if an image has no entry in `detections`.
pub fn judge_all(
    prompts: &[Prompt],
    detections: &BTreeMap<String, Vec<Detection>>,
    thresholds: Thresholds,
    subset: Option<&Subset>,
) -> Result<(Vec<ResultLine>, Summary)> {
    let mut counts = DetectionCounts::default();
    let mut lines = Vec::new();
    let mut any_correct = Vec::new();
    for Prompt { metadata, images, .. } in prompts {
        let before = lines.len();
        for image in images {
            let found =
                detections.get(image).ok_or_else(|| Error::usage(format!("no detections of `{image}`")))?;
            let judged = judge(metadata, found, &thresholds).context(|| format!("cannot judge `{image}`"))?;
            counts.add(metadata.tag, found, thresholds.of(metadata.tag));
            lines.push(ResultLine::new(image, metadata, judged, thresholds)?);
        }
        any_correct.push(lines[before..].iter().any(|line| line.correct));
    }
    let of_tag = |tag| Share::count(lines.iter().filter(|line| line.tag == tag).map(|line| line.correct));
    let tags = Category::ALL.map(|tag| TagShare { tag, images: of_tag(tag) });
    let tags: Vec<TagShare> = tags.into_iter().filter(|tag| tag.images.of > 0).collect();
    let summary = Summary {
        overall: tags.iter().map(|tag| tag.images.share).sum::<f64>() / tags.len().max(1) as f64,
        images: Share::count(lines.iter().map(|line| line.correct)),
        prompts: Share::count(any_correct),
        tags,
        thresholds,
        subset: subset.map(ToString::to_string),
        detections: counts,
    };
    Ok((lines, summary))
}

/// Renders the figures as a table.
pub fn table(summary: &Summary) -> String {
    let mut text = format!("{:<14} {:>8}\n", "tag", "correct");
    // Writing to a string cannot fail.
    for TagShare { tag, images } in &summary.tags {
        let _ =
            writeln!(text, "{:<14} {:>8.4}  {} of {}", tag.name(), images.share, images.correct, images.of);
    }
    let _ = writeln!(text, "{:<14} {:>8.4}  mean of {} tags", "Overall", summary.overall, summary.tags.len());
    let Share { correct, of, share } = summary.images;
    let _ = writeln!(text, "{:<14} {share:>8.4}  {correct} of {of}", "images");
    let Share { correct, of, share } = summary.prompts;
    let _ = write!(text, "{:<14} {share:>8.4}  {correct} of {of} with a correct image", "prompts");
    if summary.thresholds != Thresholds::default() {
        let Thresholds { objects, counting } = summary.thresholds;
        let _ = write!(text, "\n{:<14} {objects}, counting {counting}", "thresholds");
    }
    if let Some(subset) = &summary.subset {
        let _ = write!(text, "\n{:<14} {subset}", "subset");
    }
    text
}
