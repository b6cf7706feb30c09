//! Janus and Janus-Pro (Llama, SigLIP and VQ-16) as a plugin of unirl: the network and its checkpoints.

pub mod aligner;
pub mod config;
pub mod layout;
pub mod llama;
pub mod network;
pub mod siglip;
pub mod vq;
