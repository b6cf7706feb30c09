//! Text for model plugins: to ids and back, and rows of ids as tensors.

mod rows;
mod tokenizer;
mod warnings;

pub use rows::{padded, padded_left};
pub use tokenizer::Text;
pub use warnings::warn_too_long;
