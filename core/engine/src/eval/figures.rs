//! The figures of an evaluation: accuracies per category, their means, counts and bootstrap intervals.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use unirl::prompt::Category;
use unirl_prompts::Task;
use unirl_prompts::rng::Rng;

use super::Item;

/// The number of bootstrap resamples of an interval.
const RESAMPLINGS: usize = 2000;
/// The seed of the resampling, so that the same verdicts always have the same intervals.
const SEED: u64 = 95;

/// The lower and upper end of a 95 % confidence interval.
pub type Interval = [f64; 2];

/// An accuracy. A value is `null` if nothing was counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Score {
    /// The mean over categories, as in `GenEval`.
    #[serde(rename = "macro")]
    pub macro_mean: Option<f64>,
    /// The interval of the macro mean: percentile bootstrap over the tasks of each category.
    pub macro_interval: Option<Interval>,
    /// The mean over samples, as in the paper.
    #[serde(rename = "micro")]
    pub micro_mean: Option<f64>,
    /// The interval of the micro mean.
    pub micro_interval: Option<Interval>,
    /// The accuracy of each category.
    pub by_category: BTreeMap<String, Option<f64>>,
    /// The interval of each category.
    pub intervals: BTreeMap<String, Option<Interval>>,
    /// Successes and samples of each category.
    pub counts: BTreeMap<String, [u64; 2]>,
}

impl Score {
    /// Returns the accuracy and the interval of a category, if anything was counted.
    pub(crate) fn of(&self, category: Category) -> Option<(f64, Interval)> {
        let name = category.name();
        self.by_category.get(name).copied().flatten().zip(self.intervals.get(name).copied().flatten())
    }
}

/// The figures of an evaluation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Images that are correct according to the strict judge.
    pub t2i: Score,
    /// Images that are correct in the lenient sense of `GenEval`.
    pub t2i_lenient: Score,
    /// Correct answers about reference images, which show the prompt.
    pub mmu: Score,
    /// Correct answers among the tasks with a correct image (eq. 6).
    pub t2i_to_mmu: Score,
    /// Correct images among the tasks answered correctly on a reference image (eq. 6).
    pub mmu_to_t2i: Score,
    /// Passing answers among the incorrect images: false positives.
    pub wrong_passed: Score,
    /// Correct images among those whose answer passes: the precision of the self-reward. Empty in receipts of earlier releases.
    #[serde(default)]
    pub precision: Score,
    /// Answers without a verdict; they count as incorrect.
    #[serde(default, skip_serializing_if = "super::is_zero")]
    pub not_judged: u64,
}

/// Whether an item is a success for a figure; `None` if the figure does not count it.
type Counts = fn(&Item) -> Option<bool>;

const FIGURES: [Counts; 7] = [
    |item| Some(item.strict),
    |item| Some(item.lenient),
    |item| item.mmu_correct,
    |item| item.strict.then_some(item.passed),
    |item| (item.mmu_correct == Some(true)).then_some(item.strict),
    |item| (!item.strict).then_some(item.passed),
    |item| item.passed.then_some(item.strict),
];

impl Report {
    /// Computes the figures from the verdicts, one item per task.
    pub fn of(tasks: &[Task], items: &[Item]) -> Self {
        let mut by_category: [Vec<&Item>; 6] = Default::default();
        for (task, item) in tasks.iter().zip(items) {
            by_category[task.spec.category as usize].push(item);
        }
        let mut rng = Rng::new(SEED);
        // All figures use the same resampled tasks, so that a chain and the figures it is made of vary together.
        let resampled: Vec<[Tally; 7]> = (0..RESAMPLINGS)
            .map(|_| {
                let mut tallies = <[Tally; 7]>::default();
                for (category, items) in by_category.iter().enumerate() {
                    for _ in 0..items.len() {
                        let item = items[rng.below(items.len())];
                        add(&mut tallies, category, item);
                    }
                }
                tallies
            })
            .collect();
        let mut tallies = <[Tally; 7]>::default();
        for (category, items) in by_category.iter().enumerate() {
            for item in items {
                add(&mut tallies, category, item);
            }
        }
        let scores = std::array::from_fn(|figure| {
            let resampled: Vec<&Tally> = resampled.iter().map(|tallies| &tallies[figure]).collect();
            tallies[figure].score(&resampled)
        });
        let [t2i, t2i_lenient, mmu, t2i_to_mmu, mmu_to_t2i, wrong_passed, precision] = scores;
        let not_judged = items.iter().map(|item| item.not_judged).sum();
        Self { t2i, t2i_lenient, mmu, t2i_to_mmu, mmu_to_t2i, wrong_passed, precision, not_judged }
    }

    /// Returns the figures with their display names.
    pub fn rows(&self) -> [(&'static str, &Score); 7] {
        ROWS.map(|(name, _, figure)| (name, figure(self)))
    }

    /// Returns a figure by its JSON name.
    pub fn figure(&self, name: &str) -> Option<&Score> {
        ROWS.iter().find(|(_, known, _)| *known == name).map(|(_, _, figure)| figure(self))
    }
}

fn add(tallies: &mut [Tally; 7], category: usize, item: &Item) {
    for (tally, counts) in tallies.iter_mut().zip(FIGURES) {
        if let Some(success) = counts(item) {
            tally.0[category][0] += u64::from(success);
            tally.0[category][1] += 1;
        }
    }
}

/// Successes and samples of each category.
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
        share(self.0.iter().fold([0, 0], |sum, counts| [sum[0] + counts[0], sum[1] + counts[1]]))
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

/// The 2.5th and the 97.5th percentile.
fn interval(mut values: Vec<f64>) -> Option<Interval> {
    values.sort_by(f64::total_cmp);
    let at = |share: f64| values.get(((values.len() as f64 - 1.0) * share).round() as usize).copied();
    Some([at(0.025)?, at(0.975)?])
}

type Figure = fn(&Report) -> &Score;

/// The figures: display name, JSON name, field.
const ROWS: [(&str, &str, Figure); 7] = [
    ("T2I", "t2i", |report| &report.t2i),
    ("T2I lenient", "t2i_lenient", |report| &report.t2i_lenient),
    ("MMU", "mmu", |report| &report.mmu),
    ("T2I->MMU", "t2i_to_mmu", |report| &report.t2i_to_mmu),
    ("MMU->T2I", "mmu_to_t2i", |report| &report.mmu_to_t2i),
    ("false pos.", "wrong_passed", |report| &report.wrong_passed),
    ("precision", "precision", |report| &report.precision),
];

const HEADS: [&str; 8] = ["single", "two", "count", "colors", "position", "attr", "macro", "micro"];

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| " -  ".into(), |value| format!("{value:.2}"))
}

/// The values of the six categories and both means.
fn values(score: &Score) -> [Option<f64>; 8] {
    let of = |category: Category| score.by_category.get(category.name()).copied().flatten();
    let [a, b, c, d, e, f] = Category::ALL.map(of);
    [a, b, c, d, e, f, score.macro_mean, score.micro_mean]
}

/// The intervals of the six categories and both means.
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

/// Renders a table with a row per figure and a column per category, with the 95 % intervals below each row.
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
        text +=
            &format!("not judged    {} answers without a verdict, counted as incorrect\n", report.not_judged);
    }
    text
}

/// Renders a table of two reports with `base -> trained` in every cell.
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
    use unirl::prompt::{Object, PromptSpec};
    use unirl_prompts::PromptTemplates;

    use super::*;

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
    fn macro_averages_categories_and_micro_samples() {
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
        // Of the two correct images one is answered correctly; of the three tasks answered correctly on the reference image
        // two have a correct image.
        assert_eq!(report.t2i_to_mmu.micro_mean, Some(0.5));
        assert_eq!(report.mmu_to_t2i.micro_mean, Some(2.0 / 3.0));
        assert_eq!(report.wrong_passed.micro_mean, Some(0.5));
        // Two answers pass: the one about the single object, whose image is correct, and one about a wrong image.
        assert_eq!(report.precision.micro_mean, Some(0.5));
        assert_eq!(report.precision.macro_mean, Some(0.5));
        assert_eq!(report.precision.counts["colors"], [0, 1]);
        assert_eq!(report.precision.by_category["position"], None, "no answer passes");
    }

    #[test]
    fn empty_report_has_null_and_not_nan() {
        let json = serde_json::to_value(Report::of(&[], &[])).unwrap();
        assert_eq!(json["t2i"]["macro"], serde_json::Value::Null);
        assert_eq!(json["t2i"]["micro_interval"], serde_json::Value::Null);
    }

    /// With 3 of 4 correct in 400 tasks, the standard error of the share is sqrt(.75 · .25 / 400) = .0217: the bootstrap
    /// interval is .75 ± 1.96 · .0217 = .708 to .792. The tolerance .005 covers the error of 2000 resamples.
    #[test]
    fn interval_matches_the_normal_approximation() {
        let tasks = vec![task(Category::SingleObject); 400];
        let items: Vec<Item> = (0..400).map(|index| item(index % 4 != 0, true, true)).collect();
        let [low, high] = Report::of(&tasks, &items).t2i.micro_interval.unwrap();
        assert!((low - 0.7075).abs() < 0.005 && (high - 0.7925).abs() < 0.005, "{low} {high}");
        // Without failures the bootstrap interval has zero width.
        assert_eq!(Report::of(&tasks, &items).mmu.micro_interval, Some([1.0, 1.0]));
    }
}
