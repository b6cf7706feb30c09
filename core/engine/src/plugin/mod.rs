//! Finds, checks and loads plugins, and creates their models, rewards and detectors.
//!
//! A plugin is never unloaded; a rebuilt one needs a new process.

mod foreign;
mod load;
mod registered;
mod registry;
mod search;
mod spec;
#[doc(hidden)]
pub mod stamp;

use std::fmt;
use std::path::PathBuf;

use serde_json::Value;
use unirl::abi::component::PluginModule_Ref;
use unirl::abi::wire;
use unirl::error::{Error, Result, unknown_name};
use unirl::model::ModelSource;
#[cfg(doc)]
use unirl::{detector::Detector, model::UnifiedModel, reward::RewardFunction};

pub use registered::{registered_model, registered_reward};
pub use registry::{Built, PluginReport, PluginState, Plugins};

/// Returns the build information of the host, by name. Plugins must match it.
pub fn built_with() -> [(&'static str, String); 5] {
    use unirl::abi::stamp;
    [
        ("unirl", stamp::UNIRL.into()),
        ("abi", stamp::ABI.to_string()),
        ("libtorch", stamp::TORCH.into()),
        ("rustc", stamp::RUSTC.into()),
        ("target", stamp::TARGET.into()),
    ]
}

/// The kind of an entry.
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

/// A model, reward or detector that a plugin provides.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its kind.
    pub kind: EntryKind,
    /// Its name, unique among the loaded entries of its kind.
    pub name: String,
    /// The JSON Schema of its configuration.
    pub schema: Value,
}

/// A loaded plugin.
pub struct Plugin {
    /// Its name: the name of its crate without `unirl-plugin-`.
    pub name: String,
    /// The version of its crate.
    pub version: String,
    /// Its file.
    pub path: PathBuf,
    /// Its entries, sorted by kind and name.
    pub entries: Vec<Entry>,
    module: PluginModule_Ref,
}

impl fmt::Debug for Plugin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plugin({} {} at {})", self.name, self.version, self.path.display())
    }
}

impl Plugin {
    /// Returns the entry `wanted`; without a name the only entry, or the one with the name of the plugin.
    fn pick(&self, kind: EntryKind, wanted: Option<&str>) -> Result<&Entry> {
        let entries: Vec<&Entry> = self.entries.iter().filter(|entry| entry.kind == kind).collect();
        let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
        let find = |name: &str| entries.iter().copied().find(|entry| entry.name == name);
        match (wanted, &entries[..]) {
            (_, []) => Err(Error::usage(format!("plugin `{}` has no {kind}", self.name))),
            (Some(wanted), _) => find(wanted)
                .ok_or_else(|| unknown_name(&format!("{kind} of plugin `{}`:", self.name), wanted, &names)),
            (None, [only]) => Ok(only),
            (None, _) => find(&self.name).ok_or_else(|| {
                let join = if kind == EntryKind::Model { format!("{}/", self.name) } else { "PATH#".into() };
                let choices: Vec<String> = names.iter().map(|name| format!("`{join}{name}`")).collect();
                Error::usage(format!("plugin `{}` has several {kind}s", self.name))
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
    ) -> Result<unirl::abi::component::ComponentBox> {
        let json = wire::make(config, source)?;
        let made = (self.module.make())(
            entry.kind.to_string().as_str().into(),
            entry.name.as_str().into(),
            json.as_str().into(),
        );
        made.into_result().map_err(|error| {
            let message = format!("plugin `{}` failed to create {} `{}`", self.name, entry.kind, entry.name);
            Error::from(error).context(message)
        })
    }
}
