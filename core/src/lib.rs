//! Post-training of unified multimodal models on their own images: the UniRL method (arXiv 2505.23380) on libtorch.

pub mod error;
pub mod judge;
pub mod model;
pub mod reward;
pub mod scene;
pub mod tiles;

pub use error::{Error, Result};
