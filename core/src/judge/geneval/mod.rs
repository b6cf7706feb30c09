//! `GenEval` (Ghosh et al., 2023): its prompts, its folder of images, and its rules over what a detector found.
//!
//! The rules are those of `evaluate_images.py` and `summary_scores.py`. The networks are not here: detections come from a
//! file or from a plugin's [`Detector`](crate::detector::Detector), and so do the colours of objects, for which the
//! original asks CLIP. `metadata` holds what a prompt asks for, `rules` the verdict on one image, `folder` the images and
//! their detections, `results` the lines and figures;
//! `evaluation` lets `unirl eval` judge by these rules.

mod evaluation;
mod folder;
mod metadata;
mod results;
mod rules;

pub use evaluation::{GenevalJudge, ReadPicture};
pub use folder::{Prompt, SETTINGS, Subset, image_path, prompt_folder, read_detections, read_folder};
pub use metadata::{Exclude, Include, Metadata, Position, Vocabulary, read_metadata};
pub use results::{ResultLine, Seen, Share, Summary, TagShare, judge_all, table};
pub use rules::{
    COUNTING_THRESHOLD, Judgement, MAX_OBJECTS, NO_OFFSET, POSITION_MARGIN, POSITION_SHARE, THRESHOLD,
    Thresholds, judge, relations,
};
