//! Scoring of generated images: the log-probabilities of their tokens under the conditional or the guided distribution.

use tch::{Kind, Tensor};
use unirl::Result;
use unirl::model::Scoring;

use crate::guidance::{Branches, Guidance};
use crate::language;

/// The hidden states that predict the tokens of a batch of images.
pub struct ScoredImages {
    /// The head: hidden states `[…,D]` to logits `[…,K]` f32.
    pub head: Box<dyn Fn(&Tensor) -> Tensor + Send>,
    /// `K`, the number of image codes.
    pub codes: i64,
    /// The conditional branch and, with guidance, the unconditional one: `[B,N,D]`, or `[T,D]` of `targets`.
    pub branches: Vec<Tensor>,
    /// `[T]`: the scored tokens, as indices into `B·N`; `None` for all.
    pub targets: Option<Tensor>,
    /// The guidance of two branches.
    pub guidance: Guidance,
}

impl ScoredImages {
    /// Logits `[B,N,K]` of images of `size [B,N]`; only those of targets are meaningful.
    pub fn logits(&self, size: &[i64]) -> Tensor {
        let Some(targets) = &self.targets else {
            return self.guidance.combine_rows(&self.branches, &self.head);
        };
        let scatter = |rows: &Tensor| {
            let zeros = Tensor::zeros([size[0] * size[1], rows.size()[1]], (rows.kind(), rows.device()));
            zeros.index_copy(0, targets, rows).view([size[0], size[1], -1])
        };
        let branches: Vec<Tensor> = self.branches.iter().map(scatter).collect();
        self.guidance.combine_rows(&branches, &self.head)
    }

    /// Log-probabilities `[B,N]` of image `tokens [B,N]`; 0 for tokens that are not targets.
    pub fn logp(self, tokens: &Tensor) -> Result<Tensor> {
        let Self { head, codes, branches, targets, guidance } = self;
        let logits = move |rows: &[Tensor]| guidance.combine_rows(rows, &head);
        let flat = tokens.view([-1]);
        let Some(targets) = targets else {
            let rows: Vec<Tensor> = branches.iter().map(|rows| rows.flatten(0, 1)).collect();
            return Ok(language::logp(&rows, &flat, codes, logits)?.view_as(tokens));
        };
        let logp = language::logp(&branches, &flat.index_select(0, &targets), codes, logits)?;
        let zeros = Tensor::zeros([tokens.numel() as i64], (Kind::Float, tokens.device()));
        Ok(zeros.index_copy(0, &targets, &logp).view_as(tokens))
    }
}

/// The rows of the branches that `scoring` needs: the conditional one, or also the unconditional one. `rows` computes those of
/// one pass, `[B,…]` or `[2·B,…]`.
pub fn scored_branches(
    scoring: Scoring,
    guidance: Guidance,
    mut rows: impl FnMut(Branches) -> Result<Tensor>,
) -> Result<Vec<Tensor>> {
    match scoring {
        Scoring::Guided if guidance.is_active() => Ok(rows(Branches::Both)?.chunk(2, 0)),
        Scoring::GuidedDetached if guidance.is_active() => {
            let conditional = rows(Branches::Conditional)?;
            Ok(vec![conditional, tch::no_grad(|| rows(Branches::Unconditional))?])
        }
        _ => Ok(vec![rows(Branches::Conditional)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two images of two tokens with hidden states of width 2, which are their logits.
    fn scored(targets: Option<&[i64]>) -> ScoredImages {
        let hidden = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 2.0, 3.0, 0.0, 0.5, 0.0]).view([2, 2, 2]);
        let targets = targets.map(Tensor::from_slice);
        let rows = match &targets {
            Some(targets) => hidden.flatten(0, 1).index_select(0, targets),
            None => hidden,
        };
        ScoredImages {
            head: Box::new(Tensor::shallow_clone),
            codes: 2,
            branches: vec![rows],
            targets,
            guidance: Guidance::BeyondConditional(0.0),
        }
    }

    #[test]
    fn scores_of_targets_are_those_of_all_tokens_and_zero_elsewhere() {
        let tokens = Tensor::from_slice(&[0i64, 1, 0, 1]).view([2, 2]);
        let all = scored(None).logp(&tokens).unwrap();
        let some = scored(Some(&[1, 2])).logp(&tokens).unwrap();
        let mask = Tensor::from_slice(&[0.0f32, 1.0, 1.0, 0.0]).view([2, 2]);
        assert!(some.equal(&(all * mask)), "{some}");
        let logits = scored(Some(&[1, 2])).logits(&[2, 2]);
        assert!(logits.get(0).get(1).equal(&scored(None).logits(&[2, 2]).get(0).get(1)), "{logits}");
    }

    #[test]
    fn scored_branches_are_those_of_the_scoring() {
        let (active, inactive) = (Guidance::BeyondConditional(1.0), Guidance::BeyondConditional(0.0));
        for (scoring, guidance, expected) in [
            (Scoring::Conditional, active, vec![Branches::Conditional]),
            (Scoring::Guided, active, vec![Branches::Both]),
            (Scoring::GuidedDetached, active, vec![Branches::Conditional, Branches::Unconditional]),
            (Scoring::Guided, inactive, vec![Branches::Conditional]),
            (Scoring::GuidedDetached, inactive, vec![Branches::Conditional]),
        ] {
            let mut passes = Vec::new();
            let branches = scored_branches(scoring, guidance, |pass| {
                passes.push(pass);
                Ok(pass.repeat(&Tensor::from_slice(&[1.0f32]).set_requires_grad(true)))
            })
            .unwrap();
            assert_eq!(passes, expected, "{scoring:?}");
            let guided = scoring != Scoring::Conditional && guidance.is_active();
            assert_eq!(branches.len(), if guided { 2 } else { 1 }, "{scoring:?}");
        }
    }
}
