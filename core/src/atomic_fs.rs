//! Files and folders that appear under their names only when they are complete, and stay so when the power fails.
//!
//! Not every file system has symbolic links or can sync a folder: exFAT, CIFS, Lustre and many FUSE ones lack one or the
//! other. Links then become small files, see [`link`], and a missing sync is a warning.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Once;

use rustix::io::Errno;

use crate::error::{Context, Error, Result};

/// What the names of incomplete files and folders begin with.
const PARTIAL: &str = ".partial-";

/// Writes a file of text.
pub fn write(path: &Path, text: &str) -> Result<()> {
    file(path, |file| file.write_all(text.as_bytes()).context(|| "no text was written"))
}

/// Writes a file.
pub(crate) fn file(path: &Path, write: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let place = || format!("cannot write `{}`", path.display());
    let folder = parent(path);
    let mut partial = tempfile::Builder::new()
        .prefix(PARTIAL)
        .permissions(fs::Permissions::from_mode(0o666)) // less the umask, as of any new file
        .tempfile_in(folder)
        .context(place)?;
    write(partial.as_file_mut()).context(place)?;
    synced(path, partial.as_file()).context(place)?;
    partial.persist(path).map_err(|error| error.error).context(place)?;
    sync(folder).context(place)
}

/// Makes a folder that must not be there yet: `write` fills it.
pub fn folder(path: &Path, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let place = || format!("cannot write `{}`", path.display());
    if path.exists() {
        return Err(Error::usage(format!("`{}` exists", path.display())));
    }
    let parent = parent(path);
    fs::create_dir_all(parent).context(place)?;
    let partial = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(parent).context(place)?;
    write(partial.path()).context(place)?;
    // Where there are no permissions to set, every folder can be read already.
    match fs::set_permissions(partial.path(), fs::Permissions::from_mode(0o755)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied || is_unsupported(&error) => {}
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

/// Removes a folder; what is left of it when that is interrupted has no name that means something.
pub(crate) fn remove_folder(path: &Path) -> Result<()> {
    let place = || format!("cannot remove `{}`", path.display());
    let aside = tempfile::Builder::new().prefix(PARTIAL).tempdir_in(parent(path)).context(place)?;
    fs::rename(path, aside.path().join("removed")).context(place)?;
    aside.close().context(place)
}

/// Removes what an interrupted process left behind in a folder.
pub(crate) fn clean(folder: &Path) -> Result<()> {
    let place = || format!("cannot tidy up `{}`", folder.display());
    for entry in fs::read_dir(folder).context(place)? {
        let entry = entry.context(place)?;
        if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            let path = entry.path();
            if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.context(place)?;
        }
    }
    Ok(())
}

/// Every file in a folder and the folders in it, in order.
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

/// Refuses to begin what would not fit the disk on which `folder` lies.
pub(crate) fn check_space(folder: &Path, bytes: u64) -> Result<()> {
    let Some(free) = free_space(folder) else { return Ok(()) };
    if bytes <= free {
        return Ok(());
    }
    Err(Error::failure(format!(
        "no room in `{}`: expected {} MB, got {} MB free",
        folder.display(),
        bytes.div_ceil(1_000_000),
        free / 1_000_000
    )))
}

/// Free bytes of the disk on which a folder lies, where that can be told.
pub fn free_space(folder: &Path) -> Option<u64> {
    let there = folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("."));
    let there = if there.as_os_str().is_empty() { Path::new(".") } else { there };
    let disk = rustix::fs::statvfs(there).ok()?;
    Some(disk.f_bavail * disk.f_frsize)
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Whether an operation failed because the file system does not have it.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    let known = [Errno::NOTSUP, Errno::OPNOTSUPP, Errno::NOSYS, Errno::INVAL, Errno::NODEV, Errno::NOTTY];
    Errno::from_io_error(error).is_some_and(|errno| known.contains(&errno))
}

fn sync(path: &Path) -> io::Result<()> {
    synced(path, &File::open(path)?)
}

fn synced(path: &Path, file: &File) -> io::Result<()> {
    static TOLD: Once = Once::new();
    match file.sync_all() {
        Err(error) if is_unsupported(&error) => {
            TOLD.call_once(|| {
                let place = path.display();
                tracing::warn!(
                    "`{place}` cannot be synced ({error}): a power failure may cost what was written last"
                );
            });
            Ok(())
        }
        synced => synced,
    }
}

/// Makes `place` a symbolic link to the folder `target`, which is absolute or seen from the folder of `place`; or a small file
/// that holds `target` where there are no links. What was there, a link or a file, is replaced at once.
pub fn link(target: &Path, place: &Path) -> Result<()> {
    let context = || format!("cannot point `{}` at `{}`", place.display(), target.display());
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let next = parent(place).join(format!("{PARTIAL}{name}"));
    let _ = fs::remove_file(&next);
    match std::os::unix::fs::symlink(target, &next) {
        Ok(()) => fs::rename(&next, place).context(context),
        Err(error) => {
            tracing::debug!("a file instead of a link to `{}`: {error}", target.display());
            write(place, &format!("{}\n", target.display())).context(context)
        }
    }
}

/// The folder that [`link`] made `path` point at, where it is a small file; else `path` itself.
pub fn follow(path: &Path) -> PathBuf {
    const LONGEST: u64 = 4096; // a path on Linux
    let is_small = fs::metadata(path).is_ok_and(|data| data.is_file() && data.len() <= LONGEST);
    let target = is_small.then(|| fs::read_to_string(path).ok()).flatten();
    let target = target.map(|text| parent(path).join(text.trim_end_matches('\n')));
    target.filter(|target| target.is_dir()).unwrap_or_else(|| path.to_owned())
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
    fn what_fails_leaves_nothing_and_spares_what_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notes");
        write(&path, "old").unwrap();
        let failing = |_: &mut File| Err(Error::failure("no"));
        assert!(file(&path, failing).is_err());
        assert!(folder(&dir.path().join("new"), |_| Err(Error::failure("no"))).is_err());
        assert_eq!(names(dir.path()), ["notes"]);
        assert_eq!(fs::read_to_string(path).unwrap(), "old");
    }

    #[test]
    fn a_folder_is_made_once_and_removed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        let fill = |place: &Path| {
            fs::create_dir(place.join("inner")).context(|| "inner")?;
            write(&place.join("inner/file"), "text")
        };
        folder(&path, fill).unwrap();
        assert_eq!(files(&path).unwrap(), [path.join("inner/file")]);
        assert!(folder(&path, fill).is_err());
        remove_folder(&path).unwrap();
        assert!(names(path.parent().unwrap()).is_empty());
    }

    #[test]
    fn leftovers_are_removed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(".partial-x")).unwrap();
        for name in [".partial-x/file", ".partial-y", "kept"] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        clean(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["kept"]);
    }

    #[test]
    fn links_are_replaced_and_followed_in_either_form() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("latest");
        for target in ["one", "two"] {
            fs::create_dir(dir.path().join(target)).unwrap();
            link(Path::new(target), &place).unwrap();
            assert_eq!(place.canonicalize().unwrap(), dir.path().canonicalize().unwrap().join(target));
            assert_eq!(follow(&place), place);
        }
        // The form where there are no links, relative and absolute.
        fs::remove_file(&place).unwrap();
        write(&place, "one\n").unwrap();
        assert_eq!(follow(&place), dir.path().join("one"));
        link(Path::new("two"), &place).unwrap();
        assert!(place.is_symlink());
        let absolute = dir.path().join("one");
        fs::remove_file(&place).unwrap();
        write(&place, absolute.to_str().unwrap()).unwrap();
        assert_eq!(follow(&place), absolute);
        // Other files and folders stand for themselves.
        write(&place, "three\n").unwrap();
        assert_eq!((follow(&place), follow(&absolute)), (place, absolute));
        assert_eq!(names(dir.path()), ["latest", "one", "two"]);
    }

    #[test]
    fn too_much_is_refused_with_both_numbers() {
        let dir = tempfile::tempdir().unwrap();
        check_space(dir.path(), 1).unwrap();
        let error = check_space(dir.path(), 1 << 60).unwrap_err();
        assert!(error.message().contains("expected 1152921504607 MB, got"), "{error}");
    }
}
