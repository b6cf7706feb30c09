//! The reward-weighted log-likelihood of generated image tokens (A.3): the generation objective of `grpo-split`, and an
//! addition to `grpo`.
//!
//! ```text
//! L = coefficient · [ −(1/P) Σ_p Σ_i w_i · (1/|u_i|) Σ_n log π_θ(u_in | prompt) + beta · KL(π_θ ‖ π_ref) ]
//! ```
//!
//! where `u_in` are the target tokens. The KL is the k3 estimate, a mean over all target tokens.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;
use unirl::error::Result;
use unirl::model::{ImageDecoding, Images, Masking, ModelCard, Policy, Scoring, TokenLogp};

use super::metrics::add;
use super::rollout::{MicroBatch, Stream};
use super::{Iteration, Rollout, backward, objective};

/// How the log-likelihood of a generated image is measured and weighted: the generation objective of `grpo-split`, and an
/// addition to `grpo`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImageTerm {
    /// Weight of the term in the loss; 0 disables it.
    #[schemars(range(min = 0.0))]
    pub coefficient: f64,
    /// The tokens that are scored. `remask`: those masked by a random re-masking, as in the paper; `reveal`: every token in
    /// the state in which it was sampled.
    pub replay: MaskingKind,
    /// For `replay = "reveal"`: the number of randomly chosen decoding steps to score in a step; 0 scores all.
    #[schemars(range(min = 0))]
    pub reveal_steps: i64,
    /// The distribution that scores the tokens: `conditional`, `guided` or `guided-detached`.
    pub scoring: Scoring,
    /// Weight of the KL of the image tokens to the reference policy; 0 disables it.
    #[schemars(range(min = 0.0))]
    pub beta: f64,
}

/// The states in which image tokens are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum MaskingKind {
    /// [`Masking::Remask`].
    Remask,
    /// [`Masking::Reveal`].
    Reveal,
}

/// The number of states of an image that are scored together. Each branch of guidance counts.
pub(super) fn states(
    replay: MaskingKind,
    reveal_steps: i64,
    scoring: Scoring,
    rollout: &Rollout,
    card: &ModelCard,
) -> i64 {
    let branches = if scoring == Scoring::Conditional { 1 } else { 2 };
    let steps = match (replay, card.image_decoding) {
        (MaskingKind::Reveal, ImageDecoding::Masked) if reveal_steps > 0 => {
            reveal_steps.min(rollout.images.steps)
        }
        (MaskingKind::Reveal, ImageDecoding::Masked) => rollout.images.steps,
        _ => 1,
    };
    steps * branches
}

impl Default for ImageTerm {
    fn default() -> Self {
        Self {
            coefficient: 0.0,
            replay: MaskingKind::Remask,
            reveal_steps: 0,
            scoring: Scoring::Conditional,
            beta: 0.0,
        }
    }
}

impl ImageTerm {
    /// Adds the gradients of the term, micro-batch by micro-batch. Every image has the same number of targets.
    pub fn accumulate(
        &self,
        iteration: &Iteration<'_>,
        images: &Images,
        weights: &Tensor,
        metrics: &mut BTreeMap<&'static str, f64>,
    ) -> Result<()> {
        let prompts = iteration.prompts();
        for micro in iteration.micro_batches() {
            let masking = self.masking(iteration, micro);
            let prompts = &prompts[micro.rows()];
            let images = images.narrow(micro.first, micro.len);
            let weights = weights.narrow(0, micro.first, micro.len);
            let model = &*iteration.model;
            let TokenLogp { logp, mask: targets } =
                model.image_logp(prompts, &images, Policy::Current, &masking)?; // [b,N]
            let policy =
                objective::weighted_loss(&logp, &targets, &weights, iteration.group()) * micro.share();
            add(metrics, "loss/image", &policy);
            let mut loss = policy;
            if self.beta > 0.0 {
                let reference =
                    tch::no_grad(|| model.image_logp(prompts, &images, Policy::Reference, &masking))?;
                let (k3, clamped) = objective::k3(&logp, &reference.logp); // [b,N]
                let kl = objective::mean_per_token(&k3, &targets);
                let clamped = objective::mean_per_token(&clamped, &targets);
                add(metrics, "kl/image", &(&kl * micro.share()));
                add(metrics, "kl/image_clamped", &(clamped * micro.share()));
                loss += kl * (self.beta * micro.share());
            }
            backward(&(loss * self.coefficient), "loss/image")?;
        }
        Ok(())
    }

    /// Returns the number of states of an image that are scored together. Each branch of guidance counts.
    pub(crate) fn states(&self, rollout: &Rollout, card: &ModelCard) -> i64 {
        states(self.replay, self.reveal_steps, self.scoring, rollout, card)
    }

    fn masking(&self, iteration: &Iteration<'_>, micro: MicroBatch) -> Masking {
        let (scoring, guidance) = (self.scoring, iteration.rollout.images.guidance);
        match self.replay {
            MaskingKind::Remask => {
                let (seed, part) = (iteration.stream(Stream::Masking), micro.slice());
                Masking::Remask { seed, part, scoring, guidance }
            }
            MaskingKind::Reveal => {
                Masking::Reveal { steps: iteration.reveal_steps(self.reveal_steps), scoring, guidance }
            }
        }
    }
}
