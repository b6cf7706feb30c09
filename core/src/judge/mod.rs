//! Judges: whether a drawing, and an answer about it, are right. They measure; rewards come from reward rules.

pub mod geneval;
pub mod tiles;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::error::Result;
use crate::prompts::answer::match_answer;
use crate::prompts::rng::Rng;
use crate::prompts::{PromptSpec, Task};
use crate::tiles::TileGrid;

/// What a judge says of one drawing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Exactly what was asked for, and nothing else.
    pub strict: bool,
    /// In `GenEval`'s manner: what was asked for is there, whatever else is.
    pub lenient: bool,
    /// Why the drawing is not strictly right; empty if it is.
    pub reason: String,
}

/// Whether the answer says all that the question asks for and no more: full points under the rule set `bound`.
pub fn answer_is_right(spec: &PromptSpec, answer: &str) -> bool {
    match_answer(spec, answer).is_right(spec.category)
}

/// Judges drawings, and has images that show what was asked for.
pub trait ImageJudge {
    /// What stands in a receipt: its name, and what decides its verdicts.
    fn name(&self) -> String;

    /// A verdict a task. `pixels [B,3,H,W]`, f32 in `0..=1`.
    fn judge(&self, tasks: &[Task], pixels: &Tensor) -> Result<Vec<Verdict>>;

    /// For each task an image that shows what it asks for, `[3,H,W]` in `0..=1`, where there is one; the same for the same
    /// seed.
    fn references(&self, tasks: &[Task], seed: u64) -> Result<Vec<Option<Tensor>>>;
}

/// Judges answers.
pub trait AnswerJudge {
    /// What stands in a receipt.
    fn name(&self) -> String;

    /// Whether each answer is right; `None` where the judge gives no verdict.
    fn judge(&self, tasks: &[Task], answers: &[String]) -> Result<Vec<Option<bool>>>;
}

/// The exact judge of the drawn world.
#[derive(Debug, Clone, Copy)]
pub struct TilesJudge;

impl ImageJudge for TilesJudge {
    fn name(&self) -> String {
        "tiles".into()
    }

    fn judge(&self, tasks: &[Task], pixels: &Tensor) -> Result<Vec<Verdict>> {
        let readings = tiles::read(pixels)?;
        Ok(tasks.iter().zip(&readings).map(|(task, reading)| tiles::judge(&task.spec, reading)).collect())
    }

    fn references(&self, tasks: &[Task], seed: u64) -> Result<Vec<Option<Tensor>>> {
        let mut rng = Rng::new(seed);
        tasks.iter().map(|task| Ok(Some(TileGrid::draw(&task.spec, &mut rng)?.render()))).collect()
    }
}

/// [`answer_is_right`]: what the reward rule set `exact` pays for.
#[derive(Debug, Clone, Copy)]
pub struct Exact;

impl AnswerJudge for Exact {
    /// The number changes with the grammar: a receipt is checked by the grammar that made it, or not at all.
    fn name(&self) -> String {
        "exact 2".into()
    }

    fn judge(&self, tasks: &[Task], answers: &[String]) -> Result<Vec<Option<bool>>> {
        let right = |(task, answer): (&Task, &String)| Some(answer_is_right(&task.spec, answer));
        Ok(tasks.iter().zip(answers).map(right).collect())
    }
}
