//! The post-training loop, top to bottom.

mod judge;
mod report;
mod samples;
mod step;
mod tasks;
mod warnings;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::Instant;

use step::Trainer;
use tasks::TaskSource;
use tch::Tensor;
use unirl::error::{Code, Error, Result};
use unirl::model::{Mode, ModelCard, UnifiedModel};
use unirl_benchmarks::Benchmark;

use crate::algorithms;
use crate::checkpoint::{self, TrainingState};
use crate::config::RunConfig;
use crate::drift::{DriftCheck, DriftMonitor};
use crate::eval::{Evaluation, Receipt, Report};
use crate::fingerprint::ModelFingerprint;
use crate::metrics::{Line, MetricsLog};
use crate::rewards::RewardSet;
use crate::run_dir::RunDir;

pub use report::{Event, RunReport, Shown, StepReport, Watch};
pub use warnings::TrainWarnings;

/// What a run consists of.
pub struct RunSetup<'a> {
    /// The base model, even if a run is resumed.
    pub model: &'a mut dyn UnifiedModel,
    /// The rewards.
    pub rules: &'a RewardSet,
    /// The rewards of the answer term, if it has separate ones.
    pub answer_rules: Option<&'a RewardSet>,
    /// The benchmark, without which there is neither an evaluation nor a drift monitor.
    pub benchmark: Option<&'a dyn Benchmark>,
    /// The configuration.
    pub config: &'a RunConfig,
}

impl RunSetup<'_> {
    /// Errors if the algorithm cannot train the model, or if something needs a benchmark and there is none.
    pub fn check(&self) -> Result<()> {
        let (config, card) = (self.config, self.model.card());
        algorithms::check_fits(algorithms::find(&config.optimizer.name)?, card)?;
        if self.benchmark.is_none() && config.train.prompts_file.is_none() {
            return Err(tasks::no_prompts(card));
        }
        if self.benchmark.is_none() && (config.eval.prompts > 0 || config.eval.every > 0) {
            return Err(no_benchmark(card).hint("train without an evaluation: `--set eval.prompts=0`"));
        }
        let Some(benchmark) = self.benchmark.filter(|benchmark| !benchmark.has_references()) else {
            return Ok(());
        };
        if config.eval.every > 0 && config.eval.best != "t2i" {
            let (figure, name) = (&config.eval.best, benchmark.name());
            return Err(Error::usage(format!("`eval.best`: benchmark `{name}` does not measure `{figure}`"))
                .hint(
                    "choose `t2i`, or give reference images: `benchmark.references` and `benchmark.results`",
                ));
        }
        Ok(())
    }
}

/// The error of an evaluation without a benchmark.
pub fn no_benchmark(card: &ModelCard) -> Error {
    Error::usage(format!("an evaluation needs a benchmark, and model `{}` belongs to none", card.name))
        .hint("choose one: `--benchmark geneval`, with `benchmark.metadata` and `benchmark.detector`")
}

/// Trains a model and writes to `run_dir`. `from` is the state of an interrupted run.
pub fn train(
    setup: RunSetup<'_>,
    run_dir: &RunDir,
    from: Option<TrainingState>,
    watch: &mut Watch<'_>,
) -> Result<RunReport> {
    let RunSetup { rules, answer_rules, benchmark, config, .. } = setup;
    let started = Instant::now();
    let options = &config.train;
    let base = ModelFingerprint::new(setup.model, &config.model.plugin)?;
    if let Some(from) = &from {
        check_base(from, &base)?;
    }
    let interrupted = |when: &str| interruption(run_dir, when);
    let source = TaskSource::new(&config.train, benchmark, setup.model.card())?;
    let overlap = overlap(&source, benchmark, config)?;

    // Evaluate the base model before the weights of a checkpoint replace its own.
    let before = evaluate(setup.model, Some(&base), (benchmark, config, None), run_dir, "base", watch)?;
    let mut trainer = Trainer::new(setup, source)?;
    let samples = config.eval.samples_per_prompt > 0 && (options.sample_every > 0 || config.eval.prompts > 0);
    if samples && !run_dir.root().join("samples/base.png").is_file() {
        samples::save(&mut trainer, &config.eval, run_dir, "base")?;
    }
    let mut stopped = None;
    let first = from.as_ref().map_or(0, |state| state.step);
    let mut monitor = match from {
        None => DriftMonitor::new(trainer.model, benchmark, config, &trainer.update)?,
        Some(state) => {
            // With other evaluation settings, the saved state of the monitor is invalid.
            let valid = state.config.eval == config.eval && state.config.benchmark == config.benchmark;
            let fresh = if valid {
                None
            } else {
                DriftMonitor::new(trainer.model, benchmark, config, &trainer.update)?
            };
            trainer.resume(&state)?;
            stopped = state.stopped;
            match state.drift {
                Some(saved) if valid => DriftMonitor::resume(benchmark, config, saved, state.best)?,
                _ => fresh,
            }
        }
    };
    let best_step = monitor.as_ref().and_then(|monitor| monitor.state.best_step);
    if first > 0 {
        run_dir.point(first, best_step)?;
    }
    let (mut log, previous) = MetricsLog::open(run_dir.root(), first)?;
    let mut warnings = TrainWarnings::default();
    for line in &previous {
        warnings.count(line);
    }

    let mut last = first;
    if watch(Event::TrainStarted(first, options.steps)).is_break() {
        return Err(interrupted(&format!("after step {first} of {}", options.steps)));
    }
    while last < options.steps && stopped.is_none() {
        let step = last + 1;

        // 1. Generate, answer, score, backpropagate, update.
        let result = match trainer.step(step) {
            Ok(result) => result,
            Err(error) => {
                return Err(save_failure(&trainer, &base, config, monitor.as_ref(), run_dir, step, error));
            }
        };
        last = step;

        // 2. Measure.
        let mut metrics = result.metrics;
        trainer.judge(&result.tasks, &result.outcome, &mut metrics)?;
        let sample_due = options.sample_every > 0 && step.is_multiple_of(options.sample_every);
        if samples && sample_due && step < options.steps {
            samples::save(&mut trainer, &config.eval, run_dir, &format!("step-{step:06}"))?;
        }
        let drift = match &mut monitor {
            Some(monitor) => monitor.check(step, trainer.model, &mut trainer.update, &mut metrics)?,
            None => DriftCheck::default(),
        };
        stopped = drift.stop;

        // 3. Report.
        let line = Line { step, metrics };
        log.append(&line)?;
        warnings.watch(&line);
        let report = StepReport { step, metrics: line.metrics, phases: result.phases };
        let broken = watch(Event::Stepped(&report)).is_break();

        // 4. Save a checkpoint.
        let every = config.checkpoint.every;
        let due = every > 0 && step.is_multiple_of(every);
        if due || drift.best || broken || stopped.is_some() || step == options.steps {
            let state = state(&trainer, &base, config, monitor.as_ref(), run_dir, step, stopped.clone());
            run_dir.save(trainer.model, &state, config.checkpoint.keep)?;
        }
        if broken {
            return Err(interrupted(&format!("after step {step} of {}", options.steps)));
        }
    }
    let shown = show_best(&mut trainer, monitor.as_ref(), run_dir, last)?;
    let after = evaluate(trainer.model, None, (benchmark, config, overlap), run_dir, "trained", watch)?;
    if samples {
        samples::save(&mut trainer, &config.eval, run_dir, "trained")?;
    }
    [Some(rules), answer_rules].into_iter().flatten().try_for_each(RewardSet::finish)?;
    let checkpoint = run_dir.checkpoint(last);
    let wall = started.elapsed();
    let report = RunReport { before, after, shown, steps: last, checkpoint, stopped, warnings, wall };
    run_dir.write("report.json", &format!("{:#}\n", report.to_json()))?;
    Ok(report)
}

/// Loads the weights of the best step, if the drift monitor found one before the last step. They are only evaluated and sampled:
/// the last checkpoint is already saved.
fn show_best(
    trainer: &mut Trainer<'_>,
    monitor: Option<&DriftMonitor<'_>>,
    run_dir: &RunDir,
    last: u64,
) -> Result<Shown> {
    let Some(monitor) = monitor else { return Ok(Shown::Last) };
    let Some(best) = monitor.state.best_step else {
        tracing::warn!(
            "no step was better than the base model on the tasks of the drift monitor: the results are those of the last step, {last}"
        );
        return Ok(Shown::NoneBetter);
    };
    if best == last {
        return Ok(Shown::Best(best));
    }
    let folder = run_dir.checkpoint(best);
    if !folder.is_dir() {
        tracing::warn!(
            "the best checkpoint, `{}`, is missing: the results are those of the last step, {last}",
            folder.display()
        );
        return Ok(Shown::Last);
    }
    trainer.update.restore(&checkpoint::trainable_weights(&folder)?);
    Ok(Shown::Best(best))
}

/// Returns the number of evaluation tasks that the run trains on, if any, and logs a warning.
fn overlap(
    source: &TaskSource<'_>,
    benchmark: Option<&dyn Benchmark>,
    config: &RunConfig,
) -> Result<Option<usize>> {
    let options = &config.eval;
    let path = config.train.prompts_file.as_deref().filter(|_| options.prompts > 0);
    let (Some(path), Some(benchmark)) = (path, benchmark) else { return Ok(None) };
    let evaluated = benchmark.test_tasks(options.prompts, options.seed)?;
    let count = source.overlap(&evaluated);
    if count == 0 {
        return Ok(None);
    }
    let held_out = match &config.benchmark.metadata {
        None => "--objects tiles --split train".to_string(),
        Some(metadata) => format!("--exclude {metadata}"),
    };
    tracing::warn!(
        "{count} of {} evaluation tasks are also training tasks in `{path}`, so the evaluation is not held out: use \
         `unirl prompts {held_out}` to write prompts without them",
        evaluated.len()
    );
    Ok(Some(count))
}

/// Repeats the step after `state` and returns its metrics or its error. The weights of the model are overwritten.
pub fn replay(setup: RunSetup<'_>, state: &TrainingState) -> Result<BTreeMap<String, f64>> {
    check_base(state, &ModelFingerprint::new(setup.model, &setup.config.model.plugin)?)?;
    let source = TaskSource::new(&setup.config.train, setup.benchmark, setup.model.card())?;
    let mut trainer = Trainer::new(setup, source)?;
    trainer.resume(state)?;
    let mut result = trainer.step(state.step + 1)?;
    trainer.judge(&result.tasks, &result.outcome, &mut result.metrics)?;
    Ok(result.metrics)
}

fn check_base(state: &TrainingState, base: &ModelFingerprint) -> Result<()> {
    if state.base.weights == base.weights {
        return Ok(());
    }
    Err(Error::failure("the base model differs from that of the run")
        .cause(format!("SHA-256 of the weights: expected {}, got {}", state.base.weights, base.weights))
        .hint("restore the checkpoint at `model.checkpoint`, or the plugin with the embedded model"))
}

fn state(
    trainer: &Trainer<'_>,
    base: &ModelFingerprint,
    config: &RunConfig,
    monitor: Option<&DriftMonitor<'_>>,
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
        reader: trainer.reader.state().iter().map(Tensor::shallow_clone).collect(),
        drift: monitor.map(|monitor| monitor.state.clone()),
        best: monitor.iter().flat_map(|monitor| &monitor.weights).map(Tensor::shallow_clone).collect(),
    }
}

/// Saves the state before a failed step, so that the step can be repeated.
fn save_failure(
    trainer: &Trainer<'_>,
    base: &ModelFingerprint,
    config: &RunConfig,
    monitor: Option<&DriftMonitor<'_>>,
    run_dir: &RunDir,
    step: u64,
    error: Error,
) -> Error {
    let error = error.context(format!("step {step} failed"));
    let state = state(trainer, base, config, monitor, run_dir, step - 1, None);
    let saved = trainer.tasks(step).and_then(|tasks| run_dir.save_failure(&state, &tasks));
    match saved {
        Ok(path) => error.hint(format!("repeat the step with `unirl replay-step {}`", path.display())),
        Err(other) => error.hint(format!("the step cannot be repeated: {other}")),
    }
}

fn interruption(run_dir: &RunDir, when: &str) -> Error {
    Error::new(Code::Interrupted, format!("interrupted {when}"))
        .hint(format!("resume with `unirl --resume {}`", run_dir.root().display()))
}

/// Evaluates the model and writes the receipt. If the receipt of this evaluation exists, returns its figures. `fingerprint`
/// is that of the model, if its weights are already hashed.
fn evaluate(
    model: &mut dyn UnifiedModel,
    fingerprint: Option<&ModelFingerprint>,
    (benchmark, config, overlap): (Option<&dyn Benchmark>, &RunConfig, Option<usize>),
    run_dir: &RunDir,
    what: &'static str,
    watch: &mut Watch<'_>,
) -> Result<Option<Report>> {
    let options = &config.eval;
    let Some(benchmark) = benchmark.filter(|_| options.prompts > 0) else { return Ok(None) };
    model.set_mode(Mode::Eval)?;
    let tasks = benchmark.test_tasks(options.prompts, options.seed)?;
    let evaluation = Evaluation::new(benchmark, &tasks, &config.rollout, options.batch, options.seed);
    let fingerprint = match fingerprint {
        Some(fingerprint) => fingerprint.clone(),
        None => ModelFingerprint::new(model, &config.model.plugin)?,
    };
    let path = run_dir.root().join(format!("eval/{what}.json"));
    if let Some(receipt) = Receipt::find(&path, &evaluation, &fingerprint)? {
        return Ok(Some(receipt.figures));
    }
    let mut on_progress = |event: Event<'_>| match watch(event) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => {
            Err(interruption(run_dir, &format!("during the evaluation of the {what} model")))
        }
    };
    on_progress(Event::EvalStarted(what, tasks.len()))?;
    let items = evaluation.run(model, |count| on_progress(Event::Evaluated(count)))?;
    for warning in benchmark.warnings() {
        tracing::warn!("{warning}");
    }
    let receipt = Receipt { trained_on: overlap, ..Receipt::new(&evaluation, fingerprint, items)? };
    run_dir.write(&format!("eval/{what}.json"), &receipt.to_json()?)?;
    Ok(Some(receipt.figures))
}
