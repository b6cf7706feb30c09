//! The choice of a token or an image code from its logits.

use tch::{Kind, Tensor};

use crate::model::Part;

/// The classes `[B]` of `logits [B,V]`: the likeliest at a temperature of 0, else draws by the inverse of the cumulative
/// distribution, among the `top_k` likeliest or, with 0, among all. The caller seeds libtorch.
pub fn choose(logits: &Tensor, temperature: f64, top_k: i64, part: Option<Part>) -> Tensor {
    if temperature <= 0.0 || top_k == 1 {
        return logits.argmax(-1, false);
    }
    let (batch, classes) = (logits.size()[0], logits.size()[1]);
    let mut logits = logits / temperature;
    if (1..classes).contains(&top_k) {
        let (best, _) = logits.topk(top_k, -1, true, true);
        let least = best.narrow(1, top_k - 1, 1); // all that equal it stay
        logits = logits.masked_fill(&logits.lt_tensor(&least), f64::NEG_INFINITY);
    }
    let draws = Part::rows(part, batch, |of| Tensor::rand([of, 1], (Kind::Float, logits.device())));
    let cumulative = logits.softmax(-1, Kind::Double).cumsum(-1, Kind::Double);
    let drawn = cumulative.le_tensor(&draws.to_kind(Kind::Double)).sum_dim_intlist(
        [1i64].as_slice(),
        false,
        Kind::Int64,
    );
    drawn.clamp_max(classes - 1) // a sum just below 1 and a draw above it
}

/// The log-probabilities `[B]` of `classes [B]` under `logits [B,V]`.
pub fn chosen_logp(logits: &Tensor, classes: &Tensor) -> Tensor {
    let picked = logits.gather(1, &classes.unsqueeze(1), false).squeeze_dim(1);
    picked - logits.logsumexp([1i64].as_slice(), false)
}
