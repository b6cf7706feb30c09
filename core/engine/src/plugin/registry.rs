//! The plugins of a process.

use std::path::{Path, PathBuf};

use serde_json::Value;
use unirl::detector::Detector;
use unirl::error::{Error, Result, nearest};
use unirl::model::{ModelSource, UnifiedModel};
use unirl::reward::RewardFunction;

use super::spec::split;
use super::stamp::{self, Stamp};
use super::{Entry, EntryKind, Plugin, load, search};
use crate::plugin::foreign::{ForeignDetector, ForeignModel, ForeignReward};

/// Whether a file on the search path was loaded.
#[derive(Debug, Clone)]
pub enum PluginState {
    /// It is in [`Plugins::loaded`].
    Loaded,
    /// It was refused, with the reason.
    Refused(Error),
}

/// A file on the search path.
#[derive(Debug, Clone)]
pub struct PluginReport {
    /// The name by which it is found.
    pub name: String,
    /// The file.
    pub path: PathBuf,
    /// Its build information, if it has a stamp.
    pub built: Option<Built>,
    /// Whether it was loaded.
    pub state: PluginState,
}

/// The build information of a plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Built {
    /// The version of its crate.
    pub version: String,
    /// Its ABI number.
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
    /// Creates an empty registry. The search path is, in this order, `extra_dirs`, `UNIRL_PLUGIN_PATH`, the directory `plugins`
    /// next to the executable, the directory of the executable, and `unirl/plugins` in the data directory of the user.
    pub fn new(extra_dirs: &[PathBuf]) -> Self {
        Self { dirs: search::dirs(extra_dirs), loaded: Vec::new(), reports: Vec::new() }
    }

    /// Returns the search path.
    pub fn search_path(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// Returns the loaded plugins.
    pub fn loaded(&self) -> &[Plugin] {
        &self.loaded
    }

    /// Loads a plugin by name, or by path if the value contains `/` or ends in `.so`. The name of an entry (`PATH#NAME`) is
    /// ignored. A loaded plugin is not loaded again.
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
            return Err(duplicate(&format!("plugin `{}`", stamp.plugin), &other.path, path));
        }
        let plugin = load::load(path, stamp)?;
        for entry in &plugin.entries {
            let same = |other: &Entry| other.kind == entry.kind && other.name == entry.name;
            if let Some(other) = self.loaded.iter().find(|other| other.entries.iter().any(same)) {
                return Err(duplicate(&format!("{} `{}`", entry.kind, entry.name), &other.path, path));
            }
        }
        self.loaded.push(plugin);
        Ok(self.loaded.len() - 1)
    }

    /// Tries to load every plugin on the search path; of two with the same name only the first.
    pub fn discover(&mut self) -> &[PluginReport] {
        self.discover_if(&mut |_| Ok(()))
    }

    /// Like [`Self::discover`], but opens a file only if `safe` succeeds, because opening a library can crash the process.
    /// `safe` is called for files with a matching stamp.
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

    /// Creates a model. `plugin` is `NAME`, `NAME/ENTRY`, a path or `PATH#ENTRY`. Without an entry it is the only model of the
    /// plugin or the one with the name of the plugin.
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

    /// Creates a reward function. `name` is looked up in all plugins on the search path; a path names a plugin file with one
    /// reward, `PATH#NAME` one of several.
    pub fn reward(&mut self, name: &str, config: &Value) -> Result<Box<dyn RewardFunction>> {
        let (plugin, entry) = self.find(EntryKind::Reward, name)?;
        Ok(Box::new(ForeignReward::new(plugin.label(entry), plugin.make(entry, config, None)?)?))
    }

    /// Creates a detector; `name` is as in [`Plugins::reward`].
    pub fn detector(&mut self, name: &str, config: &Value) -> Result<Box<dyn Detector>> {
        let (plugin, entry) = self.find(EntryKind::Detector, name)?;
        Ok(Box::new(ForeignDetector::new(plugin.label(entry), plugin.make(entry, config, None)?)))
    }

    /// Returns the JSON Schema of the options of a model; `plugin` is as in [`Plugins::model`].
    pub fn model_schema(&mut self, plugin: &str) -> Result<&Value> {
        let (value, entry) = split(plugin);
        let index = self.open(value)?;
        Ok(&self.loaded[index].pick(EntryKind::Model, entry)?.schema)
    }

    /// Returns the JSON Schema of the options of a reward; `name` is as in [`Plugins::reward`].
    pub fn reward_schema(&mut self, name: &str) -> Result<&Value> {
        Ok(&self.find(EntryKind::Reward, name)?.1.schema)
    }

    /// Returns the file of the plugin of a reward function; `name` is as in [`Plugins::reward`].
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
        let has_entry = |plugin: &Plugin| plugin.entries.iter().any(|e| e.kind == kind && e.name == name);
        if let Some(index) = self.loaded.iter().position(has_entry) {
            return Ok(index);
        }
        // Opens the most likely plugins first, and no more than necessary.
        let mut candidates = search::candidates(&self.dirs);
        candidates.dedup_by(|later, first| later.0 == first.0);
        let namesake = name.replace('-', "_");
        candidates.sort_by_key(|(plugin, _)| (*plugin != namesake, plugin != "rewards"));
        for (_, path) in candidates {
            if let Ok(index) = self.open_file(&path)
                && has_entry(&self.loaded[index])
            {
                return Ok(index);
            }
        }
        self.discover();
        Err(self.unknown_entry(kind, name))
    }

    /// Returns the error for an entry that no plugin has.
    fn unknown_entry(&self, kind: EntryKind, name: &str) -> Error {
        let mut known: Vec<(&str, &str)> = self
            .loaded
            .iter()
            .flat_map(|plugin| plugin.entries.iter().map(move |entry| (plugin, entry)))
            .filter(|(_, entry)| entry.kind == kind)
            .map(|(plugin, entry)| (entry.name.as_str(), plugin.name.as_str()))
            .collect();
        known.sort_by_key(|(entry, plugin)| (*plugin, *entry));
        let mut error = Error::usage(format!("unknown {kind} `{name}`"));
        if let Some(near) = nearest(name, known.iter().map(|(entry, _)| *entry)) {
            error = error.hint(format!("did you mean `{near}`?"));
        }
        let known: Vec<String> =
            known.iter().map(|(entry, plugin)| format!("`{entry}` (plugin `{plugin}`)")).collect();
        error = error.hint(match &known[..] {
            [] => format!("no plugin with a {kind} found in {}", search::list(&self.dirs)),
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
        error
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn duplicate(what: &str, first: &Path, second: &Path) -> Error {
    let message = format!(
        "two plugin files provide {what}\n  first:  {}\n  second: {}",
        first.display(),
        second.display()
    );
    Error::failure(message).hint("remove one of the files, or its directory from the search path")
}
