//! GRPO with separate objectives for drawing and answering (§3.5, A.3), for models that read images through another
//! representation than they draw. It runs on shared-space models too.
//!
//! Drawing: weighted log-likelihood of the image tokens, weights from the rewards of the answers about them.
//! Answering: weighted log-likelihood of the answers on the drawings as they are, weights from the answers' rewards.
//! No gradient passes from one to the other.
//!
//! Beside the paper: both terms are means over their tokens; the KL terms are k3 estimates; `weighting = "advantage"`
//! and the replay of the reveal steps are additions.

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

/// Options of `grpo-split`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GrpoSplit {
    /// How rewards become weights.
    pub weighting: Weighting,
    /// `τ` of the softmax weights.
    pub weight_temperature: f64,
    /// Factor of the answer objective; 0 leaves it out.
    pub answer_coefficient: f64,
    /// Factor of the KL on answer tokens.
    pub beta: f64,
    /// The image objective.
    pub image: ImageTerm,
}

impl Default for GrpoSplit {
    fn default() -> Self {
        Self {
            weighting: Weighting::Softmax,
            weight_temperature: 1.0,
            answer_coefficient: 1.0,
            beta: 0.2,
            image: ImageTerm { coefficient: 1.0, beta: 0.2, ..ImageTerm::default() },
        }
    }
}

inventory::submit! {
    OptimizerEntry {
        name: "grpo-split",
        summary: "separate reward-weighted objectives for drawing and answering (A.3)",
        end_to_end: false,
        schema: || schemars::schema_for!(GrpoSplit),
        build: |table| Ok(Box::new(options::<GrpoSplit>("grpo-split", table)?)),
    }
}

impl Optimizer for GrpoSplit {
    fn accumulate(&self, iteration: &mut Iteration<'_>) -> Result<Outcome> {
        let mut metrics = BTreeMap::new();

        // 1. Draw, answer, score.
        let drawn = iteration.draw()?;
        let answers = iteration.answer(&drawn)?;
        let (rewards, scores) = iteration.score(&answers)?;
        reward_metrics(&rewards, &scores, iteration.group(), &mut metrics);

        let started = Instant::now();
        let weights = self.weighting.weights(&scores, iteration.group(), self.weight_temperature);

        // 2. Drawing.
        if self.image.coefficient > 0.0 {
            self.image.accumulate(iteration, &drawn, &weights, &mut metrics)?;
        }

        // 3. Answering.
        if self.answer_coefficient > 0.0 {
            let factors = (self.answer_coefficient, self.beta);
            let images = |_: &mut Iteration<'_>, rows: &Range<usize>| {
                Ok(drawn.narrow(rows.start as i64, rows.len() as i64))
            };
            accumulate_answers(iteration, images, &answers, &weights, factors, &mut metrics)?;
        }
        iteration.phases.update += started.elapsed();

        Ok(Outcome { metrics, images: drawn, answers: answers.text, rewards })
    }

    fn passes(&self, rollout: &Rollout, card: &ModelCard) -> Vec<Pass> {
        let image = (self.image.coefficient > 0.0)
            .then(|| Pass { states: self.image.states(rollout, card), answers: false });
        let answer = (self.answer_coefficient > 0.0).then_some(Pass { states: 0, answers: true });
        image.into_iter().chain(answer).collect()
    }
}
