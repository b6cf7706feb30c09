//! The settings of a command: model, preset, file, `--set` and flags.

use unirl::config::{self, RunConfig, layers};
use unirl::error::{Error, Result};
use unirl::model::{ImageSpace, ModelCard};
use unirl::{eval, run_dir};

use crate::args::{GenerationArgs, ModelArgs};

/// The settings of a run: how the model is meant to draw, preset, file and `--set` in this order, then flags. Which preset
/// it is where the user names none depends on the model: one that draws the drawn world has `tiles`, or `tiles-split` where
/// it reads images through another representation; any other has none, which leaves the paper's settings.
pub(crate) struct Settings {
    preset: Option<String>,
    own: toml::Table,
}

impl Settings {
    pub(crate) fn new(args: &ModelArgs, preset: Option<&str>) -> Result<Self> {
        let mut settings = Self { preset: preset.map(String::from), own: own_settings(args)? };
        if let Some(seed) = args.seed {
            settings.put("train.seed", seed as i64)?;
        }
        Ok(settings)
    }

    /// The settings of a command that draws.
    pub(crate) fn drawing(args: &ModelArgs, drawing: &GenerationArgs) -> Result<Self> {
        let mut settings = Self::new(args, None)?;
        if let Some(guidance) = drawing.guidance {
            settings.put("rollout.images.guidance", guidance)?;
        }
        if let Some(steps) = drawing.steps {
            settings.put("rollout.images.steps", steps)?;
        }
        Ok(settings)
    }

    /// Sets a setting by its dotted path.
    pub(crate) fn put(&mut self, path: &str, value: impl Into<toml::Value>) -> Result<()> {
        put(&mut self.own, path, value)
    }

    /// The settings of a run: a model that is named by the folder of a run is the checkpoint that is the newest now.
    pub(crate) fn settled(mut self) -> Result<Self> {
        let named = self.early()?.model.checkpoint;
        if named != "builtin" {
            self.put("model.checkpoint", run_dir::model_folder(named.as_ref())?.display().to_string())?;
        }
        Ok(self)
    }

    /// The settings as far as they are known before the model: wrong ones are told before it is loaded.
    pub(crate) fn early(&self) -> Result<RunConfig> {
        self.over_preset(toml::Table::new(), self.preset.as_deref().or(Some("tiles")))
    }

    /// The settings for a model.
    pub(crate) fn config(&self, card: &ModelCard) -> Result<RunConfig> {
        let tiles = eval::check_tiles(card).is_ok().then_some(match card.image_space {
            ImageSpace::Shared => "tiles",
            ImageSpace::Decoupled => "tiles-split",
        });
        self.over_preset(own_sampling(card)?, self.preset.as_deref().or(tiles))
    }

    fn over_preset(&self, mut table: toml::Table, preset: Option<&str>) -> Result<RunConfig> {
        if let Some(preset) = preset {
            layers::merge(&mut table, config::preset(preset)?);
        }
        self.over(table)
    }

    /// What the user says, over the settings of a run.
    pub(crate) fn over(&self, mut table: toml::Table) -> Result<RunConfig> {
        layers::merge(&mut table, self.own.clone());
        RunConfig::from_table(table)
    }
}

/// How a model is meant to draw, as settings.
pub(crate) fn own_sampling(card: &ModelCard) -> Result<toml::Table> {
    let sampling = toml::Value::try_from(&card.sampling)
        .map_err(|error| Error::failure(format!("the sampling of model `{}`", card.name)).cause(error))?;
    let mut table = toml::Table::new();
    put(&mut table, "rollout.images", sampling)?;
    Ok(table)
}

/// What the user says: file, `--set`, and flags.
pub(crate) fn own_settings(args: &ModelArgs) -> Result<toml::Table> {
    let mut table = toml::Table::new();
    if let Some(path) = &args.config {
        layers::merge(&mut table, layers::read(path)?);
    }
    for assignment in &args.sets {
        layers::set(&mut table, assignment)?;
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
        .map_err(|key| Error::usage(format!("configuration `{key}`: expected a table")))
}
