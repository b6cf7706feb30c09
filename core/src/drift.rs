//! The drift guard: every so many steps a small fixed set of tasks is drawn, answered and judged in both directions. The run
//! keeps its best checkpoint, warns when a category falls below what chance explains, and may stop or go back.
//!
//! The set is made of training tasks: the choice of a checkpoint does not see what the evaluation at the end asks, but for
//! the two categories that have too few tasks to be split.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::config::{DRIFT_FIGURES, RegressionAction, RunConfig};
use crate::error::Result;
use crate::eval::{Evaluation, Report};
use crate::model::{Mode, UnifiedModel};
use crate::optim::AdamW;
use crate::prompts::rng::Rng;
use crate::prompts::{Category, Split, Task};
use crate::{seed, tiles};

/// Goings back after which the run stops: what falls again and again is not chance.
const MOST_ROLLBACKS: u32 = 3;

/// The stream of the evaluation's seed that the set is drawn from.
const STREAM: u64 = 7;

/// What the guard made of a step; nothing where it was not its time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct DriftCheck {
    /// No step before was as good.
    pub(crate) best: bool,
    /// The run is to end, and why.
    pub(crate) stop: Option<String>,
}

/// What the guard remembers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DriftState {
    /// The model before the first step.
    base: Report,
    /// The chosen figure at its best, where it counted anything.
    best: Option<f64>,
    /// The step of that; the base has none.
    pub(crate) best_step: Option<u64>,
    /// Figures and categories that had fallen at the last look.
    fallen: BTreeSet<String>,
    rollbacks: u32,
}

/// The guard of a run.
pub(crate) struct DriftMonitor<'a> {
    config: &'a RunConfig,
    tasks: Vec<Task>,
    pub(crate) state: DriftState,
    /// Where the guard may go back: the weights of the best step.
    pub(crate) weights: Vec<Tensor>,
}

impl<'a> DriftMonitor<'a> {
    /// The guard of a run that begins with `model`; `None` where it asks for no guard.
    pub(crate) fn new(
        model: &mut dyn UnifiedModel,
        config: &'a RunConfig,
        update: &AdamW,
    ) -> Result<Option<Self>> {
        let Some(tasks) = tasks(config)? else { return Ok(None) };
        let base = evaluate(&tasks, config, model)?;
        let best = chosen(&base, config);
        let state = DriftState { base, best, best_step: None, fallen: BTreeSet::new(), rollbacks: 0 };
        let rolls_back = config.eval.guard == RegressionAction::Rollback;
        let weights = if rolls_back { update.weights() } else { Vec::new() };
        Ok(Some(Self { config, tasks, state, weights }))
    }

    /// The guard of a run that goes on.
    pub(crate) fn resume(
        config: &'a RunConfig,
        state: DriftState,
        weights: Vec<Tensor>,
    ) -> Result<Option<Self>> {
        Ok(tasks(config)?.map(|tasks| Self { config, tasks, state, weights }))
    }

    /// Looks at the model after a step, where it is time.
    pub(crate) fn after(
        &mut self,
        step: u64,
        model: &mut dyn UnifiedModel,
        update: &mut AdamW,
        metrics: &mut BTreeMap<String, f64>,
    ) -> Result<DriftCheck> {
        if !step.is_multiple_of(self.config.eval.every) {
            return Ok(DriftCheck::default());
        }
        let report = evaluate(&self.tasks, self.config, model)?;
        for name in DRIFT_FIGURES {
            let Some(score) = report.figure(name) else { continue };
            if let Some(mean) = score.macro_mean {
                metrics.insert(format!("eval/{name}"), mean);
            }
            if let Some([low, high]) = score.macro_interval {
                metrics.insert(format!("eval/{name}_low"), low);
                metrics.insert(format!("eval/{name}_high"), high);
            }
        }
        let state = &mut self.state;
        let falls = falls(&state.base, &report);
        let new: Vec<&Fall> = falls.iter().filter(|fall| !state.fallen.contains(&fall.of)).collect();
        let messages: Vec<String> = new.iter().map(|fall| fall.text.clone()).collect();
        for text in &messages {
            tracing::warn!("step {step}: {text}");
        }
        let action = self.config.eval.guard;
        let stop = |why: String| DriftCheck { best: false, stop: Some(why) };
        if !falls.is_empty() && action == RegressionAction::Rollback {
            state.rollbacks += 1;
            if state.rollbacks > MOST_ROLLBACKS {
                return Ok(stop(format!("the model fell again after {MOST_ROLLBACKS} goings back")));
            }
            update.restore(&self.weights);
            metrics.insert("eval/rollback".into(), 1.0);
            tracing::warn!("step {step}: back to the weights of the best step");
            return Ok(DriftCheck::default());
        }
        if !messages.is_empty() && action == RegressionAction::Stop {
            return Ok(stop(messages.join("; ")));
        }
        state.fallen = falls.into_iter().map(|fall| fall.of).collect();
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

/// The fixed set, where the run asks for a guard.
fn tasks(config: &RunConfig) -> Result<Option<Vec<Task>>> {
    let options = &config.eval;
    if options.every == 0 {
        return Ok(None);
    }
    let mut rng = Rng::new(seed::derive(options.seed, &[STREAM]));
    let categories = Category::ALL.iter().flat_map(|one| std::iter::repeat_n(*one, options.every_prompts));
    let tasks = categories.map(|category| tiles::sample(category, Split::Train, &mut rng));
    tasks.collect::<Result<_>>().map(Some)
}

fn evaluate(tasks: &[Task], config: &RunConfig, model: &mut dyn UnifiedModel) -> Result<Report> {
    let options = &config.eval;
    let evaluation = Evaluation::of_tiles(model.card(), tasks, &config.rollout, options.batch, options.seed)?;
    model.set_mode(Mode::Eval)?;
    let items = evaluation.run(model, |_| Ok(()))?;
    Ok(Report::of(tasks, &items))
}

/// The figure by which checkpoints are chosen; one that counted nothing is the worst.
fn chosen(report: &Report, config: &RunConfig) -> Option<f64> {
    report.figure(&config.eval.best)?.macro_mean
}

/// A category that is lower than it was.
struct Fall {
    /// `FIGURE/CATEGORY`.
    of: String,
    text: String,
}

/// Where drawing or reading fell by more than chance explains: the base's value lies above the interval of now, and the value
/// of now below the interval of the base. (Of 20 right answers all 20 have an interval of no width.)
fn falls(base: &Report, now: &Report) -> Vec<Fall> {
    let mut falls = Vec::new();
    for (name, shown) in [("t2i", "T2I"), ("mmu", "MMU")] {
        let (Some(before), Some(after)) = (base.figure(name), now.figure(name)) else { continue };
        for category in Category::ALL {
            let (Some((old, [low, _])), Some((new, [_, high]))) = (before.of(category), after.of(category))
            else {
                continue;
            };
            if new < low && old > high {
                let text = format!(
                    "{shown} of `{}` fell from {old:.2} to {new:.2} (at most {high:.2})",
                    category.name()
                );
                falls.push(Fall { of: format!("{name}/{}", category.name()), text });
            }
        }
    }
    falls
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Item;

    fn report(right: usize, mmu_correct: usize) -> Report {
        let tasks: Vec<Task> = (0..20)
            .map(|index| tiles::sample(Category::Colors, Split::All, &mut Rng::new(index)).unwrap())
            .collect();
        let item = |index: usize| Item {
            strict: index < right,
            mmu_correct: Some(index < mmu_correct),
            ..Item::default()
        };
        Report::of(&tasks, &(0..20).map(item).collect::<Vec<_>>())
    }

    /// With 10 of 20 right the lower end of the interval is near .5 - 1.96 · .112 = .28: 6 of 20 are within, 4 are not.
    #[test]
    fn a_fall_is_what_chance_does_not_explain() {
        let base = report(10, 20);
        let texts =
            |report: &Report| falls(&base, report).into_iter().map(|fall| fall.text).collect::<Vec<_>>();
        assert!(texts(&report(6, 20)).is_empty());
        assert_eq!(texts(&report(4, 20)).len(), 1);
        assert!(texts(&report(12, 19)).is_empty());
        assert_eq!(texts(&report(12, 15)), ["MMU of `colors` fell from 1.00 to 0.75 (at most 0.90)"]);
    }
}
