//! GRPO end to end (§3.4, eq. 5): the gradient of the answer flows through the image tokens.
//!
//! Draw a group of images a prompt; feed them back re-masked; complete them by the straight-through Gumbel-softmax; the
//! frozen policy answers about the *completed* images, and the rewards belong to those answers; raise the weighted
//! log-likelihood of the answers on the relaxed images, plus `beta` times the KL to the reference policy.
//!
//! Beside the paper, whose unpublished choices these are:
//! 1. The log-likelihood of an answer is a mean over its tokens.
//! 2. The KL is the k3 estimate on answer tokens, log-ratios clamped to ±20.
//! 3. `weighting = "advantage"` is standard GRPO's signed weight; `"softmax"` is the paper's.
//! 4. `image` adds the log-likelihood of the drawing itself, weighted by the rewards of the answers about the drawing.
//!    The preset `paper` leaves 3 and 4 off.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::objective::Weighting;
use super::{
    ImageTerm, Iteration, Optimizer, OptimizerEntry, Outcome, Pass, accumulate_answers, options,
    reward_metrics,
};
use crate::config::Rollout;
use crate::error::Result;
use crate::model::ModelCard;

/// Options of `grpo`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Grpo {
    /// How rewards become weights.
    pub weighting: Weighting,
    /// `τ` of the softmax weights.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub weight_temperature: f64,
    /// Factor of the end-to-end answer term; 0 leaves it out.
    #[schemars(range(min = 0.0))]
    pub answer_coefficient: f64,
    /// Factor of the KL on answer tokens.
    #[schemars(range(min = 0.0))]
    pub beta: f64,
    /// `τ` of the straight-through Gumbel-softmax (eq. 7).
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub gumbel_temperature: f64,
    /// The log-likelihood of the drawing, weighted by the same rule set.
    pub image: ImageTerm,
}

impl Default for Grpo {
    /// The paper's form, `β` = 0.2 by the names of the authors' runs.
    fn default() -> Self {
        Self {
            weighting: Weighting::Softmax,
            weight_temperature: 1.0,
            answer_coefficient: 1.0,
            beta: 0.2,
            gumbel_temperature: 1.0,
            image: ImageTerm::default(),
        }
    }
}

inventory::submit! {
    OptimizerEntry {
        name: "grpo",
        summary: "reward-weighted log-likelihood of sampled answers, end to end through the image tokens (eq. 5)",
        end_to_end: true,
        answer_rules: false,
        schema: |generator| generator.root_schema_for::<Grpo>(),
        build: |table| Ok(Box::new(options::<Grpo>("grpo", table)?)),
    }
}

impl Optimizer for Grpo {
    fn accumulate(&self, iteration: &mut Iteration<'_>) -> Result<Outcome> {
        let group = iteration.group();
        let mut metrics = BTreeMap::new();

        // 1. Draw a group of images a prompt.
        let drawn = iteration.draw()?;
        let mut shown = None;

        // 2. The drawing itself, by the rewards of the answers about it.
        if self.image.coefficient > 0.0 {
            let answers = iteration.answer(&drawn)?;
            let (rewards, scores) = iteration.score(&drawn, &answers)?;
            reward_metrics(&rewards, &scores, group, &mut metrics);
            let started = Instant::now();
            let weights = self.weighting.weights(&scores, group, self.weight_temperature);
            self.image.accumulate(iteration, &drawn, &weights, &mut metrics)?;
            iteration.phases.update += started.elapsed();
            shown = Some((answers.text, rewards));
        }

        // 3. Complete the re-masked drawings; answers and rewards belong to the completed images.
        if self.answer_coefficient > 0.0 {
            let completed = iteration.complete_all(&drawn, self.gumbel_temperature)?;
            let answers = iteration.answer(&completed)?;
            let (_, scores) = iteration.score(&completed, &answers)?;
            let started = Instant::now();
            let weights = self.weighting.weights(&scores, group, self.weight_temperature);
            let factors = (self.answer_coefficient, self.beta);
            let mut whole = completed.relaxed.is_some().then_some(completed);
            let images = |iteration: &mut Iteration<'_>, rows: &Range<usize>| match whole.take() {
                Some(images) => Ok(images),
                None => iteration.complete(&drawn, rows, self.gumbel_temperature),
            };
            accumulate_answers(iteration, images, &answers, &weights, factors, &mut metrics)?;
            iteration.phases.update += started.elapsed();
            if shown.is_none() {
                // What is logged and shown are the drawings, so they are asked about too.
                let answers = iteration.answer(&drawn)?;
                let (rewards, _) = iteration.score(&drawn, &answers)?;
                reward_metrics(&rewards, &scores, group, &mut metrics);
                shown = Some((answers.text, rewards));
            }
        }

        let (answers, rewards) = shown.unwrap_or_default();
        Ok(Outcome { metrics, images: drawn, answers, rewards })
    }

    fn passes(&self, rollout: &Rollout, card: &ModelCard) -> Vec<Pass> {
        let image = (self.image.coefficient > 0.0).then(|| Pass {
            states: self.image.states(rollout, card),
            answers: false,
            beside: false,
        });
        let beside = image.is_some();
        let answer = (self.answer_coefficient > 0.0).then_some(Pass { states: 1, answers: true, beside });
        image.into_iter().chain(answer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::testing::{
        Batch, Halves, K3_LIKELY, K3_UNLIKELY, MICRO_BATCHES, TAU, TWO_GROUPS, assert_gradient,
        assert_metrics, policy_term,
    };

    const GUMBEL_TAU: f64 = 1e4;

    /// Code 0 is 12 above code 1, so every completed image is code 0: the words have ¾ and ¼, and the reference gives ½ each.
    fn model() -> Halves {
        Halves::shared([[12.0, 0.0], [0.0, 0.0]], [[10.0, 0.0], [-f64::ln(3.0), 0.0]])
    }

    fn grpo(answer_coefficient: f64, beta: f64, image: ImageTerm) -> Grpo {
        let weighting = Weighting::Softmax;
        Grpo {
            weighting,
            weight_temperature: TAU,
            answer_coefficient,
            beta,
            gumbel_temperature: GUMBEL_TAU,
            image,
        }
    }

    const LOG_P: (f64, f64) = (-0.287_682_072_452, -1.386_294_361_120); // ln ¾, ln ¼

    /// The answers have 3 tokens of word 0 and 6 of word 1.
    const KL: f64 = (3.0 * K3_LIKELY + 6.0 * K3_UNLIKELY) / 9.0;

    /// By the logits of the words d log p₀ = (¼, −¼) and d log p₁ = (−¾, ¾).
    /// Policy: −0.65 · ¼ + 0.35 · ¾ = 0.1. KL: (3 · ⅓ · ¼ + 6 · (−1) · (−¾)) / 9 = 4.75/9.
    fn answer_gradient(coefficient: f64, beta: f64) -> f64 {
        coefficient * (0.1 + beta * 4.75 / 9.0)
    }

    /// Through ũ, which a word's logit has times ln 3; the Gumbel-softmax of a large τ has the derivative ¼/τ.
    fn end_to_end(answers: f64) -> f64 {
        f64::ln(3.0) * answers / 2.0 / GUMBEL_TAU
    }

    #[test]
    fn accumulate_answer_term_matches_numbers_by_hand() {
        for (coefficient, beta) in [(1.0, 0.2), (0.1, 0.5), (0.5, 0.0), (2.0, 3.0)] {
            for micro_batch in MICRO_BATCHES {
                let mut model = model();
                let batch = Batch { micro_batch, ..TWO_GROUPS };
                let outcome = batch.accumulate(&grpo(coefficient, beta, ImageTerm::default()), &mut model);
                let answers = answer_gradient(coefficient, beta);
                let draws = end_to_end(answers) * GUMBEL_TAU;
                let [got_draws, got_answers] = model.gradients();
                assert_gradient("answers", got_answers, [answers, -answers]);
                assert_gradient("draws · τ", got_draws.map(|g| g.map(|g| g * GUMBEL_TAU)), [draws, -draws]);
                let kl = [("kl/answer", KL), ("kl/answer_clamped", 0.0)];
                let others = [
                    ("loss/answer", policy_term(LOG_P.0, LOG_P.1)),
                    ("reward/informative", 1.0),
                    ("reward/mean", 0.5),
                    ("reward/pass", 0.5),
                ];
                let kl = if beta > 0.0 { &kl[..] } else { &[] };
                assert_metrics(&outcome.metrics, &[kl, &others].concat());
            }
        }
    }

    /// Generated images are half code 0 and half code 1, with `q` = softmax(12, 0); the reference has softmax(10, 0).
    #[test]
    fn accumulate_image_term_matches_numbers_by_hand() {
        let log_softmax = |gap: f64| [-(-gap).exp().ln_1p(), -gap - (-gap).exp().ln_1p()];
        let ([q0, q1], [r0, r1]) = (log_softmax(12.0), log_softmax(10.0));
        let (d0, d1) = (r0 - q0, r1 - q1);
        let kl = (d0.exp() - d0 - 1.0 + d1.exp() - d1 - 1.0) / 2.0;
        // d log q₀ = (q₁, −q₁), d log q₁ = (−q₀, q₀); that of k3 by log q is 1 − exp(d).
        let (up, down) = (q1.exp(), -q0.exp());
        let policy = -0.65 * up - 0.35 * down;
        let divergence = ((1.0 - d0.exp()) * up + (1.0 - d1.exp()) * down) / 2.0;
        for (coefficient, image_beta) in [(1.0, 0.1), (0.5, 0.3), (3.0, 0.0)] {
            for (answer_coefficient, beta) in [(0.0, 0.2), (0.1, 0.5)] {
                for micro_batch in MICRO_BATCHES {
                    let image = ImageTerm { coefficient, beta: image_beta, ..ImageTerm::default() };
                    let mut model = model();
                    let batch = Batch { micro_batch, ..TWO_GROUPS };
                    let outcome = batch.accumulate(&grpo(answer_coefficient, beta, image), &mut model);
                    let answers = answer_gradient(answer_coefficient, beta);
                    let draws = coefficient * (policy + image_beta * divergence) + end_to_end(answers);
                    let [got_draws, got_answers] = model.gradients();
                    assert_gradient("draws", got_draws, [draws, -draws]);
                    let mut expected = vec![
                        ("loss/image", policy_term(q0, q1)),
                        ("reward/informative", 1.0),
                        ("reward/mean", 0.5),
                        ("reward/pass", 0.5),
                    ];
                    if image_beta > 0.0 {
                        expected.splice(0..0, [("kl/image", kl), ("kl/image_clamped", 0.0)]);
                    }
                    if answer_coefficient > 0.0 {
                        assert_gradient("answers", got_answers, [answers, -answers]);
                        expected.push(("loss/answer", policy_term(LOG_P.0, LOG_P.1)));
                        expected.extend([("kl/answer", KL), ("kl/answer_clamped", 0.0)]);
                        expected.sort_by_key(|(name, _)| *name);
                    } else {
                        assert!(got_answers.is_none());
                    }
                    assert_metrics(&outcome.metrics, &expected);
                }
            }
        }
    }
}
