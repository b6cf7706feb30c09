//! `GenEval` (Ghosh et al., 2023): its prompts, its image directory, and its rules over the output of a detector.
//!
//! The rules are those of `evaluate_images.py` and `summary_scores.py`. The networks are not included: detections come from a
//! file or from the [`Detector`](unirl::detector::Detector) of a plugin, and so do the colours of objects, which the original
//! classifies with CLIP. `metadata` is the content of a prompt, `rules` the verdict on one image, `folder` the images and their
//! detections, and `results` the result lines and figures; `evaluation` is the judge, and `benchmark` the whole.

mod benchmark;
mod evaluation;
mod folder;
mod metadata;
mod results;
mod rules;

pub use benchmark::{Geneval, NAME};
pub use evaluation::{GenevalJudge, ReadImage};
pub use folder::{Prompt, SETTINGS, Subset, image_path, prompt_folder, read_detections, read_folder};
pub use metadata::{Exclude, Include, Metadata, Position, Vocabulary, read_metadata};
pub use results::{DetectionCounts, ResultLine, Share, Summary, TagShare, judge_all, table};
pub use rules::{
    COUNTING_THRESHOLD, Judgement, MAX_OBJECTS, NO_OFFSET, POSITION_MARGIN, POSITION_SHARE, THRESHOLD,
    Thresholds, judge, relations,
};
