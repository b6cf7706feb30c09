//! Judges: whether a drawing, and an answer about it, are right. They measure; rewards come from reward rules.

pub mod tiles;

use serde::{Deserialize, Serialize};

use crate::scene::Facts;
use crate::scene::answer::understand;

/// What a judge says of one drawing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Exactly what was asked for, and nothing else.
    pub strict: bool,
    /// In `GenEval`'s manner: what was asked for is there, whatever else is.
    pub lenient: bool,
    /// Why the drawing is not strictly right; empty if it is.
    pub reason: String,
}

/// Whether the answer says all that the question asks for and no more: full points under the rule set `bound`.
pub fn answer_is_right(facts: &Facts, answer: &str) -> bool {
    understand(facts, answer).is_right(facts.category)
}
