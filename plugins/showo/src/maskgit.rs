//! `MaskGIT`: parallel decoding in a few steps, and the random masking of its training. Random draws come in
//! as uniforms.

use tch::{Kind, Tensor};
use unirl::optimizer::objective::gumbel;

/// A token that is not known yet.
pub const UNKNOWN: i64 = -1;

/// The cosine schedule in f32: the share of tokens that stay masked at `ratio` of the way.
fn cosine(ratio: f32) -> f32 {
    let angle = Tensor::from_slice(&[ratio]) * std::f64::consts::FRAC_PI_2;
    f32::try_from(angle.cos().get(0)).unwrap_or_default()
}

/// Guided logits: `(1+g)·cond − g·uncond`.
pub fn guided(cond: &Tensor, uncond: &Tensor, guidance: f64) -> Tensor {
    cond * (1.0 + guidance) - uncond * guidance
}

/// How many of `tokens` tokens stay masked after step `step` of `steps`, before what is unknown limits it.
pub fn mask_len(tokens: i64, step: i64, steps: i64) -> i64 {
    (tokens as f32 * cosine((step + 1) as f32 / steps as f32)).floor() as i64
}

/// How many of `unknown [B,1]` codes are masked again at `step` of `steps`: as scheduled, but fewer than
/// before, at least 1.
pub fn remaining(unknown: &Tensor, tokens: i64, step: i64, steps: i64) -> Tensor {
    (unknown - 1).clamp_max(mask_len(tokens, step, steps)).clamp_min(1)
}

/// The noise temperature after step `step`, from that before it: it compounds.
pub fn cool(temperature: f64, step: i64, steps: i64) -> f64 {
    temperature * (1.0 - (step + 1) as f64 / steps as f64)
}

/// What one decoding step did, all `[B,N]` but `cut [B]`.
#[derive(Debug)]
pub struct Step {
    /// A code everywhere: the known ones, and a draw for the others.
    pub sampled: Tensor,
    /// The probability of the draw; the largest float where the code was known.
    pub confidence: Tensor,
    /// Log-confidence with noise.
    pub noisy: Tensor,
    /// The noisy confidence below which a token is masked again.
    pub cut: Tensor,
    /// Which are masked again.
    pub masked: Tensor,
    /// The codes after the step, [`UNKNOWN`] where masked.
    pub codes: Tensor,
}

/// One decoding step from `logits [B,N,K]` and `codes [B,N]`. `draws` choose codes by the inverse of the
/// cumulative distribution, `noise` blurs the order of confidence; both are uniforms `[B,N]`.
pub fn step(
    logits: &Tensor,
    codes: &Tensor,
    (at, steps): (i64, i64),
    temperature: f64,
    draws: &Tensor,
    noise: &Tensor,
) -> Step {
    let tokens = codes.size()[1];
    let probabilities = logits.softmax(-1, Kind::Float);
    let cumulative = probabilities.cumsum(-1, Kind::Float); // [B,N,K]
    let drawn =
        cumulative.le_tensor(&draws.unsqueeze(-1)).sum_dim_intlist([-1i64].as_slice(), false, Kind::Int64);
    let drawn = drawn.clamp_max(logits.size()[2] - 1); // a sum just below 1 and a draw above it
    let unknown = codes.eq(UNKNOWN);
    let sampled = drawn.where_self(&unknown, codes);
    let confidence = probabilities.gather(-1, &sampled.unsqueeze(-1), false).squeeze_dim(-1);
    let known = confidence.full_like(f64::from(f32::MAX));
    let confidence = confidence.where_self(&unknown, &known);

    let unknown_count = unknown.sum_dim_intlist([1i64].as_slice(), true, Kind::Int64); // [B,1]
    let masked_count = remaining(&unknown_count, tokens, at, steps);

    let noisy = confidence.clamp_min(1e-20).log() + gumbel(noise) * temperature;
    let (ascending, _) = noisy.sort(-1, false);
    let cut = ascending.gather(1, &masked_count.clamp_max(tokens - 1), false); // [B,1]
    let masked = noisy.lt_tensor(&cut);
    let codes = sampled.full_like(UNKNOWN).where_self(&masked, &sampled);
    Step { sampled, confidence, noisy, cut: cut.squeeze_dim(1), masked, codes }
}

/// The share of tokens that training hides at `t`, in `0..=1`.
pub fn mask_ratio(t: &Tensor) -> Tensor {
    (t * std::f64::consts::FRAC_PI_2).cos().clamp_min(0.0)
}

/// The random masking of training: `uniforms [B,N]`, and `t [B]` or `[1]` for one ratio for all. Exactly
/// `max(1, round(N·cos(t·π/2)))` positions a row are true.
pub fn remask(uniforms: &Tensor, t: &Tensor) -> Tensor {
    let tokens = uniforms.size()[1] as f64;
    let count = (mask_ratio(t) * tokens).round().clamp_min(1.0).unsqueeze(-1); // [B,1]; ties to even
    uniforms.argsort(-1, false).to_kind(Kind::Float).lt_tensor(&count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schedule_ends_below_zero_and_falls_short_of_a_half() {
        assert_eq!(mask_len(1024, 15, 16), -1); // cos(π/2) in f32 is just below 0
        assert_eq!(mask_len(1024, 11, 18), 511); // cos(π/3) in f32 is just below 1/2
    }

    #[test]
    fn the_temperature_compounds() {
        let temperature = (0..16).scan(1.0, |t, k| {
            *t = cool(*t, k, 16);
            Some(*t)
        });
        let listed = [0.9375, 0.820_312_5, 0.666_504];
        for (got, expected) in temperature.zip(listed) {
            assert!((got - expected).abs() < 1e-6); // as many digits as are listed
        }
    }
}
