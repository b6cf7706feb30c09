//! Scoring of generated images: logits and log-probabilities of their tokens, with tokens masked as a [`Masking`] requests.

use std::collections::BTreeSet;

use tch::{Kind, Tensor};
use unirl::model::{BatchSlice, Images, Masking, Policy, Scoring};
use unirl::{Error, Result};
use unirl_layers::guidance::{Guidance, drop_prompts};
use unirl_layers::scoring::{ScoredImages, scored_branches};

use super::Showo;
use super::generate::TextBlocks;
use crate::maskgit;
use crate::phi::Phi;

impl Showo {
    /// The hidden states that predict the targets of images under the distribution that `scoring` selects. `states [S·B,N]`
    /// are `S` masked states per image; `targets [S·B,N]` are the tokens to predict from each state, every token at most once.
    pub fn target_hidden(
        &self,
        phi: &Phi,
        prompts: &[Vec<i64>],
        (states, targets): (&Tensor, &Tensor),
        (scoring, guidance): (Scoring, f64),
    ) -> Result<ScoredImages> {
        let blocks = self.text_blocks(phi, prompts)?;
        let batch = prompts.len() as i64;
        let copies = (states.size()[0] / batch) as usize;
        let index = blocks.index.repeat(copies);

        // Every state computes as many positions as the one with the most targets; the surplus is discarded.
        let counts = targets.sum_dim_intlist([1i64].as_slice(), true, Kind::Int64);
        let most = counts.max().int64_value(&[]).max(1);
        let positions = maskgit::first_positions(targets, most); // [S·B,m]
        let valid = Tensor::arange(most, (Kind::Int64, self.device)).unsqueeze(0).lt_tensor(&counts);
        let valid = valid.view([-1]).nonzero().squeeze_dim(1); // [T]
        let first = Tensor::arange(batch, (Kind::Int64, self.device)) * states.size()[1];
        let tokens =
            (&positions + first.repeat([copies as i64]).unsqueeze(1)).view([-1]).index_select(0, &valid);
        let pick = |rows: &Tensor| rows.flatten(0, 1).index_select(0, &valid); // [T,D]

        let guidance = Guidance::BeyondConditional(guidance);
        let branches = scored_branches(scoring, guidance, |branches| {
            let index = branches.conditions(&index, |_| TextBlocks::EMPTY);
            self.code_hidden(phi, &blocks, &index, &branches.repeat(states), &branches.repeat(&positions))
        })?;
        let head = phi.code_head();
        Ok(ScoredImages {
            codes: self.card.codebook_size,
            head: Box::new(move |hidden| head.apply(hidden).to_kind(Kind::Float)),
            branches: branches.iter().map(pick).collect(),
            targets: Some(tokens),
            guidance,
        })
    }

    /// The masked states in which images are scored, `[S·B,N]`, the targets of each state, `[S·B,N]`, and all targets, `[B,N]`.
    fn masked_states(&self, images: &Images, masking: &Masking) -> Result<(Tensor, Tensor, Tensor)> {
        let tokens = &images.tokens;
        let size = tokens.size(); // [B,N]
        let masked =
            |targets: Tensor| (maskgit::mask_tokens(tokens, &targets), targets.shallow_clone(), targets);
        match masking {
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
                    Error::usage("cannot score reveal steps: the images have no `revealed_at`")
                        .hint("pass images as `generate` returned them")
                })?;
                if steps.is_empty() {
                    return Err(Error::usage(
                        "cannot score reveal steps: expected one or more steps, got none",
                    ));
                }
                let steps: BTreeSet<i64> = steps.iter().copied().collect();
                let states: Vec<Tensor> =
                    steps.iter().map(|step| maskgit::mask_tokens(tokens, &revealed_at.ge(*step))).collect();
                let targets: Vec<Tensor> = steps.iter().map(|step| revealed_at.eq(*step)).collect();
                let all_targets = Tensor::stack(&targets, 0).any_dim(0, false);
                Ok((Tensor::cat(&states, 0), Tensor::cat(&targets, 0), all_targets))
            }
        }
    }

    /// Tokenized prompts, some of them dropped in pretraining. Call after [`Self::masked_states`], whose random numbers come
    /// first.
    fn masked_prompts(&self, prompts: &[String], masking: &Masking) -> Result<Vec<Vec<i64>>> {
        let mut prompts = self.prompt_ids(prompts)?;
        if let Masking::Pretrain { .. } = masking {
            drop_prompts(&mut prompts, self.device, |_| Vec::new())?;
        }
        Ok(prompts)
    }

    /// Scores images under `policy`. `score` gets the hidden states of the targets and the targets `[B,N]`.
    pub(super) fn score_images<R>(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        masking: &Masking,
        score: impl FnOnce(ScoredImages, Tensor) -> Result<R>,
    ) -> Result<R> {
        images.check(&self.card, "prompts", prompts.len())?;
        let (states, targets, all_targets) = self.masked_states(images, masking)?;
        let prompts = self.masked_prompts(prompts, masking)?;
        self.reference.run(policy, &self.phi, |phi| {
            score(self.target_hidden(phi, &prompts, (&states, &targets), masking.scoring())?, all_targets)
        })
    }
}
