//! Text tokenizers and padding that model plugins share.

mod rows;
mod tokenizer;
mod warnings;

pub use rows::{deduplicate, encode_answers, padded, padded_left};
pub use tokenizer::Text;
pub use warnings::warn_too_long;
