//! Metrics: one JSON object a line in `metrics.jsonl`, under stable names.
//!
//! | name | meaning |
//! |---|---|
//! | `reward/mean` | mean reward of the drawings, as a share of its maximum |
//! | `reward/answer_mean` | the same by the rules of the answer objective, where it has its own |
//! | `reward/pass` | share of drawings whose answer got every point |
//! | `reward/part/PART` | mean points of a part of the reward, over the samples that have it; of several rule sets, `SET` and `SET/PART` |
//! | `reward/abstained` | share of drawings about which no rule had anything to say; only where there are such |
//! | `reward/informative` | share of samples whose group has unequal rewards |
//! | `judge/right` | share of drawings that the exact judge calls right; never used to learn |
//! | `judge/wrong_passed` | of the wrong drawings, the share whose answer got every point |
//! | `judge/wrong_passed/CATEGORY` | the same by category |
//! | `eval/t2i`, `eval/mmu`, `eval/t2i_to_mmu`, `eval/mmu_to_t2i` | means of the categories on the drift guard's set, at its steps (`eval.every`) |
//! | `eval/rollback` | 1 at a step at which the guard went back |
//! | `loss/answer`, `loss/image` | the terms of the objective |
//! | `kl/answer`, `kl/image` | k3 divergence from the reference policy a token |
//! | `kl/answer_clamped`, `kl/image_clamped` | share of tokens whose log-ratio was clamped |
//! | `update/gradient_norm`, `update/learning_rate` | of the weight update |
//! | `time/draw`, `time/answer`, `time/score`, `time/update` | seconds of the iteration |

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::error::{Context, Error, Result};

/// An append-only `metrics.jsonl`.
pub struct MetricsFile {
    file: File,
}

impl MetricsFile {
    /// Creates the file.
    pub fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).context(|| format!("cannot create `{}`", path.display()))?;
        Ok(Self { file })
    }

    /// Writes one line: the step, then the metrics by name.
    pub fn append(&mut self, step: u64, metrics: &BTreeMap<String, f64>) -> Result<()> {
        let mut line = serde_json::Map::new();
        line.insert("step".into(), step.into());
        for (name, value) in metrics {
            let number = serde_json::Number::from_f64(*value)
                .ok_or_else(|| Error::failure(format!("metric `{name}` is {value}")))?;
            line.insert(name.clone(), number.into());
        }
        let line = serde_json::Value::Object(line).to_string();
        writeln!(self.file, "{line}").context(|| "cannot write `metrics.jsonl`")
    }
}
