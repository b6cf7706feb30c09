//! The straight-through Gumbel-softmax (§3.3, eqs. 3, 7 and 8): generated images are fed back with a gradient at their tokens.

use std::time::Instant;

use tch::{Kind, Tensor};
use unirl::error::Result;
use unirl::model::{ImageLogits, Images, Masking, ModelCard, Policy, Scoring};
use unirl::sampling::gumbel;

use super::image_term::{MaskingKind, states};
use super::objective;
use super::rollout::{MicroBatch, Stream};
use super::{Iteration, Rollout};

/// How generated images are fed back, and at which of their tokens the gradient of an answer arrives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StraightThrough {
    /// `τ` of the Gumbel-softmax (eq. 7).
    pub temperature: f64,
    /// The states in which images are fed back. With `Remask` the masked tokens are sampled again (eq. 3); with `Reveal` every
    /// token stays, and its Gumbel noise is conditioned on it.
    pub replay: MaskingKind,
    /// For `Reveal`: the number of decoding steps, chosen at random; 0 for all.
    pub reveal_steps: i64,
    /// For `Reveal`: the distribution from which tokens were sampled.
    pub scoring: Scoring,
}

impl StraightThrough {
    /// Feeds the generated images of a micro-batch back. Returns them as relaxed one-hot tokens `[b,N,K]` that carry gradient, and
    /// the logits that they are sampled from.
    pub fn complete(
        self,
        iteration: &Iteration<'_>,
        generated: &Images,
        micro: MicroBatch,
    ) -> Result<(Images, ImageLogits)> {
        let images = generated.narrow(micro.first, micro.len);
        let masking = self.masking(iteration, micro);
        let prompts = &iteration.prompts()[micro.rows()];
        let logits = iteration.model.image_logits(prompts, &images, Policy::Current, &masking)?;
        let uniform = uniform_like(&logits.logits, iteration.stream(Stream::Gumbel), micro); // [b,N,K]
        let sampled = match self.replay {
            MaskingKind::Remask => {
                objective::straight_through(&logits.logits, &gumbel(&uniform), self.temperature)
            }
            MaskingKind::Reveal => {
                let exponential = -uniform.clamp_min(f64::from(f32::MIN_POSITIVE)).log();
                objective::straight_through_of(&logits.logits, &images.tokens, &exponential, self.temperature)
            }
        };
        let (relaxed, tokens) = objective::fill_masked(&sampled, &images.tokens, &logits.targets);
        Ok((Images { relaxed: Some(relaxed), ..Images::from_tokens(tokens) }, logits))
    }

    /// The states of the images of a micro-batch.
    pub(super) fn masking(self, iteration: &Iteration<'_>, micro: MicroBatch) -> Masking {
        match self.replay {
            MaskingKind::Remask => Masking::remask(iteration.stream(Stream::Masking), micro.slice()),
            MaskingKind::Reveal => Masking::Reveal {
                steps: iteration.reveal_steps(self.reveal_steps),
                scoring: self.scoring,
                guidance: iteration.rollout.images.guidance,
            },
        }
    }

    /// Returns the tokens of a micro-batch as they are fed back, without gradient.
    pub(super) fn tokens(
        self,
        iteration: &Iteration<'_>,
        generated: &Images,
        micro: MicroBatch,
    ) -> Result<Images> {
        match self.replay {
            MaskingKind::Reveal => Ok(generated.narrow(micro.first, micro.len)),
            MaskingKind::Remask => {
                let (completed, _) = tch::no_grad(|| self.complete(iteration, generated, micro))?;
                Ok(Images::from_tokens(completed.tokens))
            }
        }
    }

    /// Completes all generated images. The gradient is kept only if there is a single micro-batch; otherwise each micro-batch is
    /// completed again, with the same noise, when its gradient is computed.
    pub(super) fn complete_all(self, iteration: &mut Iteration<'_>, generated: &Images) -> Result<Images> {
        let [all] = iteration.micro_batches()[..] else { return self.tokens_of_all(iteration, generated) };
        let started = Instant::now();
        let (completed, _) = self.complete(iteration, generated, all)?;
        iteration.phases.update += started.elapsed();
        Ok(completed)
    }

    /// Returns the tokens of all images as they are fed back, without gradient.
    pub(super) fn tokens_of_all(self, iteration: &mut Iteration<'_>, generated: &Images) -> Result<Images> {
        let started = Instant::now();
        let micro_batches = iteration.micro_batches().into_iter();
        let tokens = micro_batches.map(|micro| self.tokens(iteration, generated, micro));
        let completed = Images::cat(tokens.collect::<Result<_>>()?);
        iteration.phases.update += started.elapsed();
        Ok(completed)
    }

    /// The number of states of an image that are fed back together. Each branch of guidance counts.
    pub(crate) fn states(self, rollout: &Rollout, card: &ModelCard) -> i64 {
        match self.replay {
            MaskingKind::Remask => 1,
            MaskingKind::Reveal => states(self.replay, self.reveal_steps, self.scoring, rollout, card),
        }
    }
}

/// A scalar whose gradient with respect to the relaxed tokens of `images` is `gradient [b,N,K]`.
pub(super) fn through(images: &Images, gradient: &Tensor) -> Tensor {
    let relaxed = images.relaxed.as_ref().map(Tensor::shallow_clone).unwrap_or_default();
    (relaxed * gradient).sum(Kind::Float)
}

/// Uniform noise in `0..1`, `[b,N,K]` like `logits`. It is sampled per image from the start of the batch, so that micro-batches do
/// not change the noise of an image.
fn uniform_like(logits: &Tensor, seed: u64, micro: MicroBatch) -> Tensor {
    tch::manual_seed(seed as i64);
    let first = logits.get(0).detach(); // [N,K]
    let noise: Vec<Tensor> = (0..micro.first + micro.len)
        .map(|_| first.rand_like())
        .enumerate()
        .filter(|(row, _)| *row >= micro.rows().start)
        .map(|(_, noise)| noise)
        .collect();
    Tensor::stack(&noise, 0)
}
