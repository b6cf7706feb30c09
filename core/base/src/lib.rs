//! Errors, and readers of what a user provides. Every crate of unirl uses them; authors of plugins see [`Error`](error::Error)
//! through `unirl`.

pub mod checksum;
pub mod error;
mod explain;
pub mod input;
pub mod json;
#[cfg(feature = "toml")]
pub mod layers;
pub mod links;
pub mod panic;
pub mod schema;
pub mod seed;
#[cfg(feature = "toml")]
pub mod settings;
