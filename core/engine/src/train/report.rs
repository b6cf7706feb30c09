//! What a run reports to its caller: events, steps and the result.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

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

/// The result of a run.
#[derive(Debug)]
pub struct RunReport {
    /// The evaluation of the base model, if evaluation is on.
    pub before: Option<Report>,
    /// The evaluation of the trained model, if evaluation is on.
    pub after: Option<Report>,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
    /// The reason of early stopping by the drift monitor, if any.
    pub stopped: Option<String>,
    /// Conditions that did not end the run.
    pub warnings: TrainWarnings,
    /// Wall time of this process, from the first evaluation to the last.
    pub wall: Duration,
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
