//! The SDK of unirl: what a plugin author uses to add a model, a reward or a detector.
//!
//! Post-training of unified multimodal models on their own images: the UniRL method (arXiv 2505.23380) on libtorch. The method,
//! and how to add a model or a reward, are in the book: `docs/` of the repository, `concepts/` and `guides/`.
//!
//! A plugin implements [`model::UnifiedModel`], [`reward::RewardFunction`] or [`detector::Detector`], registers it with a macro,
//! and ends with [`export_plugin!`], which shows a complete plugin.

#[doc(hidden)]
pub mod abi;
pub mod detector;
pub mod model;
pub mod prompt;
pub mod reward;
pub mod sampling;
pub mod weights;

/// The error type: a message, its causes and hints.
pub mod error {
    pub use unirl_base::error::{Code, Context, Error, Result, nearest, unknown_name};
}

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
