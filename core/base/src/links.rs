//! Links to directories, also on file systems without links.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{Context as _, Result};
use crate::input::is_unsupported;

/// Makes `place` a symbolic link to the directory `target`, which is absolute or relative to the directory of `place`. On a file
/// system without links, `place` becomes a small file that holds `target`. An existing link or file is replaced atomically.
pub fn link(target: &Path, place: &Path) -> Result<()> {
    let context = || format!("cannot link `{}` to `{}`", place.display(), target.display());
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let next = place.with_file_name(format!(".partial-{name}"));
    let _ = fs::remove_file(&next);
    if let Err(error) = std::os::unix::fs::symlink(target, &next) {
        tracing::debug!("writing a file instead of a link to `{}`: {error}", target.display());
        write_synced(&next, &format!("{}\n", target.display())).context(context)?;
    }
    fs::rename(&next, place).context(context)
}

/// Writes a file to the disk, where the file system can: an empty link file after a power failure would name its own directory.
fn write_synced(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all().or_else(|error| if is_unsupported(&error) { Ok(()) } else { Err(error) })
}

/// Returns the target of a small file that [`link`] wrote; otherwise `path` itself.
pub fn follow(path: &Path) -> PathBuf {
    const LONGEST: u64 = 4096; // a path on Linux
    let is_small = fs::metadata(path).is_ok_and(|data| data.is_file() && data.len() <= LONGEST);
    let target = is_small.then(|| fs::read_to_string(path).ok()).flatten();
    let target = target.map(|text| path.with_file_name("").join(text.trim_end_matches('\n')));
    target.filter(|target| target.is_dir()).unwrap_or_else(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_link_files_are_replaced_and_followed() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("latest");
        for target in ["one", "two"] {
            fs::create_dir(dir.path().join(target)).unwrap();
            link(Path::new(target), &place).unwrap();
            assert_eq!(place.canonicalize().unwrap(), dir.path().canonicalize().unwrap().join(target));
            assert_eq!(follow(&place), place);
        }
        // Link files of a file system without links, relative and absolute.
        fs::remove_file(&place).unwrap();
        fs::write(&place, "one\n").unwrap();
        assert_eq!(follow(&place), dir.path().join("one"));
        link(Path::new("two"), &place).unwrap();
        assert!(place.is_symlink());
        let absolute = dir.path().join("one");
        fs::remove_file(&place).unwrap();
        fs::write(&place, absolute.to_str().unwrap()).unwrap();
        assert_eq!(follow(&place), absolute);
        // Other files and directories are not followed.
        fs::write(&place, "three\n").unwrap();
        assert_eq!((follow(&place), follow(&absolute)), (place, absolute));
        let mut names: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["latest", "one", "two"]);
    }
}
