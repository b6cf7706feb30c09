//! Whether a model keeps what [`UnifiedModel`] promises, found out from outside: what reinforcement learning builds on and
//! what otherwise shows as a run that learns nothing, or the wrong thing.

mod checks;
mod rewards;
mod robustness;
#[cfg(test)]
mod tests;

use std::path::Path;

use serde::Serialize;
use tch::Kind;

use crate::config::Rollout;
use crate::error::{Error, Result};
use crate::model::{Answers, ImageSampling, Images, Mode, TextSampling, UnifiedModel};
use crate::panic::catch_unwind_to_error;
use crate::prompts::Task;

pub use rewards::examine_reward;

/// What a check came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "detail")]
pub enum Outcome {
    /// It is as promised; what was measured.
    Holds(String),
    /// It is not, and how.
    Fails(String),
    /// It could not be found out, and why.
    Skipped(String),
}

/// What was found out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was to hold.
    pub name: &'static str,
    /// Whether it does.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Where to look when it does not.
    pub hint: &'static str,
}

/// One promise.
struct Check {
    name: &'static str,
    hint: &'static str,
    run: fn(&mut Subject<'_>) -> Result<Outcome>,
}

/// Makes a model of the same plugin from a checkpoint folder.
pub type Load<'a> = dyn FnMut(&Path) -> Result<Box<dyn UnifiedModel>> + 'a;

/// How much is examined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// What training builds on at its first step.
    Training,
    /// All that is promised: batches of every size, wrong input, checkpoints, memory.
    TrainSession,
}

/// Examines a model on some tasks, drawn as `rollout` says; `load` makes it again from what it saves. The model's weights stay,
/// its reference becomes the weights of now. Nothing that the model does ends the examination.
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
                name: "the model draws and answers",
                outcome: Outcome::Fails(error.to_string()),
                hint: "nothing else can be examined before it does",
            }];
        }
    };
    let find = |check: &Check| found(check.name, check.hint, || (check.run)(&mut subject));
    let more = if extent == Extent::TrainSession { robustness::ALL } else { &[] };
    checks::ALL.iter().chain(more).map(find).collect()
}

/// A model with drawings of its own and its answers about them.
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
    /// How far apart two log-probabilities may be that ought to be one.
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
        // Sampled: what is likeliest hides small differences.
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
        // f32 through two orders of summation; bf16 has 8 bits of mantissa, and a token of 10 nats is off by 1/25.
        let short =
            model.parameters()?.iter().any(|p| matches!(p.tensor.kind(), Kind::BFloat16 | Kind::Half));
        let tolerance = if short { 0.2 } else { 2e-3 };
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

    /// Whether two things of `what` that ought to be one are.
    fn same(&self, what: &str, off: f64) -> Outcome {
        if off <= self.tolerance {
            Outcome::Holds(format!("{what}: off by {off:.1e} at most"))
        } else {
            Outcome::Fails(format!("{what}: off by {off:.3}, expected at most {}", self.tolerance))
        }
    }
}

fn check_codes(generated: &Images, codes: i64) -> Result<()> {
    let [least, most] = [generated.tokens.min(), generated.tokens.max()].map(|token| token.int64_value(&[]));
    if least >= 0 && most < codes {
        return Ok(());
    }
    Err(Error::failure(format!("image tokens from {least} to {most}, expected 0..{codes}")))
}

fn fails(text: impl Into<String>) -> Outcome {
    Outcome::Fails(text.into())
}

/// What comes of a check, an error or a panic included.
fn found(name: &'static str, hint: &'static str, run: impl FnOnce() -> Result<Outcome>) -> Finding {
    let outcome = catch_unwind_to_error(run).unwrap_or_else(|error| fails(error.to_string()));
    Finding { name, outcome, hint }
}

/// The outcome of several: the first that fails, else that of the last.
fn all(outcomes: impl IntoIterator<Item = Outcome>) -> Outcome {
    let mut last = Outcome::Skipped("there is nothing to examine".into());
    for outcome in outcomes {
        if matches!(outcome, Outcome::Fails(_)) {
            return outcome;
        }
        last = outcome;
    }
    last
}
