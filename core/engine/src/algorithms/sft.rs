//! Supervised fine-tuning through the model's own images (§3.4, eq. 4).
//!
//! With `u_i` the generated image, `ũ_i` the image as it is fed back with the straight-through gradient, `Y_i` the right answers
//! about it and `T` the number of tokens of the reference answers of the batch:
//!
//! ```text
//! L = −(1/T) Σ_i log π(Y_i | ũ_i, q_i)  +  image_beta · KL_image  +  beta · KL_answer
//! ```
//!
//! With `reader_gradient = false`, `π` are the weights of `reward.reader`, which stay as they are: the gradient reaches the image
//! tokens only. Otherwise `π = π_θ`, and the loss also teaches understanding to give the right answer, whatever the image shows.
//!
//! Deviations from the paper, and choices that it leaves open. Preset `paper` has none of 2 to 5:
//! 1. The log-likelihood is divided by the number of answer tokens of the batch, so a long answer has more weight than a short
//!    one (the paper leaves sum or mean open; `grpo` takes a mean per answer).
//! 2. `replay = "reveal"`: images are fed back in the states in which their tokens were sampled, and keep their tokens. The paper
//!    masks them at random and samples the masked tokens again.
//! 3. `reader_gradient = false`.
//! 4. `right_answer`: the paper takes the reference answer.
//! 5. `image_beta` and `beta`: k3 estimates, with log-ratios clamped to ±20, of the KL of image tokens and of right answers to the
//!    base model, each a mean over its tokens.
//! 6. The rewards of the generated images are only logged.

use std::collections::BTreeMap;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use unirl::error::Result;
use unirl::model::{ImageLogits, Images, Policy, Scoring, TokenLogp, UnifiedModel};

use super::metrics::{add, reward_metrics};
use super::right_answers::RightAnswers;
use super::rollout::MicroBatch;
use super::straight_through::through;
use super::{
    Algorithm, Decoupled, Iteration, MaskingKind, Outcome, Reading, RightAnswer, Scored, StraightThrough,
    Terms, backward, objective,
};
use crate::register_algorithm;

/// Options of `sft`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sft {
    /// `τ` of the straight-through Gumbel-softmax (eq. 7).
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub gumbel_temperature: f64,
    /// The states in which images are fed back. `remask`: masked at random and sampled again, as in the paper; `reveal`: as they
    /// were sampled.
    pub replay: MaskingKind,
    /// For `replay = "reveal"`: the number of randomly chosen decoding steps per training step; 0 for all.
    #[schemars(range(min = 0))]
    pub reveal_steps: i64,
    /// For `replay = "reveal"`: the distribution of the image tokens: `conditional`, `guided` or `guided-detached`.
    pub scoring: Scoring,
    /// Whether the loss also changes the weights as those of the reader, as in the paper.
    pub reader_gradient: bool,
    /// The right answer: `reference`, `likeliest` or `any`.
    pub right_answer: RightAnswer,
    /// Weight of the KL of the image tokens to the reference policy; 0 disables it.
    #[schemars(range(min = 0.0))]
    pub image_beta: f64,
    /// Weight of the KL of the right answers to the reference policy; 0 disables it.
    #[schemars(range(min = 0.0))]
    pub beta: f64,
}

impl Default for Sft {
    fn default() -> Self {
        Self {
            gumbel_temperature: 1.0,
            replay: MaskingKind::Reveal,
            reveal_steps: 0,
            scoring: Scoring::Guided,
            reader_gradient: false,
            right_answer: RightAnswer::Any,
            image_beta: 0.1,
            beta: 0.2,
        }
    }
}

register_algorithm!(
    "sft",
    Sft,
    "log-likelihood of the right answer about the model's own image, end to end (eq. 4)",
    Decoupled::Warns("the paper reports that generation collapses (§4.4)"),
    answer_rules: false
);

impl Algorithm for Sft {
    fn accumulate(&self, iteration: &mut Iteration<'_>) -> Result<Outcome> {
        let mut metrics = BTreeMap::new();

        // 1. Generate images. Read and reward them, for the metrics.
        let generated = iteration.generate()?; // u [B,N]
        let Reading { answers, scored: Scored { rewards, scores }, .. } = iteration.read(&generated)?;
        reward_metrics(&rewards, &scores, iteration.group(), &mut metrics);

        // 2. Tokenize the right answers.
        let started = Instant::now();
        let tasks = iteration.supervision();
        let all = RightAnswers::new(&*iteration.model, &tasks)?;
        let reference_tokens = all.lengths.sum(Kind::Float).double_value(&[]);
        let tokens = objective::token_count(&all.answers.mask);
        let path = self.straight_through();

        for micro in iteration.micro_batches() {
            let right = RightAnswers::new(&*iteration.model, &tasks[micro.rows()])?;
            let likelihood = |scored: &TokenLogp| {
                -right.logp(scored, self.right_answer).sum(Kind::Float) / reference_tokens
            };

            // 3. The gradient of a reader that stays as it is, with respect to the image tokens.
            let read = if self.reader_gradient {
                None
            } else {
                let images = path.tokens(iteration, &generated, micro)?;
                let loss = |model: &dyn UnifiedModel, images: &Images| {
                    Ok(likelihood(&right.score(model, images, Policy::Current)?))
                };
                Some(iteration.token_gradient(&images, loss)?)
            };

            // 4. Feed the images back (eqs. 3, 7 and 8).
            let (completed, logits) = path.complete(iteration, &generated, micro)?; // ũ [b,N,K]

            // 5. The loss (eq. 4), micro-batch by micro-batch: gradients add up.
            let (mut loss, scored) = if let Some((loss, gradient)) = &read {
                add(&mut metrics, "loss/answer", loss);
                (through(&completed, gradient), None)
            } else {
                let scored = right.score(&*iteration.model, &completed, Policy::Current)?;
                let loss = likelihood(&scored);
                add(&mut metrics, "loss/answer", &loss);
                (loss, Some(scored))
            };
            let hard = Images::from_tokens(completed.tokens.shallow_clone());
            if self.image_beta > 0.0 {
                loss += self.image_kl(iteration, &generated, micro, logits, &mut metrics)?;
            }
            if self.beta > 0.0 {
                let model = &*iteration.model;
                let scored = match scored {
                    Some(scored) => scored,
                    None => right.score(model, &hard, Policy::Current)?,
                };
                let reference = tch::no_grad(|| right.score(model, &hard, Policy::Reference))?;
                let (k3, clamped) = objective::k3(&scored.logp, &reference.logp); // [R,T]
                let share = objective::token_count(&scored.mask) / tokens;
                let kl = objective::mean_per_token(&k3, &scored.mask) * share;
                let clamped = objective::mean_per_token(&clamped, &scored.mask) * share;
                add(&mut metrics, "kl/answer", &kl);
                add(&mut metrics, "kl/answer_clamped", &clamped);
                loss += kl * self.beta;
            }
            backward(&loss, "loss/answer")?;
        }
        iteration.phases.update += started.elapsed();

        Ok(Outcome { metrics, images: generated, answers, rewards })
    }

    fn terms(&self) -> Terms<'_> {
        Terms { image: None, answer: true, end_to_end: Some(self.straight_through()), alternate: false }
    }
}

impl Sft {
    fn straight_through(&self) -> StraightThrough {
        StraightThrough {
            temperature: self.gumbel_temperature,
            replay: self.replay,
            reveal_steps: self.reveal_steps,
            scoring: self.scoring,
        }
    }

    /// The KL of the image tokens of a micro-batch to the reference policy, as its part of the mean over all targets.
    fn image_kl(
        &self,
        iteration: &Iteration<'_>,
        generated: &Images,
        micro: MicroBatch,
        logits: ImageLogits,
        metrics: &mut BTreeMap<&'static str, f64>,
    ) -> Result<Tensor> {
        let images = generated.narrow(micro.first, micro.len);
        let masking = self.straight_through().masking(iteration, micro);
        let (model, prompts) = (&*iteration.model, &iteration.prompts()[micro.rows()]);
        let TokenLogp { logp, mask: targets } = logits.logp(&images.tokens); // [b,N]
        let reference = tch::no_grad(|| model.image_logp(prompts, &images, Policy::Reference, &masking))?;
        let (k3, clamped) = objective::k3(&logp, &reference.logp); // [b,N]
        let kl = objective::mean_per_token(&k3, &targets) * micro.share();
        let clamped = objective::mean_per_token(&clamped, &targets) * micro.share();
        add(metrics, "kl/image", &kl);
        add(metrics, "kl/image_clamped", &clamped);
        Ok(kl * self.image_beta)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithms::testing::{
        Halves, MICRO_BATCHES, TestStep, assert_gradient, assert_metrics, two_groups,
    };

    /// The form of the paper.
    fn paper(gumbel_temperature: f64) -> Sft {
        Sft {
            gumbel_temperature,
            replay: MaskingKind::Remask,
            scoring: Scoring::Conditional,
            reveal_steps: 0,
            reader_gradient: true,
            right_answer: RightAnswer::Reference,
            image_beta: 0.0,
            beta: 0.0,
        }
    }

    #[test]
    fn accumulate_shared_model_matches_numbers_by_hand() {
        // Every completed image is code 0 (12 above code 1), so the words have probabilities ¾ and ¼. The reference answers
        // are word 0, one token, for the first three images and word 1, two tokens, for the others: 3 and 6 tokens of 9.
        let (l0, l1) = (f64::ln(0.75), f64::ln(0.25));
        let loss = -(3.0 * l0 + 6.0 * l1) / 9.0;
        // With respect to the logits of the words, d log p₀ = (¼, −¼) and d log p₁ = (−¾, ¾).
        let answers = -(3.0 * 0.25 - 6.0 * 0.75) / 9.0;
        // The logit of a word contains ln 3 · ũ. A softmax with a large τ is ½ each, with the derivative ¼/τ; the difference
        // of the gradients of ũ₀ and ũ₁ is 2 · ln 3 · answers.
        let generation = f64::ln(3.0) * answers / 2.0;
        for micro_batch in MICRO_BATCHES {
            let mut model = Halves::shared([[12.0, 0.0], [0.0, 0.0]], [[0.0; 2]; 2]);
            let batch = TestStep { micro_batch, ..two_groups() };
            let outcome = batch.accumulate(&paper(1e4), &mut model);
            let [got_generation, got_answers] = model.gradients();
            assert_gradient("answers", got_answers, [answers, -answers]);
            assert_gradient(
                "generation · τ",
                got_generation.map(|g| g.map(|g| g * 1e4)),
                [generation, -generation],
            );
            let rewards = [("reward/informative", 1.0), ("reward/mean", 0.5), ("reward/pass", 0.5)];
            assert_metrics(&outcome.metrics, &[&[("loss/answer", loss)], &rewards[..]].concat());
        }
    }

    /// With the same numbers, a reader without gradient leaves the weights of the words alone; the gradient of the images is the
    /// same, because every completed image is code 0 for both.
    #[test]
    fn reader_without_gradient_teaches_generation_only() {
        let (l0, l1) = (f64::ln(0.75), f64::ln(0.25));
        let answers = -(3.0 * 0.25 - 6.0 * 0.75) / 9.0;
        let generation = f64::ln(3.0) * answers / 2.0;
        for micro_batch in MICRO_BATCHES {
            let mut model = Halves::shared([[12.0, 0.0], [0.0, 0.0]], [[0.0; 2]; 2]);
            let batch = TestStep { micro_batch, ..two_groups() };
            let outcome = batch.accumulate(&Sft { reader_gradient: false, ..paper(1e4) }, &mut model);
            let [got_generation, got_answers] = model.gradients();
            assert!(got_answers.is_none());
            assert_gradient(
                "generation · τ",
                got_generation.map(|g| g.map(|g| g * 1e4)),
                [generation, -generation],
            );
            assert!((outcome.metrics["loss/answer"] + (3.0 * l0 + 6.0 * l1) / 9.0).abs() < 2e-6);
        }
    }

    /// The generated images are code 0 and code 1 in turn, and keep their tokens. The reader gives word 0 to code 0 with
    /// probability ¾ and to code 1 with ¼: of the reference answers 0 0 0 | 1 1 1 about the codes 0 1 0 | 1 0 1, four are likely.
    #[test]
    fn reveal_keeps_the_generated_tokens() {
        for micro_batch in MICRO_BATCHES {
            let mut model = Halves::shared([[0.0; 2]; 2], [[0.0; 2]; 2]);
            let batch = TestStep { micro_batch, ..two_groups() };
            let sft = Sft { reader_gradient: false, replay: MaskingKind::Reveal, ..paper(1.0) };
            let outcome = batch.accumulate(&sft, &mut model);
            // Tokens: 1, 1 and 1 of word 0, and 2, 2 and 2 of word 1.
            let (likely, unlikely) = (f64::ln(0.75), f64::ln(0.25));
            let loss = -(2.0 * likely + unlikely + 4.0 * likely + 2.0 * unlikely) / 9.0;
            assert!((outcome.metrics["loss/answer"] - loss).abs() < 2e-6, "{:?}", outcome.metrics);
            assert!(model.gradients()[0].is_some() && model.gradients()[1].is_none());
        }
    }

    /// KL terms of generated images and of right answers: the policy has ¾ and ¼ for the words about code 0, the reference policy
    /// ½ each; image tokens have probability ½ under both.
    #[test]
    fn kl_terms_are_added() {
        let mut model = Halves::shared([[0.0; 2]; 2], [[0.0; 2], [0.0, 0.0]]);
        let sft = Sft { image_beta: 0.3, beta: 0.7, ..paper(1.0) };
        let metrics = two_groups().accumulate(&sft, &mut model).metrics;
        assert!(metrics["kl/image"].abs() < 1e-6 && metrics["kl/answer"].abs() < 1e-6, "{metrics:?}");
        let mut model = Halves::shared([[0.0; 2]; 2], [[2.0, 0.0], [1.0, 0.0]]);
        let metrics = two_groups().accumulate(&sft, &mut model).metrics;
        assert!(metrics["kl/image"] > 0.1 && metrics["kl/answer"] > 0.1, "{metrics:?}");
    }
}
