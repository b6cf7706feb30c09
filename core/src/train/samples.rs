//! Pictures of a run: drawings of the same prompts from the same seeds, drawn as in the evaluation, so that base, steps and
//! result can be compared.

use std::collections::BTreeMap;

use super::step::Trainer;
use crate::algorithms::{self, Iteration, Outcome, Phases};
use crate::config::{EvalOptions, Rollout};
use crate::error::Result;
use crate::eval::check_tiles;
use crate::judge::{ImageJudge, TilesJudge};
use crate::model::{Mode, TextSampling};
use crate::prompts::Task;
use crate::run_dir::{RunDir, Samples};

/// Draws each prompt `eval.pictures` times, and saves them as `samples/NAME`.
pub(super) fn save(
    trainer: &mut Trainer<'_>,
    options: &EvalOptions,
    run_dir: &RunDir,
    name: &str,
) -> Result<()> {
    let columns = options.pictures;
    let tasks: Vec<Task> = trainer
        .source
        .shown(options.seed)?
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
    let verdicts = trainer.judges().then(|| TilesJudge.judge(&tasks, &pixels)).transpose()?;
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

impl Trainer<'_> {
    /// Whether the exact judge can tell what the drawings of this run show.
    fn judges(&self) -> bool {
        self.source.is_generated() && check_tiles(self.model.card()).is_ok()
    }

    /// Measures what the judge thinks of the drawings of a step beside what the model made of them. The judge never teaches.
    pub(super) fn judge(
        &self,
        tasks: &[Task],
        outcome: &Outcome,
        metrics: &mut BTreeMap<String, f64>,
    ) -> Result<()> {
        if !self.judges() {
            return Ok(());
        }
        let pixels = algorithms::pixels(self.model, &outcome.images, &self.rollout)?;
        let verdicts = TilesJudge.judge(tasks, &pixels)?;
        let mut right = 0;
        let mut wrong: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new(); // passed, all
        for ((task, verdict), reward) in tasks.iter().zip(verdicts).zip(&outcome.rewards) {
            if verdict.strict {
                right += 1;
            } else {
                let (passed, all) = wrong.entry(task.spec.category.name()).or_default();
                *passed += u64::from(reward.passes());
                *all += 1;
            }
        }
        metrics.insert("judge/right".into(), f64::from(right) / tasks.len() as f64);
        let (passed, all) = wrong.values().fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
        if all > 0 {
            metrics.insert("judge/wrong_passed".into(), passed as f64 / all as f64);
        }
        for (category, (passed, all)) in wrong {
            metrics.insert(format!("judge/wrong_passed/{category}"), passed as f64 / all as f64);
        }
        Ok(())
    }
}
