//! The disk space that the checkpoints of a run need.

use std::path::{Path, PathBuf};

use crate::atomic_fs;
use crate::config::RunConfig;
use crate::error::Result;
use crate::memory::{self, MemoryPlan};

/// What the checkpoints of a run take on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlan {
    /// Bytes of one: the model, and f32 weights with two moments of each that learns.
    pub checkpoint: u64,
    /// How many there are at most at a time: those that are kept, and the one that is being written.
    pub most: u64,
    /// The folder that they lie in.
    pub folder: PathBuf,
    /// Free bytes there, where that can be told.
    pub free: Option<u64>,
}

impl DiskPlan {
    /// The plan of a run in `folder`, or in one that will be there.
    pub fn new(memory: &MemoryPlan, config: &RunConfig, folder: &Path) -> Self {
        let (_, learning) = memory.values;
        let weights: i64 =
            memory.held.iter().filter(|(name, _)| *name == "weights").map(|(_, bytes)| bytes).sum();
        let options = &config.checkpoint;
        let written = if options.every == 0 { 1 } else { config.train.steps.div_ceil(options.every) };
        let kept = if options.keep == 0 { written } else { written.min(options.keep as u64 + 1) };
        Self {
            checkpoint: (weights + learning * 3 * 4) as u64,
            most: kept + u64::from(config.eval.every > 0),
            folder: folder.into(),
            free: atomic_fs::free_space(folder),
        }
    }

    /// The plan as a table for people.
    pub fn table(&self) -> String {
        let size = |bytes: u64| memory::size(bytes as i64);
        let mut text = format!("{:<20}{:>16}\n", "a checkpoint", size(self.checkpoint));
        text += &format!("{:<20}{:>16}\n", "of these at most", self.most);
        if let Some(free) = self.free {
            text += &format!("{:<20}{:>16}\n", "the disk has", size(free));
        }
        text
    }

    /// Refuses a disk that they do not fit.
    pub fn check(&self) -> Result<()> {
        atomic_fs::check_space(&self.folder, self.checkpoint * self.most).map_err(|error| {
            error.hint("keep fewer (`--set checkpoint.keep=1`), or write to another disk: `--out DIR`")
        })
    }
}
