//! Comparisons with recorded numbers and their tolerances, for the parity tests of every family.
#![allow(dead_code, reason = "no test uses every item")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use tch::{Kind, Tensor};

/// Absolute, for hidden states, logits, log-probabilities, latents and pixels: the f32 error of a few layers is about
/// 4e-6; a wrong formula exceeds this by far.
pub(crate) const VALUES: f64 = 1e-4;
/// Guided logits: guidance amplifies the error of both branches.
pub(crate) const GUIDED: f64 = 2e-4;
/// Probabilities, which are at most 1, so that an error in logits shrinks.
pub(crate) const PROBABILITIES: f64 = 1e-5;
/// Absolute, for losses: means and sums of log-probabilities.
pub(crate) const LOSSES: f64 = 1e-4;
/// Gradients: `GRADIENTS + RELATIVE · max|g|`, because small entries inherit the rounding of large ones.
pub(crate) const GRADIENTS: f64 = 1e-5;
/// Relative, for gradient norms: rounding averages out.
pub(crate) const RELATIVE: f64 = 1e-4;
/// A gradient norm below this is rounding.
pub(crate) const ZERO_NORM: f64 = 1e-6;
/// The share of an image's bytes that may differ: truncation turns a rounding error into a difference of 1.
pub(crate) const BYTES: f64 = 1e-3;

/// Asserts that two tensors hold the same integers.
#[track_caller]
pub(crate) fn same(what: &str, got: &Tensor, expected: &Tensor) {
    assert_eq!(got.size(), expected.size(), "{what}: shape");
    let wrong =
        got.to_kind(Kind::Int64).ne_tensor(&expected.to_kind(Kind::Int64)).sum(Kind::Int64).int64_value(&[]);
    assert_eq!(wrong, 0, "{what}: {wrong} of {} differ:\n{got}\n{expected}", got.numel());
}

/// Asserts that no value differs by more than `tolerance`; NaN fails.
#[track_caller]
pub(crate) fn close(what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), expected.size(), "{what}: shape");
    let off = (got - expected).abs().max().double_value(&[]);
    assert!(off <= tolerance, "{what}: differs by {off}, more than {tolerance}");
}

/// [`close`] for a gradient.
#[track_caller]
pub(crate) fn gradient(what: &str, got: &Tensor, expected: &Tensor) {
    let largest = expected.abs().max().double_value(&[]);
    close(what, got, expected, GRADIENTS + RELATIVE * largest);
}

/// Compares the norm of a gradient; null stands for a missing gradient.
#[track_caller]
pub(crate) fn norm(what: &str, gradient: &Tensor, expected: &Value) {
    let got = norm_of([gradient]);
    assert!(gradient.defined() || expected.is_null(), "{what}: none, expected {expected}");
    let expected = expected.as_f64().unwrap_or_default();
    assert!(
        (got - expected).abs() <= ZERO_NORM + RELATIVE * expected,
        "{what}: norm {got}, expected {expected}"
    );
}

/// The global norm of several gradients.
pub(crate) fn norm_of<'a>(gradients: impl IntoIterator<Item = &'a Tensor>) -> f64 {
    let squares = gradients
        .into_iter()
        .filter(|gradient| gradient.defined())
        .map(|gradient| gradient.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]));
    squares.sum::<f64>().sqrt()
}
