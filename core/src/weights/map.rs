//! Memory-mapped files: pages are read on access and released after use.
#![allow(unsafe_code, reason = "memory maps")]

use std::fs::File;
use std::ops::{Deref, Range};
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};
use unirl_base::input;

use crate::error::{Context, Result};

/// The bytes of a file, or of embedded data.
pub(super) enum Bytes {
    Mapped(Mmap),
    /// For file systems without memory maps.
    Read(Vec<u8>),
    Embedded(&'static [u8]),
}

impl Bytes {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let place = || format!("cannot read `{}`", path.display());
        input::check_file(path)?;
        let file = File::open(path).context(place)?;
        // SAFETY: the map is only read. If another process truncates the file during loading, this one is killed; but
        // checkpoints are written atomically and do not change.
        match unsafe { Mmap::map(&file) } {
            Ok(map) => Ok(Self::Mapped(map)),
            Err(error) if input::is_unsupported(&error) => std::fs::read(path).context(place).map(Self::Read),
            Err(error) => Err(error).context(place),
        }
    }

    /// Releases the pages of a range that has been copied.
    pub(super) fn release(&self, range: &Range<usize>) {
        if let Self::Mapped(map) = self {
            // SAFETY: the map is backed by a file and never written to, so a released page is read again on access.
            let _ =
                unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Read(bytes) => bytes,
            Self::Embedded(bytes) => bytes,
        }
    }
}
