//! The folder of an evaluation that can be interrupted and shared out: `plan.json`, what decides the verdicts; `parts/`, the
//! verdicts part by part, each whole or absent; and `receipt.json`, when all are there.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::Value;

use super::receipt::Plan;
use super::{Evaluation, Item, Receipt};
use crate::atomic_fs;
use crate::error::{Context, Error, Result};
use crate::model::UnifiedModel;
use crate::weights::ModelFingerprint;

/// Which parts one process evaluates: every `of`th, from `index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// From 0.
    pub index: usize,
    /// How many shards there are.
    pub of: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Self { index: 0, of: 1 }
    }
}

impl FromStr for Shard {
    type Err = Error;

    /// `2/4` is the second of four.
    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| text.parse::<usize>().ok();
        let numbers = text.split_once('/').and_then(|(index, of)| Some((number(index)?, number(of)?)));
        match numbers {
            Some((index, of)) if 1 <= index && index <= of => Ok(Self { index: index - 1, of }),
            _ => Err(Error::usage(format!("shard `{text}`: expected e.g. `2/4`, the second of four"))),
        }
    }
}

/// The folder of an evaluation.
pub struct EvalFolder<'e> {
    root: PathBuf,
    evaluation: &'e Evaluation<'e>,
    model: ModelFingerprint,
}

impl<'e> EvalFolder<'e> {
    /// Makes the folder, or goes on with one that has the same plan.
    pub fn open(root: &Path, evaluation: &'e Evaluation<'e>, model: ModelFingerprint) -> Result<Self> {
        let plan = Plan::new(evaluation, model.clone())?;
        let plan = serde_json::to_value(&plan).context(|| "cannot write the plan")?;
        let file = root.join("plan.json");
        if file.is_file() {
            let text = fs::read_to_string(&file).context(|| format!("cannot read `{}`", file.display()))?;
            let known: Value =
                serde_json::from_str(&text).context(|| format!("`{}` is not JSON", file.display()))?;
            if known != plan {
                return Err(Error::usage(format!("`{}` holds another evaluation", root.display()))
                    .cause(format!("`{}` differs", difference(&known, &plan)))
                    .hint("name another folder: `--out DIR`"));
            }
        } else {
            let used = fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_some());
            if used || root.is_file() {
                return Err(Error::usage(format!("`{}` exists and is no evaluation", root.display()))
                    .hint("name another folder: `--out DIR`"));
            }
            let parts = root.join("parts");
            fs::create_dir_all(&parts).context(|| format!("cannot create `{}`", parts.display()))?;
            atomic_fs::write(&file, &format!("{plan:#}\n"))?;
        }
        Ok(Self { root: root.to_owned(), evaluation, model })
    }

    fn part_file(&self, index: usize) -> PathBuf {
        self.root.join(format!("parts/{index:05}.json"))
    }

    /// The parts that are there.
    pub fn done(&self) -> Result<BTreeMap<usize, Vec<Item>>> {
        let mut done = BTreeMap::new();
        for index in 0..self.evaluation.parts() {
            let path = self.part_file(index);
            let Ok(text) = fs::read_to_string(&path) else { continue };
            let items: Vec<Item> = serde_json::from_str(&text).context(|| format!("`{}`", path.display()))?;
            let expected = self.evaluation.part_tasks(index).len();
            if items.len() != expected {
                return Err(Error::failure(format!(
                    "`{}`: expected {expected} verdicts, got {}",
                    path.display(),
                    items.len()
                ))
                .hint("remove the file, and it is evaluated again"));
            }
            done.insert(index, items);
        }
        Ok(done)
    }

    /// Evaluates the parts of a shard that are not there; `progress` is told how many tasks are done, those that were there
    /// among them. The receipt, if all parts are there now.
    pub fn run(
        &self,
        model: &mut dyn UnifiedModel,
        shard: Shard,
        mut progress: impl FnMut(usize),
    ) -> Result<Option<Receipt>> {
        let mut done = self.done()?;
        for index in (shard.index..self.evaluation.parts()).step_by(shard.of) {
            if !done.contains_key(&index) {
                let items = self.evaluation.part(model, index)?;
                let text = serde_json::to_string(&items).context(|| "cannot write verdicts")?;
                atomic_fs::write(&self.part_file(index), &(text + "\n"))?;
            }
            progress(self.evaluation.part_tasks(index).len());
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

/// The first key at which two objects differ.
fn difference(one: &Value, other: &Value) -> String {
    let (Value::Object(known), Value::Object(new)) = (one, other) else { return String::new() };
    let keys = known.keys().chain(new.keys().filter(|key| !known.contains_key(*key)));
    for key in keys {
        let (one, other) = (known.get(key), new.get(key));
        if one != other {
            let inner = one.zip(other).map(|(one, other)| difference(one, other)).unwrap_or_default();
            return if inner.is_empty() { key.clone() } else { format!("{key}.{inner}") };
        }
    }
    String::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_counted_from_one() {
        assert_eq!("2/4".parse::<Shard>().unwrap(), Shard { index: 1, of: 4 });
        for wrong in ["0/4", "5/4", "2", "a/b", "1/0"] {
            assert!(wrong.parse::<Shard>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_first_difference_is_named() {
        let plan = serde_json::json!({ "seed": 1, "images": { "guidance": 2.0, "steps": 16 } });
        let mut other = plan.clone();
        other["images"]["steps"] = 12.into();
        assert_eq!(difference(&plan, &other), "images.steps");
    }
}
