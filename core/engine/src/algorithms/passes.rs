//! The passes with gradient of a step, derived from the terms of the loss, for the memory plan.

use unirl::model::ModelCard;

use super::{ImageTerm, Rollout, StraightThrough};

/// The terms of an algorithm's loss.
#[derive(Debug, Clone, Copy)]
pub struct Terms<'a> {
    /// The log-likelihood of the image tokens.
    pub image: Option<&'a ImageTerm>,
    /// Whether the loss has a log-likelihood of the answers.
    pub answer: bool,
    /// How the gradient of the answers passes through the image tokens, if it does.
    pub end_to_end: Option<StraightThrough>,
    /// Whether the two terms are trained in alternate steps.
    pub alternate: bool,
}

/// A pass with gradient, from its first forward to its backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pass {
    /// The number of states of each image that are scored; 0 without image tokens.
    pub(crate) states: i64,
    /// Whether answers are scored.
    pub(crate) answers: bool,
    /// Whether an earlier pass of the step left gradients.
    pub(crate) grads_accumulated: bool,
}

/// Returns the passes of a step, the image term first.
pub(crate) fn passes(terms: Terms<'_>, rollout: &Rollout, card: &ModelCard) -> Vec<Pass> {
    let image = terms.image.map(|term| Pass {
        states: term.states(rollout, card),
        answers: false,
        grads_accumulated: false,
    });
    let answer = terms.answer.then_some(Pass {
        states: terms.end_to_end.map_or(0, |path| path.states(rollout, card)),
        answers: true,
        grads_accumulated: image.is_some() && !terms.alternate,
    });
    image.into_iter().chain(answer).collect()
}
