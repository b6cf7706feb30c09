//! Models, rewards and devices from settings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tch::{Cuda, Device};
use unirl::config::{ModelOptions, RewardOptions, RunConfig};
use unirl::error::{Error, Result};
use unirl::memory;
use unirl::model::{Checkpoint, ModelSource, UnifiedModel};
use unirl::plugin::{Plugins, has_cuda_driver, load_cuda};
use unirl::reward::{PROCESS, ProcessReward, RewardFunction, RewardSet, RuleFile, WeightedReward, command};
use unirl::{hash, run_dir, settings};

use crate::progress;
use crate::settings::Settings;

/// The model and the settings of a command that only uses it: evaluation, drawing, asking.
pub(crate) fn inference(
    settings: &Settings,
    plugins: &mut Plugins,
) -> Result<(Box<dyn UnifiedModel>, RunConfig)> {
    let early = settings.early()?;
    let model = model(plugins, &early.model, early.train.seed)?;
    let config = settings.config(model.card())?;
    Ok((model, config))
}

/// Loads the model that the options name.
pub(crate) fn model(
    plugins: &mut Plugins,
    options: &ModelOptions,
    seed: u64,
) -> Result<Box<dyn UnifiedModel>> {
    let started = Instant::now();
    let source = source(options, seed)?;
    let model = construct(plugins, options, &source)?;
    if source.device == Device::Cpu {
        memory::tune_malloc(&*model);
    }
    if let Checkpoint::Folder(folder) = &source.checkpoint {
        progress::note(&format!(
            "loaded {} from {} in {:.1} s",
            model.card().name,
            folder.display(),
            started.elapsed().as_secs_f64()
        ));
    }
    Ok(model)
}

/// Makes the model of a source.
pub(crate) fn construct(
    plugins: &mut Plugins,
    options: &ModelOptions,
    source: &ModelSource,
) -> Result<Box<dyn UnifiedModel>> {
    let json = serde_json::to_value(&options.options)
        .map_err(|error| Error::usage("`model.options` cannot be written as JSON").cause(error))?;
    plugins.model(&options.plugin, &json, source)
}

/// Where the options say that the weights come from.
pub(crate) fn source(options: &ModelOptions, seed: u64) -> Result<ModelSource> {
    let checkpoint = match options.checkpoint.as_str() {
        "builtin" => Checkpoint::Builtin,
        folder => {
            let folder = run_dir::model_folder(Path::new(folder))?;
            if !folder.is_dir() {
                return Err(Error::usage(format!("no model folder at `{}`", folder.display()))
                    .hint("`--model` takes `builtin`, the folder of a model, or that of a run, e.g. `runs/showo-grpo-001`"));
            }
            Checkpoint::Folder(folder)
        }
    };
    Ok(ModelSource { checkpoint, device: device(&options.device)?, seed, dry: false })
}

/// Loads the rules that the configuration names.
pub(crate) fn rules(plugins: &mut Plugins, rules: &[WeightedReward]) -> Result<RewardSet> {
    let loaded =
        rules.iter().map(|rule| Ok((rule.clone(), reward(plugins, rule)?))).collect::<Result<_>>()?;
    RewardSet::new(loaded)
}

/// The rules of a name: a program behind `cmd:`, a file of rules if it ends in `.toml`, else a plugin's.
fn reward(plugins: &mut Plugins, rule: &WeightedReward) -> Result<Box<dyn RewardFunction>> {
    if let Some(program) = rule.name.strip_prefix(PROCESS) {
        let options = settings::read("options", rule.options.clone())
            .map_err(|error| error.context(format!("reward rule `{}`", rule.name)))?;
        return Ok(Box::new(ProcessReward::start(program, options)?));
    }
    let path = Path::new(&rule.name);
    if path.extension().is_none_or(|end| end != "toml") {
        let options = serde_json::to_value(&rule.options)
            .map_err(|error| Error::usage(format!("options of reward rule `{}`", rule.name)).cause(error))?;
        return plugins.reward(&rule.name, &options);
    }
    if !rule.options.is_empty() {
        return Err(Error::usage(format!("reward rule `{}`: a rule file takes no `options`", rule.name))
            .hint("say it in the file"));
    }
    let file = RuleFile::read(path)?;
    file.build().map_err(|error| error.context(format!("rule file `{}`", path.display())))
}

/// Loads the rules of the answer objective, where it has its own.
pub(crate) fn answer_rules(plugins: &mut Plugins, options: &RewardOptions) -> Result<Option<RewardSet>> {
    options.answer_rules.as_ref().map(|own| rules(plugins, own)).transpose()
}

/// The SHA-256 of every file that decides a run beside its settings and its model, by what it is to the run: tasks, rule
/// files, programs with those of their arguments that are files, and plugins.
pub(crate) fn inputs(plugins: &mut Plugins, config: &RunConfig) -> Result<BTreeMap<String, String>> {
    let plugin = plugins.load(&config.model.plugin)?;
    let mut files = vec![(format!("plugin `{}`", plugin.name), plugin.path.clone())];
    files.extend(config.train.tasks.iter().map(|tasks| (format!("`train.tasks` `{tasks}`"), tasks.into())));
    for rule in config.reward.rules.iter().chain(config.reward.answer_rules.iter().flatten()) {
        if let Some(line) = rule.name.strip_prefix(PROCESS) {
            let (program, words) = command(line)?;
            let arguments = rule.options.get("args").and_then(toml::Value::as_array);
            let arguments = arguments.into_iter().flatten().filter_map(toml::Value::as_str).map(String::from);
            let words = std::iter::once(program).chain(words.into_iter().chain(arguments).map(PathBuf::from));
            let words = words.filter(|word| word.is_file());
            files.extend(
                words.map(|word| (format!("reward rule `{}`, `{}`", rule.name, word.display()), word)),
            );
        } else if Path::new(&rule.name).extension().is_some_and(|end| end == "toml") {
            files.push((format!("reward rule `{}`", rule.name), (&rule.name).into()));
        } else {
            let file = plugins.reward_file(&rule.name)?.to_owned();
            files.push((format!("plugin of reward rule `{}`", rule.name), file));
        }
    }
    files.into_iter().map(|(name, path)| Ok((name, hash::file(&path)?))).collect()
}

/// The device of a name.
pub(crate) fn device(name: &str) -> Result<Device> {
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

/// The name of a device.
pub(crate) fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => "cpu".into(),
    }
}
