//! Opens the library of a plugin.

use std::path::Path;

use abi_stable::library::{LibHeader, LibraryError, lib_header_from_path};
use libloading::os::unix::{RTLD_LOCAL, RTLD_NOW};
use unirl::abi::component::PluginModule_Ref;
use unirl::abi::log;
use unirl::error::{Context, Error, Result};
use unirl_torch::libtorch;

use super::stamp::Stamp;
use super::{Entry, EntryKind, Plugin};

/// Loads a plugin. Checks the stamp and libtorch before anything of the plugin is executed.
pub(super) fn load(path: &Path, stamp: &Stamp) -> Result<Plugin> {
    stamp.check(path)?;
    libtorch::check_mapped()?;
    libtorch::open(path, RTLD_NOW | RTLD_LOCAL).map_err(|reason| {
        Error::failure(format!("cannot open plugin `{}` ({})", stamp.plugin, path.display()))
            .cause(reason)
            .hint("if a symbol or library is missing, rebuild the plugin with the libtorch of the host")
    })?;
    // Not `load_from_file`: it returns the module of the first plugin for every file.
    let module = lib_header_from_path(path).and_then(LibHeader::init_root_module::<PluginModule_Ref>);
    let module = module.map_err(|error| layout_error(path, stamp, &error))?;
    (module.init())(log::HOST);
    let entries =
        entries(module).context(|| format!("failed to list the entries of plugin `{}`", stamp.plugin))?;
    tracing::debug!(plugin = stamp.plugin, path = %path.display(), entries = entries.len(), "plugin loaded");
    Ok(Plugin {
        name: stamp.plugin.clone(),
        version: stamp.version.clone(),
        path: path.to_owned(),
        entries,
        module,
    })
}

fn layout_error(path: &Path, stamp: &Stamp, error: &LibraryError) -> Error {
    let text = error.to_string();
    tracing::debug!("abi_stable: {text}");
    let reason =
        text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("no reason given").to_owned();
    let message =
        format!("plugin `{}` has a different binary layout than the host ({})", stamp.plugin, path.display());
    Error::failure(message).cause(reason).hint("rebuild it with the unirl release of the host")
}

fn entries(module: PluginModule_Ref) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in (module.entries())().into_result()? {
        let kind = match entry.kind.as_str() {
            "model" => EntryKind::Model,
            "reward" => EntryKind::Reward,
            "detector" => EntryKind::Detector,
            later => {
                tracing::debug!("entry `{}` has the unknown kind `{later}`", entry.name);
                continue;
            }
        };
        let name = entry.name.into_string();
        let schema = serde_json::from_str(&entry.schema).context(|| format!("schema of {kind} `{name}`"))?;
        entries.push(Entry { kind, name, schema });
    }
    let key = |entry: &Entry| (entry.kind.to_string(), entry.name.clone());
    entries.sort_by_key(key); // the order of registration is not specified
    match entries.windows(2).find(|pair| key(&pair[0]) == key(&pair[1])) {
        Some(pair) => Err(Error::failure(format!("duplicate {} `{}`", pair[0].kind, pair[0].name))),
        None => Ok(entries),
    }
}
