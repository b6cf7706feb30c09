//! Layers that model plugins share. They take their weights from a [`unirl::weights::Store`], under names that the plugin
//! gives.

pub mod decoder;
mod linear;
pub mod lora;
pub mod vision;
pub mod vqgan;

pub use linear::{LayerNorm, Linear};
