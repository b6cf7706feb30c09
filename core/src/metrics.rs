//! Metrics: one JSON object a line in `metrics.jsonl`, under stable names, and the same for TensorBoard.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::atomic_fs;
use crate::error::{Context, Error, Result};
use crate::json::parse;
use crate::tensorboard::EventFile;

/// Every metric: its name, in which capitals stand for any text, and its meaning.
pub const METRICS: &[(&str, &str)] = &[
    ("reward/mean", "mean reward of the drawings, as a share of its maximum"),
    ("reward/answer_mean", "the same by the rules of the answer objective, where it has its own"),
    ("reward/pass", "share of drawings whose answer got every point"),
    (
        "reward/part/PART",
        "mean points of a part of the reward, over the samples that have it; of several rule sets, `SET` and `SET/PART`",
    ),
    (
        "reward/abstained",
        "share of drawings about which no rule had anything to say; only where there are such",
    ),
    ("reward/informative", "share of samples whose group has unequal rewards"),
    ("judge/right", "share of drawings that the exact judge calls right; never used to learn"),
    ("judge/wrong_passed", "of the wrong drawings, the share whose answer got every point"),
    ("judge/wrong_passed/CATEGORY", "the same by category"),
    ("eval/t2i", "drawing on the drift guard's set, the mean of the categories, at its steps (`eval.every`)"),
    ("eval/mmu", "reading, likewise"),
    ("eval/t2i_to_mmu", "of the right drawings, those read right, likewise (eq. 6)"),
    ("eval/mmu_to_t2i", "of the tasks read right, those drawn right, likewise (eq. 6)"),
    ("eval/FIGURE_low", "the lower end of the 95 % interval of such a figure"),
    ("eval/FIGURE_high", "the upper end"),
    ("eval/rollback", "1 at a step at which the guard went back"),
    ("loss/answer", "the answer term of the objective"),
    ("loss/image", "the image term of the objective"),
    ("kl/answer", "k3 divergence of the answers from the reference policy, nats a token"),
    ("kl/image", "the same of the image tokens"),
    ("kl/answer_clamped", "share of answer tokens whose log-ratio was clamped"),
    ("kl/image_clamped", "share of image tokens whose log-ratio was clamped"),
    ("update/gradient_norm", "global norm of the gradient before clipping"),
    ("update/learning_rate", "the learning rate of the step"),
    ("time/draw", "seconds of drawing"),
    ("time/answer", "seconds of answering"),
    ("time/score", "seconds of scoring answers"),
    ("time/update", "seconds of everything with gradient, and of the weight update"),
];

/// The JSON Schema of a line.
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

/// A regular expression for a name: any text where it has capitals.
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

/// Reads the whole lines of a `metrics.jsonl`; the last one of an interrupted run may be torn.
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

/// The metrics of a run as they are written.
pub(crate) struct MetricsLog {
    file: File,
    events: EventFile,
}

impl MetricsLog {
    /// Opens the files of the run in `root` to go on after `step`, 0 for a new run; lines of later steps are removed. Answers
    /// the lines that stay, too.
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

    /// Adds the line of a step.
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
    fn capitals_stand_for_any_text() {
        assert_eq!(pattern("judge/wrong_passed/CATEGORY"), "^judge/wrong_passed/.+$");
        assert_eq!(pattern("eval/FIGURE_low"), "^eval/.+_low$");
    }

    #[test]
    fn going_on_drops_later_and_torn_lines_and_keeps_the_rest_to_the_byte() {
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
