//! The choice of a token or an image code from its logits.

use tch::{Kind, Tensor};

use crate::model::BatchSlice;

/// The classes `[B]` of `logits [B,V]`: the likeliest at a temperature of 0, else draws by the inverse of the cumulative
/// distribution, among the `top_k` likeliest or, with 0, among all. The caller seeds libtorch.
pub fn choose(logits: &Tensor, temperature: f64, top_k: i64, part: Option<BatchSlice>) -> Tensor {
    let uniforms = || {
        let all = |of| Tensor::rand([of, 1], (Kind::Float, logits.device()));
        BatchSlice::rows(part, logits.size()[0], all)
    };
    sample_tokens_with(logits, temperature, top_k, is_random(temperature, top_k).then(uniforms).as_ref())
}

/// Whether anything is left to chance.
pub fn is_random(temperature: f64, top_k: i64) -> bool {
    temperature > 0.0 && top_k != 1
}

/// [`choose`] by random numbers `draws [B,1]` in `0..1`; the likeliest where there are none.
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
        let (best, _) = logits.topk(top_k, -1, true, true);
        let least = best.narrow(1, top_k - 1, 1); // all that equal it stay
        logits = logits.masked_fill(&logits.lt_tensor(&least), f64::NEG_INFINITY);
    }
    let cumulative = logits.softmax(-1, Kind::Double).cumsum(-1, Kind::Double);
    below(&cumulative, &uniforms.to_kind(Kind::Double)).squeeze_dim(1)
}

/// How many of the rising `cumulative […,V]` are at most `draws […,1]`, but less than `V`, where rounding leaves their last just
/// below 1: the class that a draw falls on, `[…,1]`.
pub fn below(cumulative: &Tensor, uniforms: &Tensor) -> Tensor {
    let found = uniforms.contiguous().searchsorted::<Tensor>(cumulative, false, true, "right", None);
    found.clamp_max(cumulative.size().last().map_or(0, |classes| classes - 1))
}

/// The log-probabilities `[…]` of `classes […]` under `logits […,V]`.
pub fn gather_logp(logits: &Tensor, classes: &Tensor) -> Tensor {
    let picked = logits.gather(-1, &classes.unsqueeze(-1), false).squeeze_dim(-1);
    picked - logits.logsumexp([-1i64].as_slice(), false)
}
