//! Evaluation of generation, understanding and their balance (§3.6, eq. 6), with a receipt that can be verified.
//!
//! For each prompt, the model generates an image, which is judged, and answers the question about it. It also answers the
//! question about a reference image of the same specification. T2I, MMU, T2I→MMU and MMU→T2I follow from these verdicts.

mod figures;
mod folder;
mod receipt;

use serde::{Deserialize, Serialize};
use tch::Tensor;
use unirl::error::Result;
use unirl::model::{ImageSampling, TextSampling, UnifiedModel};
use unirl_base::{checksum, seed};
use unirl_benchmarks::Benchmark;
use unirl_benchmarks::judge::{AnswerJudge, Exact, ImageJudge, Verdict};
use unirl_prompts::Task;

use crate::config::Rollout;

pub use figures::{Interval, Report, Score, comparison, table};
pub use folder::{EvalFolder, Shard};
pub use receipt::Receipt;

/// The verdicts on one prompt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Item {
    /// The generated image shows exactly the specification.
    pub strict: bool,
    /// The generated image shows the specification, perhaps among other things.
    pub lenient: bool,
    /// Why the image is not strictly correct; empty if it is.
    pub reason: String,
    /// The answer about the generated image.
    pub answer: String,
    /// Whether `answer` is correct.
    pub passed: bool,
    /// The answer about the reference image, if there is one.
    #[serde(rename = "reference_answer")]
    pub mmu_answer: Option<String>,
    /// Whether `mmu_answer` is correct.
    #[serde(rename = "understood")]
    pub mmu_correct: Option<bool>,
    /// How many of the two answers got no verdict from the judge; they count as wrong.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub not_judged: u64,
    /// The SHA-256 of the generated image, 8 bits per channel, in the order `[3,H,W]`.
    #[serde(rename = "drawing")]
    pub image_sha256: String,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// An answer with its verdict, if the judge gave one.
type Judged = (String, Option<bool>);

/// An evaluation: prompts, judges and sampling.
pub struct Evaluation<'a> {
    /// The prompts.
    pub tasks: &'a [Task],
    /// The judge of generated images.
    pub images: &'a dyn ImageJudge,
    /// The judge of answers.
    pub answers: &'a dyn AnswerJudge,
    /// Sampling. Answers are greedy, whatever the temperature.
    pub rollout: &'a Rollout,
    /// Prompts per part; the images of a part share their random numbers.
    pub batch: usize,
    /// The seed of generated images and reference images.
    pub seed: u64,
}

impl<'a> Evaluation<'a> {
    /// An evaluation of `tasks` by the judge of a benchmark, and by the exact judge of answers.
    pub fn new(
        benchmark: &'a dyn Benchmark,
        tasks: &'a [Task],
        rollout: &'a Rollout,
        batch: usize,
        seed: u64,
    ) -> Self {
        Self { tasks, images: benchmark.image_judge(), answers: &Exact, rollout, batch, seed }
    }

    /// The number of parts.
    pub fn parts(&self) -> usize {
        self.tasks.len().div_ceil(self.batch)
    }

    /// The prompts of a part.
    pub fn part_tasks(&self, index: usize) -> &[Task] {
        let first = (index * self.batch).min(self.tasks.len());
        &self.tasks[first..(first + self.batch).min(self.tasks.len())]
    }

    /// The sampling of answers.
    pub fn answering(&self) -> TextSampling {
        TextSampling { temperature: 0.0, ..self.rollout.answers.clone() }
    }

    /// Evaluates one part, independently of the others.
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

        let image_hashes = checksum::images(&pixels)?;
        let mut items = Vec::with_capacity(tasks.len());
        let rows = verdicts.into_iter().zip(generated_answers).zip(passed).zip(image_hashes);
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

    /// The answers about the reference images of a part, with their verdicts; `None` for a prompt without a reference image.
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
        let answers = tch::no_grad(|| model.answer(&shown, &questions, &self.answering()))?.text;
        let right = self.answers.judge(&asked, &answers)?;
        for (row, verdict) in there.into_iter().zip(answers.into_iter().zip(right)) {
            about[row] = Some(verdict);
        }
        Ok(about)
    }

    /// Evaluates every part. `progress` gets the number of prompts done since its last call; its error ends the evaluation.
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
