//! Checkpoints as every family reads and writes them: the embedded one, and the files beside the weights.
//!
//! The embedded checkpoint is a folder packed into one safetensors file: weights as f16, text files in its header.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use serde_json::Value;
use tch::Kind;
use unirl::error::Context;
use unirl::model::{Checkpoint, ModelSource};
use unirl::weights::{self, Weights};
use unirl::{Error, Result};

/// The name of the embedded checkpoint in errors.
pub const EMBEDDED: &str = "the embedded checkpoint";

/// Upper bound of the number of layers, far above any model, so that a malformed file cannot exhaust memory.
pub const MAX_LAYERS: i64 = 1000;

/// A checkpoint made by [`pack`].
pub struct Packed {
    /// The weights, of all folders.
    pub weights: Weights,
    /// The text files by name.
    pub texts: HashMap<String, String>,
}

impl Packed {
    /// Opens a packed checkpoint; errors call it [`EMBEDDED`].
    pub fn open(bytes: &'static [u8]) -> Result<Self> {
        let (weights, texts) = Weights::embedded(EMBEDDED, bytes)?;
        Ok(Self { weights, texts })
    }

    /// A text file. Errors if it is missing.
    pub fn text(&self, name: &str) -> Result<&str> {
        self.texts
            .get(name)
            .map(String::as_str)
            .ok_or_else(|| Error::failure(format!("{EMBEDDED} is corrupt")).cause(format!("no `{name}`")))
    }

    /// A JSON file. Errors if it is missing or not JSON.
    pub fn json(&self, name: &str) -> Result<Value> {
        serde_json::from_str(self.text(name)?).context(|| format!("{EMBEDDED} is corrupt"))
    }
}

/// Packs the `weights` whose name `keep` accepts and text files into one `file` for embedding.
pub fn pack(
    file: &Path,
    weights: &[Weights],
    keep: impl Fn(&str) -> bool,
    texts: &[(&str, &str)],
) -> Result<()> {
    let mut tensors = Vec::new();
    for weights in weights {
        for name in weights.names().filter(|name| keep(name)) {
            tensors.push((name.to_string(), weights.read(name)?.to_kind(Kind::Half)));
        }
    }
    weights::write(file, &tensors, texts)
}

/// Errors if the options give the `architecture` of a fresh model, but `source` is a checkpoint.
pub fn check_architecture<T>(source: &ModelSource, architecture: Option<&T>) -> Result<()> {
    if source.checkpoint == Checkpoint::Fresh || architecture.is_none() {
        return Ok(());
    }
    Err(Error::usage(
        "`model.options.architecture` applies only to a fresh model: a checkpoint has its own sizes",
    ))
}

/// Errors unless every size of a configuration, by name, is at least 1; `file` names the source.
pub fn check_positive<'a>(file: &str, sizes: impl IntoIterator<Item = (&'a str, i64)>) -> Result<()> {
    match sizes.into_iter().find(|(_, size)| *size < 1) {
        None => Ok(()),
        Some((name, got)) => {
            Err(Error::failure(format!("`{file}`: `{name}`: expected 1 or more, got {got}")))
        }
    }
}

/// Errors if a size of a configuration is above `most`; `file` names the source.
pub fn check_at_most(file: &str, (name, got): (&str, i64), most: i64) -> Result<()> {
    if got <= most {
        return Ok(());
    }
    Err(Error::failure(format!("`{file}`: `{name}`: expected at most {most}, got {got}")))
}

/// Errors unless a size of a configuration is a multiple of `part`, which `of` names; `file` names the source.
pub fn check_multiple(file: &str, (name, got): (&str, i64), (part, of): (i64, &str)) -> Result<()> {
    if got % part == 0 {
        return Ok(());
    }
    Err(Error::failure(format!("`{file}`: `{name}`: expected a multiple of {part} {of}, got {got}")))
}

/// The contents of a JSON file: indented, with a line break at the end.
pub fn pretty(json: &Value) -> String {
    format!("{json:#}\n")
}

/// Writes a file of a checkpoint.
pub fn write_file(path: &Path, contents: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, contents).context(|| format!("cannot write `{}`", path.display()))
}
