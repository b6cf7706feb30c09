//! The post-training loop, top to bottom.

mod judge;
mod samples;
mod step;
mod tasks;
mod warnings;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tch::Tensor;

use crate::algorithms::Phases;
use crate::checkpoint::TrainingState;
use crate::config::RunConfig;
use crate::drift::{DriftCheck, DriftMonitor};
use crate::error::{Code, Error, Result};
use crate::eval::{self, Evaluation, ModelFingerprint, Receipt, Report};
use crate::metrics::{Line, MetricsLog};
use crate::model::{Mode, ModelCard, UnifiedModel};
use crate::reward::RewardSet;
use crate::run_dir::RunDir;

use step::Trainer;
use tasks::TaskSource;
pub use warnings::TrainWarnings;

/// What a step reports to whoever watches.
#[derive(Debug, Clone)]
pub struct StepReport {
    /// The step, from 1.
    pub step: u64,
    /// Its metrics, under the names of [`crate::metrics`].
    pub metrics: BTreeMap<String, f64>,
    /// Where its time went.
    pub phases: Phases,
}

/// What a run came to.
#[derive(Debug)]
pub struct RunReport {
    /// The evaluation before, unless there was none.
    pub before: Option<Report>,
    /// The evaluation after.
    pub after: Option<Report>,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
    /// Why the drift guard ended the run early, if it did.
    pub stopped: Option<String>,
    /// What was wrong without being an error.
    pub alarms: TrainWarnings,
    /// From the first evaluation to the last, of this process.
    pub wall: Duration,
}

/// Progress of a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// An evaluation of so many tasks begins.
    EvalStarted(&'static str, usize),
    /// So many more of them are done.
    Evaluated(usize),
    /// Training begins: so many steps are done, of so many.
    TrainStarted(u64, u64),
    /// A step is done.
    Stepped(&'a StepReport),
}

/// Whoever watches a run is told of every [`Event`], and breaks to end it: with a checkpoint where a step was done, so that
/// it can be resumed.
pub type Watch<'w> = dyn FnMut(Event<'_>) -> ControlFlow<()> + 'w;

/// Refuses to train a model of other images on prompts of the tiles.
pub fn check_tasks(config: &RunConfig, card: &ModelCard) -> Result<()> {
    if config.train.tasks.is_some() || eval::check_tiles(card).is_ok() {
        return Ok(());
    }
    Err(Error::usage(format!("`train.tasks` is required for `{}` at {1}x{1}", card.name, card.resolution)).hint(
        "name a file of prompts, such as `examples/tasks.jsonl`: `--set train.tasks=FILE`; `unirl prompts` writes one",
    ))
}

/// Trains `model` as `config` says, writing into `run_dir`. `answer_rules` are those of the answer objective, where it has
/// its own. `from` is where a run goes on that was interrupted; the model is the base in any case.
pub fn train(
    model: &mut dyn UnifiedModel,
    rules: &RewardSet,
    answer_rules: Option<&RewardSet>,
    config: &RunConfig,
    run_dir: &RunDir,
    from: Option<TrainingState>,
    watch: &mut Watch<'_>,
) -> Result<RunReport> {
    let started = Instant::now();
    let options = &config.train;
    let base = ModelFingerprint::new(model, &config.model.plugin)?;
    if let Some(from) = &from {
        check_base(from, &base)?;
    }
    let interrupted = |done: &str| interruption(run_dir, done);
    let overlap = overlap(config)?;

    // The base is evaluated once; what looks at it has to do so before its weights give way to those of a checkpoint.
    let before = evaluate(model, Some(&base), (config, None), run_dir, "base", watch)?;
    let mut trainer = Trainer::new(model, rules, answer_rules, config)?;
    let samples = config.eval.pictures > 0 && (options.sample_every > 0 || config.eval.prompts > 0);
    if samples && !run_dir.root().join("samples/base.png").is_file() {
        samples::save(&mut trainer, &config.eval, run_dir, "base")?;
    }
    let mut stopped = None;
    let first = from.as_ref().map_or(0, |state| state.step);
    let mut guard = match from {
        None => DriftMonitor::new(trainer.model, config, &trainer.update)?,
        Some(state) => {
            // With other settings of the evaluation, what the guard remembers means nothing.
            let knows = state.config.eval == config.eval;
            let fresh = if knows { None } else { DriftMonitor::new(trainer.model, config, &trainer.update)? };
            trainer.resume(&state)?;
            stopped = state.stopped;
            match state.guard {
                Some(known) if knows => DriftMonitor::resume(config, known, state.best)?,
                _ => fresh,
            }
        }
    };
    let best_step = guard.as_ref().and_then(|guard| guard.state.best_step);
    if first > 0 {
        run_dir.point(first, best_step)?;
    }
    let (mut log, kept) = MetricsLog::open(run_dir.root(), first)?;
    let mut alarms = TrainWarnings::default();
    for line in &kept {
        alarms.count(line);
    }

    let mut last = first;
    if watch(Event::TrainStarted(first, options.steps)).is_break() {
        return Err(interrupted(&format!("after step {first} of {}", options.steps)));
    }
    while last < options.steps && stopped.is_none() {
        let step = last + 1;

        // 1. Draw, answer, score, backpropagate, update.
        let done = match trainer.step(step) {
            Ok(done) => done,
            Err(error) => {
                return Err(keep_failure(&trainer, &base, config, guard.as_ref(), run_dir, step, error));
            }
        };
        last = step;

        // 2. Look at the result.
        let mut metrics = done.metrics;
        trainer.judge(&done.tasks, &done.outcome, &mut metrics)?;
        let shows = options.sample_every > 0 && step.is_multiple_of(options.sample_every);
        if samples && shows && step < options.steps {
            samples::save(&mut trainer, &config.eval, run_dir, &format!("step-{step:06}"))?;
        }
        let look = match &mut guard {
            Some(guard) => guard.after(step, trainer.model, &mut trainer.update, &mut metrics)?,
            None => DriftCheck::default(),
        };
        stopped = look.stop;

        // 3. Report.
        let line = Line { step, metrics };
        log.append(&line)?;
        alarms.watch(&line);
        let report = StepReport { step, metrics: line.metrics, phases: done.phases };
        let broken = watch(Event::Stepped(&report)).is_break();

        // 4. Keep the weights.
        let every = config.checkpoint.every;
        let due = every > 0 && step.is_multiple_of(every);
        if due || look.best || broken || stopped.is_some() || step == options.steps {
            let state = state(&trainer, &base, config, guard.as_ref(), run_dir, step, stopped.clone());
            run_dir.save(trainer.model, &state, config.checkpoint.keep)?;
        }
        if broken {
            return Err(interrupted(&format!("after step {step} of {}", options.steps)));
        }
    }
    let after = evaluate(trainer.model, None, (config, overlap), run_dir, "trained", watch)?;
    if samples {
        samples::save(&mut trainer, &config.eval, run_dir, "trained")?;
    }
    [Some(rules), answer_rules].into_iter().flatten().try_for_each(RewardSet::finish)?;
    let wall = started.elapsed();
    let report = serde_json::json!({
        "base": before,
        "trained": after,
        "steps": last,
        "stopped": stopped,
        "alarms": alarms,
        "wall_seconds": wall.as_secs_f64(),
    });
    run_dir.write("report.json", &format!("{report:#}\n"))?;
    Ok(RunReport { before, after, checkpoint: run_dir.checkpoint(last), stopped, alarms, wall })
}

/// How many tasks of the evaluation the run trains on, if any: the log says so, too.
fn overlap(config: &RunConfig) -> Result<Option<usize>> {
    let options = &config.eval;
    let Some(path) = config.train.tasks.as_deref().filter(|_| options.prompts > 0) else { return Ok(None) };
    let evaluated = eval::tasks(options.prompts, options.seed)?;
    let count = TaskSource::new(Some(path))?.overlap(&evaluated);
    if count == 0 {
        return Ok(None);
    }
    tracing::warn!(
        "{count} of the {} evaluation tasks are also training tasks (`{path}`): the evaluation measures memory there. \
         `unirl prompts --objects tiles --split train` leaves them out",
        evaluated.len()
    );
    Ok(Some(count))
}

/// Does the step after `state` again: its metrics, or the error that it ends in. The model is the base of the run, and no
/// weight of it is kept.
pub fn replay(
    model: &mut dyn UnifiedModel,
    rules: &RewardSet,
    answer_rules: Option<&RewardSet>,
    config: &RunConfig,
    state: &TrainingState,
) -> Result<BTreeMap<String, f64>> {
    check_base(state, &ModelFingerprint::new(model, &config.model.plugin)?)?;
    let mut trainer = Trainer::new(model, rules, answer_rules, config)?;
    trainer.resume(state)?;
    let mut done = trainer.step(state.step + 1)?;
    trainer.judge(&done.tasks, &done.outcome, &mut done.metrics)?;
    Ok(done.metrics)
}

fn check_base(state: &TrainingState, base: &ModelFingerprint) -> Result<()> {
    if state.base.weights == base.weights {
        return Ok(());
    }
    Err(Error::failure("the model is not the one that the run began with")
        .cause(format!("the SHA-256 of its weights: expected {}, got {}", state.base.weights, base.weights))
        .hint("put back what `model.checkpoint` names, or the plugin with its own model"))
}

fn state(
    trainer: &Trainer<'_>,
    base: &ModelFingerprint,
    config: &RunConfig,
    guard: Option<&DriftMonitor<'_>>,
    run_dir: &RunDir,
    step: u64,
    stopped: Option<String>,
) -> TrainingState {
    TrainingState {
        step,
        config: config.clone(),
        base: base.clone(),
        micro_batch: trainer.rollout.micro_batch,
        stopped,
        inputs: run_dir.inputs.clone(),
        slots: trainer.update.state(),
        guard: guard.map(|guard| guard.state.clone()),
        best: guard.iter().flat_map(|guard| &guard.weights).map(Tensor::shallow_clone).collect(),
    }
}

/// Keeps what a step that failed began with, so that it can be looked at and done again.
fn keep_failure(
    trainer: &Trainer<'_>,
    base: &ModelFingerprint,
    config: &RunConfig,
    guard: Option<&DriftMonitor<'_>>,
    run_dir: &RunDir,
    step: u64,
    error: Error,
) -> Error {
    let error = error.context(format!("step {step} failed"));
    let state = state(trainer, base, config, guard, run_dir, step - 1, None);
    let kept = trainer.tasks(step).and_then(|tasks| run_dir.save_failure(&state, &tasks));
    match kept {
        Ok(path) => error.hint(format!("do it again: `unirl replay-step {}`", path.display())),
        Err(other) => error.hint(format!("it cannot be done again: {other}")),
    }
}

fn interruption(run_dir: &RunDir, done: &str) -> Error {
    Error::new(Code::Interrupted, format!("interrupted {done}"))
        .hint(format!("go on: `unirl --resume {}`", run_dir.root().display()))
}

/// Evaluates the model, whose weights may be hashed already, and writes the receipt, unless that of this very evaluation is there.
fn evaluate(
    model: &mut dyn UnifiedModel,
    known: Option<&ModelFingerprint>,
    (config, overlap): (&RunConfig, Option<usize>),
    run_dir: &RunDir,
    what: &'static str,
    watch: &mut Watch<'_>,
) -> Result<Option<Report>> {
    let options = &config.eval;
    if options.prompts == 0 {
        return Ok(None);
    }
    model.set_mode(Mode::Eval)?;
    let tasks = eval::tasks(options.prompts, options.seed)?;
    let evaluation =
        Evaluation::of_tiles(model.card(), &tasks, &config.rollout, options.batch, options.seed)?;
    let stamp = match known {
        Some(stamp) => stamp.clone(),
        None => ModelFingerprint::new(model, &config.model.plugin)?,
    };
    let path = run_dir.root().join(format!("eval/{what}.json"));
    if let Some(known) = Receipt::find(&path, &evaluation, &stamp)? {
        return Ok(Some(known.figures));
    }
    let mut told = |event: Event<'_>| match watch(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => {
            Err(interruption(run_dir, &format!("in the evaluation of the {what} model")))
        }
    };
    told(Event::EvalStarted(what, tasks.len()))?;
    let items = evaluation.run(model, |done| told(Event::Evaluated(done)))?;
    let receipt = Receipt { trained_on: overlap, ..Receipt::new(&evaluation, stamp, items)? };
    run_dir.write(&format!("eval/{what}.json"), &receipt.to_json()?)?;
    Ok(Some(receipt.figures))
}
