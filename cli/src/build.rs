//! From arguments to configurations, models and rule sets.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use tch::{Cuda, Device, Tensor};
use unirl::config::{self, ModelOptions, RunConfig};
use unirl::error::{Context, Error, Result};
use unirl::eval;
use unirl::image_io;
use unirl::memory;
use unirl::model::{Checkpoint, ImageSpace, ModelCard, ModelSource, UnifiedModel};
use unirl::plugin::{Plugins, has_cuda_driver, load_cuda};
use unirl::reward::{PROCESS, ProcessReward, RewardFunction, RewardSet, RuleFile, WeightedReward, command};
use unirl::{checksum, config::layers, run_dir, settings};

use crate::args::{GenerationArgs, ModelArgs};
use crate::progress;

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
    files.into_iter().map(|(name, path)| Ok((name, checksum::file(&path)?))).collect()
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

/// How a model of this card reads a picture: `[1,3,H,W]` in `0..=1`.
pub(crate) fn picture_reader(card: &ModelCard) -> impl Fn(&Path) -> Result<Tensor> + use<> {
    let (side, grey) = (card.input_resolution.unwrap_or(card.resolution), card.pad_value);
    move |path| match grey {
        Some(grey) => image_io::read_padded(path, side, grey),
        None => image_io::read(path, side),
    }
}

/// Writes to stdout; who reads on may stop reading.
pub(crate) fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context(|| "cannot write to stdout"),
    }
}

/// Refuses an output file that cannot be written, before any work is done for it.
pub(crate) fn check_output(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::usage(format!("cannot write `{0}`: `{0}` is a folder", path.display())));
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => {
            Err(Error::usage(format!("cannot write `{}`: no folder `{}`", path.display(), parent.display())))
        }
        _ => Ok(()),
    }
}
