//! `MaskGIT`: parallel decoding in a few steps, and the random masking of its training. The caller passes all random
//! numbers in.

use tch::{Kind, Tensor};
use unirl::Result;
use unirl::error::unknown_name;
use unirl::sampling::{gumbel, inverse_cdf};

/// Marks a masked image token.
pub const UNKNOWN: i64 = -1;

/// The mask schedule: how the share of masked tokens falls from 1 to 0.
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
    /// Parses `cosine`, `linear`, `sigmoid`, or `pow` followed by an exponent.
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

    /// The share of masked tokens at `ratio` of the way, in f32 as in the original: the cosine ends just below 0.
    pub fn mask_ratio(self, ratio: &Tensor) -> Tensor {
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

/// The scheduled number of masked tokens, out of `tokens`, after step `step` of `steps`.
///
/// Kept from the original: it counts all tokens even if some are given, and computes in f32, where the cosine ends below 0 and
/// misses a half.
pub fn mask_len(schedule: Schedule, tokens: i64, step: i64, steps: i64) -> i64 {
    let share = schedule.mask_ratio(&Tensor::from_slice(&[(step + 1) as f32 / steps as f32]));
    (tokens as f32 * share.double_value(&[0]) as f32).floor() as i64
}

/// How many of `unknown [B,1]` tokens stay masked after `step` of `steps`: as scheduled, but fewer than before and at
/// least 1.
pub fn masked_count(schedule: Schedule, unknown: &Tensor, tokens: i64, (step, steps): (i64, i64)) -> Tensor {
    (unknown - 1).clamp_max(mask_len(schedule, tokens, step, steps)).clamp_min(1)
}

/// The noise temperature after step `step`, given the previous one.
///
/// Kept from the original: the factors compound to `Π (1 − j/T)` instead of the intended `1 − k/T`.
pub fn anneal(temperature: f64, step: i64, steps: i64) -> f64 {
    temperature * (1.0 - (step + 1) as f64 / steps as f64)
}

/// `tokens` with [`UNKNOWN`] where `masked`.
pub fn mask_tokens(tokens: &Tensor, masked: &Tensor) -> Tensor {
    tokens.full_like(UNKNOWN).where_self(masked, tokens)
}

/// All token positions of images `codes [rows,N]`: `[rows,N]`.
pub fn all_positions(codes: &Tensor) -> Tensor {
    let size = codes.size();
    Tensor::arange(size[1], (Kind::Int64, codes.device())).unsqueeze(0).expand(&size, false)
}

/// `count` token positions per row, `[rows,count]`: those selected by `selected [rows,N]` in order, then others.
pub fn first_positions(selected: &Tensor, count: i64) -> Tensor {
    selected.to_kind(Kind::Uint8).argsort_stable(true, 1, true).narrow(1, 0, count)
}

/// The result of one decoding step: `[B,N]` each, except `cutoff [B]`.
#[derive(Debug)]
pub struct Step {
    /// The known codes, and sampled ones elsewhere.
    pub sampled: Tensor,
    /// The probability of the sampled code; the largest float where the code was known.
    pub confidence: Tensor,
    /// Log-confidence with noise.
    pub noisy: Tensor,
    /// The noisy log-confidence below which a token is masked again.
    pub cutoff: Tensor,
    /// Which tokens are masked again.
    pub masked: Tensor,
    /// The codes after the step, [`UNKNOWN`] where masked.
    pub codes: Tensor,
}

/// One decoding step of `codes [B,N]`, given `logits [B,m,K]` at `positions [B,m]`, which include every unknown one.
/// `uniforms` sample the codes by inverting the cumulative distribution, `noise` perturbs the order of confidence; both are
/// uniform in `0..1`, `[B,N]`.
pub fn step(
    schedule: Schedule,
    (logits, positions): (&Tensor, &Tensor),
    codes: &Tensor,
    (step, steps): (i64, i64),
    temperature: f64,
    uniforms: &Tensor,
    noise: &Tensor,
) -> Step {
    let tokens = codes.size()[1];
    let probabilities = logits.softmax(-1, Kind::Float);
    let cumulative = probabilities.cumsum(-1, Kind::Float); // [B,m,K]
    let sampled_codes = inverse_cdf(&cumulative, &uniforms.gather(1, positions, false).unsqueeze(-1)); // [B,m,1]
    let confidence = probabilities.gather(-1, &sampled_codes, false).squeeze_dim(-1);
    let unknown = codes.eq(UNKNOWN);
    let sampled = codes.scatter(1, positions, &sampled_codes.squeeze_dim(-1)).where_self(&unknown, codes);
    let known = Tensor::full_like(uniforms, f64::from(f32::MAX));
    let confidence = known.scatter(1, positions, &confidence).where_self(&unknown, &known);

    let unknown_count = unknown.sum_dim_intlist([1i64].as_slice(), true, Kind::Int64); // [B,1]
    let count = masked_count(schedule, &unknown_count, tokens, (step, steps));

    let noisy = confidence.clamp_min(1e-20).log() + gumbel(noise) * temperature;
    let (ascending, _) = noisy.sort(-1, false);
    let cutoff = ascending.gather(1, &count.clamp_max(tokens - 1), false); // [B,1]
    let masked = noisy.lt_tensor(&cutoff);
    let codes = sampled.full_like(UNKNOWN).where_self(&masked, &sampled);
    Step { sampled, confidence, noisy, cutoff: cutoff.squeeze_dim(1), masked, codes }
}

/// The random mask of training, from `uniforms [B,N]` and `t [B]`, or `[1]` for the same ratio in every row. Exactly
/// `max(1, round(N·mask_ratio(t)))` positions per row are true.
pub fn remask(schedule: Schedule, uniforms: &Tensor, t: &Tensor) -> Tensor {
    let tokens = uniforms.size()[1] as f64;
    let share = schedule.mask_ratio(t).clamp_min(0.0);
    let count = (share * tokens).round().clamp_min(1.0).unsqueeze(-1); // [B,1]; ties to even
    uniforms.argsort(-1, false).to_kind(Kind::Float).lt_tensor(&count)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    #[test]
    fn mask_schedule_cosine_rounds_down_in_f32() {
        assert_eq!(mask_len(Schedule::Cosine, 1024, 15, 16), -1); // cos(π/2) in f32 is just below 0
        assert_eq!(mask_len(Schedule::Cosine, 1024, 11, 18), 511); // cos(π/3) in f32 is just below 1/2
    }

    #[test]
    fn mask_schedules_fall_from_one_to_zero() {
        let ratio = Tensor::from_slice(&[0.0f32, 0.25, 0.5, 1.0]);
        for (name, expected) in [
            ("cosine", [1.0, 0.923_879_5, std::f64::consts::FRAC_1_SQRT_2, 0.0]),
            ("linear", [1.0, 0.75, 0.5, 1e-6]),
            ("pow2", [1.0, 0.9375, 0.75, 1e-6]),
            // σ(3) = 0.9525741, σ(−3) = 0.0474259; at a quarter (0.9525741 − 0.1824255) / 0.9051483
            ("sigmoid", [1.0, 0.850_853_6, 0.5, 1e-6]),
        ] {
            let share = Schedule::parse(name).unwrap().mask_ratio(&ratio);
            for (at, expected) in expected.iter().enumerate() {
                let got = share.double_value(&[at as i64]);
                assert!((got - expected).abs() < 2e-6, "{name} at {at}: {got}, expected {expected}"); // f32
            }
        }
        assert!(Schedule::parse("cosin").unwrap_err().to_string().contains("did you mean `cosine`"));
        assert!(Schedule::parse("pow-1").is_err());
    }

    #[test]
    fn noise_temperature_compounds_over_steps() {
        let temperature = (0..16).scan(1.0, |t, k| {
            *t = anneal(*t, k, 16);
            Some(*t)
        });
        let expected = [0.9375, 0.820_312_5, 0.666_504];
        for (got, expected) in temperature.zip(expected) {
            assert!((got - expected).abs() < 1e-6); // the digits given above
        }
    }
}
