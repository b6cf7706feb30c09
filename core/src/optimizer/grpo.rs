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
