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
    /// What it does with a model of [`ImageSpace::Decoupled`].
    pub decoupled: Decoupled,
    /// Whether `reward.answer_rules` may give its answer term a separate reward.
    pub answer_rules: bool,
    /// The JSON Schema of its options.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Builds it from its options.
    pub build: fn(toml::Table) -> Result<Box<dyn Algorithm>>,
    /// Its options with every default written out.
    pub resolve: fn(toml::Table) -> Result<toml::Table>,
}

/// What an algorithm does with a model that understands images through another representation than the tokens that it generates
/// (§3.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoupled {
    /// It trains the model: no gradient passes through image tokens.
    Trains,
    /// It trains the model with this warning.
    Warns(&'static str),
    /// It refuses the model.
    Refuses,
}

inventory::collect!(AlgorithmEntry);

/// Registers an algorithm: its name, the type of its options, one line on what it does, what it does with a decoupled model, and
/// whether `reward.answer_rules` may give its answer term a separate reward.
///
/// The options are the algorithm: the type implements [`Algorithm`], `Default`, `Serialize`, `Deserialize` and `JsonSchema`. Write
/// `#[serde(default, deny_unknown_fields)]`, and document every key: doc comments become descriptions. A last argument,
/// `fn(Options) -> Result<Options>`, checks options that the schema cannot.
#[macro_export]
macro_rules! register_algorithm {
    ($name:expr, $options:ty, $summary:expr, $decoupled:expr, answer_rules: $answer_rules:expr $(,)?) => {
        $crate::register_algorithm!($name, $options, $summary, $decoupled, answer_rules: $answer_rules, Ok);
    };
    ($name:expr, $options:ty, $summary:expr, $decoupled:expr, answer_rules: $answer_rules:expr, $check:expr $(,)?) => {
        $crate::algorithms::__private::inventory::submit! {
            $crate::algorithms::AlgorithmEntry {
                name: $name,
                summary: $summary,
                decoupled: $decoupled,
                answer_rules: $answer_rules,
                schema: |generator| generator.root_schema_for::<$options>(),
                build: |table| {
                    let check: fn($options) -> $crate::algorithms::__private::Result<$options> = $check;
                    let options = $crate::algorithms::__private::options::<$options>($name, table)?;
                    Ok(::std::boxed::Box::new(check(options)?))
                },
                resolve: |table| $crate::algorithms::__private::resolve::<$options>($name, table),
            }
        }
    };
}

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

/// Errors if an algorithm cannot train a model (§3.5), and logs its warning about it, if it has one.
pub fn check_fits(entry: &AlgorithmEntry, card: &ModelCard) -> Result<()> {
    if card.image_space == ImageSpace::Shared {
        return Ok(());
    }
    match entry.decoupled {
        Decoupled::Trains => Ok(()),
        Decoupled::Warns(warning) => {
            tracing::warn!(
                "`{}` on `{}`, whose understanding does not use the generated image tokens: {warning}",
                entry.name,
                card.name
            );
            Ok(())
        }
        Decoupled::Refuses => Err(Error::usage(format!(
            "optimizer `{}` needs a model whose understanding uses the image tokens that it generates, `{}` does not",
            entry.name, card.name
        ))
        .hint("use `--optimizer grpo-split` (§3.5 of the paper)")),
    }
}

/// Reads the options of an algorithm. An option that `table` leaves out, also in a nested table, keeps the default of `T`.
pub fn options<T: Default + Serialize + DeserializeOwned + JsonSchema>(
    name: &str,
    mut table: toml::Table,
) -> Result<T> {
    settings::rename_former(&schema::<T>(), &mut table)?;
    let mut merged = to_table(name, &T::default())?;
    layers::merge(&mut merged, table);
    settings::read(&format!("optimizer.{name}"), merged)
}

/// The options of an algorithm, read as [`options`] reads them, with every default written out.
pub fn resolve<T: Default + Serialize + DeserializeOwned + JsonSchema>(
    name: &str,
    table: toml::Table,
) -> Result<toml::Table> {
    to_table(name, &options::<T>(name, table)?)
}

fn to_table<T: Serialize>(name: &str, options: &T) -> Result<toml::Table> {
    toml::Table::try_from(options)
        .map_err(|error| Error::failure(format!("cannot write the options of `{name}` as TOML")).cause(error))
}
