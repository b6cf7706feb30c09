//! The plugins of a process: found by name, loaded once, asked for models, reward rules and detectors.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::spec::split;
use super::stamp::{self, Stamp};
use super::{Entry, EntryKind, Plugin, load, search};
use crate::abi::foreign::{ForeignDetector, ForeignModel, ForeignReward};
use crate::detector::Detector;
use crate::error::{Error, Result, nearest};
use crate::model::{ModelSource, UnifiedModel};
use crate::reward::RewardFunction;

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
        Err(self.unknown_entry(kind, name))
    }

    /// No plugin offers the entry `name`.
    fn unknown_entry(&self, kind: EntryKind, name: &str) -> Error {
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
        error
    }
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

fn twice(what: &str, first: &Path, second: &Path) -> Error {
    let message = format!(
        "{what} comes from two plugins\n  first:  {}\n  second: {}",
        first.display(),
        second.display()
    );
    Error::failure(message).hint("remove one of the files, or take its folder off the search path")
}
