//! From arguments to configurations, models and rule sets.

use std::path::{Path, PathBuf};

use tch::{Cuda, Device};
use unirl::config::{self, ModelOptions, RunConfig};
use unirl::error::{Error, Result};
use unirl::model::{Checkpoint, ModelSource, UnifiedModel};
use unirl::plugin::{Plugins, has_cuda_driver, load_cuda};
use unirl::reward::{RuleSet, WeightedRule};

use crate::args::ModelArgs;

/// The settings of a command: preset, file and `--set` in this order, then the flags for the model.
pub(crate) fn table(args: &ModelArgs, preset: Option<&str>) -> Result<toml::Table> {
    let mut table = toml::Table::new();
    if let Some(name) = preset {
        config::merge(&mut table, config::preset(name)?);
    }
    if let Some(path) = &args.config {
        config::merge(&mut table, config::read_table(path)?);
    }
    for assignment in &args.sets {
        config::set(&mut table, assignment)?;
    }
    for (key, value) in [("plugin", &args.plugin), ("checkpoint", &args.model), ("device", &args.device)] {
        if let Some(value) = value {
            put(&mut table, "model", key, value.as_str())?;
        }
    }
    Ok(table)
}

/// Sets `section.key`.
pub(crate) fn put(
    table: &mut toml::Table,
    section: &str,
    key: &str,
    value: impl Into<toml::Value>,
) -> Result<()> {
    table
        .entry(section)
        .or_insert_with(|| toml::Value::Table(toml::Table::new()))
        .as_table_mut()
        .ok_or_else(|| Error::usage(format!("configuration `{section}`: expected a table")))?
        .insert(key.into(), value.into());
    Ok(())
}

/// A run configuration for commands that only use the model: evaluation, drawing, asking.
pub(crate) fn inference(args: &ModelArgs) -> Result<RunConfig> {
    let mut table = table(args, Some("tiles"))?;
    if let Some(seed) = args.seed {
        put(&mut table, "train", "seed", seed as i64)?;
    }
    RunConfig::from_table(table)
}

/// Loads the model that the options name.
pub(crate) fn model(
    plugins: &mut Plugins,
    options: &ModelOptions,
    fresh: bool,
    seed: u64,
) -> Result<Box<dyn UnifiedModel>> {
    let checkpoint = match options.checkpoint.as_str() {
        _ if fresh => Checkpoint::Fresh,
        "builtin" => Checkpoint::Builtin,
        folder => {
            let folder = PathBuf::from(folder);
            if !folder.is_dir() {
                return Err(Error::usage(format!("no model folder at `{}`", folder.display()))
                    .hint("`--model` takes `builtin` or a folder such as `runs/…/checkpoints/latest`"));
            }
            Checkpoint::Folder(folder)
        }
    };
    let source = ModelSource { checkpoint, device: device(&options.device)?, seed, dry: false };
    let options_json = serde_json::to_value(&options.options)
        .map_err(|error| Error::usage("`model.options` cannot be written as JSON").cause(error))?;
    plugins.model(&options.plugin, options_json, &source)
}

/// Loads the rules that the configuration names.
pub(crate) fn rules(plugins: &mut Plugins, rules: &[WeightedRule]) -> Result<RuleSet> {
    let loaded = rules
        .iter()
        .map(|rule| {
            let function = plugins.reward(&rule.name, serde_json::Value::Object(serde_json::Map::new()))?;
            Ok((rule.clone(), function))
        })
        .collect::<Result<_>>()?;
    RuleSet::new(loaded)
}

fn device(name: &str) -> Result<Device> {
    let wrong =
        || Error::usage(format!("unknown device `{name}`")).hint("known: `auto`, `cpu`, `cuda`, `cuda:N`");
    let index = match name {
        "cpu" => return Ok(Device::Cpu),
        "auto" if !has_cuda_driver() => return Ok(Device::Cpu),
        "auto" => {
            if let Err(error) = load_cuda() {
                tracing::warn!("running on the CPU although a GPU driver is installed: {error}");
                return Ok(Device::Cpu);
            }
            return Ok(Device::cuda_if_available());
        }
        "cuda" => 0,
        _ => name.strip_prefix("cuda:").ok_or_else(wrong)?.parse().map_err(|_| wrong())?,
    };
    let count = if has_cuda_driver() {
        load_cuda()?;
        Cuda::device_count()
    } else {
        0
    };
    if (index as i64) < count {
        return Ok(Device::Cuda(index));
    }
    Err(Error::usage(format!("device `{name}` is not there")).hint(match count {
        0 => "no GPU was found: use `--device cpu`".to_string(),
        count => format!("GPUs found: 0 to {}", count - 1),
    }))
}

/// Refuses an output file whose folder is missing, before any work is done for it.
pub(crate) fn check_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
            Err(Error::usage(format!("cannot write `{}`: no folder `{}`", path.display(), parent.display())))
        }
        _ => Ok(()),
    }
}
