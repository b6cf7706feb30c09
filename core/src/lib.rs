//! Post-training of unified multimodal models on their own images: the UniRL method (arXiv 2505.23380) on libtorch.

mod abi;
pub mod error;
pub mod model;
pub mod plugin;
pub mod reward;
pub mod scene;

pub use error::{Error, Result};

/// What the exported macros expand to; not for direct use.
#[doc(hidden)]
pub use abi::export::private as __private;
