//! Metrics of a run under stable names: `metrics.jsonl`, one JSON object per line, and TensorBoard.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};
use unirl::error::{Context, Error, Result};
use unirl_base::json::parse;

use crate::atomic_fs;
use crate::tensorboard::EventFile;

/// Every metric: its name, in which capitals are placeholders, and its description.
pub const METRICS: &[(&str, &str)] = &[
    ("reward/mean", "mean reward of the generated images, as a share of its maximum"),
    ("reward/answer_mean", "mean reward of the answer objective, if it has separate rewards"),
    ("reward/pass", "share of images whose answer got the maximum reward"),
    (
        "reward/part/PART",
        "mean score of a reward component, over the samples that have it; with several rewards, `REWARD` and `REWARD/PART`",
    ),
    ("reward/abstained", "share of images for which every reward function abstained; absent if 0"),
    ("reward/informative", "share of samples whose group has unequal rewards"),
    ("judge/right", "share of images that the exact judge accepts; never used for training"),
    (
        "judge/wrong_passed",
        "false-positive rate: of the incorrect images, the share whose answer got the maximum reward",
    ),
    ("judge/wrong_passed/CATEGORY", "false-positive rate of a category"),
    (
        "judge/precision",
        "precision of the reward: of the images whose answer got the maximum reward, the share that the exact judge accepts; \
         absent if there are none",
    ),
    ("judge/precision/CATEGORY", "precision of the reward in a category"),
    (
        "eval/t2i",
        "generation accuracy on the set of the drift monitor, averaged over the categories, at its steps (`eval.every`)",
    ),
    ("eval/mmu", "understanding accuracy of the drift monitor"),
    ("eval/t2i_to_mmu", "share of the correctly generated tasks that are also understood correctly (eq. 6)"),
    ("eval/mmu_to_t2i", "share of the correctly understood tasks that are also generated correctly (eq. 6)"),
    (
        "eval/reward",
        "self-reward on the set of the drift monitor: share of its tasks whose answer about the generated image passes",
    ),
    (
        "eval/precision",
        "share of correct images among those whose answer passes, over all categories together",
    ),
    ("eval/wrong_passed", "share of the incorrect images whose answer passes, over all categories together"),
    ("eval/FIGURE_low", "lower end of the 95 % confidence interval of a figure"),
    ("eval/FIGURE_high", "upper end of the 95 % confidence interval of a figure"),
    ("eval/rollback", "1 at a step at which the drift monitor rolled back"),
    ("loss/answer", "answer term of the loss"),
    ("loss/image", "image term of the loss"),
    (
        "kl/answer",
        "k3 estimate of the KL divergence of the answers from the reference policy, in nats per token",
    ),
    (
        "kl/image",
        "k3 estimate of the KL divergence of the image tokens from the reference policy, in nats per token",
    ),
    ("kl/answer_clamped", "share of answer tokens whose log-ratio was clamped"),
    ("kl/image_clamped", "share of image tokens whose log-ratio was clamped"),
    ("update/gradient_norm", "global gradient norm before clipping"),
    ("update/learning_rate", "learning rate of the step"),
    ("time/draw", "seconds spent generating images"),
    ("time/answer", "seconds spent sampling answers"),
    ("time/score", "seconds spent scoring answers"),
    (
        "time/update",
        "seconds spent on the forward and backward passes with gradient and on the weight update",
    ),
];

/// Returns the JSON Schema of a line.
pub fn schema() -> Value {
    let (mut named, mut patterns) = (Map::new(), Map::new());
    let step = json!({ "type": "integer", "minimum": 1, "description": "the step, from 1" });
    named.insert("step".into(), step);
    for (name, meaning) in METRICS {
        let property = json!({ "type": "number", "description": meaning });
        if name.contains(char::is_uppercase) {
            patterns.insert(pattern(name), property);
        } else {
            named.insert((*name).into(), property);
        }
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A line of `metrics.jsonl`",
        "type": "object",
        "properties": named,
        "patternProperties": patterns,
        "required": ["step"],
        "additionalProperties": false,
    })
}

/// Turns a metric name into a regular expression: capitals match any text.
fn pattern(name: &str) -> String {
    let mut text = String::from("^");
    for letter in name.chars() {
        if !letter.is_uppercase() {
            text.push(letter);
        } else if !text.ends_with(".+") {
            text += ".+";
        }
    }
    text + "$"
}

/// The metrics of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// The step, from 1.
    pub step: u64,
    /// Values by name.
    pub metrics: BTreeMap<String, f64>,
}

/// Reads the complete lines of a `metrics.jsonl`; an interrupted run may leave an incomplete last line.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let text = fs::read_to_string(path).context(|| format!("cannot read `{}`", path.display()))?;
    let whole = text.rfind('\n').map_or("", |end| &text[..=end]);
    let read = |(number, line): (usize, &str)| {
        let place = || format!("`{}`, line {}", path.display(), number + 1);
        let mut metrics: BTreeMap<String, f64> = parse(line).map_err(Error::into_failure).context(place)?;
        let step = metrics.remove("step").ok_or_else(|| Error::failure("no `step`")).context(place)?;
        Ok(Line { step: step as u64, metrics })
    };
    whole.lines().enumerate().map(read).collect()
}

/// Writes the metrics of a run.
pub(crate) struct MetricsLog {
    file: File,
    events: EventFile,
}

impl MetricsLog {
    /// Opens the metrics of the run in `root` to resume after `step`, or with 0 to start. Removes the lines of later steps and
    /// returns the remaining ones.
    pub(crate) fn open(root: &Path, step: u64) -> Result<(Self, Vec<Line>)> {
        let path = root.join("metrics.jsonl");
        let mut kept = Vec::new();
        if step > 0 {
            kept = read(&path)?;
            kept.retain(|line| line.step <= step);
            if !kept.iter().map(|line| line.step).eq(1..=step) {
                return Err(Error::failure(format!(
                    "`{}`: expected a line for each of {step} steps, got {}",
                    path.display(),
                    kept.len()
                )));
            }
        }
        let text = kept.iter().map(|line| Ok(text(line)? + "\n")).collect::<Result<String>>()?;
        atomic_fs::write(&path, &text)?;
        let file = File::options().append(true).open(&path);
        let file = file.context(|| format!("cannot open `{}`", path.display()))?;
        Ok((Self { file, events: EventFile::open(&root.join("tensorboard"), step)? }, kept))
    }

    /// Appends the line of a step.
    pub(crate) fn append(&mut self, line: &Line) -> Result<()> {
        let text = text(line)? + "\n";
        self.file.write_all(text.as_bytes()).context(|| "cannot write `metrics.jsonl`")?;
        self.events.append(line.step, &line.metrics)
    }
}

fn text(line: &Line) -> Result<String> {
    let mut json = Map::new();
    json.insert("step".into(), line.step.into());
    for (name, value) in &line.metrics {
        let number = serde_json::Number::from_f64(*value)
            .ok_or_else(|| Error::failure(format!("metric `{name}` is {value}")))?;
        json.insert(name.clone(), number.into());
    }
    Ok(Value::Object(json).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_matches_any_text_for_capitals() {
        assert_eq!(pattern("judge/wrong_passed/CATEGORY"), "^judge/wrong_passed/.+$");
        assert_eq!(pattern("eval/FIGURE_low"), "^eval/.+_low$");
    }

    #[test]
    fn resume_drops_later_and_incomplete_lines_and_keeps_the_rest_byte_equal() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("tensorboard")).unwrap();
        let path = dir.path().join("metrics.jsonl");
        let line =
            |step| Line { step, metrics: BTreeMap::from([("a".to_string(), 0.1 + step as f64 / 3.0)]) };
        let (mut log, _) = MetricsLog::open(dir.path(), 0).unwrap();
        (1..=3).for_each(|step| log.append(&line(step)).unwrap());
        let two = fs::read_to_string(&path).unwrap().lines().take(2).collect::<Vec<_>>().join("\n") + "\n";
        let text = fs::read_to_string(&path).unwrap() + "{\"step\": 4, \"a\"";
        fs::write(&path, text).unwrap();
        let (_, kept) = MetricsLog::open(dir.path(), 2).unwrap();
        assert_eq!(kept, [line(1), line(2)]);
        assert_eq!(fs::read_to_string(&path).unwrap(), two);
        let error = MetricsLog::open(dir.path(), 3).map(drop).unwrap_err();
        assert!(error.message().ends_with("expected a line for each of 3 steps, got 2"), "{error}");
    }
}
