//! The algorithms by name, and which models they fit.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::Algorithm;
use crate::config::RunConfig;
use crate::error::{Error, Result, unknown_name};
use crate::model::{ImageSpace, ModelCard};

/// An entry of the registry.
pub struct AlgorithmEntry {
    /// The name that `--optimizer` takes.
    pub name: &'static str,
    /// One line on what it does.
    pub summary: &'static str,
    /// Whether its gradient passes through image tokens, which needs [`ImageSpace::Shared`].
    pub end_to_end: bool,
    /// Whether its answer objective may have rules of its own.
    pub answer_rules: bool,
    /// The JSON Schema of its options.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Builds it from its options.
    pub build: fn(toml::Table) -> Result<Box<dyn Algorithm>>,
}

inventory::collect!(AlgorithmEntry);

/// All optimizers by name.
pub fn all() -> Vec<&'static AlgorithmEntry> {
    let mut entries: Vec<_> = inventory::iter::<AlgorithmEntry>().collect();
    entries.sort_by_key(|entry| entry.name);
    entries
}

/// The optimizer called `name`.
pub fn find(name: &str) -> Result<&'static AlgorithmEntry> {
    let entries = all();
    entries.iter().find(|entry| entry.name == name).copied().ok_or_else(|| {
        unknown_name("optimizer", name, &entries.iter().map(|entry| entry.name).collect::<Vec<_>>())
    })
}

/// The optimizer of a run, with its options; refuses rules that it would not read.
pub fn build(entry: &AlgorithmEntry, config: &RunConfig) -> Result<Box<dyn Algorithm>> {
    if config.reward.answer_rules.is_some() && !entry.answer_rules {
        return Err(Error::usage(format!(
            "`reward.answer_rules`: expected an optimizer with an objective for answers alone, got `{}`",
            entry.name
        ))
        .hint("use `--optimizer grpo-split`, or leave `reward.answer_rules` out"));
    }
    (entry.build)(config.optimizer.table()?)
}

/// Refuses what cannot work and warns of what the paper saw fail (§3.5, §4.4).
pub fn check_fits(entry: &AlgorithmEntry, card: &ModelCard) -> Result<()> {
    if card.image_space == ImageSpace::Shared || !entry.end_to_end {
        return Ok(());
    }
    if entry.name == "sft" {
        tracing::warn!(
            "`sft` on `{}`, which reads images through another representation than it draws: the paper saw drawing \
             collapse (§4.4)",
            card.name
        );
        return Ok(());
    }
    Err(Error::usage(format!(
        "optimizer `{}` needs a model that reads the image tokens it draws, `{}` does not",
        entry.name, card.name
    ))
    .hint("use `--optimizer grpo-split` (§3.5 of the paper)"))
}

/// The options of an algorithm: what is not said, in an inner table too, is as in its own defaults.
pub(crate) fn options<T: Default + Serialize + DeserializeOwned + JsonSchema>(
    name: &str,
    table: toml::Table,
) -> Result<T> {
    let mut whole = toml::Table::try_from(T::default())
        .map_err(|error| Error::failure(format!("the defaults of `{name}`")).cause(error))?;
    crate::config::layers::merge(&mut whole, table);
    crate::settings::read(&format!("optimizer.{name}"), whole)
}
