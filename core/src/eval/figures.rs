//! From verdicts to figures: accuracies by category, their means, their counts, and how far chance reaches.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Item;
use crate::prompts::rng::Rng;
use crate::prompts::{Category, Task};

/// Resamplings behind an interval.
const RESAMPLINGS: usize = 2000;
/// The seed of the resampling: the same verdicts always have the same intervals.
const SEED: u64 = 95;

/// The lower and upper end of a 95 % interval.
pub type Interval = [f64; 2];

/// An accuracy; `null` where nothing was counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The mean of the categories, `GenEval`'s figure.
    #[serde(rename = "macro")]
    pub macro_mean: Option<f64>,
    /// Its interval: percentile bootstrap over the tasks of each category.
    pub macro_interval: Option<Interval>,
    /// The mean of all samples, the paper's figure.
    #[serde(rename = "micro")]
    pub micro_mean: Option<f64>,
    /// Its interval.
    pub micro_interval: Option<Interval>,
    /// By category.
    pub by_category: BTreeMap<String, Option<f64>>,
    /// The intervals by category.
    pub intervals: BTreeMap<String, Option<Interval>>,
    /// Successes and samples by category.
    pub counts: BTreeMap<String, [u64; 2]>,
}

impl Score {
    /// A category's value and interval, where something was counted.
    pub(crate) fn of(&self, category: Category) -> Option<(f64, Interval)> {
        let name = category.name();
        self.by_category.get(name).copied().flatten().zip(self.intervals.get(name).copied().flatten())
    }
}

/// What an evaluation found.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Drawings that the strict judge calls right.
    pub t2i: Score,
    /// Drawings that pass in `GenEval`'s lenient manner.
    pub t2i_lenient: Score,
    /// Right answers about reference images, which show what was asked for.
    pub mmu: Score,
    /// Of the right drawings, those whose answer is right too (eq. 6).
    pub t2i_to_mmu: Score,
    /// Of the tasks answered right on a reference image, those drawn right too (eq. 6).
    pub mmu_to_t2i: Score,
    /// Of the wrong drawings, those whose answer gets every point: what the model does not see.
    pub wrong_passed: Score,
    /// Answers that the judge gave no verdict on; they count as wrong.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    pub not_judged: u64,
}

/// Whether an item counts for a figure, and as a success; `None` where it does not count.
type Counts = fn(&Item) -> Option<bool>;

const FIGURES: [Counts; 6] = [
    |item| Some(item.strict),
    |item| Some(item.lenient),
    |item| item.mmu_correct,
    |item| item.strict.then_some(item.passed),
    |item| (item.mmu_correct == Some(true)).then_some(item.strict),
    |item| (!item.strict).then_some(item.passed),
];

impl Report {
    /// The figures of some verdicts, an item a task.
    pub fn of(tasks: &[Task], items: &[Item]) -> Self {
        let mut by_category: [Vec<&Item>; 6] = Default::default();
        for (task, item) in tasks.iter().zip(items) {
            by_category[task.spec.category as usize].push(item);
        }
        let mut rng = Rng::new(SEED);
        // The same resampled tasks for every figure: what a chain and its parts share moves together.
        let resampled: Vec<[Tally; 6]> = (0..RESAMPLINGS)
            .map(|_| {
                let mut tallies = <[Tally; 6]>::default();
                for (category, items) in by_category.iter().enumerate() {
                    for _ in 0..items.len() {
                        let item = items[rng.below(items.len())];
                        add(&mut tallies, category, item);
                    }
                }
                tallies
            })
            .collect();
        let mut tallies = <[Tally; 6]>::default();
        for (category, items) in by_category.iter().enumerate() {
            for item in items {
                add(&mut tallies, category, item);
            }
        }
        let [t2i, t2i_lenient, mmu, t2i_to_mmu, mmu_to_t2i, wrong_passed] = std::array::from_fn(|figure| {
            let others: Vec<&Tally> = resampled.iter().map(|tallies| &tallies[figure]).collect();
            tallies[figure].score(&others)
        });
        let not_judged = items.iter().map(|item| item.not_judged).sum();
        Self { t2i, t2i_lenient, mmu, t2i_to_mmu, mmu_to_t2i, wrong_passed, not_judged }
    }

    /// The figures with the names that people read.
    pub fn rows(&self) -> [(&'static str, &Score); 6] {
        ROWS.map(|(name, _, figure)| (name, figure(self)))
    }

    /// A figure by its name in JSON.
    pub fn figure(&self, name: &str) -> Option<&Score> {
        ROWS.iter().find(|(_, known, _)| *known == name).map(|(_, _, figure)| figure(self))
    }
}

fn add(tallies: &mut [Tally; 6], category: usize, item: &Item) {
    for (tally, counts) in tallies.iter_mut().zip(FIGURES) {
        if let Some(success) = counts(item) {
            tally.0[category][0] += u64::from(success);
            tally.0[category][1] += 1;
        }
    }
}

/// Successes and samples by category.
#[derive(Debug, Clone, Copy, Default)]
struct Tally([[u64; 2]; 6]);

fn share([hits, total]: [u64; 2]) -> Option<f64> {
    (total > 0).then(|| hits as f64 / total as f64)
}

impl Tally {
    fn macro_mean(&self) -> Option<f64> {
        let known: Vec<f64> = self.0.iter().copied().filter_map(share).collect();
        (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64)
    }

    fn micro_mean(&self) -> Option<f64> {
        share(self.0.iter().fold([0, 0], |sum, part| [sum[0] + part[0], sum[1] + part[1]]))
    }

    fn score(&self, resampled: &[&Tally]) -> Score {
        let of = |figure: &dyn Fn(&Tally) -> Option<f64>| {
            interval(resampled.iter().filter_map(|tally| figure(tally)).collect())
        };
        let mut score = Score {
            macro_mean: self.macro_mean(),
            macro_interval: of(&Tally::macro_mean),
            micro_mean: self.micro_mean(),
            micro_interval: of(&Tally::micro_mean),
            ..Score::default()
        };
        for category in Category::ALL {
            let at = category as usize;
            let name = category.name().to_string();
            score.by_category.insert(name.clone(), share(self.0[at]));
            score.intervals.insert(name.clone(), of(&|tally: &Tally| share(tally.0[at])));
            score.counts.insert(name, self.0[at]);
        }
        score
    }
}

/// From the 2.5th to the 97.5th of a hundred.
fn interval(mut values: Vec<f64>) -> Option<Interval> {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get(((values.len() as f64 - 1.0) * share).round() as usize).copied();
    Some([at(0.025)?, at(0.975)?])
}

type Figure = fn(&Report) -> &Score;

/// As people read them, as JSON names them.
const ROWS: [(&str, &str, Figure); 6] = [
    ("T2I", "t2i", |report| &report.t2i),
    ("T2I lenient", "t2i_lenient", |report| &report.t2i_lenient),
    ("MMU", "mmu", |report| &report.mmu),
    ("T2I->MMU", "t2i_to_mmu", |report| &report.t2i_to_mmu),
    ("MMU->T2I", "mmu_to_t2i", |report| &report.mmu_to_t2i),
    ("wrong passed", "wrong_passed", |report| &report.wrong_passed),
];

const HEADS: [&str; 8] = ["single", "two", "count", "colors", "position", "attr", "macro", "micro"];

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| " -  ".into(), |value| format!("{value:.2}"))
}

/// Six categories and both means.
fn values(score: &Score) -> [Option<f64>; 8] {
    let of = |category: Category| score.by_category.get(category.name()).copied().flatten();
    let [a, b, c, d, e, f] = Category::ALL.map(of);
    [a, b, c, d, e, f, score.macro_mean, score.micro_mean]
}

/// Their intervals.
fn intervals(score: &Score) -> [Option<Interval>; 8] {
    let of = |category: Category| score.intervals.get(category.name()).copied().flatten();
    let [a, b, c, d, e, f] = Category::ALL.map(of);
    [a, b, c, d, e, f, score.macro_interval, score.micro_interval]
}

fn heading(width: usize) -> String {
    let mut text = format!("{:<13}", "");
    for head in HEADS {
        text += &format!(" {head:>width$}");
    }
    text + "\n"
}

/// A table with a row a figure and a column a category, the 95 % intervals below.
pub fn table(report: &Report) -> String {
    let mut text = heading(9);
    for (name, _, figure) in ROWS {
        let score = figure(report);
        text += &format!("{name:<13}");
        for value in values(score) {
            text += &format!(" {:>9}", number(value));
        }
        text += &format!("\n{:<13}", "");
        for interval in intervals(score) {
            let cell = interval.map_or_else(String::new, |[low, high]| format!("{low:.2}-{high:.2}"));
            text += &format!(" {cell:>9}");
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    if report.not_judged > 0 {
        text += &format!("not judged    {} answers without a verdict, counted as wrong\n", report.not_judged);
    }
    text
}

/// The same for two reports, `base -> trained` in every cell.
pub fn comparison(before: &Report, after: &Report) -> String {
    let mut text = heading(12);
    for (name, _, figure) in ROWS {
        text += &format!("{name:<13}");
        for (before, after) in values(figure(before)).into_iter().zip(values(figure(after))) {
            text += &format!(" {:>12}", format!("{} -> {}", number(before), number(after)));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompts::{Object, PromptSpec, PromptTemplates};

    fn task(category: Category) -> Task {
        let spec = match category {
            Category::Colors => {
                let object = Object { color: Some("red".into()), ..Object::one("ring") };
                PromptSpec { category, objects: vec![object], relation: None }
            }
            _ => PromptSpec { category, objects: vec![Object::one("ring")], relation: None },
        };
        PromptTemplates::tiles().task(spec)
    }

    fn item(strict: bool, passed: bool, mmu_correct: bool) -> Item {
        Item { strict, lenient: strict, passed, mmu_correct: Some(mmu_correct), ..Item::default() }
    }

    #[test]
    fn macro_is_the_mean_of_categories_and_micro_of_samples() {
        let tasks = [Category::SingleObject, Category::Colors, Category::Colors, Category::Colors].map(task);
        let items = [
            item(true, true, true),
            item(true, false, true),
            item(false, true, false),
            item(false, false, true),
        ];
        let report = Report::of(&tasks, &items);
        assert_eq!(report.t2i.micro_mean, Some(0.5));
        assert!((report.t2i.macro_mean.unwrap() - f64::midpoint(1.0, 1.0 / 3.0)).abs() < 1e-12);
        assert_eq!(report.t2i.by_category["position"], None);
        assert_eq!(report.t2i.counts["colors"], [1, 3]);
        // Of the two right drawings one is answered right; of the three understood tasks two are drawn right.
        assert_eq!(report.t2i_to_mmu.micro_mean, Some(0.5));
        assert_eq!(report.mmu_to_t2i.micro_mean, Some(2.0 / 3.0));
        assert_eq!(report.wrong_passed.micro_mean, Some(0.5));
    }

    #[test]
    fn nothing_counted_is_null_and_never_nan() {
        let json = serde_json::to_value(Report::of(&[], &[])).unwrap();
        assert_eq!(json["t2i"]["macro"], serde_json::Value::Null);
        assert_eq!(json["t2i"]["micro_interval"], serde_json::Value::Null);
    }

    /// Of 400 tasks with 3 of 4 right, the share has a standard error of sqrt(.75 · .25 / 400) = .0217: the interval of the
    /// bootstrap is .75 ± 1.96 · .0217 = .708 to .792, to within the .005 that 2000 resamplings leave open.
    #[test]
    fn an_interval_is_as_wide_as_chance_reaches() {
        let tasks = vec![task(Category::SingleObject); 400];
        let items: Vec<Item> = (0..400).map(|index| item(index % 4 != 0, true, true)).collect();
        let [low, high] = Report::of(&tasks, &items).t2i.micro_interval.unwrap();
        assert!((low - 0.7075).abs() < 0.005 && (high - 0.7925).abs() < 0.005, "{low} {high}");
        // A figure without a failure has no width: the bootstrap knows no other.
        assert_eq!(Report::of(&tasks, &items).mmu.micro_interval, Some([1.0, 1.0]));
    }
}
