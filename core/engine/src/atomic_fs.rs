//! Atomic writes: a file or directory is written under a temporary name, synced and renamed, so that it is complete or absent,
//! even after a power failure.
//!
//! Some file systems (exFAT, CIFS, Lustre, many FUSE ones) lack symbolic links or cannot sync a directory. Links then become
//! small files, see [`unirl_base::links`], and a missing sync logs a warning.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Once;

use unirl::error::{Context, Error, Result};
use unirl_base::input;

/// The prefix of the names of incomplete files and directories.
const PARTIAL: &str = ".partial-";

/// Writes a text file.
pub fn write(path: &Path, text: &str) -> Result<()> {
    write_with(path, |file| file.write_all(text.as_bytes()).context(|| "no text was written"))
}

/// Writes a file through a closure.
pub(crate) fn write_with(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let place = || format!("cannot write `{}`", path.display());
    let folder = parent(path);
    let mut partial = tempfile::Builder::new()
        .prefix(PARTIAL)
        .permissions(fs::Permissions::from_mode(0o666)) // minus the umask
        .tempfile_in(folder)
        .context(place)?;
    write(partial.as_file_mut()).context(place)?;
    synced(path, partial.as_file()).context(place)?;
    partial.persist(path).map_err(|error| error.error).context(place)?;
    sync(folder).context(place)
}

/// Creates a directory that `write` fills. Errors if `path` exists.
pub fn create_dir(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let place = || format!("cannot write `{}`", path.display());
    if path.exists() {
        return Err(Error::usage(format!("`{}` already exists", path.display())));
    }
    let parent = parent(path);
    fs::create_dir_all(parent).context(place)?;
    let partial = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(parent).context(place)?;
    write(partial.path()).context(place)?;
    // A file system without permissions lets everybody read the directory anyway.
    match fs::set_permissions(partial.path(), fs::Permissions::from_mode(0o755)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied || input::is_unsupported(&error) => {}
        set => set.context(place)?,
    }
    for entry in files(partial.path()).context(place)? {
        sync(&entry).context(place)?;
        sync(entry.parent().unwrap_or(partial.path())).context(place)?;
    }
    sync(partial.path()).context(place)?;
    fs::rename(partial.path(), path).context(place)?;
    let _ = partial.keep();
    sync(parent).context(place)
}

/// Removes a directory. If interrupted, the rest of it has a temporary name.
pub(crate) fn remove_dir(path: &Path) -> Result<()> {
    let place = || format!("cannot remove `{}`", path.display());
    let aside = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(parent(path)).context(place)?;
    fs::rename(path, aside.path().join("removed")).context(place)?;
    aside.close().context(place)
}

/// Removes the temporary files and directories that an interrupted process left in `folder`.
pub(crate) fn clean_temp_files(folder: &Path) -> Result<()> {
    let place = || format!("cannot remove temporary files from `{}`", folder.display());
    for entry in fs::read_dir(folder).context(place)? {
        let entry = entry.context(place)?;
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            let path = entry.path();
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.context(place)?;
        }
    }
    Ok(())
}

/// Returns the files in a directory, recursively and in order.
pub(crate) fn files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Errors if the disk of `folder` has fewer than `bytes` available.
pub(crate) fn check_space(folder: &Path, bytes: u64) -> Result<()> {
    let Some(free) = free_space(folder) else { return Ok(()) };
    if bytes <= free {
        return Ok(());
    }
    Err(Error::failure(format!(
        "not enough disk space in `{}`: need {} MB, {} MB available",
        folder.display(),
        bytes.div_ceil(1_000_000),
        free / 1_000_000
    )))
}

/// Returns the available bytes of the disk of `folder`, if known.
pub fn free_space(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    let disk = rustix::fs::statvfs(there).ok()?;
    Some(disk.f_bavail * disk.f_frsize)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync(path: &Path) -> io::Result<()> {
    synced(path, &File::open(path)?)
}

fn synced(path: &Path, file: &File) -> io::Result<()> {
    static WARNED: Once = Once::new();
    match file.sync_all() {
        Err(error) if input::is_unsupported(&error) => {
            WARNED.call_once(|| {
                let place = path.display();
                tracing::warn!(
                    "`{place}` cannot be synced ({error}): a power failure may lose the latest files"
                );
            });
            Ok(())
        }
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn failed_write_leaves_no_files_and_keeps_the_old_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        write(&path, "old").unwrap();
        let failing = |_: &mut File| Err(Error::failure("no"));
        assert!(write_with(&path, failing).is_err());
        assert!(create_dir(&dir.path().join("new"), |_| Err(Error::failure("no"))).is_err());
        assert_eq!(names(dir.path()), ["notes"]);
        assert_eq!(fs::read_to_string(path).unwrap(), "old");
    }

    #[test]
    fn directory_is_created_once_and_removed_completely() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let fill = |place: &Path| {
            fs::create_dir(place.join("inner")).context(|| "inner")?;
            write(&place.join("inner/file"), "text")
        };
        create_dir(&path, fill).unwrap();
        assert_eq!(files(&path).unwrap(), [path.join("inner/file")]);
        assert!(create_dir(&path, fill).is_err());
        remove_dir(&path).unwrap();
        assert!(names(path.parent().unwrap()).is_empty());
    }

    #[test]
    fn clean_temp_files_removes_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".partial-x")).unwrap();
        for name in [".partial-x/file", ".partial-y", "kept"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        clean_temp_files(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["kept"]);
    }

    #[test]
    fn check_space_names_both_sizes() {
        let dir = tempfile::tempdir().unwrap();
        check_space(dir.path(), 1).unwrap();
        let error = check_space(dir.path(), 1 << 60).unwrap_err();
        assert!(error.message().contains("need 1152921504607 MB, "), "{error}");
    }
}
