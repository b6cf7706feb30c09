//! The registry of algorithms: their names, their options, and the models that they can train.

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use unirl::error::{Error, Result, unknown_name};
use unirl::model::{ImageSpace, ModelCard};
use unirl_base::schema::schema;
use unirl_base::{layers, settings};

use super::Algorithm;

/// An algorithm as the registry lists it.
pub struct AlgorithmEntry {
    /// The name that `--optimizer` takes.
    pub name: &'static str,
    /// One line on what it does.
    pub summary: &'static str,
    /// Whether its gradient passes through image tokens, which needs [`ImageSpace::Shared`].
    pub end_to_end: bool,
    /// Whether `reward.answer_rules` may give its answer term a separate reward.
    pub answer_rules: bool,
    /// The JSON Schema of its options.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Builds it from its options.
    pub build: fn(toml::Table) -> Result<Box<dyn Algorithm>>,
    /// Its options with every default written out.
    pub resolve: fn(toml::Table) -> Result<toml::Table>,
}

inventory::collect!(AlgorithmEntry);

/// Every algorithm, sorted by name.
pub fn all() -> Vec<&'static AlgorithmEntry> {
    let mut entries: Vec<_> = inventory::iter::<AlgorithmEntry>().collect();
    entries.sort_by_key(|entry| entry.name);
    entries
}

/// The algorithm called `name`. Errors name the nearest known one.
pub fn find(name: &str) -> Result<&'static AlgorithmEntry> {
    let entries = all();
    entries.iter().find(|entry| entry.name == name).copied().ok_or_else(|| {
        unknown_name("optimizer", name, &entries.iter().map(|entry| entry.name).collect::<Vec<_>>())
    })
}

/// Checks that an algorithm can train a model (§3.5): an end-to-end algorithm needs a shared image token space. `sft` without
/// one only causes a warning, because the paper reports that generation then collapses (§4.4).
pub fn check_fits(entry: &AlgorithmEntry, card: &ModelCard) -> Result<()> {
    if card.image_space == ImageSpace::Shared || !entry.end_to_end {
        return Ok(());
    }
    if entry.name == "sft" {
        tracing::warn!(
            "`sft` on `{}`, whose understanding does not use the generated image tokens: the paper reports that generation \
             collapses (§4.4)",
            card.name
        );
        return Ok(());
    }
    Err(Error::usage(format!(
        "optimizer `{}` needs a model whose understanding uses the image tokens that it generates, `{}` does not",
        entry.name, card.name
    ))
    .hint("use `--optimizer grpo-split` (§3.5 of the paper)"))
}

/// Reads the options of an algorithm. An option that `table` leaves out, also in a nested table, keeps the default of `T`.
pub(crate) fn options<T: Default + Serialize + DeserializeOwned + JsonSchema>(
    name: &str,
    mut table: toml::Table,
) -> Result<T> {
    settings::rename_former(&schema::<T>(), &mut table)?;
    let mut merged = to_table(name, &T::default())?;
    layers::merge(&mut merged, table);
    settings::read(&format!("optimizer.{name}"), merged)
}

/// The options of an algorithm, read as [`options`] reads them, with every default written out.
pub(crate) fn resolve<T: Default + Serialize + DeserializeOwned + JsonSchema>(
    name: &str,
    table: toml::Table,
) -> Result<toml::Table> {
    to_table(name, &options::<T>(name, table)?)
}

fn to_table<T: Serialize>(name: &str, options: &T) -> Result<toml::Table> {
    toml::Table::try_from(options)
        .map_err(|error| Error::failure(format!("cannot write the options of `{name}` as TOML")).cause(error))
}
