//! Post-training of unified multimodal models on their own images: the UniRL method (arXiv 2505.23380) on libtorch.
//!
//! The [`guide`] says what is done, and how to add a model or a reward of your own. A plugin author reads [`model`], [`reward`] or
//! [`detector`]; a reader of the method starts at [`train`] and [`optimizer`].

mod abi;
pub mod algorithms;
pub mod autograd;
pub mod checkpoint;
pub mod checksum;
pub mod config;
pub mod conformance;
pub mod cuda_graph;
pub mod detector;
pub mod disk_plan;
mod drift;
pub mod error;
pub mod eval;
mod explain;
pub mod guide;
pub mod home;
pub mod image_io;
pub mod input;
pub mod json;
pub mod judge;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod plugin;
pub mod pretrain;
pub mod prompts;
pub mod reward;
pub mod run_dir;
mod sample_grid;
pub mod sampling;
mod sealed;
pub mod seed;
pub mod settings;

pub mod atomic_fs;
pub mod optim;
mod panic;
mod tensorboard;
pub mod tiles;
pub mod train;
pub mod weights;

pub use error::{Error, Result};
/// The bindings to the one libtorch of the process: a plugin uses these, and no other version.
pub use tch;
/// Their tensor.
pub use tch::Tensor;

/// What the exported macros expand to; not for direct use.
#[doc(hidden)]
pub use abi::export::private as __private;
