//! Plugins from the host's side: found by name, checked before they are opened, asked for models, reward
//! rules and detectors.
//!
//! A plugin stays in the process until it ends: there is no unloading, and a rebuilt one needs a new process.

mod libtorch;
mod load;
mod search;
pub(crate) mod stamp;

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::abi::component::PluginModule_Ref;
use crate::abi::foreign::{ForeignDetector, ForeignModel, ForeignReward};
use crate::abi::wire;
use crate::detector::Detector;
use crate::error::{Error, Result, nearest, unknown_name};
use crate::model::{ModelSource, UnifiedModel};
use crate::reward::RewardFunction;

use stamp::Stamp;

pub use libtorch::{cuda_memory, has_cuda_driver, load_cuda, mapped_version};

/// What this program was built with, by name: a plugin has to fit it.
pub fn built_with() -> [(&'static str, String); 5] {
    use crate::abi::stamp;
    [
        ("unirl", stamp::UNIRL.into()),
        ("abi", stamp::ABI.to_string()),
        ("libtorch", stamp::TORCH.into()),
        ("rustc", stamp::RUSTC.into()),
        ("target", stamp::TARGET.into()),
    ]
}

/// What an entry of a plugin makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A [`UnifiedModel`].
    Model,
    /// A [`RewardFunction`].
    Reward,
    /// A [`Detector`].
    Detector,
}

impl fmt::Display for EntryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EntryKind::Model => "model",
            EntryKind::Reward => "reward",
            EntryKind::Detector => "detector",
        })
    }
}

/// Something that a plugin can make.
#[derive(Debug, Clone)]
pub struct Entry {
    /// What it is.
    pub kind: EntryKind,
    /// Its name, unique among the loaded entries of its kind.
    pub name: String,
    /// The JSON Schema of its configuration.
    pub schema: Value,
}

/// A loaded plugin.
pub struct Plugin {
    /// Its name: that of its crate without `unirl-plugin-`.
    pub name: String,
    /// The version of its crate.
    pub version: String,
    /// Its file.
    pub path: PathBuf,
    /// What it can make, by kind and name.
    pub entries: Vec<Entry>,
    module: PluginModule_Ref,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plugin({} {} at {})", self.name, self.version, self.path.display())
    }
}

impl Plugin {
    /// The entry of the wanted name; without one the only entry, or the one that is named like the plugin.
    fn pick(&self, kind: EntryKind, wanted: Option<&str>) -> Result<&Entry> {
        let entries: Vec<&Entry> = self.entries.iter().filter(|entry| entry.kind == kind).collect();
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        let find = |name: &str| entries.iter().copied().find(|entry| entry.name == name);
        match (wanted, &entries[..]) {
            (_, []) => Err(Error::usage(format!("plugin `{}` offers no {kind}", self.name))),
            (Some(wanted), _) => find(wanted)
                .ok_or_else(|| unknown_name(&format!("{kind} of plugin `{}`:", self.name), wanted, &names)),
            (None, [only]) => Ok(only),
            (None, _) => find(&self.name).ok_or_else(|| {
                let join = if kind == EntryKind::Model { format!("{}/", self.name) } else { "PATH#".into() };
                let choices: Vec<String> = names.iter().map(|name| format!("`{join}{name}`")).collect();
                Error::usage(format!("plugin `{}` offers several entries of kind `{kind}`", self.name))
                    .hint(format!("name one: {}", choices.join(", ")))
            }),
        }
    }

    fn label(&self, entry: &Entry) -> String {
        if entry.name == self.name { self.name.clone() } else { format!("{}/{}", self.name, entry.name) }
    }

    fn make(
        &self,
        entry: &Entry,
        config: &Value,
        source: Option<&ModelSource>,
    ) -> Result<crate::abi::component::ComponentBox> {
        let json = wire::make(config, source)?;
        let made = (self.module.make())(
            entry.kind.to_string().as_str().into(),
            entry.name.as_str().into(),
            json.as_str().into(),
        );
        made.into_result().map_err(|error| {
            let message = format!("plugin `{}` could not make {} `{}`", self.name, entry.kind, entry.name);
            Error::from(error).context(message)
        })
    }
}

/// What became of a file on the search path.
#[derive(Debug, Clone)]
pub enum PluginState {
    /// It is loaded; [`Plugins::loaded`] has it.
    Loaded,
    /// It was refused, and why.
    Refused(Error),
}

/// A file on the search path.
#[derive(Debug, Clone)]
pub struct PluginReport {
    /// The name by which it is found.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// What its stamp says, where it has one.
    pub built: Option<Built>,
    /// Whether it could be loaded.
    pub state: PluginState,
}

/// What a plugin was built with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The version of its crate.
    pub version: String,
    /// The number of its interface.
    pub abi: String,
    /// The version of its libtorch.
    pub libtorch: String,
}

/// The plugins of this process.
#[derive(Debug)]
pub struct Plugins {
    dirs: Vec<PathBuf>,
    loaded: Vec<Plugin>,
    reports: Vec<PluginReport>,
}

impl Plugins {
    /// Nothing is loaded yet. Names are looked up in `extra_dirs`, `UNIRL_PLUGIN_PATH`, the folder `plugins`
    /// beside the executable, the executable's own, and `unirl/plugins` in the user's data folder, in this
    /// order.
    pub fn new(extra_dirs: &[PathBuf]) -> Self {
        Self { dirs: search::dirs(extra_dirs), loaded: Vec::new(), reports: Vec::new() }
    }

    /// Where names are looked up.
    pub fn search_path(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The plugins that were loaded so far.
    pub fn loaded(&self) -> &[Plugin] {
        &self.loaded
    }

    /// Loads a plugin by its name, or by its path if the value has a `/` or ends in `.so`; which of its entries is meant
    /// (`PATH#NAME`) may follow. Loading twice is loading once.
    pub fn load(&mut self, name_or_path: &str) -> Result<&Plugin> {
        let index = self.open(split(name_or_path).0)?;
        Ok(&self.loaded[index])
    }

    fn open(&mut self, value: &str) -> Result<usize> {
        if let Some(index) = self.loaded.iter().position(|plugin| plugin.name == value) {
            return Ok(index);
        }
        let path = search::resolve(value, &self.dirs)?;
        self.open_file(&path)
    }

    fn open_file(&mut self, path: &Path) -> Result<usize> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        if let Some(index) = self.loaded.iter().position(|plugin| plugin.path == path) {
            return Ok(index);
        }
        let stamp = stamp::read(&path)?;
        self.open_stamped(&path, &stamp)
    }

    fn open_stamped(&mut self, path: &Path, stamp: &Stamp) -> Result<usize> {
        if let Some(other) = self.loaded.iter().find(|other| other.name == stamp.plugin) {
            return Err(twice(&format!("plugin `{}`", stamp.plugin), &other.path, path));
        }
        let plugin = load::load(path, stamp)?;
        for entry in &plugin.entries {
            let same = |other: &Entry| other.kind == entry.kind && other.name == entry.name;
            if let Some(other) = self.loaded.iter().find(|other| other.entries.iter().any(same)) {
                return Err(twice(&format!("{} `{}`", entry.kind, entry.name), &other.path, path));
            }
        }
        self.loaded.push(plugin);
        Ok(self.loaded.len() - 1)
    }

    /// Tries every plugin on the search path; of two of a name the first counts.
    pub fn discover(&mut self) -> &[PluginReport] {
        self.discover_if(&mut |_| Ok(()))
    }

    /// The same, but opens only what `safe` says nothing against: a library can end the process that opens it. It is asked
    /// about files whose stamp fits.
    pub fn discover_if(&mut self, safe: &mut dyn FnMut(&Path) -> Result<()>) -> &[PluginReport] {
        for (name, path) in search::candidates(&self.dirs) {
            if self.reports.iter().any(|report| report.name == name) {
                continue;
            }
            let path = path.canonicalize().unwrap_or(path);
            let loaded =
                self.loaded.iter().find(|plugin| plugin.name == name).map(|plugin| plugin.path.clone());
            let path = loaded.clone().unwrap_or(path);
            let stamp = stamp::read(&path);
            let built = stamp.as_ref().ok().map(Stamp::built);
            let state = if loaded.is_some() {
                PluginState::Loaded
            } else {
                let opened = stamp.and_then(|stamp| {
                    stamp.check(&path)?;
                    safe(&path)?;
                    self.open_stamped(&path, &stamp)
                });
                match opened {
                    Ok(_) => PluginState::Loaded,
                    Err(error) => PluginState::Refused(error),
                }
            };
            self.reports.push(PluginReport { name, path, built, state });
        }
        &self.reports
    }

    /// Makes a model. `plugin` is `NAME`, `NAME/ENTRY`, a path or `PATH#ENTRY`; without an entry it is the
    /// plugin's only model or the one of its own name.
    pub fn model(
        &mut self,
        plugin: &str,
        config: &Value,
        source: &ModelSource,
    ) -> Result<Box<dyn UnifiedModel>> {
        let (value, entry) = split(plugin);
        let index = self.open(value)?;
        let plugin = &self.loaded[index];
        let entry = plugin.pick(EntryKind::Model, entry)?;
        let component = plugin.make(entry, config, Some(source))?;
        Ok(Box::new(ForeignModel::new(plugin.label(entry), component)?))
    }

    /// Makes a reward rule: `name` is looked up in all plugins on the search path; a path names a plugin file
    /// with one rule, `PATH#NAME` one of several.
    pub fn reward(&mut self, name: &str, config: &Value) -> Result<Box<dyn RewardFunction>> {
        let (plugin, entry) = self.find(EntryKind::Reward, name)?;
        Ok(Box::new(ForeignReward::new(plugin.label(entry), plugin.make(entry, config, None)?)?))
    }

    /// Makes a detector; `name` is as in [`Plugins::reward`].
    pub fn detector(&mut self, name: &str, config: &Value) -> Result<Box<dyn Detector>> {
        let (plugin, entry) = self.find(EntryKind::Detector, name)?;
        Ok(Box::new(ForeignDetector::new(plugin.label(entry), plugin.make(entry, config, None)?)))
    }

    /// The JSON Schema of a model's options; `plugin` is as in [`Plugins::model`].
    pub fn model_schema(&mut self, plugin: &str) -> Result<&Value> {
        let (value, entry) = split(plugin);
        let index = self.open(value)?;
        Ok(&self.loaded[index].pick(EntryKind::Model, entry)?.schema)
    }

    /// The JSON Schema of a reward's options; `name` is as in [`Plugins::reward`].
    pub fn reward_schema(&mut self, name: &str) -> Result<&Value> {
        Ok(&self.find(EntryKind::Reward, name)?.1.schema)
    }

    /// The file of the plugin that offers a reward rule; `name` is as in [`Plugins::reward`].
    pub fn reward_file(&mut self, name: &str) -> Result<&Path> {
        Ok(&self.find(EntryKind::Reward, name)?.0.path)
    }

    fn find(&mut self, kind: EntryKind, name: &str) -> Result<(&Plugin, &Entry)> {
        let (index, wanted) = match split(name) {
            (path, entry) if search::is_path(path) => (self.open(path)?, entry),
            _ => (self.find_by_name(kind, name)?, Some(name)),
        };
        let plugin = &self.loaded[index];
        Ok((plugin, plugin.pick(kind, wanted)?))
    }

    fn find_by_name(&mut self, kind: EntryKind, name: &str) -> Result<usize> {
        let offers = |plugin: &Plugin| plugin.entries.iter().any(|e| e.kind == kind && e.name == name);
        if let Some(index) = self.loaded.iter().position(offers) {
            return Ok(index);
        }
        // The likeliest first, and no more than it takes: a plugin that nobody needs is not opened.
        let mut candidates = search::candidates(&self.dirs);
        candidates.dedup_by(|later, first| later.0 == first.0);
        let namesake = name.replace('-', "_");
        candidates.sort_by_key(|(plugin, _)| (*plugin != namesake, plugin != "rewards"));
        for (_, path) in candidates {
            if let Ok(index) = self.open_file(&path)
                && offers(&self.loaded[index])
            {
                return Ok(index);
            }
        }
        self.discover();
        let mut offered: Vec<(&str, &str)> = self
            .loaded
            .iter()
            .flat_map(|plugin| plugin.entries.iter().map(move |entry| (plugin, entry)))
            .filter(|(_, entry)| entry.kind == kind)
            .map(|(plugin, entry)| (entry.name.as_str(), plugin.name.as_str()))
            .collect();
        offered.sort_by_key(|(entry, plugin)| (*plugin, *entry));
        let what = if kind == EntryKind::Reward { "reward rule".into() } else { kind.to_string() };
        let mut error = Error::usage(format!("unknown {what} `{name}`"));
        if let Some(near) = nearest(name, offered.iter().map(|(entry, _)| *entry)) {
            error = error.hint(format!("did you mean `{near}`?"));
        }
        let known: Vec<String> =
            offered.iter().map(|(entry, plugin)| format!("`{entry}` (plugin `{plugin}`)")).collect();
        error = error.hint(match &known[..] {
            [] => format!("no plugin with {what}s was found in {}", search::list(&self.dirs)),
            known => format!("known: {}", known.join(", ")),
        });
        for report in &self.reports {
            if let PluginState::Refused(reason) = &report.state {
                error = error.hint(format!(
                    "plugin `{}` was refused: {}",
                    report.name,
                    first_line(reason.message())
                ));
            }
        }
        Err(error)
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// `PATH#ENTRY` or `NAME/ENTRY`; a value that is the path of a file is that file.
fn split(value: &str) -> (&str, Option<&str>) {
    if let Some((path, entry)) = value.rsplit_once('#') {
        return (path, Some(entry));
    }
    match value.split_once('/') {
        Some((name, entry))
            if !name.is_empty()
                && !name.starts_with('.')
                && !entry.contains('/')
                && !search::is_library(value)
                && !Path::new(value).exists() =>
        {
            (name, Some(entry))
        }
        _ => (value, None),
    }
}

fn twice(what: &str, first: &Path, second: &Path) -> Error {
    let message = format!(
        "{what} comes from two plugins\n  first:  {}\n  second: {}",
        first.display(),
        second.display()
    );
    Error::failure(message).hint("remove one of the files, or take its folder off the search path")
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn a_value_names_a_plugin_and_perhaps_an_entry() {
        assert_eq!(split("showo"), ("showo", None));
        assert_eq!(split("showo/small"), ("showo", Some("small")));
        assert_eq!(split("./libx.so"), ("./libx.so", None));
        assert_eq!(split("a/libx.so"), ("a/libx.so", None));
        assert_eq!(split("a/libx.so#rule"), ("a/libx.so", Some("rule")));
    }
}
