//! Reads the stamp of a plugin file without opening it as a library.

use std::fs;
use std::path::Path;

use unirl::abi::stamp as host;
use unirl::error::{Context, Error, Result};

use super::Built;

/// The stamp of a plugin file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    pub(super) plugin: String,
    pub(super) version: String,
    pub(super) torch: String,
    abi: String,
    unirl: String,
    rustc: String,
    target: String,
    panic: String,
    abi_stable: String,
}

/// Reads the stamp. Errors if the file is not a plugin.
pub(super) fn read(path: &Path) -> Result<Stamp> {
    let bytes = fs::read(path).context(|| format!("cannot read plugin file `{}`", path.display()))?;
    read_bytes(path, &bytes)
}

/// Reads the stamp in the contents of a file; errors name `path`.
pub fn read_bytes(path: &Path, bytes: &[u8]) -> Result<Stamp> {
    let no_plugin =
        |reason: &str| Error::failure(format!("`{}` is not a unirl plugin", path.display())).cause(reason);
    if !bytes.starts_with(b"\x7fELF") {
        return Err(no_plugin("it is not a shared library"));
    }
    if !is_complete(bytes) {
        return Err(no_plugin("the file is truncated").hint("copy or build it again"));
    }
    find(bytes)
        .ok_or_else(|| no_plugin("it has no stamp").hint("add `unirl::export_plugin!();` to its `lib.rs`"))
}

/// Whether the file contains the section headers, which come last. The linker crashes on a truncated file.
fn is_complete(bytes: &[u8]) -> bool {
    let number = |at: usize, size: usize| -> Option<usize> {
        let raw = bytes.get(at..at + size)?;
        Some(raw.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
    };
    let end = || {
        let (start, size, count) = (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?);
        start.checked_add(size * count)
    };
    end().is_some_and(|end| end <= bytes.len())
}

/// Finds the first valid stamp. The magic alone may also occur among the constants of a library.
fn find(bytes: &[u8]) -> Option<Stamp> {
    let magic = host::MAGIC.as_bytes();
    let mut from = 0;
    loop {
        let at = from + find_bytes(&bytes[from..], magic)?;
        let text = &bytes[at + magic.len()..bytes.len().min(at + host::SIZE)];
        let text = text.split(|byte| *byte == 0).next().unwrap_or_default();
        if let Some(stamp) = std::str::from_utf8(text).ok().and_then(parse) {
            return Some(stamp);
        }
        from = at + magic.len();
    }
}

fn find_bytes(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        // The scan for the first byte is vectorized.
        let at = from + bytes[from..].iter().position(|byte| *byte == wanted[0])?;
        if bytes[at..].starts_with(wanted) {
            return Some(at);
        }
        from = at + 1;
    }
}

fn parse(text: &str) -> Option<Stamp> {
    let get = |key: &str| {
        let value = text.lines().find_map(|line| line.split_once('=').filter(|(name, _)| *name == key));
        value.map(|(_, value)| value.to_owned())
    };
    Some(Stamp {
        abi: get("abi")?,
        unirl: get("unirl")?,
        plugin: get("plugin")?,
        version: get("plugin_version")?,
        torch: get("torch")?,
        rustc: get("rustc")?,
        target: get("target")?,
        panic: get("panic")?,
        abi_stable: get("abi_stable")?,
    })
}

impl Stamp {
    pub(super) fn built(&self) -> Built {
        Built { version: self.version.clone(), abi: self.abi.clone(), libtorch: self.torch.clone() }
    }

    /// Errors if the plugin does not match the host.
    pub fn check(&self, path: &Path) -> Result<()> {
        tracing::debug!(plugin = self.plugin, rustc = self.rustc, unirl = self.unirl, "stamp");
        let abi = host::ABI.to_string();
        let differs = |what: &str, host: &str, plugin: &str| self.differs(path, what, host, plugin);
        if self.target != host::TARGET {
            return Err(differs("a different platform", host::TARGET, &self.target));
        }
        if self.abi != abi {
            return Err(differs(
                "a different plugin ABI",
                &format!("abi {abi}"),
                &format!("abi {}", self.abi),
            ));
        }
        if release_line(&self.unirl) != release_line(host::UNIRL) {
            let (here, there) = (format!("unirl {}", host::UNIRL), format!("unirl {}", self.unirl));
            return Err(differs("a different release of unirl", &here, &there));
        }
        if self.torch != host::TORCH {
            let (here, there) = (format!("libtorch {}", host::TORCH), format!("libtorch {}", self.torch));
            return Err(differs("a different libtorch", &here, &there));
        }
        if self.abi_stable != host::ABI_STABLE {
            let (here, there) = (host::ABI_STABLE, self.abi_stable.as_str());
            return Err(differs(
                "a different abi_stable",
                &format!("abi_stable {here}"),
                &format!("abi_stable {there}"),
            ));
        }
        if self.panic != "unwind" {
            return Err(differs(
                "a different panic strategy",
                "panic = \"unwind\"",
                &format!("panic = \"{}\"", self.panic),
            )
            .hint("set `panic = \"unwind\"` in the build profile of the plugin"));
        }
        Ok(())
    }

    fn differs(&self, path: &Path, what: &str, host: &str, plugin: &str) -> Error {
        Error::failure(format!(
            "plugin `{}` was built for {what}\n  host:   {host}\n  plugin: {plugin} ({})",
            self.plugin,
            path.display()
        ))
        .hint("rebuild it with the unirl release and the libtorch of the host")
    }
}

/// Returns the part of a version that decides compatibility for `abi_stable`: the major number and, below 1.0, the minor one.
fn release_line(version: &str) -> Option<(u64, u64)> {
    let mut numbers = version.split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(0)), Some(Ok(minor))) => Some((0, minor)),
        (Some(Ok(major)), _) => Some((major, 0)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_stamp_is_read_back_and_checked() {
        let mut bytes = b"junk unirl-plugin-stamp-1\nmore junk ".to_vec();
        bytes.extend(host::stamp("unirl_plugin_demo", "1.2.3"));
        let stamp = find(&bytes).unwrap();
        assert_eq!((stamp.plugin.as_str(), stamp.version.as_str()), ("demo", "1.2.3"));
        stamp.check(Path::new("demo.so")).unwrap();
        let other = Stamp { torch: "2.9.1".into(), ..stamp };
        let error = other.check(Path::new("demo.so")).unwrap_err();
        let lines: Vec<&str> = error.message().lines().collect();
        assert_eq!(lines[0], "plugin `demo` was built for a different libtorch");
        assert_eq!(lines[2], "  plugin: libtorch 2.9.1 (demo.so)");
    }

    #[test]
    fn release_lines_follow_semver() {
        assert_eq!(release_line("0.1.9"), release_line("0.1.0"));
        assert_ne!(release_line("0.1.9"), release_line("0.2.0"));
        assert_eq!(release_line("1.1.0"), release_line("1.2.0"));
    }
}
