//! Reads files that the user provides, as bytes or as text without a byte order mark.
//!
//! [`check_content`] detects files that a failed download left in place of the real ones.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use crate::error::{Error, Result};

/// The number of bytes that suffice to recognize the content of a file.
const HEAD: u64 = 1024;
const BYTE_ORDER_MARK: &str = "\u{feff}";
const LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
const HTML: [&[u8]; 2] = [b"<!doctype html", b"<html"];

/// Errors if the content of a file is a Git LFS pointer or a web page; errors call the file `label`.
pub fn check_content(label: &str, bytes: &[u8]) -> Result<()> {
    if bytes.starts_with(LFS_POINTER) {
        return Err(Error::failure(format!("`{label}` is a Git LFS pointer, not the file itself"))
            .hint("fetch the file: `git lfs pull` in its repository, or `hf download`"));
    }
    let bytes = bytes.strip_prefix(BYTE_ORDER_MARK.as_bytes()).unwrap_or(bytes).trim_ascii_start();
    let starts_with =
        |tag: &&[u8]| bytes.get(..tag.len()).is_some_and(|start| start.eq_ignore_ascii_case(tag));
    if HTML.iter().any(starts_with) {
        return Err(Error::failure(format!("`{label}` is a web page (HTML), not the file itself")).hint(
            "download the file, not the page that shows it: on GitHub `raw`, on Hugging Face `resolve` instead of \
             `blob` in the address",
        ));
    }
    Ok(())
}

/// Applies [`check_content`] to a file. A file that cannot be read passes: reading it fails later.
pub fn check_file(path: &Path) -> Result<()> {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEAD).read_to_end(&mut start));
    if read.is_ok() { check_content(&path.display().to_string(), &start) } else { Ok(()) }
}

/// Reads the bytes of a file.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path)
        .map_err(|error| Error::usage(format!("cannot read `{}`", path.display())).cause(error))?;
    check_content(&path.display().to_string(), &bytes)?;
    Ok(bytes)
}

/// Reads a text file.
pub fn read_text(path: &Path) -> Result<String> {
    text(&path.display().to_string(), read(path)?)
}

/// Decodes the bytes of a text file, without a byte order mark; errors call the file `label`.
pub fn text(label: &str, bytes: Vec<u8>) -> Result<String> {
    check_content(label, &bytes)?;
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(
            Error::usage(format!("`{label}`: expected UTF-8, got UTF-16")).hint("save the file as UTF-8")
        );
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = valid.split(|byte| *byte == b'\n').count();
        Error::usage(format!("`{label}`, line {line}: the text is not UTF-8")).hint("save the file as UTF-8")
    })?;
    Ok(match text.strip_prefix(BYTE_ORDER_MARK) {
        Some(text) => text.into(),
        None => text,
    })
}

/// Whether a file operation failed because the file system does not support it.
pub fn is_unsupported(error: &std::io::Error) -> bool {
    let known = [libc::ENOTSUP, libc::EOPNOTSUPP, libc::ENOSYS, libc::EINVAL, libc::ENODEV, libc::ENOTTY];
    error.raw_os_error().is_some_and(|code| known.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lfs_pointers_and_web_pages_are_refused() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n";
        assert!(check_content("x", pointer).unwrap_err().message().contains("Git LFS pointer"));
        for page in ["<!DOCTYPE html><p>", "\n  <html lang=\"en\">", "\u{feff}<HTML>", "<!doctype HTML>"] {
            assert!(
                check_content("x", page.as_bytes()).unwrap_err().message().contains("web page"),
                "{page}"
            );
        }
        for other in ["", "<htm", "{}", "version https://", "<a photo of a dog>"] {
            assert!(check_content("x", other.as_bytes()).is_ok(), "{other}");
        }
    }

    #[test]
    fn text_is_utf8_without_byte_order_mark() {
        assert_eq!(text("x", b"\xef\xbb\xbfa = 1".to_vec()).unwrap(), "a = 1");
        assert_eq!(text("x", "größe".into()).unwrap(), "größe");
        let latin = text("x", b"one\ntwo\nb\xe4r".to_vec()).unwrap_err();
        assert_eq!(latin.message(), "`x`, line 3: the text is not UTF-8");
        let wide = text("x", b"\xff\xfea\0".to_vec()).unwrap_err();
        assert_eq!(wide.message(), "`x`: expected UTF-8, got UTF-16");
    }
}
