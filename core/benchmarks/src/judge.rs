//! Judges decide whether an image, and an answer about it, is correct. They only measure; rewards train.

use serde::{Deserialize, Serialize};
use tch::Tensor;
use unirl::error::Result;
use unirl::prompt::PromptSpec;
use unirl_prompts::Task;
use unirl_prompts::answer::match_answer;

/// The verdict of a judge on an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// The image shows exactly what the prompt asks for.
    pub strict: bool,
    /// The image shows what the prompt asks for, and possibly more, as in `GenEval`.
    pub lenient: bool,
    /// Why the image is not strictly correct; empty if it is.
    pub reason: String,
}

/// Whether the answer states everything that the question asks for and nothing else: full points under the reward `bound`.
pub fn is_correct_answer(spec: &PromptSpec, answer: &str) -> bool {
    match_answer(spec, answer).is_correct(spec.category)
}

/// Judges images and provides reference images.
pub trait ImageJudge {
    /// Returns the name in receipts: the judge, and everything that decides its verdicts.
    fn name(&self) -> String;

    /// Returns a verdict per task on `pixels [B,3,H,W]`, f32 in `0..=1`.
    fn judge(&self, tasks: &[Task], pixels: &Tensor) -> Result<Vec<Verdict>>;

    /// Returns, per task, an image `[3,H,W]` in `0..=1` that shows the prompt, if available. Depends on the tasks and the
    /// seed only.
    fn references(&self, tasks: &[Task], seed: u64) -> Result<Vec<Option<Tensor>>>;
}

/// Judges answers.
pub trait AnswerJudge {
    /// Returns the name in receipts.
    fn name(&self) -> String;

    /// Returns whether each answer is correct; `None` if the judge gives no verdict.
    fn judge(&self, tasks: &[Task], answers: &[String]) -> Result<Vec<Option<bool>>>;
}

/// [`is_correct_answer`], as in the reward `exact`.
#[derive(Debug, Clone, Copy)]
pub struct Exact;

impl AnswerJudge for Exact {
    /// The number is the version of the answer grammar: a receipt is only verified with the grammar that made it.
    fn name(&self) -> String {
        "exact 2".into()
    }

    fn judge(&self, tasks: &[Task], answers: &[String]) -> Result<Vec<Option<bool>>> {
        let correct = |(task, answer): (&Task, &String)| Some(is_correct_answer(&task.spec, answer));
        Ok(tasks.iter().zip(answers).map(correct).collect())
    }
}
