//! Finds the file of a plugin.

use std::env;
use std::path::{Path, PathBuf};

use unirl::error::{Error, Result, nearest};

use crate::home;

const PREFIX: &str = "libunirl_plugin_";
const SUFFIX: &str = ".so";

/// Returns the search path without duplicates.
pub(super) fn dirs(extra: &[PathBuf]) -> Vec<PathBuf> {
    let mut all = extra.to_vec();
    if let Some(path) = env::var_os("UNIRL_PLUGIN_PATH") {
        let dirs = env::split_paths(&path).filter(|dir| !dir.as_os_str().is_empty());
        all.extend(dirs.map(|dir| dir.to_str().map(|dir| home::expand(dir).as_ref().into()).unwrap_or(dir)));
    }
    if let Some(dir) = env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned)) {
        all.extend([dir.join("plugins"), dir]);
    }
    let data = env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let data = data.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".local/share")));
    all.extend(data.map(|dir| dir.join("unirl/plugins")));
    let mut seen = Vec::new();
    all.retain(|dir| {
        !seen.contains(dir) && {
            seen.push(dir.clone());
            true
        }
    });
    all
}

/// Whether a value is a path rather than a name.
pub(super) fn is_path(value: &str) -> bool {
    value.contains('/') || is_library(value)
}

/// Whether a value has the extension of a library.
pub(super) fn is_library(value: &str) -> bool {
    value.ends_with(SUFFIX)
}

/// Resolves a name or path to a file.
pub(super) fn resolve(value: &str, dirs: &[PathBuf]) -> Result<PathBuf> {
    if is_path(value) {
        let path = PathBuf::from(value);
        return if path.is_file() {
            Ok(path)
        } else {
            Err(Error::usage(format!("plugin file `{value}` not found")))
        };
    }
    let file = format!("{PREFIX}{value}{SUFFIX}");
    if let Some(path) = dirs.iter().map(|dir| dir.join(&file)).find(|path| path.is_file()) {
        return Ok(path);
    }
    let mut found: Vec<String> = candidates(dirs).into_iter().map(|(name, _)| name).collect();
    found.dedup();
    let mut error = Error::usage(format!("plugin `{value}` not found"));
    if let Some(near) = nearest(value, found.iter().map(String::as_str)) {
        error = error.hint(format!("did you mean `{near}`?"));
    }
    if !found.is_empty() {
        error = error.hint(format!("available: {}", found.join(", ")));
    }
    Err(error.hint(format!("searched for `{file}` in {}", list(dirs))))
}

/// Returns every plugin file with its name, sorted by name and then by the search path.
pub(super) fn candidates(dirs: &[PathBuf]) -> Vec<(String, PathBuf)> {
    let mut all = Vec::new();
    for dir in dirs {
        for path in dir.read_dir().into_iter().flatten().flatten().map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let name = name.strip_prefix(PREFIX).and_then(|name| name.strip_suffix(SUFFIX));
            if let Some(name) = name.filter(|_| path.is_file()) {
                all.push((name.to_owned(), path.clone()));
            }
        }
    }
    all.sort_by(|a, b| a.0.cmp(&b.0)); // stable: keeps the order of the search path
    all
}

/// Formats directories as a list.
pub(super) fn list(dirs: &[PathBuf]) -> String {
    dirs.iter().map(|dir| format!("`{}`", dir.display())).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn resolve_takes_the_first_match_and_suggests_names() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for dir in [&a, &b] {
            fs::write(dir.path().join("libunirl_plugin_showo.so"), "").unwrap();
        }
        let dirs = [a.path().to_owned(), b.path().to_owned()];
        assert_eq!(resolve("showo", &dirs).unwrap(), a.path().join("libunirl_plugin_showo.so"));
        let error = resolve("shwo", &dirs).unwrap_err();
        assert_eq!(error.hints()[..2], ["did you mean `showo`?", "available: showo"]);
        assert!(resolve("./none.so", &dirs).unwrap_err().message().contains("./none.so"));
    }
}
