//! The receipt of an evaluation: the model, the tasks, the judges, every verdict, the figures, and a checksum of all of it.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use unirl::error::{Context, Error, Result};
use unirl::model::{ImageSampling, TextSampling, UnifiedModel};
use unirl_base::checksum;
use unirl_benchmarks::judge::{AnswerJudge, Exact, is_correct_answer};
use unirl_prompts::{Task, read_records, write_jsonl};
use unirl_torch::libtorch::mapped_version;

use super::{Evaluation, Item, Report};
use crate::fingerprint::{self, ModelFingerprint};
use crate::sealed;

/// The format version of a receipt; other versions are refused.
const FORM: u32 = 1;

/// Everything that decides the verdicts of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The model.
    pub model: ModelFingerprint,
    /// The judge of images.
    pub image_judge: String,
    /// The judge of answers.
    pub answer_judge: String,
    /// Options of image generation.
    pub images: ImageSampling,
    /// Options of answer sampling.
    pub answers: TextSampling,
    /// The seed of generated and reference images.
    pub seed: u64,
    /// Tasks per chunk. The images of a chunk share a random stream.
    pub batch: usize,
    /// The SHA-256 of the tasks as JSON lines.
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

/// A verifiable record of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Receipt {
    /// Everything that decided the verdicts.
    pub plan: Plan,
    /// The tasks.
    pub tasks: Vec<Task>,
    /// The verdicts, one per task.
    pub items: Vec<Item>,
    /// The figures computed from the verdicts.
    pub figures: Report,
    /// The number of held-out tasks that the model was trained on, if known.
    pub trained_on: Option<usize>,
}

/// The JSON of a receipt without the checksum.
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

/// A task with its verdict.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    task: Value,
    verdict: Item,
}

impl Receipt {
    /// Builds the receipt of an evaluation. Errors if verdicts are missing.
    pub fn new(evaluation: &Evaluation<'_>, model: ModelFingerprint, items: Vec<Item>) -> Result<Self> {
        if items.len() != evaluation.tasks.len() {
            return Err(Error::failure(format!(
                "incomplete evaluation: expected {} verdicts, got {}",
                evaluation.tasks.len(),
                items.len()
            )));
        }
        let (plan, tasks) = (Plan::new(evaluation, model)?, evaluation.tasks.to_vec());
        let figures = Report::of(&tasks, &items);
        Ok(Self { plan, tasks, items, figures, trained_on: None })
    }

    /// Serializes the receipt to JSON with its checksum.
    pub fn to_json(&self) -> Result<String> {
        let line = |(task, item): (&Task, &Item)| -> Result<Line> {
            let task = serde_json::to_value(task).context(|| "cannot serialize a task")?;
            Ok(Line { task, verdict: item.clone() })
        };
        let body = Body {
            form: FORM,
            plan: self.plan.clone(),
            figures: self.figures.clone(),
            trained_on: self.trained_on,
            verdicts: self.tasks.iter().zip(&self.items).map(line).collect::<Result<_>>()?,
        };
        let place = || "cannot serialize the receipt";
        let json = sealed::seal(serde_json::to_value(&body).context(place)?);
        Ok(serde_json::to_string_pretty(&json).context(place)? + "\n")
    }

    /// Reads a receipt and verifies it: the checksum, the hash of the prompts, the verdicts on answers, which are recomputed
    /// from the answers, and the figures, which are recomputed from the verdicts.
    pub fn verify(path: &Path) -> Result<Self> {
        let place = || format!("receipt `{}`", path.display());
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::usage(format!("cannot read `{}`", path.display())).cause(error))?;
        Self::check(&text).map_err(|error| error.context(place()))
    }

    /// Returns the receipt at `path` if it belongs to this evaluation of this model.
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
        let renew = "evaluate again with `unirl eval --out DIR` to write a new receipt";
        let altered = |what: &str| Error::failure(format!("the receipt was altered: {what}")).hint(renew);
        let json = sealed::unseal("receipt", FORM, text).map_err(|error| error.hint(renew))?;
        let has_precision = json["figures"].get("precision").is_some();
        let mut body: Body = serde_json::from_value(json).context(|| "not a receipt")?;
        let (lines, items): (Vec<String>, Vec<Item>) =
            body.verdicts.into_iter().map(|line| (line.task.to_string(), line.verdict)).unzip();
        let tasks = read_records("task", &lines.join("\n"), unirl_prompts::Record::task)?;
        if checksum::text(&write_jsonl(&tasks)?) != body.plan.prompts {
            return Err(altered("the prompts do not match their hash"));
        }
        if body.plan.answer_judge == Exact.name() {
            let correct = |task: &Task, answer: &String| is_correct_answer(&task.spec, answer);
            let consistent = |(task, item): (&Task, &Item)| {
                let mmu_correct = item.mmu_answer.as_ref().map(|answer| correct(task, answer));
                item.passed == correct(task, &item.answer) && item.mmu_correct == mmu_correct
            };
            if !tasks.iter().zip(&items).all(consistent) {
                return Err(altered("a verdict does not follow from the answer"));
            }
        }
        let figures = Report::of(&tasks, &items);
        if !has_precision {
            body.figures.precision = figures.precision.clone(); // a receipt of an earlier release
        }
        if figures != body.figures {
            return Err(altered("the figures do not follow from the verdicts"));
        }
        Ok(Self { plan: body.plan, tasks, items, figures, trained_on: body.trained_on })
    }

    /// Errors if the weights of the model are not those of the receipt.
    pub fn check_model(&self, model: &dyn UnifiedModel) -> Result<()> {
        let weights = fingerprint::checksum(model)?;
        if weights == self.plan.model.weights {
            return Ok(());
        }
        Err(Error::failure(format!(
            "the model is not that of the receipt: expected weights {}, got {}",
            short(&self.plan.model.weights),
            short(&weights)
        )))
    }
}

/// Returns the first 12 digits of a hash.
pub(super) fn short(hash: &str) -> &str {
    hash.get(..12).unwrap_or(hash)
}

#[cfg(test)]
mod tests {
    use unirl_benchmarks::Benchmark as _;
    use unirl_benchmarks::tiles::Tiles;

    use super::*;
    use crate::config::Rollout;

    fn receipt() -> Receipt {
        let tasks = Tiles.test_tasks(2, 1).unwrap();
        let rollout = Rollout::default();
        let (images, answers) = (&Tiles, &Exact);
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
    fn receipt_json_round_trips() {
        let receipt = receipt();
        assert_eq!(Receipt::check(&receipt.to_json().unwrap()).unwrap(), receipt);
        assert!(!receipt.to_json().unwrap().contains("trained_on"));
        let overlapping = Receipt { trained_on: Some(3), ..receipt };
        assert_eq!(Receipt::check(&overlapping.to_json().unwrap()).unwrap(), overlapping);
    }

    /// Changes every seventh character of the text, if it is a letter or a digit.
    #[test]
    fn check_detects_every_changed_character() {
        let text = receipt().to_json().unwrap();
        let mut tried = 0;
        for (at, character) in text.char_indices().step_by(7) {
            let other = match character {
                '0'..='8' | 'a'..='y' => char::from(character as u8 + 1),
                '9' => '8',
                'z' => 'y',
                _ => continue,
            };
            let mut altered = text.clone();
            altered.replace_range(at..=at, &other.to_string());
            assert!(Receipt::check(&altered).is_err(), "byte {at}: {character} to {other}");
            tried += 1;
        }
        assert!(tried > 500, "{tried}");
    }

    /// A changed receipt with a correct checksum.
    fn resealed(change: impl Fn(&mut Value)) -> String {
        let mut json: Value = serde_json::from_str(&receipt().to_json().unwrap()).unwrap();
        json.as_object_mut().unwrap().remove("seal");
        change(&mut json);
        let seal = checksum::text(&json.to_string());
        json["seal"] = seal.into();
        json.to_string()
    }

    #[test]
    fn receipt_without_precision_is_accepted() {
        let earlier = resealed(|json| drop(json["figures"].as_object_mut().unwrap().remove("precision")));
        assert!(!earlier.contains("precision"));
        assert_eq!(Receipt::check(&earlier).unwrap(), receipt());
    }

    /// Verdicts, figures and prompts must be consistent even if the checksum is correct.
    #[test]
    fn check_detects_changes_with_a_recomputed_checksum() {
        let resealed = |change: &dyn Fn(&mut Value)| {
            Receipt::check(&resealed(change)).unwrap_err().message().to_string()
        };
        assert!(
            resealed(&|json| json["verdicts"][0]["verdict"]["strict"] = false.into()).contains("figures")
        );
        assert!(
            resealed(&|json| json["verdicts"][0]["verdict"]["understood"] = true.into())
                .contains("follow from the answer")
        );
        assert!(
            resealed(&|json| json["verdicts"][0]["task"]["prompt"] = "a photo of a cat".into())
                .contains("prompts")
        );
        assert!(resealed(&|json| json["figures"]["t2i"]["macro"] = 0.9.into()).contains("figures"));
        assert!(resealed(&|json| json["figures"]["precision"]["macro"] = Value::Null).contains("figures"));
        assert!(resealed(&|json| drop(json["verdicts"].as_array_mut().unwrap().pop())).contains("prompts"));
    }

    #[test]
    fn receipt_with_missing_verdicts_is_refused() {
        let receipt = receipt();
        let rollout = Rollout::default();
        let evaluation = Evaluation {
            tasks: &receipt.tasks,
            images: &Tiles,
            answers: &Exact,
            rollout: &rollout,
            batch: 5,
            seed: 1,
        };
        let error = Receipt::new(&evaluation, receipt.plan.model, receipt.items[1..].to_vec()).unwrap_err();
        assert_eq!(error.message(), "incomplete evaluation: expected 12 verdicts, got 11");
    }
}
