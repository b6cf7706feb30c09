//! Layers that model plugins share. They take their weights from a [`unirl::weights::Store`] under names that the plugin
//! chooses.

pub mod attention;
pub mod decoder;
pub mod decoding;
pub mod footprint;
pub mod kv_cache;
pub mod language;
mod linear;
pub mod lora;
mod precision;
pub mod rotary;
pub mod vision;
pub mod vqgan;

pub use linear::{FusedLinear, LayerNorm, Linear};
pub use precision::Precision;
