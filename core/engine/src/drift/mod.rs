//! The drift monitor: every `eval.every` steps it evaluates generation and understanding on a small fixed set of tasks. The
//! run keeps its best checkpoint, warns when a category drops below its confidence interval or when the self-reward is gamed
//! (`gaming`), and can stop or roll back.
//!
//! The set consists of training tasks, so the choice of a checkpoint does not depend on the final evaluation, except for the
//! two categories that have too few tasks to be split.

mod gaming;

use std::collections::{BTreeMap, BTreeSet};

use gaming::Verdicts;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use unirl::error::Result;
use unirl::model::{Mode, UnifiedModel};
use unirl::prompt::Category;
use unirl_base::seed;
use unirl_benchmarks::Benchmark;
use unirl_prompts::Task;
use unirl_prompts::rng::Rng;

use crate::config::{DRIFT_FIGURES, RegressionAction, RunConfig};
use crate::eval::{Evaluation, Interval, Item, Report};
use crate::optim::AdamW;

/// The number of rollbacks after which a further regression stops the run.
const MAX_ROLLBACKS: u32 = 3;

/// The stream of the evaluation seed from which the set is sampled.
const STREAM: u64 = 7;

/// The name of a gamed reward among the regressions.
const GAMED: &str = "gamed";

/// The result of a drift check; the default for a step without a check.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DriftCheck {
    /// The step is the best one so far.
    pub(crate) best: bool,
    /// The reason to stop the run, if it must stop.
    pub(crate) stop: Option<String>,
}

/// The state of the monitor in a checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DriftState {
    /// The model before the first step.
    base: Report,
    /// The best value of the figure `eval.best`, if it counted anything.
    best: Option<f64>,
    /// The step of the best value; `None` for the base model.
    pub(crate) best_step: Option<u64>,
    /// Figures and categories that had regressed at the last check, and [`GAMED`] if the reward was gamed.
    fallen: BTreeSet<String>,
    rollbacks: u32,
    /// The verdicts of the check with the most correct images, the first of equal ones; absent in older checkpoints, in which case
    /// the next check is the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    most_correct: Option<Verdicts>,
}

/// The drift monitor of a run.
pub(crate) struct DriftMonitor<'a> {
    config: &'a RunConfig,
    benchmark: &'a dyn Benchmark,
    tasks: Vec<Task>,
    pub(crate) state: DriftState,
    /// The weights of the best step, for a rollback.
    pub(crate) weights: Vec<Tensor>,
}

impl<'a> DriftMonitor<'a> {
    /// Starts the monitor of a run that begins with `model`; `None` if `eval.every` is 0.
    pub(crate) fn new(
        model: &mut dyn UnifiedModel,
        benchmark: Option<&'a dyn Benchmark>,
        config: &'a RunConfig,
        update: &AdamW,
    ) -> Result<Option<Self>> {
        let Some((benchmark, tasks)) = tasks(benchmark, config)? else { return Ok(None) };
        let (base, items) = evaluate(benchmark, &tasks, config, model)?;
        let best = chosen(&base, config);
        let most_correct = Some(Verdicts::new(0, &items));
        let fallen = BTreeSet::new();
        let state = DriftState { base, best, best_step: None, fallen, rollbacks: 0, most_correct };
        let rolls_back = config.eval.on_regression == RegressionAction::Rollback;
        let weights = if rolls_back { update.weights() } else { Vec::new() };
        Ok(Some(Self { config, benchmark, tasks, state, weights }))
    }

    /// Resumes the monitor of a run.
    pub(crate) fn resume(
        benchmark: Option<&'a dyn Benchmark>,
        config: &'a RunConfig,
        state: DriftState,
        weights: Vec<Tensor>,
    ) -> Result<Option<Self>> {
        let set = tasks(benchmark, config)?;
        Ok(set.map(|(benchmark, tasks)| Self { config, benchmark, tasks, state, weights }))
    }

    /// Checks the model after a step, every `eval.every` steps.
    pub(crate) fn check(
        &mut self,
        step: u64,
        model: &mut dyn UnifiedModel,
        update: &mut AdamW,
        metrics: &mut BTreeMap<String, f64>,
    ) -> Result<DriftCheck> {
        if !step.is_multiple_of(self.config.eval.every) {
            return Ok(DriftCheck::default());
        }
        let (report, items) = evaluate(self.benchmark, &self.tasks, self.config, model)?;
        let verdicts = Verdicts::new(step, &items);
        metrics.insert("eval/reward".into(), verdicts.reward());
        // Pooled, because few answers of a category pass about a wrong image.
        for (name, score) in [("precision", &report.precision), ("wrong_passed", &report.wrong_passed)] {
            insert(metrics, name, score.micro_mean, score.micro_interval);
        }
        for name in DRIFT_FIGURES {
            let Some(score) = report.figure(name) else { continue };
            insert(metrics, name, score.macro_mean, score.macro_interval);
        }
        let state = &mut self.state;
        let mut regressions = regressions(&state.base, &report);
        let gaming = state.most_correct.as_ref().and_then(|best| verdicts.gaming(best));
        regressions.extend(gaming.map(|message| Regression { name: GAMED.into(), message }));
        if state.most_correct.as_ref().is_none_or(|best| verdicts.is_better_than(best)) {
            state.most_correct = Some(verdicts);
        }
        let new = regressions.iter().filter(|regression| !state.fallen.contains(&regression.name));
        let messages: Vec<String> = new.map(|regression| regression.message.clone()).collect();
        for message in &messages {
            tracing::warn!("step {step}: {message}");
        }
        let action = self.config.eval.on_regression;
        let stop = |reason: String| DriftCheck { best: false, stop: Some(reason) };
        if !regressions.is_empty() && action == RegressionAction::Rollback {
            state.rollbacks += 1;
            if state.rollbacks > MAX_ROLLBACKS {
                return Ok(stop(format!("the model regressed again after {MAX_ROLLBACKS} rollbacks")));
            }
            update.restore(&self.weights);
            metrics.insert("eval/rollback".into(), 1.0);
            tracing::warn!("step {step}: rolled back to the weights of the best step");
            return Ok(DriftCheck::default());
        }
        if !messages.is_empty() && action == RegressionAction::Stop {
            return Ok(stop(messages.join("; ")));
        }
        state.fallen = regressions.into_iter().map(|regression| regression.name).collect();
        let chosen = chosen(&report, self.config);
        let best = chosen > state.best;
        if best {
            (state.best, state.best_step) = (chosen, Some(step));
            if action == RegressionAction::Rollback {
                self.weights = update.weights();
            }
        }
        Ok(DriftCheck { best, stop: None })
    }
}

/// Samples the fixed set; `None` if `eval.every` is 0.
fn tasks<'a>(
    benchmark: Option<&'a dyn Benchmark>,
    config: &RunConfig,
) -> Result<Option<(&'a dyn Benchmark, Vec<Task>)>> {
    let options = &config.eval;
    let Some(benchmark) = benchmark.filter(|_| options.every > 0) else { return Ok(None) };
    let mut rng = Rng::new(seed::derive(options.seed, &[STREAM]));
    let categories = benchmark.categories().iter();
    let categories = categories.flat_map(|one| std::iter::repeat_n(*one, options.monitor_prompts));
    let tasks = categories.map(|category| benchmark.sample(category, &mut rng)).collect::<Result<_>>()?;
    Ok(Some((benchmark, tasks)))
}

fn evaluate(
    benchmark: &dyn Benchmark,
    tasks: &[Task],
    config: &RunConfig,
    model: &mut dyn UnifiedModel,
) -> Result<(Report, Vec<Item>)> {
    let options = &config.eval;
    let evaluation = Evaluation::new(benchmark, tasks, &config.rollout, options.batch, options.seed);
    model.set_mode(Mode::Eval)?;
    let items = evaluation.run(model, |_| Ok(()))?;
    Ok((Report::of(tasks, &items), items))
}

/// Adds a figure and its interval, if it counted anything.
fn insert(metrics: &mut BTreeMap<String, f64>, name: &str, value: Option<f64>, interval: Option<Interval>) {
    let [low, high] = interval.map_or([None; 2], |interval| interval.map(Some));
    for (suffix, value) in [("", value), ("_low", low), ("_high", high)] {
        metrics.extend(value.map(|value| (format!("eval/{name}{suffix}"), value)));
    }
}

/// Returns the figure that ranks checkpoints; `None`, if it counted nothing, ranks last.
fn chosen(report: &Report, config: &RunConfig) -> Option<f64> {
    report.figure(&config.eval.best)?.macro_mean
}

/// A category whose accuracy dropped significantly, or a gamed reward.
struct Regression {
    /// `FIGURE/CATEGORY`, or [`GAMED`].
    name: String,
    message: String,
}

/// Returns the categories in which generation or understanding dropped significantly: the base value lies above the current
/// interval, and the current value below the interval of the base. Both are required, because 20 correct answers of 20 have an
/// interval of zero width.
fn regressions(base: &Report, now: &Report) -> Vec<Regression> {
    let mut regressions = Vec::new();
    for (name, title) in [("t2i", "T2I"), ("mmu", "MMU")] {
        let (Some(before), Some(after)) = (base.figure(name), now.figure(name)) else { continue };
        for category in Category::ALL {
            let (Some((old, [low, _])), Some((new, [_, high]))) = (before.of(category), after.of(category))
            else {
                continue;
            };
            if new < low && old > high {
                let message = format!(
                    "{title} of `{}` dropped from {old:.2} to {new:.2} (95 % interval up to {high:.2})",
                    category.name()
                );
                regressions.push(Regression { name: format!("{name}/{}", category.name()), message });
            }
        }
    }
    regressions
}

#[cfg(test)]
mod tests {
    use unirl_benchmarks::tiles;
    use unirl_prompts::Split;

    use super::*;

    fn report(strict_correct: usize, mmu_correct: usize) -> Report {
        let tasks: Vec<Task> = (0..20)
            .map(|index| tiles::sample(Category::Colors, Split::All, &mut Rng::new(index)).unwrap())
            .collect();
        let item = |index: usize| Item {
            strict: index < strict_correct,
            mmu_correct: Some(index < mmu_correct),
            ..Item::default()
        };
        Report::of(&tasks, &(0..20).map(item).collect::<Vec<_>>())
    }

    #[test]
    fn state_of_an_older_checkpoint_has_no_verdicts() {
        let items = vec![Item { strict: true, ..Item::default() }];
        let most_correct = Some(Verdicts::new(0, &items));
        let base = report(10, 20);
        let state = DriftState {
            base,
            best: Some(0.5),
            best_step: Some(5),
            fallen: BTreeSet::new(),
            rollbacks: 1,
            most_correct,
        };
        let mut json = serde_json::to_value(&state).unwrap();
        assert_eq!(serde_json::from_value::<DriftState>(json.clone()).unwrap(), state);
        json.as_object_mut().unwrap().remove("most_correct");
        json["base"].as_object_mut().unwrap().remove("precision");
        let older: DriftState = serde_json::from_value(json).unwrap();
        assert_eq!((older.most_correct, older.best_step), (None, Some(5)));
    }

    /// With 10 of 20 correct, the interval begins near .5 - 1.96 · .112 = .28: 6 of 20 are within, 4 are not.
    #[test]
    fn regressions_lie_outside_the_intervals() {
        let base = report(10, 20);
        let messages = |report: &Report| {
            regressions(&base, report).into_iter().map(|one| one.message).collect::<Vec<_>>()
        };
        assert!(messages(&report(6, 20)).is_empty());
        assert_eq!(messages(&report(4, 20)).len(), 1);
        assert!(messages(&report(12, 19)).is_empty());
        assert_eq!(
            messages(&report(12, 15)),
            ["MMU of `colors` dropped from 1.00 to 0.75 (95 % interval up to 0.90)"]
        );
    }
}
