//! Models, rewards and devices from settings.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tch::{Cuda, Device};
use unirl::error::{Error, Result};
use unirl::model::{Checkpoint, ModelSource, UnifiedModel};
use unirl::reward::RewardFunction;
use unirl_base::{checksum, settings};
use unirl_engine::config::{ModelOptions, RunConfig};
use unirl_engine::plugin::Plugins;
use unirl_engine::rewards::{PROCESS, ProcessReward, RewardSet, WeightedReward, command};
use unirl_engine::{memory, run_dir};
use unirl_keywords::RuleFile;
use unirl_torch::libtorch::{has_cuda_driver, load_cuda};

use crate::progress;
use crate::settings::Settings;

/// Loads the model of a command without training, and returns it with its settings.
pub(crate) fn model_and_config(
    settings: &Settings,
    plugins: &mut Plugins,
) -> Result<(Box<dyn UnifiedModel>, RunConfig)> {
    let early = settings.early()?;
    let model = model(plugins, &early.model, early.train.seed)?;
    let config = settings.config(model.card())?;
    Ok((model, config))
}

/// Loads a model and tunes memory allocation for it.
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
    if let Checkpoint::Folder(dir) = &source.checkpoint {
        progress::note(&format!(
            "loaded {} from {} in {:.1} s",
            model.card().name,
            dir.display(),
            started.elapsed().as_secs_f64()
        ));
    }
    Ok(model)
}

/// Constructs a model from a source.
pub(crate) fn construct(
    plugins: &mut Plugins,
    options: &ModelOptions,
    source: &ModelSource,
) -> Result<Box<dyn UnifiedModel>> {
    let json = serde_json::to_value(&options.options)
        .map_err(|error| Error::usage("cannot convert `model.options` to JSON").cause(error))?;
    plugins.model(&options.plugin, &json, source)
}

/// The source of the weights. Errors if the checkpoint or the device does not exist.
pub(crate) fn source(options: &ModelOptions, seed: u64) -> Result<ModelSource> {
    let checkpoint = match options.checkpoint.as_str() {
        "builtin" => Checkpoint::Builtin,
        dir => {
            let dir = run_dir::model_folder(Path::new(dir))?;
            if !dir.is_dir() {
                return Err(Error::usage(format!("model directory `{}` does not exist", dir.display()))
                    .hint(
                        "`--model` expects `builtin`, a checkpoint, or a run such as `runs/showo-grpo-001`",
                    ));
            }
            Checkpoint::Folder(dir)
        }
    };
    Ok(ModelSource { checkpoint, device: device(&options.device)?, seed, dry: false })
}

/// Loads the weighted rewards of a configuration.
pub(crate) fn rewards(plugins: &mut Plugins, rules: &[WeightedReward]) -> Result<RewardSet> {
    let loaded =
        rules.iter().map(|rule| Ok((rule.clone(), reward(plugins, rule)?))).collect::<Result<_>>()?;
    RewardSet::new(loaded)
}

/// What the name of a reward means.
pub(crate) enum RewardSource<'a> {
    /// A command line after `cmd:`.
    Program(&'a str),
    /// A path that ends in `.toml`.
    RuleFile(&'a Path),
    /// Any other name.
    Plugin(&'a str),
}

impl<'a> RewardSource<'a> {
    pub(crate) fn of(name: &'a str) -> Self {
        let path = Path::new(name);
        match name.strip_prefix(PROCESS) {
            Some(line) => Self::Program(line),
            None if path.extension().is_some_and(|end| end == "toml") => Self::RuleFile(path),
            None => Self::Plugin(name),
        }
    }
}

/// Loads a reward by its name.
fn reward(plugins: &mut Plugins, rule: &WeightedReward) -> Result<Box<dyn RewardFunction>> {
    match RewardSource::of(&rule.name) {
        RewardSource::Program(line) => {
            let options = settings::read("options", rule.options.clone())
                .map_err(|error| error.context(format!("reward rule `{}`", rule.name)))?;
            Ok(Box::new(ProcessReward::start(line, options)?))
        }
        RewardSource::Plugin(name) => {
            let options = serde_json::to_value(&rule.options).map_err(|error| {
                Error::usage(format!("cannot convert the options of reward rule `{name}` to JSON"))
                    .cause(error)
            })?;
            plugins.reward(name, &options)
        }
        RewardSource::RuleFile(_) if !rule.options.is_empty() => {
            Err(Error::usage(format!("reward rule `{}`: a rule file does not take `options`", rule.name))
                .hint("set them in the rule file"))
        }
        RewardSource::RuleFile(path) => {
            let file = RuleFile::read(path)?;
            file.build().map_err(|error| error.context(format!("rule file `{}`", path.display())))
        }
    }
}

/// The SHA-256 of every input file of a run other than settings and weights, by its role: prompts, files of the benchmark, rule
/// files, reward programs and their arguments that are files, and plugins. The roles are stored in checkpoints: never change them.
pub(crate) fn inputs(plugins: &mut Plugins, config: &RunConfig) -> Result<BTreeMap<String, String>> {
    let plugin = plugins.load(&config.model.plugin)?;
    let mut files = vec![(format!("plugin `{}`", plugin.name), plugin.path.clone())];
    files.extend(
        config.train.prompts_file.iter().map(|tasks| (format!("`train.tasks` `{tasks}`"), tasks.into())),
    );
    for (key, path) in [("metadata", &config.benchmark.metadata), ("results", &config.benchmark.results)] {
        files.extend(path.iter().map(|path| (format!("`benchmark.{key}` `{path}`"), path.into())));
    }
    for rule in config.reward.rules.iter().chain(config.reward.answer_rules.iter().flatten()) {
        match RewardSource::of(&rule.name) {
            RewardSource::Program(line) => {
                let (program, words) = command(line)?;
                let arguments = rule.options.get("args").and_then(toml::Value::as_array);
                let arguments =
                    arguments.into_iter().flatten().filter_map(toml::Value::as_str).map(String::from);
                let words =
                    std::iter::once(program).chain(words.into_iter().chain(arguments).map(PathBuf::from));
                let words = words.filter(|word| word.is_file());
                let role = |word: &Path| format!("reward rule `{}`, `{}`", rule.name, word.display());
                files.extend(words.map(|word| (role(&word), word)));
            }
            RewardSource::RuleFile(path) => files.push((format!("reward rule `{}`", rule.name), path.into())),
            RewardSource::Plugin(name) => {
                let file = plugins.reward_file(name)?.to_owned();
                files.push((format!("plugin of reward rule `{name}`"), file));
            }
        }
    }
    files.into_iter().map(|(name, path)| Ok((name, checksum::file(&path)?))).collect()
}

/// Parses a device name. Errors if the device does not exist.
pub(crate) fn device(name: &str) -> Result<Device> {
    let wrong = || {
        Error::usage(format!("unknown device `{name}`")).hint("expected `auto`, `cpu`, `cuda` or `cuda:N`")
    };
    let index = match name {
        "cpu" => return Ok(Device::Cpu),
        "auto" if !has_cuda_driver() => return Ok(Device::Cpu),
        "auto" => {
            if let Err(error) = load_cuda() {
                tracing::warn!(
                    "running on the CPU, because the installed GPU driver cannot be used: {error}"
                );
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
    Err(Error::usage(format!("device `{name}` does not exist")).hint(match count {
        0 => "no GPU was found; use `--device cpu`".to_string(),
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
