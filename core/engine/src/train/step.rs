//! One step of a run: generate, answer, score, backpropagate, update.

use std::collections::BTreeMap;
use std::time::Instant;

use unirl::error::{Error, Result};
use unirl::model::{Mode, Parameter, ParameterGroup, UnifiedModel};
use unirl_base::panic::catch_unwind_to_error;
use unirl_base::seed;
use unirl_prompts::Task;

use super::RunSetup;
use super::tasks::TaskSource;
use crate::algorithms::{self, Algorithm, Iteration, Outcome, Phases, ReaderWeights};
use crate::checkpoint::TrainingState;
use crate::config::{Rollout, RunConfig};
use crate::optim::AdamW;
use crate::rewards::RewardSet;

/// The model and everything that its steps need.
pub(super) struct Trainer<'a> {
    pub(super) model: &'a mut dyn UnifiedModel,
    pub(super) rules: &'a RewardSet,
    answer_rules: Option<&'a RewardSet>,
    pub(super) config: &'a RunConfig,
    algorithm: Box<dyn Algorithm>,
    pub(super) source: TaskSource<'a>,
    pub(super) update: AdamW,
    pub(super) reader: ReaderWeights,
    /// As configured, with a smaller micro-batch after an out-of-memory error.
    pub(super) rollout: Rollout,
}

/// The result of a step.
pub(super) struct StepResult {
    pub(super) tasks: Vec<Task>,
    pub(super) outcome: Outcome,
    pub(super) metrics: BTreeMap<String, f64>,
    pub(super) phases: Phases,
}

impl<'a> Trainer<'a> {
    /// Freezes the current weights as the reference policy.
    pub(super) fn new(setup: RunSetup<'a>, source: TaskSource<'a>) -> Result<Self> {
        let RunSetup { model, rules, answer_rules, config, .. } = setup;
        let entry = algorithms::find(&config.optimizer.name)?;
        algorithms::check_fits(entry, model.card())?;
        let algorithm = config.algorithm(entry)?;
        model.freeze_reference()?;
        let (frozen, weights): (Vec<Parameter>, Vec<Parameter>) = model
            .parameters()?
            .into_iter()
            .partition(|parameter| parameter.group == ParameterGroup::Tokenizer);
        for parameter in &frozen {
            let _ = parameter.tensor.set_requires_grad(false);
        }
        let reader = ReaderWeights::new(&weights, &config.reward);
        let update = AdamW::new(weights, config.update.clone(), config.train.steps);
        let rollout = config.rollout.clone();
        Ok(Self { model, rules, answer_rules, config, algorithm, source, update, reader, rollout })
    }

    /// Resumes from a checkpoint.
    pub(super) fn resume(&mut self, state: &TrainingState) -> Result<()> {
        if state.config.rollout.micro_batch == self.rollout.micro_batch {
            self.rollout.micro_batch = state.micro_batch;
        }
        self.reader.resume(&state.reader)?;
        self.update.resume(state.step, &state.slots)
    }

    /// Returns the tasks of a step.
    pub(super) fn tasks(&self, step: u64) -> Result<Vec<Task>> {
        self.source.batch(step, &self.rollout, self.seed(step))
    }

    fn seed(&self, step: u64) -> u64 {
        seed::derive(self.config.train.seed, &[step])
    }

    /// Runs a step. On an error the weights are unchanged.
    pub(super) fn step(&mut self, step: u64) -> Result<StepResult> {
        let tasks = self.tasks(step)?;
        self.model.set_mode(Mode::Train)?;
        let (outcome, mut phases) = loop {
            match self.accumulate(step, &tasks) {
                Err(error) if is_out_of_memory(&error) => self.halve_micro_batch(step, tasks.len(), error)?,
                result => break result?,
            }
        };
        let updating = Instant::now();
        let updated = self.update.apply()?;
        self.reader.follow();
        phases.update += updating.elapsed();
        self.model.set_mode(Mode::Eval)?;

        let mut metrics: BTreeMap<String, f64> =
            outcome.metrics.iter().map(|(name, value)| ((*name).to_string(), *value)).collect();
        metrics.extend(algorithms::component_metrics(&outcome.rewards));
        metrics.insert("update/gradient_norm".into(), updated.gradient_norm);
        metrics.insert("update/learning_rate".into(), updated.learning_rate);
        metrics.extend(phases.metrics());
        Ok(StepResult { tasks, outcome, metrics, phases })
    }

    /// Computes the gradients of a step. tch can turn an out-of-memory error of libtorch into a panic.
    fn accumulate(&mut self, step: u64, tasks: &[Task]) -> Result<(Outcome, Phases)> {
        self.update.zero_grad();
        let seed = self.seed(step);
        let mut iteration = Iteration {
            model: &mut *self.model,
            tasks,
            rules: self.rules,
            answer_rules: self.answer_rules,
            reward: &self.config.reward,
            reader: &mut self.reader,
            rollout: &self.rollout,
            step,
            seed,
            shuffle_rewards: self.config.train.shuffle_rewards,
            phases: Phases::default(),
        };
        let outcome = catch_unwind_to_error(|| self.algorithm.accumulate(&mut iteration))?;
        Ok((outcome, iteration.phases))
    }

    /// Halves the micro-batch; returns the error if it is already 1.
    fn halve_micro_batch(&mut self, step: u64, batch: usize, error: Error) -> Result<()> {
        let size = match self.rollout.micro_batch {
            0 => batch,
            size => size.min(batch),
        };
        if size == 1 {
            return Err(error.hint(
                "a micro-batch of one image does not fit in memory: use smaller images or a device with more memory",
            ));
        }
        let half = size.div_ceil(2);
        tracing::warn!(
            "step {step}: out of memory with a micro-batch of {size} images; continuing with {half}, which only changes \
             the speed. Set `--set rollout.micro_batch={half}` in the next run"
        );
        self.rollout.micro_batch = half;
        Ok(())
    }
}

fn is_out_of_memory(error: &Error) -> bool {
    let matches = |text: &str| text.contains("out of memory") || text.contains("can't allocate memory");
    matches(error.message()) || error.causes().iter().any(|cause| matches(cause))
}
