//! What a run reports to its caller: events, steps and the result.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};

use super::TrainWarnings;
use crate::algorithms::Phases;
use crate::eval::Report;

/// The report of a step.
#[derive(Debug, Clone)]
pub struct StepReport {
    /// The step, from 1.
    pub step: u64,
    /// Its metrics, under the names of [`crate::metrics`].
    pub metrics: BTreeMap<String, f64>,
    /// The time of each phase.
    pub phases: Phases,
}

/// The weights that are evaluated and sampled after training.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shown {
    /// Those of the last step: the run has no drift monitor, or its best checkpoint is absent.
    Last,
    /// Those of the best step according to the drift monitor.
    Best(u64),
    /// Those of the last step, although no step was better than the base model.
    NoneBetter,
}

impl Shown {
    /// Returns the step of the weights.
    pub fn step(self, last: u64) -> u64 {
        match self {
            Self::Last | Self::NoneBetter => last,
            Self::Best(step) => step,
        }
    }

    /// Describes the step for a heading, e.g. `step 40 (best of 80)`.
    pub fn describe(self, last: u64) -> String {
        match self {
            Self::Last => format!("step {last}"),
            Self::Best(step) => format!("step {step} (best of {last})"),
            Self::NoneBetter => format!("step {last} (no step was better than the base model)"),
        }
    }
}

/// The result of a run.
#[derive(Debug)]
pub struct RunReport {
    /// The evaluation of the base model, if evaluation is on.
    pub before: Option<Report>,
    /// The evaluation of the trained model, if evaluation is on.
    pub after: Option<Report>,
    /// The weights that were evaluated after training.
    pub shown: Shown,
    /// The number of completed steps.
    pub steps: u64,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
    /// The reason of early stopping by the drift monitor, if any.
    pub stopped: Option<String>,
    /// Conditions that did not end the run.
    pub warnings: TrainWarnings,
    /// Wall time of this process, from the first evaluation to the last.
    pub wall: Duration,
}

impl RunReport {
    /// Returns the contents of `report.json`.
    pub(super) fn to_json(&self) -> Value {
        json!({
            "base": self.before,
            "trained": self.after,
            "steps": self.steps,
            "shown_step": self.shown.step(self.steps),
            "shown": self.shown.describe(self.steps),
            "stopped": self.stopped,
            "alarms": self.warnings,
            "wall_seconds": self.wall.as_secs_f64(),
        })
    }
}

/// Progress of a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// An evaluation begins: the name of the model, and the number of tasks.
    EvalStarted(&'static str, usize),
    /// That many more tasks are evaluated.
    Evaluated(usize),
    /// Training begins: the number of steps already done, and the number of all steps.
    TrainStarted(u64, u64),
    /// A step is done.
    Stepped(&'a StepReport),
}

/// Called for each [`Event`]; `Break` ends the run, with a checkpoint after a step, so that the run can be resumed.
pub type Watch<'w> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'w;
