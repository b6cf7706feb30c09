//! How close one has to come to recorded numbers: what the parity tests of all families compare with.
#![allow(dead_code, reason = "not every test needs all of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::Value;
use tch::{Kind, Tensor};

/// Hidden rows, logits, log-probabilities, latents, pixels, absolute: f32 through a few layers errs by some
/// 4e-6, a wrong formula by far more than this.
pub(crate) const VALUES: f64 = 1e-4;
/// Guided logits: a mixture of two branches enlarges the error of both.
pub(crate) const GUIDED: f64 = 2e-4;
/// Probabilities, at most 1: what is left of an error in logits.
pub(crate) const PROBABILITIES: f64 = 1e-5;
/// Losses, absolute: means and sums of log-probabilities.
pub(crate) const LOSSES: f64 = 1e-4;
/// Gradients: `GRADIENTS + RELATIVE · max|g|`, as small entries inherit the rounding of large ones.
pub(crate) const GRADIENTS: f64 = 1e-5;
/// Gradient norms, relative: rounding averages out.
pub(crate) const RELATIVE: f64 = 1e-4;
/// Below this, the norm of a gradient is rounding.
pub(crate) const NO_NORM: f64 = 1e-6;
/// Bytes of a picture: truncation turns a rounding error into a difference of 1, but in a thousandth of them
/// at most.
pub(crate) const BYTES: f64 = 1e-3;

/// Whether two tensors hold the same discrete values.
#[track_caller]
pub(crate) fn same(what: &str, got: &Tensor, expected: &Tensor) {
    assert_eq!(got.size(), expected.size(), "{what}: shape");
    let wrong =
        got.to_kind(Kind::Int64).ne_tensor(&expected.to_kind(Kind::Int64)).sum(Kind::Int64).int64_value(&[]);
    assert_eq!(wrong, 0, "{what}: {wrong} of {} differ:\n{got}\n{expected}", got.numel());
}

/// Whether no value is off by more than `tolerance`; NaN is.
#[track_caller]
pub(crate) fn close(what: &str, got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), expected.size(), "{what}: shape");
    let off = (got - expected).abs().max().double_value(&[]);
    assert!(off <= tolerance, "{what}: off by {off}, more than {tolerance}");
}

/// [`close`] for a gradient.
#[track_caller]
pub(crate) fn gradient(what: &str, got: &Tensor, expected: &Tensor) {
    let largest = expected.abs().max().double_value(&[]);
    close(what, got, expected, GRADIENTS + RELATIVE * largest);
}

/// Compares the norm of a gradient; null is none.
#[track_caller]
pub(crate) fn norm(what: &str, gradient: &Tensor, expected: &Value) {
    let got = norm_of([gradient]);
    assert!(gradient.defined() || expected.is_null(), "{what}: none, expected {expected}");
    let expected = expected.as_f64().unwrap_or_default();
    assert!(
        (got - expected).abs() <= NO_NORM + RELATIVE * expected,
        "{what}: norm {got}, expected {expected}"
    );
}

/// The norm of several gradients at once.
pub(crate) fn norm_of<'a>(gradients: impl IntoIterator<Item = &'a Tensor>) -> f64 {
    let squares = gradients
        .into_iter()
        .filter(|gradient| gradient.defined())
        .map(|gradient| gradient.to_kind(Kind::Double).square().sum(Kind::Double).double_value(&[]));
    squares.sum::<f64>().sqrt()
}
