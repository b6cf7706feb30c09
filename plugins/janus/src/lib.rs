//! Janus and Janus-Pro (Llama, SigLIP and VQ-16) as a unirl plugin.

pub mod aligner;
pub mod checkpoint;
pub mod config;
mod footprint;
pub mod layout;
pub mod llama;
pub mod model;
pub mod network;
pub mod options;
pub mod prompt;
pub mod siglip;
pub mod vq;

use model::Janus;
use options::JanusOptions;

unirl::register_model!("janus", JanusOptions, Janus::new);

#[cfg(feature = "dynamic")]
unirl::export_plugin!();

#[cfg(test)]
mod tests {
    unirl_testing::check_model!("janus");
}
