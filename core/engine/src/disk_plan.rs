//! The disk space that the checkpoints of a run need.

use std::path::{Path, PathBuf};

use unirl::error::Result;

use crate::atomic_fs;
use crate::config::RunConfig;
use crate::memory::{self, MemoryPlan};

/// The disk space of a run's checkpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlan {
    /// Bytes of one checkpoint: the model, and for each trainable parameter an f32 weight and two moments.
    pub checkpoint_bytes: u64,
    /// The largest number of checkpoints at a time, the one being written included.
    pub max_checkpoints: u64,
    /// The run directory.
    pub folder: PathBuf,
    /// Bytes available on the disk, if known.
    pub available: Option<u64>,
}

impl DiskPlan {
    /// Plans a run in `folder`, which need not exist.
    pub fn new(memory: &MemoryPlan, config: &RunConfig, folder: &Path) -> Self {
        let (_, trainable) = memory.parameters;
        let weights: i64 =
            memory.persistent.iter().filter(|(name, _)| *name == "weights").map(|(_, bytes)| bytes).sum();
        let options = &config.checkpoint;
        let written = if options.every == 0 { 1 } else { config.train.steps.div_ceil(options.every) };
        let kept = if options.keep == 0 { written } else { written.min(options.keep as u64 + 1) };
        Self {
            checkpoint_bytes: (weights + trainable * 3 * 4) as u64,
            max_checkpoints: kept + u64::from(config.eval.every > 0),
            folder: folder.into(),
            available: atomic_fs::free_space(folder),
        }
    }

    /// Formats the plan as a table.
    pub fn table(&self) -> String {
        let size = |bytes: u64| memory::size(bytes as i64);
        let mut text = format!("{:<20}{:>16}\n", "checkpoint size", size(self.checkpoint_bytes));
        text += &format!("{:<20}{:>16}\n", "checkpoints at most", self.max_checkpoints);
        if let Some(available) = self.available {
            text += &format!("{:<20}{:>16}\n", "disk available", size(available));
        }
        text
    }

    /// Errors if the disk has too little space.
    pub fn check(&self) -> Result<()> {
        atomic_fs::check_space(&self.folder, self.checkpoint_bytes * self.max_checkpoints).map_err(|error| {
            error.hint("keep fewer checkpoints (`--set checkpoint.keep=1`) or use another disk (`--out DIR`)")
        })
    }
}
