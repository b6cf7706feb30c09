//! Classifier-free guidance: its conventions, its branches, and the prompts that pretraining drops for it.

use tch::{Device, Kind, Tensor};
use unirl::Result;

/// The share of prompts that pretraining drops, to train the unconditional branch.
const DROPPED_PROMPTS: f64 = 0.1;

/// A guidance weight `g` in one of the two published conventions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Guidance {
    /// `(1+g)·cond − g·uncond`, unguided at 0 (Show-o).
    BeyondConditional(f64),
    /// `uncond + g·(cond − uncond)`, unguided at 1 (Janus).
    FromUnconditional(f64),
}

impl Guidance {
    /// Whether the guided logits differ from the conditional ones.
    pub fn is_active(self) -> bool {
        match self {
            Self::BeyondConditional(weight) => weight > 0.0,
            Self::FromUnconditional(weight) => (weight - 1.0).abs() >= f64::EPSILON,
        }
    }

    /// The branches that guided generation computes.
    pub fn branches(self) -> Branches {
        if self.is_active() { Branches::Both } else { Branches::Conditional }
    }

    /// Guided logits `[…,K]`.
    pub fn combine(self, cond: &Tensor, uncond: &Tensor) -> Tensor {
        match self {
            Self::BeyondConditional(weight) => cond * (1.0 + weight) - uncond * weight,
            Self::FromUnconditional(weight) => uncond + weight * (cond - uncond),
        }
    }

    /// The logits to sample from, `[B,…]`, out of those of [`Self::branches`].
    pub fn combine_batch(self, logits: &Tensor) -> Tensor {
        if !self.is_active() {
            return logits.shallow_clone();
        }
        let branches = logits.chunk(2, 0);
        self.combine(&branches[0], &branches[1])
    }

    /// The logits of one branch, or the guided logits of both; `logits` computes those of one.
    pub fn combine_rows(self, branches: &[Tensor], logits: impl Fn(&Tensor) -> Tensor) -> Tensor {
        match branches {
            [cond, uncond] => self.combine(&logits(cond), &logits(uncond)),
            rows => logits(&rows[0]),
        }
    }
}

/// The branches in one pass through the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Branches {
    /// The rows of the prompts.
    Conditional,
    /// The same rows without their prompts.
    Unconditional,
    /// The conditional rows, followed by the unconditional ones.
    Both,
}

impl Branches {
    /// The conditions of all rows: those of the conditional branch, what `unconditional` makes of them, or both.
    pub fn conditions<T: Clone>(self, conditional: &[T], unconditional: impl Fn(&T) -> T) -> Vec<T> {
        let without = conditional.iter().map(unconditional);
        match self {
            Self::Conditional => conditional.to_vec(),
            Self::Unconditional => without.collect(),
            Self::Both => conditional.iter().cloned().chain(without).collect(),
        }
    }

    /// `rows [B,…]`, which all branches share, once for each branch.
    pub fn repeat(self, rows: &Tensor) -> Tensor {
        match self {
            Self::Both => Tensor::cat(&[rows, rows], 0),
            Self::Conditional | Self::Unconditional => rows.shallow_clone(),
        }
    }
}

/// Replaces a tenth of the tokenized `prompts` by what `unconditional` makes of them, for pretraining. The caller seeds libtorch;
/// the random numbers are those of `device`.
pub fn drop_prompts(
    prompts: &mut [Vec<i64>],
    device: Device,
    unconditional: impl Fn(&[i64]) -> Vec<i64>,
) -> Result<()> {
    let uniforms = Tensor::rand([prompts.len() as i64], (Kind::Float, device));
    let dropped = Vec::<bool>::try_from(uniforms.lt(DROPPED_PROMPTS))?;
    for (ids, _) in prompts.iter_mut().zip(dropped).filter(|(_, dropped)| *dropped) {
        *ids = unconditional(ids);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guidance_conventions_agree_one_apart() {
        let [cond, uncond] = [[0.5f32, -1.0, 2.0], [1.0, 0.25, -0.5]].map(|row| Tensor::from_slice(&row));
        let beyond = Guidance::BeyondConditional(4.0).combine(&cond, &uncond);
        let from = Guidance::FromUnconditional(5.0).combine(&cond, &uncond);
        let off = (beyond - from).abs().max().double_value(&[]);
        assert!(off < 1e-5, "{off}"); // f32, values up to 12
        assert!(!Guidance::BeyondConditional(0.0).is_active());
        assert!(!Guidance::FromUnconditional(1.0).is_active());
    }
}
