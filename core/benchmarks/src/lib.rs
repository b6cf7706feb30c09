//! Benchmarks: where prompts come from, and how images and answers are judged.

pub mod geneval;
pub mod judge;
pub mod tiles;
