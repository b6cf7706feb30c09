//! The drift guard: every so many steps a small fixed set of tasks is drawn, answered and judged in both directions. The run
//! keeps its best checkpoint, warns when a category falls below what chance explains, and may stop or go back.
//!
//! The set is made of training tasks: the choice of a checkpoint does not see what the evaluation at the end asks, but for
//! the two categories that have too few tasks to be split.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use tch::Tensor;

use crate::config::{GUARD_FIGURES, GuardAction, RunConfig};
use crate::error::Result;
use crate::eval::{Evaluation, Report};
use crate::model::{Mode, UnifiedModel};
use crate::run_dir::RunDir;
use crate::scene::rng::Rng;
use crate::scene::{Category, Split, Task};
use crate::update::AdamW;
use crate::{seed, tiles};

/// Goings back after which the run stops: what falls again and again is not chance.
const MOST_ROLLBACKS: u32 = 3;

/// The stream of the evaluation's seed that the set is drawn from.
const STREAM: u64 = 7;

/// How a run goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Course {
    /// As it was.
    On,
    /// It ends, and why.
    Stop(String),
}

/// The guard of a run.
pub(crate) struct Guard<'a> {
    config: &'a RunConfig,
    tasks: Vec<Task>,
    base: Report,
    best: f64,
    /// The folder that is there only because it is the best.
    kept: Option<PathBuf>,
    /// Where the guard may go back: the weights of the best step.
    weights: Vec<Tensor>,
    fallen: BTreeSet<(&'static str, Category)>,
    rollbacks: u32,
}

impl<'a> Guard<'a> {
    /// Looks at the model before the first step; `None` where the run asks for no guard.
    pub(crate) fn new(
        model: &mut dyn UnifiedModel,
        config: &'a RunConfig,
        update: &AdamW,
    ) -> Result<Option<Self>> {
        let options = &config.eval;
        if options.every == 0 {
            return Ok(None);
        }
        let mut rng = Rng::new(seed::derive(options.seed, &[STREAM]));
        let categories =
            Category::ALL.iter().flat_map(|one| std::iter::repeat_n(*one, options.every_prompts));
        let tasks = categories
            .map(|category| tiles::sample(category, Split::Train, &mut rng))
            .collect::<Result<Vec<_>>>()?;
        let mut guard = Self {
            config,
            tasks,
            base: Report::default(),
            best: f64::NEG_INFINITY,
            kept: None,
            weights: Vec::new(),
            fallen: BTreeSet::new(),
            rollbacks: 0,
        };
        guard.base = guard.look(model)?;
        guard.best = guard.chosen(&guard.base);
        if options.guard == GuardAction::Rollback {
            guard.weights = update.weights();
        }
        Ok(Some(guard))
    }

    fn look(&self, model: &mut dyn UnifiedModel) -> Result<Report> {
        let options = &self.config.eval;
        let evaluation = Evaluation::of_tiles(
            model.card(),
            &self.tasks,
            &self.config.rollout,
            options.batch,
            options.seed,
        )?;
        model.set_mode(Mode::Eval)?;
        let items = evaluation.run(model, |_| {})?;
        Ok(Report::of(&self.tasks, &items))
    }

    /// The figure by which checkpoints are chosen; one that counted nothing is the worst.
    fn chosen(&self, report: &Report) -> f64 {
        let score = report.figure(&self.config.eval.best);
        score.and_then(|score| score.macro_mean).unwrap_or(f64::NEG_INFINITY)
    }

    /// Looks at the model after a step, where it is time.
    pub(crate) fn after(
        &mut self,
        step: u64,
        model: &mut dyn UnifiedModel,
        update: &mut AdamW,
        run_dir: &RunDir,
        metrics: &mut BTreeMap<String, f64>,
    ) -> Result<Course> {
        if !step.is_multiple_of(self.config.eval.every) {
            return Ok(Course::On);
        }
        let report = self.look(model)?;
        for name in GUARD_FIGURES {
            if let Some(mean) = report.figure(name).and_then(|score| score.macro_mean) {
                metrics.insert(format!("eval/{name}"), mean);
            }
        }
        let falls = falls(&self.base, &report);
        let new: Vec<&Fall> = falls.iter().filter(|fall| !self.fallen.contains(&fall.of)).collect();
        let told: Vec<String> = new.iter().map(|fall| fall.text.clone()).collect();
        for text in &told {
            tracing::warn!("step {step}: {text}");
        }
        let action = self.config.eval.guard;
        if !falls.is_empty() && action == GuardAction::Rollback {
            self.rollbacks += 1;
            if self.rollbacks > MOST_ROLLBACKS {
                return Ok(Course::Stop(format!("the model fell again after {MOST_ROLLBACKS} goings back")));
            }
            update.restore(&self.weights);
            metrics.insert("eval/rollback".into(), 1.0);
            tracing::warn!("step {step}: back to the weights of the best step");
            return Ok(Course::On);
        }
        if !told.is_empty() && action == GuardAction::Stop {
            return Ok(Course::Stop(told.join("; ")));
        }
        self.fallen = falls.into_iter().map(|fall| fall.of).collect();
        let chosen = self.chosen(&report);
        if chosen > self.best {
            self.best = chosen;
            let every = self.config.checkpoint.every;
            let wanted = every > 0 && step.is_multiple_of(every);
            self.kept = run_dir.save_best(model, step, self.kept.take())?.filter(|_| !wanted);
            if action == GuardAction::Rollback {
                self.weights = update.weights();
            }
        }
        Ok(Course::On)
    }
}

/// A category that is lower than it was.
struct Fall {
    of: (&'static str, Category),
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
                falls.push(Fall { of: (name, category), text });
            }
        }
    }
    falls
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::Item;

    fn report(right: usize, understood: usize) -> Report {
        let tasks: Vec<Task> = (0..20)
            .map(|index| tiles::sample(Category::Colors, Split::All, &mut Rng::new(index)).unwrap())
            .collect();
        let item = |index: usize| Item {
            strict: index < right,
            understood: Some(index < understood),
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
