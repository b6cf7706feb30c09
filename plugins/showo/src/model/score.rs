//! Scoring: drawings fed back in the states that a replay names, for the logits and the probabilities of their tokens.

use std::collections::BTreeSet;

use tch::{Kind, Tensor};
use unirl::model::{BatchSlice, Images, Masking, Policy, Scoring};
use unirl::{Error, Result};
use unirl_layers::{Linear, language};

use super::Showo;
use super::generate::{TextBlocks, with_empty};
use crate::maskgit;
use crate::phi::Phi;

/// The share of images whose prompt is dropped in pretraining, from which guidance learns its other branch.
const DROPPED_PROMPTS: f64 = 0.1;

/// The rows that predict tokens of a batch of images.
pub struct Scored {
    /// `[T,D]`: conditional, and unconditional ones if there is guidance.
    branches: Vec<Tensor>,
    /// `[T]`: which tokens, of all `B·N`.
    tokens: Tensor,
    guidance: f64,
}

impl Scored {
    /// The logits of rows of both branches.
    fn mixed(head: &Linear, branches: &[Tensor], guidance: f64) -> Tensor {
        let logits = |rows: &Tensor| head.apply(rows).to_kind(Kind::Float);
        match branches {
            [cond, uncond] => maskgit::guided(&logits(cond), &logits(uncond), guidance),
            rows => logits(&rows[0]),
        }
    }

    /// `[B,N,K]`, for images of `size [B,N]`; what was not scored means nothing.
    pub fn logits(&self, phi: &Phi, size: &[i64]) -> Tensor {
        let everywhere = |rows: &Tensor| {
            let blank = Tensor::zeros([size[0] * size[1], rows.size()[1]], (rows.kind(), rows.device()));
            blank.index_copy(0, &self.tokens, rows).view([size[0], size[1], -1])
        };
        let branches: Vec<Tensor> = self.branches.iter().map(everywhere).collect();
        Self::mixed(&phi.code_head(), &branches, self.guidance)
    }

    /// Log-probabilities of image `tokens [B,N]`: 0 where nothing was scored.
    pub fn logp(&self, phi: &Phi, tokens: &Tensor) -> Result<Tensor> {
        let targets = tokens.view([-1]).index_select(0, &self.tokens);
        let (head, guidance) = (phi.code_head(), self.guidance);
        let codes = head.weight.size()[0];
        let logp = language::logp(&self.branches, &targets, codes, move |branches| {
            Self::mixed(&head, branches, guidance)
        })?;
        let blank = Tensor::zeros([tokens.numel() as i64], (Kind::Float, tokens.device()));
        Ok(blank.index_copy(0, &self.tokens, &logp).view_as(tokens))
    }
}

impl Showo {
    /// What predicts the `targets [B,N]` of images, by the distribution that is to be scored. `states [S·B,N]` are `S` states of
    /// each image, and `wanted [S·B,N]` says which targets each is asked for: none is asked for twice.
    pub fn scored(
        &self,
        phi: &Phi,
        prompts: &[Vec<i64>],
        (states, wanted): (&Tensor, &Tensor),
        (scoring, guidance): (Scoring, f64),
    ) -> Result<Scored> {
        let blocks = self.text_blocks(phi, prompts)?;
        let batch = prompts.len() as i64;
        let copies = (states.size()[0] / batch) as usize;
        let index = blocks.index.repeat(copies);

        // As many places of each state as the one with the most of them; what is too many is read and let go.
        let counts = wanted.sum_dim_intlist([1i64].as_slice(), true, Kind::Int64);
        let most = counts.max().int64_value(&[]).max(1);
        let places = maskgit::places(wanted, most); // [S·B,m]
        let there = Tensor::arange(most, (Kind::Int64, self.device)).unsqueeze(0).lt_tensor(&counts);
        let there = there.view([-1]).nonzero().squeeze_dim(1); // [T]
        let first = Tensor::arange(batch, (Kind::Int64, self.device)) * states.size()[1];
        let tokens =
            (&places + first.repeat([copies as i64]).unsqueeze(1)).view([-1]).index_select(0, &there);
        let pick = |rows: &Tensor| rows.flatten(0, 1).index_select(0, &there); // [T,D]

        let rows = |index: &[i64], states: &Tensor, places: &Tensor| {
            self.code_rows(phi, &blocks, index, states, places)
        };
        let empty = vec![TextBlocks::EMPTY; index.len()];
        let branches = match scoring {
            Scoring::Guided if guidance > 0.0 => {
                let twice = |tensor: &Tensor| Tensor::cat(&[tensor, tensor], 0);
                let both = rows(&with_empty(&index), &twice(states), &twice(&places))?.chunk(2, 0);
                vec![pick(&both[0]), pick(&both[1])]
            }
            Scoring::Conditional | Scoring::Guided => vec![pick(&rows(&index, states, &places)?)],
            Scoring::GuidedDetached => {
                let cond = pick(&rows(&index, states, &places)?);
                vec![cond, tch::no_grad(|| Ok::<_, Error>(pick(&rows(&empty, states, &places)?)))?]
            }
        };
        Ok(Scored { branches, tokens, guidance })
    }

    /// The states in which the tokens of images are scored, `[S·B,N]`, which of them each is asked for, and all targets `[B,N]`.
    fn replayed(&self, images: &Images, replay: &Masking) -> Result<(Tensor, Tensor, Tensor)> {
        let tokens = &images.tokens;
        let size = tokens.size(); // [B,N]
        let masked = |targets: Tensor| (maskgit::hide(tokens, &targets), targets.shallow_clone(), targets);
        match replay {
            Masking::Remask { seed, part, .. } => {
                tch::manual_seed(*seed as i64);
                let t = self.uniform(&[1]);
                let uniforms = BatchSlice::rows(*part, size[0], |of| self.uniform(&[of, size[1]]));
                Ok(masked(maskgit::remask(self.schedule, &uniforms, &t)))
            }
            Masking::Pretrain { seed } => {
                tch::manual_seed(*seed as i64);
                let t = self.uniform(&[size[0]]);
                Ok(masked(maskgit::remask(self.schedule, &self.uniform(&size), &t)))
            }
            Masking::Reveal { steps, .. } => {
                let revealed_at = images.revealed_at.as_ref().ok_or_else(|| {
                    Error::usage("the images do not know at which steps they were revealed")
                        .hint("replay drawings as `generate` returned them")
                })?;
                if steps.is_empty() {
                    return Err(Error::usage("no reveal step to replay"));
                }
                let steps: BTreeSet<i64> = steps.iter().copied().collect();
                let states: Vec<Tensor> =
                    steps.iter().map(|step| maskgit::hide(tokens, &revealed_at.ge(*step))).collect();
                let wanted: Vec<Tensor> = steps.iter().map(|step| revealed_at.eq(*step)).collect();
                let targets = Tensor::stack(&wanted, 0).any_dim(0, false);
                Ok((Tensor::cat(&states, 0), Tensor::cat(&wanted, 0), targets))
            }
        }
    }

    /// Prompts as ids, of which pretraining drops some; behind [`Self::replayed`], whose random numbers come before these.
    fn replayed_prompts(&self, prompts: &[String], replay: &Masking) -> Result<Vec<Vec<i64>>> {
        let mut prompts = self.prompt_ids(prompts)?;
        if let Masking::Pretrain { .. } = replay {
            let dropped = Vec::<bool>::try_from(self.uniform(&[prompts.len() as i64]).lt(DROPPED_PROMPTS))?;
            let dropped = prompts.iter_mut().zip(dropped).filter(|(_, dropped)| *dropped);
            dropped.for_each(|(ids, _)| ids.clear());
        }
        Ok(prompts)
    }

    /// What `make` makes of the rows that predict the targets `[B,N]` of a replay.
    pub(super) fn rescored<R>(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        replay: &Masking,
        make: impl FnOnce(&Phi, &Scored, Tensor) -> Result<R>,
    ) -> Result<R> {
        images.check(&self.card, "prompts", prompts.len())?;
        let (states, wanted, targets) = self.replayed(images, replay)?;
        let prompts = self.replayed_prompts(prompts, replay)?;
        policy.run(&self.phi, self.reference.as_ref(), |phi| {
            let scored = self.scored(phi, &prompts, (&states, &wanted), replay.scoring())?;
            make(phi, &scored, targets)
        })
    }
}
