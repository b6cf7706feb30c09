//! Post-training of unified multimodal models on their own images: the UniRL method (arXiv 2505.23380) on libtorch.
//!
//! The method, and how to add a model or a reward, are in the book: `docs/` of the repository, `concepts/` and `guides/`. A plugin
//! author reads [`model`], [`reward`] or [`detector`]; a reader of the method starts at [`train`] and [`optimizer`].

mod abi;
pub mod autograd;
pub mod checkpoint;
pub mod config;
pub mod conformance;
pub mod detector;
pub mod error;
pub mod eval;
mod explain;
#[doc(hidden)]
pub mod fuzzing;
mod guard;
pub mod hash;
pub mod home;
pub mod input;
pub mod json;
pub mod judge;
pub mod memory;
pub mod metrics;
pub mod model;
pub mod ops;
pub mod optimizer;
pub mod picture;
pub mod plugin;
pub mod pretrain;
pub mod repeated;
pub mod reward;
pub mod run_dir;
pub mod sampling;
pub mod scene;
pub mod seed;
pub mod settings;
pub mod table;
mod tensorboard;
pub mod tiles;
pub mod train;
pub mod update;
pub mod weights;
pub mod whole;

pub use error::{Error, Result};
/// The bindings to the one libtorch of the process: a plugin uses these, and no other version.
pub use tch;
/// Their tensor.
pub use tch::Tensor;

/// What the exported macros expand to; not for direct use.
#[doc(hidden)]
pub use abi::export::private as __private;

/// The Rust code of the book.
#[cfg(doctest)]
#[doc = include_str!("../../docs/guides/own-reward.md")]
mod own_reward {}
