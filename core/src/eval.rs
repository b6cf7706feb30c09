//! Evaluation: drawing, answering, and the balance of the two (§3.6, eq. 6), in the drawn world.

use std::collections::BTreeMap;

use serde::Serialize;
use tch::Tensor;

use crate::config::Rollout;
use crate::error::{Error, Result};
use crate::judge::{answer_is_right, tiles as judge};
use crate::model::{ImageSampling, ModelCard, TextSampling, UnifiedModel};
use crate::scene::rng::Rng;
use crate::scene::{Category, Split, Task};
use crate::{seed, tiles};

/// Counts of successes by category.
#[derive(Debug, Clone, Default)]
struct Tally(BTreeMap<Category, (u64, u64)>);

impl Tally {
    fn add(&mut self, category: Category, success: bool) {
        let (hits, total) = self.0.entry(category).or_default();
        *hits += u64::from(success);
        *total += 1;
    }

    fn score(&self) -> Score {
        let share = |(hits, total): (u64, u64)| (total > 0).then(|| hits as f64 / total as f64);
        let by_category: BTreeMap<_, _> = Category::ALL
            .iter()
            .map(|category| (category.name(), share(self.0.get(category).copied().unwrap_or_default())))
            .collect();
        let known: Vec<f64> = by_category.values().copied().flatten().collect();
        let sums = self.0.values().fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
        Score {
            macro_mean: (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64),
            micro_mean: share(sums),
            by_category,
        }
    }
}

/// An accuracy; `None` (`null`) where nothing was counted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Score {
    /// The mean of the categories, `GenEval`'s figure.
    #[serde(rename = "macro")]
    pub macro_mean: Option<f64>,
    /// The mean of all samples, the paper's figure.
    #[serde(rename = "micro")]
    pub micro_mean: Option<f64>,
    /// By category.
    pub by_category: BTreeMap<&'static str, Option<f64>>,
}

/// What an evaluation found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Drawings that the strict judge calls right.
    pub t2i: Score,
    /// Drawings that pass in `GenEval`'s lenient manner.
    pub t2i_lenient: Score,
    /// Right answers about rendered, right images.
    pub mmu: Score,
    /// Of the right drawings, those whose answer is right too (eq. 6).
    pub t2i_to_mmu: Score,
    /// Of the tasks answered right on a rendered image, those drawn right too (eq. 6).
    pub mmu_to_t2i: Score,
    /// Of the wrong drawings, those whose answer gets every point: what the model does not see.
    pub wrong_passed: Score,
}

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

/// Draws and answers every task, `batch` at a time; greedy answers, whatever the rollout's temperature.
pub fn evaluate(
    model: &mut dyn UnifiedModel,
    tasks: &[Task],
    rollout: &Rollout,
    batch: usize,
    eval_seed: u64,
    mut progress: impl FnMut(usize),
) -> Result<Report> {
    check_tiles(model.card())?;
    let [mut t2i, mut lenient, mut mmu, mut t2i_to_mmu, mut mmu_to_t2i, mut wrong_passed] =
        std::array::from_fn(|_| Tally::default());
    let greedy = TextSampling { temperature: 0.0, ..rollout.answers.clone() };
    for (index, chunk) in tasks.chunks(batch).enumerate() {
        let prompts: Vec<String> = chunk.iter().map(|task| task.prompt.clone()).collect();
        let questions: Vec<String> = chunk.iter().map(|task| task.question.clone()).collect();
        let sampling =
            ImageSampling { seed: seed::derive(eval_seed, &[index as u64]), ..rollout.images.clone() };

        let drawn = model.generate(&prompts, &sampling)?;
        let readings = judge::read(&model.pixels(&drawn)?)?;
        let about_drawn = model.answer(&drawn, &questions, &greedy)?;

        let rendered = model.encode(&rendered(chunk, seed::derive(eval_seed, &[index as u64, 1]))?)?;
        let about_rendered = model.answer(&rendered, &questions, &greedy)?;

        for (row, task) in chunk.iter().enumerate() {
            let category = task.facts.category;
            let verdict = judge::judge(&task.facts, &readings[row]);
            let passed = answer_is_right(&task.facts, &about_drawn.text[row]);
            let understood = answer_is_right(&task.facts, &about_rendered.text[row]);
            t2i.add(category, verdict.strict);
            lenient.add(category, verdict.lenient);
            mmu.add(category, understood);
            if verdict.strict {
                t2i_to_mmu.add(category, passed);
            } else {
                wrong_passed.add(category, passed);
            }
            if understood {
                mmu_to_t2i.add(category, verdict.strict);
            }
        }
        progress(chunk.len());
    }
    Ok(Report {
        t2i: t2i.score(),
        t2i_lenient: lenient.score(),
        mmu: mmu.score(),
        t2i_to_mmu: t2i_to_mmu.score(),
        mmu_to_t2i: mmu_to_t2i.score(),
        wrong_passed: wrong_passed.score(),
    })
}

fn rendered(tasks: &[Task], seed: u64) -> Result<Tensor> {
    let mut rng = Rng::new(seed);
    let scenes: Vec<_> =
        tasks.iter().map(|task| tiles::Scene::draw(&task.facts, &mut rng)).collect::<Result<_>>()?;
    Ok(tiles::render(&scenes))
}

/// A table with a row a figure and a column a category; with `after`, `base -> trained` in every cell.
pub fn table(before: &Report, after: Option<&Report>) -> String {
    type Figure = fn(&Report) -> &Score;
    let rows: [(&str, Figure); 6] = [
        ("T2I", |report| &report.t2i),
        ("T2I lenient", |report| &report.t2i_lenient),
        ("MMU", |report| &report.mmu),
        ("T2I->MMU", |report| &report.t2i_to_mmu),
        ("MMU->T2I", |report| &report.mmu_to_t2i),
        ("wrong passed", |report| &report.wrong_passed),
    ];
    let number = |value: Option<f64>| value.map_or_else(|| " -  ".into(), |value| format!("{value:.2}"));
    let cell = |before: Option<f64>, after: Option<Option<f64>>| match after {
        None => number(before),
        Some(after) => format!("{} -> {}", number(before), number(after)),
    };
    let width = if after.is_some() { 12 } else { 6 };
    let heads = ["single", "two", "count", "colors", "position", "attr", "macro", "micro"];
    let mut text = format!("{:<13}", "");
    for head in heads {
        let width = width.max(8);
        text += &format!(" {head:>width$}");
    }
    text.push('\n');
    for (name, figure) in rows {
        text += &format!("{name:<13}");
        let (old, new) = (figure(before), after.map(figure));
        let categories = Category::ALL.iter().map(|category| {
            let of = |score: &Score| score.by_category.get(category.name()).copied().flatten();
            cell(of(old), new.map(of))
        });
        let means = [
            cell(old.macro_mean, new.map(|score| score.macro_mean)),
            cell(old.micro_mean, new.map(|score| score.micro_mean)),
        ];
        for value in categories.chain(means) {
            let width = width.max(8);
            text += &format!(" {value:>width$}");
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macro_is_the_mean_of_categories_and_micro_of_samples() {
        let mut tally = Tally::default();
        tally.add(Category::Counting, true);
        for success in [true, false, false] {
            tally.add(Category::Colors, success);
        }
        let score = tally.score();
        assert_eq!(score.micro_mean, Some(0.5));
        assert!((score.macro_mean.unwrap() - f64::midpoint(1.0, 1.0 / 3.0)).abs() < 1e-12);
        assert_eq!(score.by_category["position"], None);
    }

    #[test]
    fn nothing_counted_is_null_and_never_nan() {
        let json = serde_json::to_value(Tally::default().score()).unwrap();
        assert_eq!(json["macro"], serde_json::Value::Null);
    }
}
