//! The directory of an evaluation that can be interrupted and sharded: `plan.json` holds everything that decides the verdicts,
//! `parts/` the verdicts in atomically written chunks, and `receipt.json` is written when all chunks are complete.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::Value;
use unirl::error::{Context, Error, Result};
use unirl::model::UnifiedModel;

use super::receipt::Plan;
use super::{Evaluation, Item, Receipt};
use crate::atomic_fs;
use crate::fingerprint::ModelFingerprint;

/// The chunks that one process evaluates: every `of`th, starting at `index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// The shard, from 0.
    pub index: usize,
    /// The number of shards.
    pub of: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Self { index: 0, of: 1 }
    }
}

impl FromStr for Shard {
    type Err = Error;

    /// Parses `INDEX/COUNT` with an index from 1: `2/4` is the second of four.
    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| text.parse::<usize>().ok();
        let numbers = text.split_once('/').and_then(|(index, of)| Some((number(index)?, number(of)?)));
        match numbers {
            Some((index, of)) if 1 <= index && index <= of => Ok(Self { index: index - 1, of }),
            _ => Err(Error::usage(format!("invalid shard `{text}`: expected `INDEX/COUNT`, such as `2/4`"))),
        }
    }
}

/// The directory of an evaluation.
pub struct EvalFolder<'e> {
    root: PathBuf,
    evaluation: &'e Evaluation<'e>,
    model: ModelFingerprint,
}

impl<'e> EvalFolder<'e> {
    /// Creates the directory, or opens one that has the same plan.
    pub fn open(root: &Path, evaluation: &'e Evaluation<'e>, model: ModelFingerprint) -> Result<Self> {
        let plan = Plan::new(evaluation, model.clone())?;
        let plan = serde_json::to_value(&plan).context(|| "cannot serialize the plan")?;
        let file = root.join("plan.json");
        if file.is_file() {
            let text = fs::read_to_string(&file).context(|| format!("cannot read `{}`", file.display()))?;
            let existing: Value =
                serde_json::from_str(&text).context(|| format!("`{}` is not JSON", file.display()))?;
            if existing != plan {
                return Err(Error::usage(format!("`{}` contains a different evaluation", root.display()))
                    .cause(format!("`{}` differs", difference(&existing, &plan)))
                    .hint("choose another directory with `--out DIR`"));
            }
        } else {
            let used = fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_some());
            if used || root.is_file() {
                return Err(Error::usage(format!(
                    "`{}` already exists and is not an evaluation directory",
                    root.display()
                ))
                .hint("choose another directory with `--out DIR`"));
            }
            let chunks = root.join("parts");
            fs::create_dir_all(&chunks).context(|| format!("cannot create `{}`", chunks.display()))?;
            atomic_fs::write(&file, &format!("{plan:#}\n"))?;
        }
        Ok(Self { root: root.to_owned(), evaluation, model })
    }

    fn chunk_file(&self, index: usize) -> PathBuf {
        self.root.join(format!("parts/{index:05}.json"))
    }

    /// Returns the complete chunks by index.
    pub fn done(&self) -> Result<BTreeMap<usize, Vec<Item>>> {
        let mut done = BTreeMap::new();
        for index in 0..self.evaluation.parts() {
            let path = self.chunk_file(index);
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let items: Vec<Item> =
                serde_json::from_str(&text).context(|| format!("cannot read `{}`", path.display()))?;
            let expected = self.evaluation.part_tasks(index).len();
            if items.len() != expected {
                return Err(Error::failure(format!(
                    "`{}`: expected {expected} verdicts, got {}",
                    path.display(),
                    items.len()
                ))
                .hint("remove the file to evaluate these tasks again"));
            }
            done.insert(index, items);
        }
        Ok(done)
    }

    /// Evaluates the missing chunks of a shard. Calls `on_progress` with the number of tasks of each chunk, existing chunks
    /// included. Returns the receipt if all chunks are complete.
    pub fn run(
        &self,
        model: &mut dyn UnifiedModel,
        shard: Shard,
        mut on_progress: impl FnMut(usize),
    ) -> Result<Option<Receipt>> {
        let mut done = self.done()?;
        for index in (shard.index..self.evaluation.parts()).step_by(shard.of) {
            if !done.contains_key(&index) {
                let items = self.evaluation.part(model, index)?;
                let text = serde_json::to_string(&items).context(|| "cannot serialize verdicts")?;
                atomic_fs::write(&self.chunk_file(index), &(text + "\n"))?;
            }
            on_progress(self.evaluation.part_tasks(index).len());
        }
        done = self.done()?;
        if done.len() < self.evaluation.parts() {
            return Ok(None);
        }
        let items = done.into_values().flatten().collect();
        let receipt = Receipt::new(self.evaluation, self.model.clone(), items)?;
        atomic_fs::write(&self.root.join("receipt.json"), &receipt.to_json()?)?;
        Ok(Some(receipt))
    }
}

/// Returns the path of the first key at which two objects differ.
fn difference(old: &Value, new: &Value) -> String {
    let (Value::Object(old), Value::Object(new)) = (old, new) else { return String::new() };
    let keys = old.keys().chain(new.keys().filter(|key| !old.contains_key(*key)));
    for key in keys {
        let (old, new) = (old.get(key), new.get(key));
        if old != new {
            let inner = old.zip(new).map(|(old, new)| difference(old, new)).unwrap_or_default();
            return if inner.is_empty() { key.clone() } else { format!("{key}.{inner}") };
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_parses_an_index_from_one() {
        assert_eq!("2/4".parse::<Shard>().unwrap(), Shard { index: 1, of: 4 });
        for invalid in ["0/4", "5/4", "2", "a/b", "1/0"] {
            assert!(invalid.parse::<Shard>().is_err(), "{invalid}");
        }
    }

    #[test]
    fn difference_returns_the_path_of_the_key() {
        let plan = serde_json::json!({ "seed": 1, "images": { "guidance": 2.0, "steps": 16 } });
        let mut other = plan.clone();
        other["images"]["steps"] = 12.into();
        assert_eq!(difference(&plan, &other), "images.steps");
    }
}
