//! Stdout, output paths and input images.

use std::io::Write as _;
use std::path::Path;

use unirl::error::{Context, Error, Result};

/// Writes to stdout. A closed pipe is not an error.
pub(crate) fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context(|| "cannot write to stdout"),
    }
}

/// Errors if `path` cannot be an output file, so that no work is done in vain.
pub(crate) fn check_output(path: &Path) -> Result<()> {
    if path.is_dir() {
        return Err(Error::usage(format!("cannot write `{0}`: it is a directory", path.display())));
    }
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.is_dir() => Err(Error::usage(format!(
            "cannot write `{}`: directory `{}` does not exist",
            path.display(),
            parent.display()
        ))),
        _ => Ok(()),
    }
}
