//! Post-training of unified multimodal models on their own images: the UniRL method (arXiv 2505.23380) on libtorch.
//!
//! The method, and how to add a model or a reward, are in the book: `docs/` of the repository, `concepts/` and `guides/`. A plugin
//! author reads [`model`], [`reward`] or [`detector`]; a reader of the method starts at [`train`] and [`algorithms`].

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
#[doc(hidden)]
pub mod fuzzing;
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
pub mod signals;

pub mod atomic_fs;
pub mod optim;
mod panic;
mod tensorboard;
pub mod tiles;
pub mod train;
pub mod weights;

pub use error::{Error, Result};
/// The libtorch bindings. A plugin must use these, because host and plugins share one libtorch.
pub use tch;
pub use tch::Tensor;

/// For the exported macros only.
#[doc(hidden)]
pub use abi::export::private as __private;

/// The Rust code of the book.
#[cfg(doctest)]
#[doc = include_str!("../../docs/guides/own-reward.md")]
mod own_reward {}
