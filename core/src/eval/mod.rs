//! Evaluation: drawing, answering, and the balance of the two (§3.6, eq. 6), with a receipt that can be checked.
//!
//! A task is drawn and judged, and the model is asked about its drawing; it is also asked about a reference image, which
//! shows what the task asks for. From these come T2I, MMU and the two chains.

mod figures;
mod folder;
mod receipt;

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::checksum;
use crate::config::Rollout;
use crate::error::{Error, Result};
use crate::judge::{AnswerJudge, Exact, ImageJudge, TilesJudge, Verdict};
use crate::model::{ImageSampling, ModelCard, TextSampling, UnifiedModel};
use crate::prompts::rng::Rng;
use crate::prompts::{Category, Split, Task};
use crate::{seed, tiles};

pub use figures::{Interval, Report, Score, comparison, table};
pub use folder::{EvalFolder, Shard};
pub use receipt::Receipt;

/// What was found about one task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// The drawing shows exactly what was asked for.
    pub strict: bool,
    /// What was asked for is there, whatever else is.
    pub lenient: bool,
    /// Why the drawing is not strictly right; empty if it is.
    pub reason: String,
    /// What the model says of its drawing.
    pub answer: String,
    /// That answer is right.
    pub passed: bool,
    /// What the model says of the reference image, where there is one.
    #[serde(rename = "reference_answer")]
    pub mmu_answer: Option<String>,
    /// That answer is right.
    #[serde(rename = "understood")]
    pub mmu_correct: Option<bool>,
    /// How many of the two answers the judge gave no verdict on; they count as wrong.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub not_judged: u64,
    /// The SHA-256 of the drawing, 8 bits a channel, in the order `[3,H,W]`.
    #[serde(rename = "drawing")]
    pub image_sha256: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// An answer and whether it is right, where the judge gave a verdict.
type Judged = (String, Option<bool>);

/// Fails for a model whose images the tiles judge cannot read.
pub fn check_tiles(card: &ModelCard) -> Result<()> {
    if card.resolution == tiles::SIDE as i64 {
        return Ok(());
    }
    Err(Error::usage(format!(
        "model `{}` draws {1}×{1} pixels, the drawn world has {2}×{2}",
        card.name,
        card.resolution,
        tiles::SIDE
    ))
    .hint("evaluate with `--model builtin`, or train without evaluation: `--set eval.prompts=0`"))
}

/// `per_category` tasks of every category, held out from training where the category has enough of them.
pub fn tasks(per_category: usize, seed: u64) -> Result<Vec<Task>> {
    let mut rng = Rng::new(seed);
    Category::ALL
        .iter()
        .flat_map(|category| std::iter::repeat_n(*category, per_category))
        .map(|category| tiles::sample(category, Split::Test, &mut rng))
        .collect()
}

/// What is evaluated, and by whom.
pub struct Evaluation<'a> {
    /// The tasks.
    pub tasks: &'a [Task],
    /// Judges drawings.
    pub images: &'a dyn ImageJudge,
    /// Judges answers.
    pub answers: &'a dyn AnswerJudge,
    /// How images and answers are drawn; answers are greedy, whatever the temperature.
    pub rollout: &'a Rollout,
    /// Tasks a part.
    pub batch: usize,
    /// The seed of drawings and reference images.
    pub seed: u64,
}

impl<'a> Evaluation<'a> {
    /// The evaluation of a model of the drawn world: by its exact judge, and by the answer rules of `exact`.
    pub fn of_tiles(
        card: &ModelCard,
        tasks: &'a [Task],
        rollout: &'a Rollout,
        batch: usize,
        seed: u64,
    ) -> Result<Self> {
        check_tiles(card)?;
        Ok(Self { tasks, images: &TilesJudge, answers: &Exact, rollout, batch, seed })
    }

    /// How many parts there are.
    pub fn parts(&self) -> usize {
        self.tasks.len().div_ceil(self.batch)
    }

    /// The tasks of a part.
    pub fn part_tasks(&self, index: usize) -> &[Task] {
        let first = (index * self.batch).min(self.tasks.len());
        &self.tasks[first..(first + self.batch).min(self.tasks.len())]
    }

    /// How answers are drawn.
    pub fn answering(&self) -> TextSampling {
        TextSampling { temperature: 0.0, ..self.rollout.answers.clone() }
    }

    /// Evaluates one part. It does not depend on the others.
    pub fn part(&self, model: &mut dyn UnifiedModel, index: usize) -> Result<Vec<Item>> {
        let tasks = self.part_tasks(index);
        let prompts: Vec<String> = tasks.iter().map(|task| task.prompt.clone()).collect();
        let questions: Vec<String> = tasks.iter().map(|task| task.question.clone()).collect();
        let sampling =
            ImageSampling { seed: seed::derive(self.seed, &[index as u64]), ..self.rollout.images.clone() };
        let answering = self.answering();

        let generated = tch::no_grad(|| model.generate(&prompts, &sampling))?;
        let pixels = tch::no_grad(|| model.pixels(&generated))?;
        let verdicts = self.images.judge(tasks, &pixels)?;
        let generated_answers = tch::no_grad(|| model.answer(&generated, &questions, &answering))?.text;
        let passed = self.answers.judge(tasks, &generated_answers)?;

        let reference_answers = self.about_references(model, index)?;

        let drawings = checksum::images(&pixels)?;
        let mut items = Vec::with_capacity(tasks.len());
        let rows = verdicts.into_iter().zip(generated_answers).zip(passed).zip(drawings);
        for ((((verdict, answer), passed), image_sha256), shown) in rows.zip(reference_answers) {
            let Verdict { strict, lenient, reason } = verdict;
            let (mmu_answer, mmu_correct) = shown.unzip();
            let not_judged =
                [Some(passed), mmu_correct].iter().filter(|verdict| **verdict == Some(None)).count();
            items.push(Item {
                strict,
                lenient,
                reason,
                answer,
                passed: passed.unwrap_or(false),
                mmu_answer,
                mmu_correct: mmu_correct.map(|verdict| verdict.unwrap_or(false)),
                not_judged: not_judged as u64,
                image_sha256,
            });
        }
        Ok(items)
    }

    /// What the model says of the reference images of a part, where there are such, and whether that is right.
    fn about_references(&self, model: &mut dyn UnifiedModel, index: usize) -> Result<Vec<Option<Judged>>> {
        let tasks = self.part_tasks(index);
        let references = self.images.references(tasks, seed::derive(self.seed, &[index as u64, 1]))?;
        let mut about = vec![None; tasks.len()];
        let there: Vec<usize> = (0..tasks.len()).filter(|row| references[*row].is_some()).collect();
        if there.is_empty() {
            return Ok(about);
        }
        let shown: Vec<&Tensor> = references.iter().flatten().collect();
        let shown = tch::no_grad(|| model.encode(&Tensor::stack(&shown, 0)))?;
        let asked: Vec<Task> = there.iter().map(|row| tasks[*row].clone()).collect();
        let questions: Vec<String> = asked.iter().map(|task| task.question.clone()).collect();
        let said = tch::no_grad(|| model.answer(&shown, &questions, &self.answering()))?.text;
        let right = self.answers.judge(&asked, &said)?;
        for (row, verdict) in there.into_iter().zip(said.into_iter().zip(right)) {
            about[row] = Some(verdict);
        }
        Ok(about)
    }

    /// Evaluates everything; `progress` is told how many tasks are done, and may end it.
    pub fn run(
        &self,
        model: &mut dyn UnifiedModel,
        mut progress: impl FnMut(usize) -> Result<()>,
    ) -> Result<Vec<Item>> {
        let mut items = Vec::with_capacity(self.tasks.len());
        for index in 0..self.parts() {
            items.extend(self.part(model, index)?);
            progress(self.part_tasks(index).len())?;
        }
        Ok(items)
    }
}
