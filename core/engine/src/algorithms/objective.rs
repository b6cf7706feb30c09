//! The mathematics of the objectives, independent of the model family: weights, reductions, KL, straight-through
//! Gumbel-softmax.
//!
//! Shapes: `B = P·G` samples, the `G` samples of a prompt in consecutive rows; `N` image tokens, `K` codes, `T` answer tokens.
//!
//! Reductions: [`mean_per_sequence`] averages over the tokens of each sequence, for the policy terms; [`mean_per_token`]
//! averages over all tokens of a batch, for the KL terms and for the loss of `sft`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

/// Log-ratios are clamped to `±LOG_RATIO_LIMIT` before they are exponentiated.
pub const LOG_RATIO_LIMIT: f64 = 20.0;

/// Added to the standard deviation, so that the advantages of a zero-variance group are 0 and not 0/0.
const STD_FLOOR: f64 = 1e-4;

/// Log-probabilities are at least this where their inverse is taken; exp(60) is finite in f32.
const LOGP_FLOOR: f64 = -60.0;

/// How the rewards of a group become the weights of its samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// The paper's softmax of the rewards over a temperature (eq. 5). All weights are positive, so a bad sample is also
    /// reinforced, only less; centering the rewards has no effect.
    Softmax,
    /// The advantage of standard GRPO (eq. 2): (reward − mean) / standard deviation. Bad samples have negative weights; a
    /// zero-variance group has no gradient.
    Advantage,
    /// The reward itself: samples with reward 0 count nothing, and no weight is negative (reward-weighted regression; with rewards
    /// of 0 and 1, rejection sampling).
    Reward,
}

impl Weighting {
    /// Returns f32 weights `[B]` from rewards `[B]`, per group. `temperature` is the `τ` of the softmax; advantages ignore it.
    ///
    /// For `Advantage` the weights are `A/G`, the advantages of eq. 2 divided by `G`. Softmax weights add up to 1 in a
    /// group. So for both, the policy term is `Σ_i w_i · log p_i`, averaged over the groups.
    pub fn weights(self, rewards: &Tensor, group: i64, temperature: f64) -> Tensor {
        let rewards = rewards.to_kind(Kind::Float).view([-1, group]); // [P,G]
        let centered = &rewards - rewards.mean_dim(1, true, Kind::Float);
        match self {
            Weighting::Softmax => (centered / temperature).softmax(1, Kind::Float),
            Weighting::Advantage => {
                let std = centered.square().mean_dim(1, true, Kind::Float).sqrt();
                centered / (std + STD_FLOOR) / group as f64
            }
            Weighting::Reward => rewards / group as f64,
        }
        .view([-1])
    }
}

/// Returns the mean of `values [B,T]` over the true positions of `mask`, per row: `[B]`; 0 for a row without any.
pub fn mean_per_sequence(values: &Tensor, mask: &Tensor) -> Tensor {
    let mask = mask.to_kind(Kind::Float);
    (values * &mask).sum_dim_intlist([-1i64].as_slice(), false, Kind::Float)
        / mask.sum_dim_intlist([-1i64].as_slice(), false, Kind::Float).clamp_min(1.0)
}

/// Returns the mean of `values` over all true positions of `mask`: a scalar.
pub fn mean_per_token(values: &Tensor, mask: &Tensor) -> Tensor {
    let mask = mask.to_kind(Kind::Float);
    (values * &mask).sum(Kind::Float) / mask.sum(Kind::Float).clamp_min(1.0)
}

/// Returns the number of true positions of `mask`, at least 1.
pub fn token_count(mask: &Tensor) -> f64 {
    mask.to_kind(Kind::Float).sum(Kind::Float).double_value(&[]).max(1.0)
}

/// Returns `−Σ_i w_i · (mean of log p over the tokens of i)`, averaged over the groups (eq. 5, A.3): a scalar.
pub fn weighted_loss(logp: &Tensor, mask: &Tensor, weights: &Tensor, group: i64) -> Tensor {
    let groups = weights.size()[0] as f64 / group as f64;
    -(mean_per_sequence(logp, mask) * weights).sum(Kind::Float) / groups
}

/// Returns the k3 estimate of `KL(policy ‖ reference)` per token, `exp(d) − d − 1` with `d = log p_ref − log p`, and a mask
/// of the tokens where `d` was clamped to ±[`LOG_RATIO_LIMIT`]. Both have the shape of the input.
pub fn k3(logp: &Tensor, reference: &Tensor) -> (Tensor, Tensor) {
    let d = reference - logp;
    let clamped = d.abs().gt(LOG_RATIO_LIMIT);
    let d = d.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT);
    (d.exp() - &d - 1.0, clamped)
}

/// The straight-through Gumbel-softmax of `logits [B,N,K]` with given `noise` (eqs. 7 and 8): one-hot in the forward pass,
/// with the gradient of `softmax((logits + noise)/τ)` in the backward pass.
pub fn straight_through(logits: &Tensor, noise: &Tensor, temperature: f64) -> Tensor {
    let soft = ((logits + noise) / temperature).softmax(-1, Kind::Float); // [B,N,K]
    let hard = soft.zeros_like().scatter_value(-1, &soft.argmax(-1, true), 1.0);
    hard - soft.detach() + soft
}

/// The straight-through Gumbel-softmax of `logits [B,N,K]` that keeps the sampled `tokens [B,N]`: their one-hot in the forward
/// pass, with the gradient of `softmax((logits + g)/τ)`, where the Gumbel noise `g` is one that makes the tokens the largest.
///
/// With `E` independent samples of the exponential distribution `[B,N,K]`, `Z = Σ_j exp(logits_j)` and `k` the token,
///
/// ```text
/// logits_k + g_k = ln Z − ln E_k                                  (the maximum)
/// logits_j + g_j = −ln(E_j / exp(logits_j) + E_k / Z)             (below it)
/// ```
pub fn straight_through_of(
    logits: &Tensor,
    tokens: &Tensor,
    exponential: &Tensor,
    temperature: f64,
) -> Tensor {
    let tokens = tokens.unsqueeze(-1);
    let noise = tch::no_grad(|| {
        let logp = logits.log_softmax(-1, Kind::Float).clamp_min(LOGP_FLOOR); // Z = 1
        let of_token = exponential.gather(-1, &tokens, false);
        let below = -(exponential * (-&logp).exp() + &of_token).log();
        below.scatter(-1, &tokens, &-of_token.log()) - logp
    });
    let soft = ((logits + noise) / temperature).softmax(-1, Kind::Float);
    let hard = soft.detach().zeros_like().scatter_value_(-1, &tokens, 1.0);
    hard - soft.detach() + soft
}

/// Fills the masked tokens (eq. 3): returns `sampled [B,N,K]` at the targets and the one-hot of `tokens [B,N]` elsewhere,
/// and the hard tokens `[B,N]` of the result.
pub fn fill_masked(sampled: &Tensor, tokens: &Tensor, targets: &Tensor) -> (Tensor, Tensor) {
    let known = sampled.detach().zeros_like().scatter_value_(-1, &tokens.unsqueeze(-1), 1.0);
    let relaxed = sampled.where_self(&targets.unsqueeze(-1), &known);
    let hard = relaxed.detach().argmax(-1, false);
    (relaxed, hard)
}

#[cfg(test)]
mod tests {
    use unirl::sampling::gather_logp;

    use super::*;

    fn values(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor.to_kind(Kind::Double).view([-1])).unwrap()
    }

    /// f32 arithmetic on a handful of numbers near 1.
    const F32: f64 = 2e-6;

    #[track_caller]
    fn close(tensor: &Tensor, expected: &[f64], tolerance: f64) {
        let got = values(tensor);
        assert_eq!(got.len(), expected.len());
        for (g, e) in got.iter().zip(expected) {
            assert!((g - e).abs() <= tolerance, "got {got:?}, expected {expected:?}");
        }
    }

    #[test]
    fn softmax_weights_match_reference_values() {
        let rewards = Tensor::from_slice(&[0.0f32, 1.0, 2.0, 1.0, 1.0, 1.0]);
        let weights = Weighting::Softmax.weights(&rewards, 3, 0.5);
        close(&weights, &[0.015_876_2, 0.117_310_4, 0.866_813_3, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0], F32);
    }

    #[test]
    fn softmax_weights_ignore_a_constant_offset() {
        let rewards = Tensor::from_slice(&[0.0f32, 1.0, 2.0]);
        let shifted = &rewards + 7.0;
        close(
            &Weighting::Softmax.weights(&shifted, 3, 1.0),
            &values(&Weighting::Softmax.weights(&rewards, 3, 1.0)),
            F32,
        );
    }

    #[test]
    fn advantages_are_negative_for_bad_samples_and_zero_for_equal_rewards() {
        // Mean 1, population standard deviation sqrt(2/3), plus the 1e-4 floor: advantages ∓1.2247, divided by G = 3.
        let rewards = Tensor::from_slice(&[0.0f32, 1.0, 2.0, 4.0, 4.0, 4.0]);
        let expected = 1.0 / (f64::sqrt(2.0 / 3.0) + 1e-4) / 3.0;
        close(
            &Weighting::Advantage.weights(&rewards, 3, 1.0),
            &[-expected, 0.0, expected, 0.0, 0.0, 0.0],
            F32,
        );
    }

    #[test]
    fn weighted_loss_averages_weighted_sequence_means_over_groups() {
        let logp = Tensor::from_slice(&[-1.0f32, -3.0, -2.0, 0.0]).view([2, 2]);
        let mask = Tensor::from_slice(&[true, true, true, false]).view([2, 2]);
        let weights = Tensor::from_slice(&[0.25f32, 0.75]);
        // −(0.25·(−2) + 0.75·(−2)) for one group of two; half of that for two groups of one.
        close(&weighted_loss(&logp, &mask, &weights, 2), &[2.0], F32);
        close(&weighted_loss(&logp, &mask, &weights, 1), &[1.0], F32);
    }

    #[test]
    fn policy_gradient_raises_samples_with_positive_advantage() {
        let logits = Tensor::zeros([2, 1, 2], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        let tokens = Tensor::from_slice(&[0i64, 0]).view([2, 1]);
        let mask = Tensor::from_slice(&[true, true]).view([2, 1]);
        let weights = Weighting::Advantage.weights(&Tensor::from_slice(&[1.0f32, 0.0]), 2, 1.0);
        weighted_loss(&gather_logp(&logits, &tokens), &mask, &weights, 2).backward();
        let gradient = values(&logits.grad());
        assert!(
            gradient[0] < 0.0 && gradient[2] > 0.0,
            "descent raises the first, lowers the second: {gradient:?}"
        );
    }

    #[test]
    fn k3_matches_numbers_by_hand_and_clamps() {
        let (value, clamped) =
            k3(&Tensor::from_slice(&[-1.0f32, -1.0, -60.0]), &Tensor::from_slice(&[-1.0f32, -1.5, -1.0]));
        let expected = f64::exp(-0.5) + 0.5 - 1.0;
        close(&value.narrow(0, 0, 2), &[0.0, expected], F32);
        assert!(value.double_value(&[2]).is_finite());
        assert_eq!(Vec::<bool>::try_from(clamped).unwrap(), [false, false, true]);
    }

    #[test]
    fn straight_through_is_hard_forward_and_soft_backward() {
        let logits = Tensor::from_slice(&[1.0f32, 0.0]).view([1, 1, 2]).set_requires_grad(true);
        let sampled = straight_through(&logits, &logits.zeros_like(), 1.0);
        close(&sampled, &[1.0, 0.0], F32);
        sampled.select(2, 0).sum(Kind::Float).backward();
        let p = 1.0 / (1.0 + f64::exp(-1.0)); // d softmax_0 / d logit_0 = p(1−p)
        close(&logits.grad(), &[p * (1.0 - p), -p * (1.0 - p)], F32);
    }

    #[test]
    fn fill_masked_keeps_known_tokens_without_gradient() {
        let logits = Tensor::zeros([1, 2, 3], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
        let noise = Tensor::from_slice(&[0.0f32, 5.0, 0.0, 0.0, 5.0, 0.0]).view([1, 2, 3]);
        let tokens = Tensor::from_slice(&[2i64, 2]).view([1, 2]);
        let targets = Tensor::from_slice(&[true, false]).view([1, 2]);
        let (relaxed, hard) = fill_masked(&straight_through(&logits, &noise, 1.0), &tokens, &targets);
        assert_eq!(Vec::<i64>::try_from(hard.view([-1])).unwrap(), [1, 2]);
        relaxed.select(2, 1).sum(Kind::Float).backward();
        let gradient = values(&logits.grad());
        assert!(gradient[1] > 0.0 && gradient[3..].iter().all(|g| *g == 0.0), "{gradient:?}");
    }

    #[test]
    fn reward_weights_are_the_rewards() {
        let rewards = Tensor::from_slice(&[0.0f32, 0.5, 1.0, 0.25]);
        close(&Weighting::Reward.weights(&rewards, 2, 1.0), &[0.0, 0.25, 0.5, 0.125], F32);
    }

    /// With probabilities ¼ and ¾, token 0, E = (ln 2, ln 3) and τ = 1: the perturbed logits are −ln ln 2 and
    /// −ln((4/3) ln 3 + ln 2), so that soft₀ : soft₁ = (4/3) ln 3 + ln 2 : ln 2. The gradient of soft₀ is ±soft₀ · soft₁.
    #[test]
    fn straight_through_of_matches_numbers_by_hand() {
        let logits = Tensor::from_slice(&[1f32, 3.0]).log().view([1, 1, 2]).set_requires_grad(true);
        let tokens = Tensor::from_slice(&[0i64]).view([1, 1]);
        let (e0, e1) = (f64::ln(2.0), f64::ln(3.0));
        let exponential = Tensor::from_slice(&[e0 as f32, e1 as f32]).view([1, 1, 2]);
        let sampled = straight_through_of(&logits, &tokens, &exponential, 1.0);
        close(&sampled, &[1.0, 0.0], F32);
        sampled.select(2, 0).sum(Kind::Float).backward();
        let below = e1 / 0.75 + e0;
        let change = below * e0 / (below + e0).powi(2);
        close(&logits.grad(), &[change, -change], F32);
    }

    /// Noise that is conditioned on tokens sampled from the softmax is Gumbel noise: both give the same mean gradient. The standard
    /// error over 40,000 samples is below .001.
    #[test]
    fn conditioned_noise_is_gumbel_noise() {
        tch::manual_seed(5);
        let logits = Tensor::from_slice(&[0.0f32, 1.0, -1.5]).expand([40_000, 1, 3], true);
        let exponential = || -logits.rand_like().clamp(1e-30, 1.0).log();
        let tokens = (&logits - exponential().log()).argmax(-1, false);
        let gradient = |sampled: &dyn Fn(&Tensor) -> Tensor| {
            let leaf = logits.copy().set_requires_grad(true);
            sampled(&leaf).select(2, 1).mean(Kind::Float).backward();
            values(&leaf.grad().sum_dim_intlist([0i64].as_slice(), false, Kind::Float))
        };
        let of_tokens = exponential();
        let conditioned = gradient(&|leaf| {
            let sampled = straight_through_of(leaf, &tokens, &of_tokens, 1.0);
            assert!(sampled.argmax(-1, false).equal(&tokens), "the tokens stay");
            sampled
        });
        let gumbel = -exponential().log();
        let fresh = gradient(&|leaf| straight_through(leaf, &gumbel, 1.0));
        for (conditioned, fresh) in conditioned.iter().zip(&fresh) {
            assert!((conditioned - fresh).abs() < 0.005 && fresh.abs() > 0.02, "{conditioned} {fresh}");
        }
    }
}
