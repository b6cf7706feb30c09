//! `MaskGIT`: parallel decoding in a few steps, and the random masking of its training. Random draws come in
//! as uniforms.

use tch::{Kind, Tensor};
use unirl::Result;
use unirl::algorithms::objective::gumbel;
use unirl::error::unknown_name;
use unirl::sampling::inverse_cdf;

/// A token that is not known yet.
pub const UNKNOWN: i64 = -1;

/// How the share of hidden tokens falls from 1 to 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Schedule {
    /// `cos(r·π/2)`.
    Cosine,
    /// `1 − r`.
    Linear,
    /// A logistic curve between −3 and 3.
    Sigmoid,
    /// `1 − r^x`.
    Power(f64),
}

impl Schedule {
    /// The schedule called `cosine`, `linear`, `sigmoid`, or `pow` with an exponent.
    pub fn parse(name: &str) -> Result<Self> {
        let power = |digits: &str| digits.parse().ok().filter(|exponent: &f64| *exponent > 0.0);
        match name {
            "cosine" => Ok(Self::Cosine),
            "linear" => Ok(Self::Linear),
            "sigmoid" => Ok(Self::Sigmoid),
            _ => {
                name.strip_prefix("pow").and_then(power).map(Self::Power).ok_or_else(|| {
                    unknown_name("mask schedule", name, &["cosine", "linear", "sigmoid", "pow2"])
                })
            }
        }
    }

    /// The share that is hidden at `ratio` of the way, in f32 as the original computes it: what the cosine leaves at the
    /// end is just below 0.
    pub fn share(self, ratio: &Tensor) -> Tensor {
        let ratio = ratio.to_kind(Kind::Float);
        match self {
            Self::Cosine => (ratio * std::f64::consts::FRAC_PI_2).cos(),
            Self::Linear => (ratio * -1.0 + 1.0).clamp(1e-6, 1.0),
            Self::Power(exponent) => (ratio.pow_tensor_scalar(exponent) * -1.0 + 1.0).clamp(1e-6, 1.0),
            Self::Sigmoid => {
                let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
                let (low, high) = (logistic(-3.0), logistic(3.0));
                (((ratio * 6.0 - 3.0).sigmoid() * -1.0 + high) / (high - low)).clamp(1e-6, 1.0)
            }
        }
    }
}

/// Guided logits: `(1+g)·cond − g·uncond`.
pub fn guided(cond: &Tensor, uncond: &Tensor, guidance: f64) -> Tensor {
    cond * (1.0 + guidance) - uncond * guidance
}

/// How many of `tokens` tokens stay masked after step `step` of `steps`, before what is unknown limits it.
///
/// Kept from the original: it counts all tokens, also where some were known from the start, and in f32, in which the cosine
/// ends below 0 and falls short of a half.
pub fn mask_len(schedule: Schedule, tokens: i64, step: i64, steps: i64) -> i64 {
    let share = schedule.share(&Tensor::from_slice(&[(step + 1) as f32 / steps as f32]));
    (tokens as f32 * share.double_value(&[0]) as f32).floor() as i64
}

/// How many of `unknown [B,1]` codes are masked again at `step` of `steps`: as scheduled, but fewer than
/// before, at least 1.
pub fn remaining(schedule: Schedule, unknown: &Tensor, tokens: i64, (step, steps): (i64, i64)) -> Tensor {
    (unknown - 1).clamp_max(mask_len(schedule, tokens, step, steps)).clamp_min(1)
}

/// The noise temperature after step `step`, from that before it.
///
/// Kept from the original: it compounds, `Π (1 − j/T)`, where the schedule was meant to be `1 − k/T`.
pub fn cool(temperature: f64, step: i64, steps: i64) -> f64 {
    temperature * (1.0 - (step + 1) as f64 / steps as f64)
}

/// `tokens` with [`UNKNOWN`] where `hidden`.
pub fn hide(tokens: &Tensor, hidden: &Tensor) -> Tensor {
    tokens.full_like(UNKNOWN).where_self(hidden, tokens)
}

/// All places of images `codes [rows,N]`, in order.
pub fn all_places(codes: &Tensor) -> Tensor {
    let size = codes.size();
    Tensor::arange(size[1], (Kind::Int64, codes.device())).unsqueeze(0).expand(&size, false)
}

/// The first `count` places of each row `[rows,count]`, those where `wanted [rows,N]` before the others, in order.
pub fn places(wanted: &Tensor, count: i64) -> Tensor {
    wanted.to_kind(Kind::Uint8).argsort_stable(true, 1, true).narrow(1, 0, count)
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

/// One decoding step of `codes [B,N]` from `logits [B,m,K]` of their `places [B,m]`, all that are unknown and perhaps some
/// that are not. `draws` choose codes by the inverse of the cumulative distribution, `noise` blurs the order of confidence;
/// both are uniforms `[B,N]`.
pub fn step(
    schedule: Schedule,
    (logits, places): (&Tensor, &Tensor),
    codes: &Tensor,
    (at, steps): (i64, i64),
    temperature: f64,
    uniforms: &Tensor,
    noise: &Tensor,
) -> Step {
    let tokens = codes.size()[1];
    let probabilities = logits.softmax(-1, Kind::Float);
    let cumulative = probabilities.cumsum(-1, Kind::Float); // [B,m,K]
    let drawn = inverse_cdf(&cumulative, &uniforms.gather(1, places, false).unsqueeze(-1)); // [B,m,1]
    let confidence = probabilities.gather(-1, &drawn, false).squeeze_dim(-1);
    let unknown = codes.eq(UNKNOWN);
    let sampled = codes.scatter(1, places, &drawn.squeeze_dim(-1)).where_self(&unknown, codes);
    let known = Tensor::full_like(uniforms, f64::from(f32::MAX));
    let confidence = known.scatter(1, places, &confidence).where_self(&unknown, &known);

    let unknown_count = unknown.sum_dim_intlist([1i64].as_slice(), true, Kind::Int64); // [B,1]
    let masked_count = remaining(schedule, &unknown_count, tokens, (at, steps));

    let noisy = confidence.clamp_min(1e-20).log() + gumbel(noise) * temperature;
    let (ascending, _) = noisy.sort(-1, false);
    let cut = ascending.gather(1, &masked_count.clamp_max(tokens - 1), false); // [B,1]
    let masked = noisy.lt_tensor(&cut);
    let codes = sampled.full_like(UNKNOWN).where_self(&masked, &sampled);
    Step { sampled, confidence, noisy, cut: cut.squeeze_dim(1), masked, codes }
}

/// The random masking of training: `uniforms [B,N]`, and `t [B]` or `[1]` for one ratio for all. Exactly
/// `max(1, round(N·share(t)))` positions a row are true.
pub fn remask(schedule: Schedule, uniforms: &Tensor, t: &Tensor) -> Tensor {
    let tokens = uniforms.size()[1] as f64;
    let share = schedule.share(t).clamp_min(0.0);
    let count = (share * tokens).round().clamp_min(1.0).unsqueeze(-1); // [B,1]; ties to even
    uniforms.argsort(-1, false).to_kind(Kind::Float).lt_tensor(&count)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn the_schedule_ends_below_zero_and_falls_short_of_a_half() {
        assert_eq!(mask_len(Schedule::Cosine, 1024, 15, 16), -1); // cos(π/2) in f32 is just below 0
        assert_eq!(mask_len(Schedule::Cosine, 1024, 11, 18), 511); // cos(π/3) in f32 is just below 1/2
    }

    #[test]
    fn every_schedule_falls_from_one_to_nothing() {
        let ratio = Tensor::from_slice(&[0.0f32, 0.25, 0.5, 1.0]);
        for (name, expected) in [
            ("cosine", [1.0, 0.923_879_5, std::f64::consts::FRAC_1_SQRT_2, 0.0]),
            ("linear", [1.0, 0.75, 0.5, 1e-6]),
            ("pow2", [1.0, 0.9375, 0.75, 1e-6]),
            // σ(3) = 0.9525741, σ(−3) = 0.0474259; at a quarter (0.9525741 − 0.1824255) / 0.9051483
            ("sigmoid", [1.0, 0.850_853_6, 0.5, 1e-6]),
        ] {
            let share = Schedule::parse(name).unwrap().share(&ratio);
            for (at, expected) in expected.iter().enumerate() {
                let got = share.double_value(&[at as i64]);
                assert!((got - expected).abs() < 2e-6, "{name} at {at}: {got}, expected {expected}"); // f32
            }
        }
        assert!(Schedule::parse("cosin").unwrap_err().to_string().contains("did you mean `cosine`"));
        assert!(Schedule::parse("pow-1").is_err());
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
