//! The receipt of an evaluation: what was evaluated, on what, by whom, every verdict, the figures, and a seal over all of it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Evaluation, Item, Report};
use crate::checksum;
use crate::error::{Context, Error, Result};
use crate::judge::{AnswerJudge, Exact, answer_is_right};
use crate::model::{ImageSampling, TextSampling, UnifiedModel};
use crate::plugin::mapped_version;
use crate::prompts::{Task, read_records, write_jsonl};
use crate::sealed;
use crate::weights::{self, ModelFingerprint};

/// The form of a receipt; one of another form is refused.
const FORM: u32 = 1;

/// Everything that decides the verdicts of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The model.
    pub model: ModelFingerprint,
    /// The judge of drawings.
    pub image_judge: String,
    /// The judge of answers.
    pub answer_judge: String,
    /// How images were drawn.
    pub images: ImageSampling,
    /// How answers were drawn.
    pub answers: TextSampling,
    /// The seed of drawings and reference images.
    pub seed: u64,
    /// Tasks a part: what is drawn together shares its random numbers.
    pub batch: usize,
    /// The SHA-256 of the tasks, as lines.
    pub prompts: String,
    /// The version of unirl.
    pub unirl: String,
    /// The version of libtorch.
    pub libtorch: String,
}

impl Plan {
    pub(super) fn new(evaluation: &Evaluation<'_>, model: ModelFingerprint) -> Result<Self> {
        Ok(Self {
            model,
            image_judge: evaluation.images.name(),
            answer_judge: evaluation.answers.name(),
            images: evaluation.rollout.images.clone(),
            answers: evaluation.answering(),
            seed: evaluation.seed,
            batch: evaluation.batch,
            prompts: checksum::text(&write_jsonl(evaluation.tasks)?),
            unirl: env!("CARGO_PKG_VERSION").into(),
            libtorch: mapped_version().unwrap_or_else(|| "unknown".into()),
        })
    }
}

/// An evaluation that can be checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Receipt {
    /// What decided the verdicts.
    pub plan: Plan,
    /// The tasks.
    pub tasks: Vec<Task>,
    /// The verdicts, one a task.
    pub items: Vec<Item>,
    /// The figures that follow from them.
    pub figures: Report,
    /// How many of the tasks the model was trained on, of those that training is to leave out; where it is known.
    pub trained_on: Option<usize>,
}

/// The JSON of a receipt, but for the seal.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    form: u32,
    plan: Plan,
    figures: Report,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    trained_on: Option<usize>,
    verdicts: Vec<Line>,
}

/// A task with its verdicts.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    task: Value,
    verdict: Item,
}

impl Receipt {
    /// The receipt of a whole evaluation; refuses one that lacks verdicts.
    pub fn new(evaluation: &Evaluation<'_>, model: ModelFingerprint, items: Vec<Item>) -> Result<Self> {
        if items.len() != evaluation.tasks.len() {
            return Err(Error::failure(format!(
                "an evaluation of {} tasks has {} verdicts",
                evaluation.tasks.len(),
                items.len()
            )));
        }
        let (plan, tasks) = (Plan::new(evaluation, model)?, evaluation.tasks.to_vec());
        let figures = Report::of(&tasks, &items);
        Ok(Self { plan, tasks, items, figures, trained_on: None })
    }

    /// As JSON text, sealed.
    pub fn to_json(&self) -> Result<String> {
        let line = |(task, item): (&Task, &Item)| -> Result<Line> {
            let task = serde_json::to_value(task).context(|| "cannot write a task as JSON")?;
            Ok(Line { task, verdict: item.clone() })
        };
        let body = Body {
            form: FORM,
            plan: self.plan.clone(),
            figures: self.figures.clone(),
            trained_on: self.trained_on,
            verdicts: self.tasks.iter().zip(&self.items).map(line).collect::<Result<_>>()?,
        };
        let place = || "cannot write the receipt";
        let json = sealed::seal(serde_json::to_value(&body).context(place)?);
        Ok(serde_json::to_string_pretty(&json).context(place)? + "\n")
    }

    /// Reads a receipt and checks it: the seal, the prompts, whether every task has its verdict, that the verdicts on answers
    /// follow from the answers, and that the figures follow from the verdicts.
    pub fn verify(path: &Path) -> Result<Self> {
        let place = || format!("receipt `{}`", path.display());
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::usage(format!("cannot read `{}`", path.display())).cause(error))?;
        Self::check(&text).map_err(|error| error.context(place()))
    }

    /// The receipt of this very evaluation of this very model, if there is one.
    pub(crate) fn find(
        path: &Path,
        evaluation: &Evaluation<'_>,
        model: &ModelFingerprint,
    ) -> Result<Option<Self>> {
        if !path.is_file() {
            return Ok(None);
        }
        let receipt =
            Self::verify(path).map_err(|error| error.hint(format!("remove `{}`", path.display())))?;
        Ok(Some(receipt)
            .filter(|receipt| Plan::new(evaluation, model.clone()).is_ok_and(|plan| plan == receipt.plan)))
    }

    fn check(text: &str) -> Result<Self> {
        let renew = "evaluate again: `unirl eval --out DIR` writes a new one";
        let altered = |what: &str| Error::failure(format!("the receipt was altered: {what}")).hint(renew);
        let json = sealed::unseal("receipt", FORM, text).map_err(|error| error.hint(renew))?;
        let body: Body = serde_json::from_value(json).context(|| "not a receipt")?;
        let (lines, items): (Vec<String>, Vec<Item>) =
            body.verdicts.into_iter().map(|line| (line.task.to_string(), line.verdict)).unzip();
        let tasks = read_records("task", &lines.join("\n"), crate::prompts::Record::task)?;
        if checksum::text(&write_jsonl(&tasks)?) != body.plan.prompts {
            return Err(altered("its prompts are others"));
        }
        if body.plan.answer_judge == Exact.name() {
            let right = |task: &Task, answer: &String| answer_is_right(&task.spec, answer);
            let fits = |(task, item): (&Task, &Item)| {
                let mmu_correct = item.mmu_answer.as_ref().map(|answer| right(task, answer));
                item.passed == right(task, &item.answer) && item.mmu_correct == mmu_correct
            };
            if !tasks.iter().zip(&items).all(fits) {
                return Err(altered("a verdict on an answer does not follow from the answer"));
            }
        }
        let figures = Report::of(&tasks, &items);
        if figures != body.figures {
            return Err(altered("its figures do not follow from its verdicts"));
        }
        Ok(Self { plan: body.plan, tasks, items, figures, trained_on: body.trained_on })
    }

    /// Refuses a model whose weights are not those of the receipt.
    pub fn check_model(&self, model: &dyn UnifiedModel) -> Result<()> {
        let weights = weights::checksum(model)?;
        if weights == self.plan.model.weights {
            return Ok(());
        }
        Err(Error::failure(format!(
            "the model is not that of the receipt: weights {}, expected {}",
            short(&weights),
            short(&self.plan.model.weights)
        )))
    }
}

/// The beginning of a hash.
pub(super) fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Rollout;
    use crate::eval::tasks;
    use crate::judge::TilesJudge;

    fn receipt() -> Receipt {
        let tasks = tasks(2, 1).unwrap();
        let rollout = Rollout::default();
        let (images, answers) = (&TilesJudge, &Exact);
        let evaluation = Evaluation { tasks: &tasks, images, answers, rollout: &rollout, batch: 5, seed: 1 };
        let item = |(index, task): (usize, &Task)| Item {
            strict: index % 2 == 0,
            lenient: true,
            reason: if index % 2 == 0 { String::new() } else { "an extra `red star`".into() },
            answer: task.reference_answer.clone(),
            passed: true,
            mmu_answer: Some("nothing".into()),
            mmu_correct: Some(false),
            not_judged: 0,
            image_sha256: checksum::text(&task.prompt),
        };
        let items = tasks.iter().enumerate().map(item).collect();
        let model =
            ModelFingerprint { name: "toy".into(), plugin: "toy 0.1.0".into(), weights: checksum::text("w") };
        Receipt::new(&evaluation, model, items).unwrap()
    }

    #[test]
    fn a_receipt_is_what_was_written() {
        let receipt = receipt();
        assert_eq!(Receipt::check(&receipt.to_json().unwrap()).unwrap(), receipt);
        assert!(!receipt.to_json().unwrap().contains("trained_on"));
        let overlapping = Receipt { trained_on: Some(3), ..receipt };
        assert_eq!(Receipt::check(&overlapping.to_json().unwrap()).unwrap(), overlapping);
    }

    /// Every letter and digit of the whole text, one after the other, becomes another: never is the receipt taken.
    #[test]
    fn any_changed_byte_is_seen() {
        let text = receipt().to_json().unwrap();
        let mut tried = 0;
        for (at, letter) in text.char_indices().step_by(7) {
            let other = match letter {
                '0'..='8' | 'a'..='y' => char::from(letter as u8 + 1),
                '9' => '8',
                'z' => 'y',
                _ => continue,
            };
            let mut altered = text.clone();
            altered.replace_range(at..=at, &other.to_string());
            assert!(Receipt::check(&altered).is_err(), "byte {at} of {letter} to {other}");
            tried += 1;
        }
        assert!(tried > 500, "{tried}");
    }

    /// With a new seal, too: verdicts, figures and prompts must follow from each other.
    #[test]
    fn a_new_seal_does_not_help() {
        let sealed = |change: &dyn Fn(&mut Value)| {
            let mut json: Value = serde_json::from_str(&receipt().to_json().unwrap()).unwrap();
            json.as_object_mut().unwrap().remove("seal");
            change(&mut json);
            let seal = checksum::text(&json.to_string());
            json["seal"] = seal.into();
            Receipt::check(&json.to_string()).unwrap_err().message().to_string()
        };
        assert!(sealed(&|json| json["verdicts"][0]["verdict"]["strict"] = false.into()).contains("figures"));
        assert!(
            sealed(&|json| json["verdicts"][0]["verdict"]["understood"] = true.into())
                .contains("from the answer")
        );
        assert!(
            sealed(&|json| json["verdicts"][0]["task"]["prompt"] = "a photo of a cat".into())
                .contains("prompts")
        );
        assert!(sealed(&|json| json["figures"]["t2i"]["macro"] = 0.9.into()).contains("figures"));
        assert!(sealed(&|json| drop(json["verdicts"].as_array_mut().unwrap().pop())).contains("prompts"));
    }

    #[test]
    fn a_set_that_lacks_verdicts_is_refused() {
        let receipt = receipt();
        let rollout = Rollout::default();
        let evaluation = Evaluation {
            tasks: &receipt.tasks,
            images: &TilesJudge,
            answers: &Exact,
            rollout: &rollout,
            batch: 5,
            seed: 1,
        };
        let error = Receipt::new(&evaluation, receipt.plan.model, receipt.items[1..].to_vec()).unwrap_err();
        assert_eq!(error.message(), "an evaluation of 12 tasks has 11 verdicts");
    }
}
