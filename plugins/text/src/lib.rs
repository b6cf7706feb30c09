//! Text for model plugins: to ids and back, and rows of ids as tensors.

mod rows;
mod tokenizer;

pub use rows::{padded, padded_left};
pub use tokenizer::Text;
