//! Sampling of text and image tokens from logits.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// The position of some rows in a larger batch. Random numbers are sampled for the whole batch, so splitting a batch does not
/// change the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSlice {
    /// The index of the first row.
    pub first: i64,
    /// `B` of the whole batch.
    pub of: i64,
}

impl BatchSlice {
    /// Calls `all` with the size of the whole batch and returns the `rows` rows of `slice` from its result.
    pub fn rows(slice: Option<Self>, rows: i64, all: impl FnOnce(i64) -> Tensor) -> Tensor {
        match slice {
            None => all(rows),
            Some(Self { first, of }) => all(of).narrow(0, first, rows),
        }
    }
}

/// Samples token ids `[B]` from `logits [B,V]` by inverse-transform sampling: from the `top_k` most likely tokens, or from all
/// if `top_k` is 0. A temperature of 0 is greedy. The caller seeds libtorch.
pub fn sample_tokens(logits: &Tensor, temperature: f64, top_k: i64, slice: Option<BatchSlice>) -> Tensor {
    let uniforms = || {
        let all = |of| Tensor::rand([of, 1], (Kind::Float, logits.device()));
        BatchSlice::rows(slice, logits.size()[0], all)
    };
    sample_tokens_with(logits, temperature, top_k, is_random(temperature, top_k).then(uniforms).as_ref())
}

/// Whether sampling with these options is random, i.e. not greedy.
pub fn is_random(temperature: f64, top_k: i64) -> bool {
    temperature > 0.0 && top_k != 1
}

/// [`sample_tokens`] with given `uniforms [B,1]` in `[0,1)`; greedy if `None`.
pub fn sample_tokens_with(
    logits: &Tensor,
    temperature: f64,
    top_k: i64,
    uniforms: Option<&Tensor>,
) -> Tensor {
    let Some(uniforms) = uniforms else { return logits.argmax(-1, false) };
    let classes = logits.size()[1];
    let mut logits = logits / temperature;
    if (1..classes).contains(&top_k) {
        let (top, _) = logits.topk(top_k, -1, true, true);
        let threshold = top.narrow(1, top_k - 1, 1); // ties with the last one stay
        logits = logits.masked_fill(&logits.lt_tensor(&threshold), f64::NEG_INFINITY);
    }
    let cumulative = logits.softmax(-1, Kind::Double).cumsum(-1, Kind::Double);
    inverse_cdf(&cumulative, &uniforms.to_kind(Kind::Double)).squeeze_dim(1)
}

/// The inverse of the cumulative distribution `cumulative […,V]` at `uniforms […,1]`: classes `[…,1]`. The result is clamped to
/// `V − 1`, because rounding can leave the last cumulative probability just below 1.
pub fn inverse_cdf(cumulative: &Tensor, uniforms: &Tensor) -> Tensor {
    let found = uniforms.contiguous().searchsorted::<Tensor>(cumulative, false, true, "right", None);
    found.clamp_max(cumulative.size().last().map_or(0, |classes| classes - 1))
}

/// Returns the log-probabilities `[…]` of `classes […]` under `logits […,V]`.
pub fn gather_logp(logits: &Tensor, classes: &Tensor) -> Tensor {
    let picked = logits.gather(-1, &classes.unsqueeze(-1), false).squeeze_dim(-1);
    picked - logits.logsumexp([-1i64].as_slice(), false)
}

/// Returns standard Gumbel noise `−ln(−ln U)` from uniforms in `[0,1)`, of the same shape.
pub fn gumbel(uniform: &Tensor) -> Tensor {
    let inner = -uniform.clamp_min(1e-20).log();
    -inner.clamp_min(1e-20).log()
}
