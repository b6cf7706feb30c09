//! What model plugins share: layers, which take their weights from a [`unirl::weights::Store`] under names that the plugin
//! chooses, and what every family does around them: [`answering`], [`scoring`], [`guidance`], [`checkpoint`],
//! [`footprint`].

pub mod answering;
pub mod attention;
pub mod checkpoint;
pub mod decoder;
pub mod decoding;
pub mod footprint;
pub mod guidance;
pub mod kv_cache;
pub mod language;
mod linear;
pub mod lora;
mod precision;
pub mod rotary;
pub mod rows;
pub mod scoring;
pub mod vision;
pub mod vqgan;

pub use linear::{FusedLinear, LayerNorm, Linear};
pub use precision::Precision;
