//! Sample grids of a run: images of the same prompts from the same seeds, sampled as in the evaluation, so that the base
//! model, the steps and the result can be compared.

use unirl::error::Result;
use unirl::model::{Mode, TextSampling};
use unirl_benchmarks::Benchmark;
use unirl_prompts::Task;

use super::step::Trainer;
use crate::algorithms::{self, Iteration, Phases};
use crate::config::{EvalOptions, Rollout};
use crate::run_dir::{RunDir, Samples};

/// Generates `eval.samples_per_prompt` images per prompt and saves the grid as `samples/NAME`.
pub(super) fn save(
    trainer: &mut Trainer<'_>,
    options: &EvalOptions,
    run_dir: &RunDir,
    name: &str,
) -> Result<()> {
    let columns = options.samples_per_prompt;
    let tasks: Vec<Task> = trainer
        .source
        .sample_tasks(options.seed)?
        .into_iter()
        .flat_map(|task| std::iter::repeat_n(task, columns))
        .collect();
    let greedy = TextSampling { temperature: 0.0, ..trainer.rollout.answers.clone() };
    let rollout = Rollout { answers: greedy, ..trainer.rollout.clone() };
    trainer.model.set_mode(Mode::Eval)?;
    let mut iteration = Iteration {
        model: &mut *trainer.model,
        tasks: &tasks,
        rules: trainer.rules,
        answer_rules: None,
        reward: &trainer.config.reward,
        reader: &mut trainer.reader,
        rollout: &rollout,
        step: 1,
        seed: options.seed,
        shuffle_rewards: false,
        phases: Phases::default(),
    };
    let images = iteration.generate()?;
    let answers = iteration.answer(&images)?;
    let rewards = iteration.score(&images, &answers)?.rewards;
    let pixels = algorithms::pixels(trainer.model, &images, &rollout)?;
    let judge = trainer.source.benchmark().map(Benchmark::image_judge);
    let verdicts = judge.map(|judge| judge.judge(&tasks, &pixels)).transpose()?;
    let samples = Samples {
        pixels: &pixels,
        columns: columns as i64,
        tasks: &tasks,
        answers: &answers.text,
        rewards: &rewards,
        verdicts: verdicts.as_deref(),
    };
    run_dir.save_samples(name, &samples)
}
