//! The engine of unirl: [`algorithms`], the training loop ([`train`]), runs ([`run_dir`], [`checkpoint`]), evaluation
//! ([`eval`]) and the host of plugins ([`plugin`]).
//!
//! A custom algorithm needs [`algorithms`] only.

pub mod algorithms;
pub mod atomic_fs;
pub mod benchmark;
pub mod checkpoint;
pub mod config;
pub mod disk_plan;
mod drift;
pub mod eval;
pub mod fingerprint;
pub mod home;
pub mod image_io;
pub mod memory;
pub mod metrics;
pub mod optim;
pub mod plugin;
pub mod pretrain;
pub mod rewards;
pub mod run_dir;
mod sample_grid;
mod sealed;
pub mod signals;
mod tensorboard;
pub mod train;
