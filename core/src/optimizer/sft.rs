//! Supervised fine-tuning through the model's own drawings (§3.4, eq. 4).
//!
//! Draw, feed back re-masked, complete by the straight-through Gumbel-softmax, and maximise the log-likelihood of the
//! *right* answer about the completed image. The gradient reaches drawing and answering.
//!
//! Beside the paper: the log-likelihood is a mean over answer tokens (the paper leaves sum or mean open), and the reward is
//! only measured, for the log.

use std::collections::BTreeMap;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    Iteration, Optimizer, OptimizerEntry, Outcome, Pass, add, backward, count, objective, options,
    reward_metrics,
};
use crate::config::Rollout;
use crate::error::Result;
use crate::model::{ModelCard, Policy};

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

inventory::submit! {
    OptimizerEntry {
        name: "sft",
        summary: "log-likelihood of the right answer about the model's own drawing, end to end",
        end_to_end: true,
        answer_rules: false,
        schema: |generator| generator.root_schema_for::<Sft>(),
        build: |table| Ok(Box::new(options::<Sft>("sft", table)?)),
    }
}

impl Optimizer for Sft {
    fn accumulate(&self, iteration: &mut Iteration<'_>) -> Result<Outcome> {
        let mut metrics = BTreeMap::new();

        // 1. Draw, and look at what the model makes of its drawings.
        let drawn = iteration.draw()?;
        let answers = iteration.answer(&drawn)?;
        let (rewards, scores) = iteration.score(&drawn, &answers)?;
        reward_metrics(&rewards, &scores, iteration.group(), &mut metrics);

        // 2. Complete the re-masked drawings, and score the right answer about the completed image.
        let started = Instant::now();
        let truths: Vec<String> = iteration.tasks.iter().map(|task| task.truth.clone()).collect();
        let questions = iteration.questions();
        let truths = iteration.model.encode_answers(&truths)?;
        let tokens = count(&truths.mask);
        for rows in iteration.parts() {
            let completed = iteration.complete(&drawn, &rows, self.gumbel_temperature)?;
            let truths = truths.narrow(rows.start as i64, rows.len() as i64);
            let scored =
                iteration.model.answer_logp(&completed, &questions[rows], &truths, Policy::Current)?;
            let loss = -objective::token_mean(&scored.logp, &scored.mask) * (count(&truths.mask) / tokens);
            add(&mut metrics, "loss/answer", &loss);
            backward(&loss, "loss/answer")?;
        }
        iteration.phases.update += started.elapsed();

        Ok(Outcome { metrics, images: drawn, answers: answers.text, rewards })
    }

    fn passes(&self, _rollout: &Rollout, _card: &ModelCard) -> Vec<Pass> {
        vec![Pass { states: 1, answers: true, beside: false }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::optimizer::testing::{
        Batch, Halves, MICRO_BATCHES, TWO_GROUPS, assert_gradient, assert_metrics,
    };

    #[test]
    fn accumulate_shared_model_matches_numbers_by_hand() {
        // Every completed image is code 0 (12 above code 1), so the words have ¾ and ¼. The right answers are word 0, one
        // token, for the first three images and word 1, two tokens, for the others: 3 and 6 tokens of 9.
        let (l0, l1) = (f64::ln(0.75), f64::ln(0.25));
        let loss = -(3.0 * l0 + 6.0 * l1) / 9.0;
        // d log p₀ = (¼, −¼) and d log p₁ = (−¾, ¾) by the logits of the words.
        let answers = -(3.0 * 0.25 - 6.0 * 0.75) / 9.0;
        // A word's logit has ln 3 · ũ. A softmax with a large τ is ½ each, with the derivative ¼/τ; the difference of the
        // gradients of ũ₀ and ũ₁ is 2 · ln 3 · answers.
        let draws = f64::ln(3.0) * answers / 2.0;
        for micro_batch in MICRO_BATCHES {
            let mut model = Halves::shared([[12.0, 0.0], [0.0, 0.0]], [[0.0; 2]; 2]);
            let batch = Batch { micro_batch, ..TWO_GROUPS };
            let outcome = batch.accumulate(&Sft { gumbel_temperature: 1e4 }, &mut model);
            let [got_draws, got_answers] = model.gradients();
            assert_gradient("answers", got_answers, [answers, -answers]);
            assert_gradient("draws · τ", got_draws.map(|g| g.map(|g| g * 1e4)), [draws, -draws]);
            let rewards = [("reward/informative", 1.0), ("reward/mean", 0.5), ("reward/pass", 0.5)];
            assert_metrics(&outcome.metrics, &[&[("loss/answer", loss)], &rewards[..]].concat());
        }
    }
}
