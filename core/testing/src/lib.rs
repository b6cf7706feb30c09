//! Conformance checks of models and rewards: the properties of [`UnifiedModel`] and
//! [`RewardFunction`](unirl::reward::RewardFunction) that training relies on, tested from outside. A violation otherwise shows
//! only as a run that learns nothing, or the wrong thing.
//!
//! A plugin has this crate as a dev-dependency and tests what it registers with [`check_model!`] and [`check_reward!`]:
//!
//! ```no_run
//! #[cfg(test)]
//! mod tests {
//!     unirl_testing::check_model!("my-model");
//! }
//! ```
//!
//! [`run_model_checks`] and [`run_reward_checks`] run the same checks on any model or reward, such as that of a loaded plugin.
//! [`examine`] also takes tasks and sampling options.

mod checks;
mod findings;
mod registered;
mod rewards;
mod robustness;
#[cfg(test)]
mod tests;

use std::path::Path;

use tch::Kind;
use unirl::error::{Error, Result};
use unirl::model::{Answers, ImageSampling, Images, Mode, TextSampling, UnifiedModel};
use unirl_base::panic::catch_unwind_to_error;
use unirl_engine::config::Rollout;
use unirl_prompts::Task;

pub use findings::{Finding, Outcome, check_all_passed, format_findings};
pub use registered::{MakeModel, MakeReward, run_model_checks, run_reward_checks};
pub use rewards::examine_reward;

/// For the exported macros only.
#[doc(hidden)]
pub mod __private {
    pub use super::registered::{test_model, test_reward};
    pub use serde_json::json;
}

/// A conformance check of a model.
struct Check {
    name: &'static str,
    hint: &'static str,
    run: fn(&mut Subject<'_>) -> Result<Outcome>,
}

/// Loads a model of the same plugin from a checkpoint directory.
pub type Load<'a> = dyn FnMut(&Path) -> Result<Box<dyn UnifiedModel>> + 'a;

/// The checks to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// The checks that the first training step relies on.
    Training,
    /// All checks, including batch splits, invalid input, checkpoints and memory.
    Full,
}

/// Runs the checks of a model on some tasks, with the sampling options of `rollout`; `load` loads a saved checkpoint. The
/// weights of the model do not change; its reference policy becomes the current weights. An error or a panic of the model fails
/// the check and does not end the run.
pub fn examine<'a>(
    model: &'a mut dyn UnifiedModel,
    tasks: &[Task],
    rollout: &Rollout,
    extent: Extent,
    load: Option<&'a mut Load<'a>>,
) -> Vec<Finding> {
    let mut subject = match Subject::new(model, tasks, rollout, load) {
        Ok(subject) => subject,
        Err(error) => {
            return vec![Finding {
                name: "the model generates and answers",
                outcome: Outcome::Fails(error.to_string()),
                hint: "fix `generate` and `answer` first: every other check needs them",
            }];
        }
    };
    let run = |check: &Check| run_check(check.name, check.hint, || (check.run)(&mut subject));
    let more = if extent == Extent::Full { robustness::ALL } else { &[] };
    checks::ALL.iter().chain(more).map(run).collect()
}

/// A model with images that it generated and its answers about them.
struct Subject<'a> {
    model: &'a mut dyn UnifiedModel,
    load: Option<&'a mut Load<'a>>,
    prompts: Vec<String>,
    questions: Vec<String>,
    reference_answers: Vec<String>,
    images: ImageSampling,
    answering: TextSampling,
    generated: Images,
    answers: Answers,
    /// The largest difference between log-probabilities that should be equal.
    tolerance: f64,
}

impl<'a> Subject<'a> {
    fn new(
        model: &'a mut dyn UnifiedModel,
        tasks: &[Task],
        rollout: &Rollout,
        load: Option<&'a mut Load<'a>>,
    ) -> Result<Self> {
        let texts = |of: fn(&Task) -> &String| tasks.iter().map(|task| of(task).clone()).collect::<Vec<_>>();
        let (prompts, questions) = (texts(|task| &task.prompt), texts(|task| &task.question));
        let images = ImageSampling { seed: 11, part: None, ..rollout.images.clone() };
        // Sampled, because greedy answers hide small differences.
        let answering =
            TextSampling { seed: 12, part: None, temperature: 1.0, top_k: 0, ..rollout.answers.clone() };
        let (generated, answers) = catch_unwind_to_error(|| {
            model.set_mode(Mode::Eval)?;
            let generated = tch::no_grad(|| model.generate(&prompts, &images))?;
            check_codes(&generated, model.card().codebook_size)?;
            let answers = tch::no_grad(|| model.answer(&generated, &questions, &answering))?;
            model.freeze_reference()?;
            Ok((generated, answers))
        })?;
        // f32 in two orders of summation; bf16 has 8 bits of mantissa, so a token of 10 nats is off by 1/25.
        let half = model.parameters()?.iter().any(|p| matches!(p.tensor.kind(), Kind::BFloat16 | Kind::Half));
        let tolerance = if half { 0.2 } else { 2e-3 };
        let reference_answers = texts(|task| &task.reference_answer);
        Ok(Self {
            model,
            load,
            prompts,
            questions,
            reference_answers,
            images,
            answering,
            generated,
            answers,
            tolerance,
        })
    }

    /// Compares the largest difference of `what` with the tolerance.
    fn within_tolerance(&self, what: &str, difference: f64) -> Outcome {
        if difference <= self.tolerance {
            Outcome::Holds(format!("{what}: off by at most {difference:.1e}"))
        } else {
            Outcome::Fails(format!("{what}: off by {difference:.3}, expected at most {}", self.tolerance))
        }
    }
}

fn check_codes(generated: &Images, codes: i64) -> Result<()> {
    let [min, max] = [generated.tokens.min(), generated.tokens.max()].map(|token| token.int64_value(&[]));
    if min >= 0 && max < codes {
        return Ok(());
    }
    Err(Error::failure(format!("image tokens: expected 0..{codes}, got {min}..={max}")))
}

fn fails(text: impl Into<String>) -> Outcome {
    Outcome::Fails(text.into())
}

/// Runs a check; an error or a panic is a failure.
fn run_check(name: &'static str, hint: &'static str, run: impl FnOnce() -> Result<Outcome>) -> Finding {
    let outcome = catch_unwind_to_error(run).unwrap_or_else(|error| fails(error.to_string()));
    Finding { name, outcome, hint }
}

/// Combines outcomes: the first failure, or the last outcome.
fn all(outcomes: impl IntoIterator<Item = Outcome>) -> Outcome {
    let mut last = Outcome::Skipped("nothing to check".into());
    for outcome in outcomes {
        if matches!(outcome, Outcome::Fails(_)) {
            return outcome;
        }
        last = outcome;
    }
    last
}
