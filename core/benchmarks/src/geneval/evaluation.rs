//! The judge of an evaluation on the prompts of `GenEval` (A.1 of the paper): its rules judge the generated images. Images of
//! another model that are correct by these rules are the reference images for understanding.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tch::Tensor;
use unirl::detector::Detector;
use unirl::error::{Context as _, Error, Result};
use unirl_base::{checksum, input, json, seed};
use unirl_prompts::{ObjectList, Task};

use super::{DetectionCounts, Metadata, Thresholds, Vocabulary, judge, read_metadata};
use crate::judge::{ImageJudge, Verdict};

/// Reads an image file as a tensor `[3,H,W]` in `0..=1`.
pub type ReadImage = Box<dyn Fn(&Path) -> Result<Tensor>>;

/// The judge of `GenEval` prompts.
pub struct GenevalJudge {
    name: String,
    detector: Box<dyn Detector>,
    prompts: HashMap<String, Metadata>,
    vocabulary: Vocabulary,
    thresholds: Thresholds,
    counts: RefCell<DetectionCounts>,
    references: Option<References>,
}

/// Reference images, which show their prompts.
struct References {
    /// By prompt.
    images: HashMap<String, Vec<PathBuf>>,
    read: ReadImage,
}

/// The keys used from a line of `unirl geneval judge --out`.
#[derive(Deserialize)]
struct ResultLine {
    filename: String,
    prompt: String,
    correct: bool,
}

impl GenevalJudge {
    /// Creates the judge of the prompts in `metadata`. `detector` comes with its name in receipts.
    pub fn new(
        metadata: &Path,
        detector: (String, Box<dyn Detector>),
        thresholds: Thresholds,
    ) -> Result<Self> {
        let metadata = read_metadata(metadata)?;
        let vocabulary = Vocabulary::of(&metadata);
        let prompts = metadata.into_iter().map(|metadata| (metadata.prompt.clone(), metadata)).collect();
        let (name, detector) = detector;
        let mut name = format!("geneval by `{name}`");
        if thresholds != Thresholds::default() {
            name += &format!(", thresholds {} and {} for counting", thresholds.objects, thresholds.counting);
        }
        let counts = RefCell::default();
        Ok(Self { name, detector, prompts, vocabulary, thresholds, counts, references: None })
    }

    pub(super) fn has_references(&self) -> bool {
        self.references.is_some()
    }

    /// Returns the objects and colours of the prompts.
    pub(super) fn objects(&self) -> ObjectList {
        let ten = ObjectList::everyday().colors;
        let Vocabulary { classes, colors, .. } = &self.vocabulary;
        ObjectList { nouns: classes.clone(), colors: if colors.is_empty() { ten } else { colors.clone() } }
    }

    /// Returns the warnings after an evaluation, such as that no detection counted.
    pub fn warnings(&self) -> Vec<String> {
        self.counts.borrow().warnings(&self.thresholds)
    }

    /// Uses the images below `root` that are correct in `results` as reference images, read by `read`.
    pub fn with_references(mut self, root: &Path, results: &Path, read: ReadImage) -> Result<Self> {
        let text = input::read_text(results)?;
        let mut images: HashMap<String, Vec<PathBuf>> = HashMap::new();
        for (number, line) in json::lines(&text) {
            let place = || format!("`{}`, line {number}", results.display());
            let line: ResultLine = json::parse_line(line).context(place)?;
            let path = root.join(&line.filename);
            if !path.is_file() {
                return Err(Error::usage(format!("no image at `{}`", path.display())).context(place()));
            }
            if line.correct && self.prompts.contains_key(&line.prompt) {
                images.entry(line.prompt).or_default().push(path);
            }
        }
        if images.is_empty() {
            return Err(Error::usage(format!(
                "`{}` has no correct image of these prompts",
                results.display()
            )));
        }
        self.name += &format!(", references {}", &checksum::text(&text)[..12]);
        self.references = Some(References { images, read });
        Ok(self)
    }
}

impl ImageJudge for GenevalJudge {
    fn name(&self) -> String {
        self.name.clone()
    }

    /// `GenEval` has one verdict, which is lenient: it counts as strict and lenient here. A prompt that is not in the file is judged
    /// by its spec.
    fn judge(&self, tasks: &[Task], pixels: &Tensor) -> Result<Vec<Verdict>> {
        let mut found = self.detector.detect(pixels, &self.vocabulary.classes, &self.vocabulary.colors)?;
        if found.len() != tasks.len() {
            return Err(Error::failure(format!(
                "{}: expected detections of {} images, got {}",
                self.name,
                tasks.len(),
                found.len()
            )));
        }
        for detection in found.iter_mut().flatten() {
            self.vocabulary.resolve(detection).context(|| self.name.clone())?;
        }
        let verdict = |(task, detections): (&Task, &Vec<_>)| {
            let of_task = || Cow::Owned(Metadata::of(task));
            let metadata = self.prompts.get(&task.prompt).map_or_else(of_task, Cow::Borrowed);
            let judged = judge(&metadata, detections, &self.thresholds)?;
            self.counts.borrow_mut().add(metadata.tag, detections, self.thresholds.of(metadata.tag));
            Ok(Verdict { strict: judged.correct, lenient: judged.correct, reason: judged.reason })
        };
        tasks.iter().zip(&found).map(verdict).collect()
    }

    fn references(&self, tasks: &[Task], seed: u64) -> Result<Vec<Option<Tensor>>> {
        let reference = |(index, task): (usize, &Task)| {
            let Some(References { images, read }) = &self.references else { return Ok(None) };
            let Some(images) = images.get(&task.prompt) else { return Ok(None) };
            let chosen = seed::derive(seed, &[index as u64]) % images.len() as u64;
            read(&images[chosen as usize]).map(Some)
        };
        tasks.iter().enumerate().map(reference).collect()
    }
}
