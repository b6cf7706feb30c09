//! What tch lacks of libtorch: gradient checkpointing, fused operations, CUDA graphs, and the libraries that are found at run
//! time. All C++ of unirl is here.

pub mod autograd;
pub mod cuda_graph;
pub mod libtorch;
pub mod ops;
