//! Supervised fine-tuning through the model's own images (§3.4, eq. 4): the gradient reaches generation and understanding.
//!
//! With `ũ_i` the completed image and `y_i` the reference answer of sample `i`, and `T` the number of answer tokens in the
//! batch:
//!
//! ```text
//! L = −(1/T) Σ_i Σ_t log π_θ(y_it | ũ_i, q_i)
//! ```
//!
//! Deviations from the paper, and choices that it leaves open:
//! 1. The log-likelihood is a mean over all answer tokens of the batch, so a long answer has more weight than a short one
//!    (the paper leaves sum or mean open; `grpo` takes a mean per answer).
//! 2. The answers about the *generated* images and their rewards are only logged.

use std::collections::BTreeMap;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unirl::error::Result;
use unirl::model::{Policy, TokenLogp};

use super::metrics::{add, reward_metrics};
use super::{Algorithm, Decoupled, Iteration, Outcome, Scored, Terms, backward, objective};
use crate::register_algorithm;

/// Options of `sft`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Sft {
    /// `τ` of the straight-through Gumbel-softmax (eq. 7).
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub gumbel_temperature: f64,
}

impl Default for Sft {
    fn default() -> Self {
        Self { gumbel_temperature: 1.0 }
    }
}

register_algorithm!(
    "sft",
    Sft,
    "log-likelihood of the reference answer about the model's own image, end to end (eq. 4)",
    Decoupled::Warns("the paper reports that generation collapses (§4.4)"),
    answer_rules: false
);

impl Algorithm for Sft {
    fn accumulate(&self, iteration: &mut Iteration<'_>) -> Result<Outcome> {
        let mut metrics = BTreeMap::new();

        // 1. Generate images. Answer about them and score the answers, for the metrics.
        let generated = iteration.generate()?; // u [B,N]
        let answers = iteration.answer(&generated)?;
        let Scored { rewards, scores } = iteration.score(&generated, &answers)?;
        reward_metrics(&rewards, &scores, iteration.group(), &mut metrics);

        // 2. Tokenize the reference answers.
        let started = Instant::now();
        let references: Vec<String> =
            iteration.tasks.iter().map(|task| task.reference_answer.clone()).collect();
        let targets = iteration.model.encode_answers(&references)?; // y [B,T]
        let tokens = objective::token_count(&targets.mask);
        let questions = iteration.questions();

        for micro in iteration.micro_batches() {
            // 3. Re-mask the images and complete them by the straight-through Gumbel-softmax (eqs. 3, 7 and 8).
            let completed = iteration.complete(&generated, micro, self.gumbel_temperature)?; // ũ [b,N,K]

            // 4. The loss (eq. 4), micro-batch by micro-batch: gradients add up.
            let targets = targets.narrow(micro.first, micro.len);
            let questions = &questions[micro.rows()];
            let TokenLogp { logp, mask } =
                iteration.model.answer_logp(&completed, questions, &targets, Policy::Current)?; // [b,T]
            let token_share = objective::token_count(&targets.mask) / tokens;
            let loss = -objective::mean_per_token(&logp, &mask) * token_share;
            add(&mut metrics, "loss/answer", &loss);
            backward(&loss, "loss/answer")?;
        }
        iteration.phases.update += started.elapsed();

        Ok(Outcome { metrics, images: generated, answers: answers.text, rewards })
    }

    fn terms(&self) -> Terms<'_> {
        Terms { image: None, answer: true, end_to_end: true, alternate: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::algorithms::testing::{
        Halves, MICRO_BATCHES, TWO_GROUPS, TestStep, assert_gradient, assert_metrics,
    };

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
            let batch = TestStep { micro_batch, ..TWO_GROUPS };
            let outcome = batch.accumulate(&Sft { gumbel_temperature: 1e4 }, &mut model);
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
}
