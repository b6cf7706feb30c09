//! Opening a plugin that was found to fit.
#![allow(
    unsafe_code,
    reason = "opening a library runs its constructors, and calling into it trusts its symbols"
)]

use std::ffi::{c_int, c_uint};
use std::path::Path;

use abi_stable::library::{LibHeader, LibraryError, lib_header_from_path};
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::libtorch;
use super::stamp::Stamp;
use super::{Entry, EntryKind, Plugin};
use crate::abi::component::PluginModule_Ref;
use crate::abi::log;
use crate::error::{Context, Error, Result};

/// Opens a library and keeps it for good.
pub(super) fn open(path: &Path, flags: i32) -> Result<(), String> {
    // SAFETY: the constructors of a plugin link nodes of `inventory`, those of libtorch are libtorch's.
    let library = unsafe { Library::open(Some(path), flags) }.map_err(|error| {
        // The linker's own words, which name the symbol or the library, are the cause of libloading's error.
        std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
    })?;
    std::mem::forget(library); // objects, tensors and log records point into it until the process ends
    Ok(())
}

/// Calls `uint64_t name(void)` of the process, if there is such a symbol.
pub(super) fn number_of_symbol(name: &str) -> Option<u64> {
    // SAFETY: the only name this is called with is libtorch's, which has had this signature since it exists.
    unsafe { Library::this().get::<unsafe extern "C" fn() -> u64>(name).ok().map(|function| function()) }
}

/// Asks the driver of the GPUs, which is open, for the memory of one.
pub(super) fn cuda_memory(index: usize) -> Option<i64> {
    type Init = unsafe extern "C" fn(c_uint) -> c_int;
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Total = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
    // SAFETY: the signatures are those of CUDA's driver interface, unchanged since version 4; what is written to outlives
    // the calls.
    unsafe {
        let driver = Library::new("libcuda.so.1").ok()?;
        let init = driver.get::<Init>("cuInit").ok()?;
        let get = driver.get::<Get>("cuDeviceGet").ok()?;
        let total = driver.get::<Total>("cuDeviceTotalMem_v2").ok()?;
        let (mut device, mut bytes) = (0, 0);
        let worked = init(0) == 0
            && get(&raw mut device, c_int::try_from(index).ok()?) == 0
            && total(&raw mut bytes, device) == 0;
        worked.then_some(bytes as i64)
    }
}

/// The rungs after the stamp was read: nothing in the plugin is called before it is known to fit.
pub(super) fn load(path: &Path, stamp: &Stamp) -> Result<Plugin> {
    stamp.check(path)?;
    libtorch::check_mapped()?;
    open(path, RTLD_NOW | RTLD_LOCAL).map_err(|reason| {
        Error::failure(format!("plugin `{}` cannot be opened ({})", stamp.plugin, path.display()))
            .cause(reason)
            .hint("an undefined symbol or a missing library: rebuild it with the libtorch of the host")
    })?;
    // `load_from_file` would be shorter and hand out the first plugin's module for every other file.
    let module = lib_header_from_path(path).and_then(LibHeader::init_root_module::<PluginModule_Ref>);
    let module = module.map_err(|error| layout_error(path, stamp, &error))?;
    (module.init())(log::HOST);
    let entries =
        entries(module).context(|| format!("plugin `{}` does not tell its entries", stamp.plugin))?;
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
    Error::failure(format!("plugin `{}` has another layout than the host ({})", stamp.plugin, path.display()))
        .cause(reason)
        .hint("rebuild it with the unirl of the host")
}

fn entries(module: PluginModule_Ref) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for entry in (module.entries())().into_result()? {
        let kind = match entry.kind.as_str() {
            "model" => EntryKind::Model,
            "reward" => EntryKind::Reward,
            "detector" => EntryKind::Detector,
            later => {
                tracing::debug!("entry `{}` is of the unknown kind `{later}`", entry.name);
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
        Some(pair) => Err(Error::failure(format!("{} `{}` is registered twice", pair[0].kind, pair[0].name))),
        None => Ok(entries),
    }
}
