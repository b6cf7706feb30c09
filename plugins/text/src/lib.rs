//! Text tokenizers that model plugins share.

mod tokenizer;
mod warnings;

pub use tokenizer::Text;
pub use warnings::warn_too_long;
