//! The settings of a command: model, preset, file, `--set` and flags.

use schemars::JsonSchema;
use unirl::error::{Error, Result};
use unirl::model::ModelCard;
use unirl_base::schema::schema;
use unirl_base::{layers, settings};
use unirl_engine::config::{self, RunConfig};
use unirl_engine::run_dir;

use crate::args::{GenerationArgs, ModelArgs};

/// The settings of a command. Later layers override earlier ones: sampling defaults of the model, preset, `--config`, `--set`,
/// flags.
///
/// Without `--preset`, the preset is that of the benchmark, or else that of the benchmark of the model; without either, the settings
/// are those of the paper.
pub(crate) struct Settings {
    preset: Option<String>,
    user: toml::Table,
}

impl Settings {
    pub(crate) fn new(args: &ModelArgs, preset: Option<&str>) -> Result<Self> {
        let mut settings = Self { preset: preset.map(String::from), user: user_settings::<RunConfig>(args)? };
        if let Some(seed) = args.seed {
            settings.put("train.seed", seed as i64)?;
        }
        Ok(settings)
    }

    /// The settings of a command that generates images.
    pub(crate) fn for_generation(args: &ModelArgs, generation: &GenerationArgs) -> Result<Self> {
        let mut settings = Self::new(args, None)?;
        if let Some(guidance) = generation.guidance {
            settings.put("rollout.images.guidance", guidance)?;
        }
        if let Some(steps) = generation.steps {
            settings.put("rollout.images.steps", steps)?;
        }
        Ok(settings)
    }

    /// Sets a setting by its dotted path.
    pub(crate) fn put(&mut self, path: &str, value: impl Into<toml::Value>) -> Result<()> {
        put(&mut self.user, path, value)
    }

    /// Replaces a run directory in `model.checkpoint` by its newest checkpoint, so that the settings of a run name a fixed one.
    pub(crate) fn with_fixed_checkpoint(mut self) -> Result<Self> {
        let named = self.early()?.model.checkpoint;
        if named != "builtin" {
            self.put("model.checkpoint", run_dir::model_folder(named.as_ref())?.display().to_string())?;
        }
        Ok(self)
    }

    /// The settings before the model is known, so that errors in them are found before it is loaded.
    pub(crate) fn early(&self) -> Result<RunConfig> {
        self.over_preset(toml::Table::new(), self.preset.as_deref().or(Some("tiles")))
    }

    /// The settings for a loaded model.
    pub(crate) fn config(&self, card: &ModelCard) -> Result<RunConfig> {
        let chosen = self.user.get("benchmark").and_then(|options| options.get("name")?.as_str());
        let preset = |benchmark| unirl_benchmarks::preset(benchmark, card);
        let preset = chosen.and_then(preset).or_else(|| card.benchmark.as_deref().and_then(preset));
        self.over_preset(sampling_defaults(card)?, self.preset.as_deref().or(preset))
    }

    fn over_preset(&self, mut table: toml::Table, preset: Option<&str>) -> Result<RunConfig> {
        if let Some(preset) = preset {
            layers::merge(&mut table, config::preset(preset)?);
        }
        self.over(table)
    }

    /// The settings of the user over those of `table`. Rewards that the user names score answers, even if those of `table` did not.
    pub(crate) fn over(&self, mut table: toml::Table) -> Result<RunConfig> {
        let reward = self.user.get("reward").and_then(toml::Value::as_table);
        if reward.is_some_and(|reward| reward.contains_key("rules"))
            && let Some(toml::Value::Table(reward)) = table.get_mut("reward")
        {
            reward.remove("kind");
        }
        layers::merge(&mut table, self.user.clone());
        RunConfig::from_table(table)
    }
}

/// The sampling defaults of a model as settings.
pub(crate) fn sampling_defaults(card: &ModelCard) -> Result<toml::Table> {
    let sampling = toml::Value::try_from(&card.sampling).map_err(|error| {
        Error::failure(format!("cannot read the sampling defaults of model `{}`", card.name)).cause(error)
    })?;
    let mut table = toml::Table::new();
    put(&mut table, "rollout.images", sampling)?;
    Ok(table)
}

/// The settings of the user for a configuration of type `T`: `--config`, `--set` and flags, under their current names.
pub(crate) fn user_settings<T: JsonSchema>(args: &ModelArgs) -> Result<toml::Table> {
    let schema = schema::<T>();
    let mut table = toml::Table::new();
    if let Some(path) = &args.config {
        table = layers::read(path)?;
        settings::rename_former(&schema, &mut table)?;
    }
    for assignment in &args.sets {
        layers::set(&mut table, assignment, &schema)?;
    }
    for (path, value) in [
        ("model.plugin", &args.plugin),
        ("model.checkpoint", &args.model),
        ("model.device", &args.device),
        ("model.options.tokenizer", &args.tokenizer),
    ] {
        if let Some(value) = value {
            put(&mut table, path, value.as_str())?;
        }
    }
    Ok(table)
}

fn put(table: &mut toml::Table, path: &str, value: impl Into<toml::Value>) -> Result<()> {
    layers::put(table, path, value.into())
        .map_err(|key| Error::usage(format!("configuration key `{key}`: expected a table")))
}
