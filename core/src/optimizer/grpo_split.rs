//! GRPO with separate objectives for drawing and answering (§3.5, A.3), for models that read images through another
//! representation than they draw. It runs on shared-space models too.
//!
//! Drawing: weighted log-likelihood of the image tokens, weights from the rewards of the answers about them.
//! Answering: weighted log-likelihood of the answers on the drawings as they are, weights from the answers' rewards, which
//! may follow rules of their own (`reward.answer_rules`).
//! No gradient passes from one to the other.
//!
//! Beside the paper: both terms are means over their tokens; the KL terms are k3 estimates; `weighting = "advantage"`
//! and the replay of the reveal steps are additions. Of the schedule A.3 says no more than that the two are optimized
//! independently: here both learn in every step, or with `schedule = "alternate"` drawing in odd steps and answering in
//! even ones.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::objective::Weighting;
use super::{
    ImageTerm, Iteration, Optimizer, OptimizerEntry, Outcome, Pass, accumulate_answers, mean_reward, options,
    reward_metrics,
};
use crate::config::Rollout;
use crate::error::{Error, Result};
use crate::model::ModelCard;

/// Which objective learns when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Both in every step.
    Joint,
    /// Drawing in steps 1, 3, …, answering in steps 2, 4, ….
    Alternate,
}

/// Options of `grpo-split`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GrpoSplit {
    /// Which objective learns when.
    pub schedule: Schedule,
    /// How rewards become weights.
    pub weighting: Weighting,
    /// `τ` of the softmax weights.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub weight_temperature: f64,
    /// Factor of the answer objective; 0 leaves it out.
    #[schemars(range(min = 0.0))]
    pub answer_coefficient: f64,
    /// Factor of the KL on answer tokens.
    #[schemars(range(min = 0.0))]
    pub beta: f64,
    /// The image objective.
    pub image: ImageTerm,
}

impl Default for GrpoSplit {
    fn default() -> Self {
        Self {
            schedule: Schedule::Joint,
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
        answer_rules: true,
        schema: |generator| generator.root_schema_for::<GrpoSplit>(),
        build: |table| Ok(Box::new(options::<GrpoSplit>("grpo-split", table)?.checked()?)),
    }
}

impl GrpoSplit {
    /// Refuses a schedule whose every other step would do nothing.
    fn checked(self) -> Result<Self> {
        for (name, coefficient) in
            [("image.coefficient", self.image.coefficient), ("answer_coefficient", self.answer_coefficient)]
        {
            if self.schedule == Schedule::Alternate && coefficient <= 0.0 {
                return Err(Error::usage(format!(
                    "`optimizer.grpo-split.{name}`: expected a number above 0 with `schedule = \"alternate\"`, got \
                     {coefficient}"
                ))
                .hint("use `schedule = \"joint\"`, which can leave an objective out"));
            }
        }
        Ok(self)
    }

    /// Whether drawing learns in a step, and whether answering does.
    fn learns(&self, step: u64) -> (bool, bool) {
        let odd = step % 2 == 1;
        match self.schedule {
            Schedule::Joint => (self.image.coefficient > 0.0, self.answer_coefficient > 0.0),
            Schedule::Alternate => (odd, !odd),
        }
    }
}

impl Optimizer for GrpoSplit {
    fn accumulate(&self, iteration: &mut Iteration<'_>) -> Result<Outcome> {
        let (drawing, answering) = self.learns(iteration.step);
        let mut metrics = BTreeMap::new();

        // 1. Draw, answer, score.
        let drawn = iteration.draw()?;
        let answers = iteration.answer(&drawn)?;
        let (rewards, scores) = iteration.score(&drawn, &answers)?;
        let group = iteration.group();
        reward_metrics(&rewards, &scores, group, &mut metrics);
        let answer_scores = match iteration.score_answers(&drawn, &answers)? {
            Some((rewards, scores)) => {
                metrics.insert("reward/answer_mean", mean_reward(&rewards));
                scores
            }
            None => scores.shallow_clone(),
        };

        let started = Instant::now();
        let weights = |scores: &Tensor| self.weighting.weights(scores, group, self.weight_temperature);

        // 2. Drawing.
        if drawing {
            self.image.accumulate(iteration, &drawn, &weights(&scores), &mut metrics)?;
        }

        // 3. Answering.
        if answering {
            let factors = (self.answer_coefficient, self.beta);
            let images = |_: &mut Iteration<'_>, rows: &Range<usize>| {
                Ok(drawn.narrow(rows.start as i64, rows.len() as i64))
            };
            let weights = weights(&answer_scores);
            accumulate_answers(iteration, images, &answers, &weights, factors, &mut metrics)?;
        }
        iteration.phases.update += started.elapsed();

        Ok(Outcome { metrics, images: drawn, answers: answers.text, rewards })
    }

    fn passes(&self, rollout: &Rollout, card: &ModelCard) -> Vec<Pass> {
        let image = (self.image.coefficient > 0.0).then(|| Pass {
            states: self.image.states(rollout, card),
            answers: false,
            beside: false,
        });
        let beside = image.is_some() && self.schedule == Schedule::Joint;
        let answer = (self.answer_coefficient > 0.0).then_some(Pass { states: 0, answers: true, beside });
        image.into_iter().chain(answer).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::UnifiedModel as _;
    use crate::optimizer::testing::{
        Batch, Halves, K3_LIKELY, K3_UNLIKELY, MICRO_BATCHES, TAU, TWO_GROUPS, assert_gradient as close,
        assert_metrics, policy_term, prefers,
    };
    use crate::reward::RuleSet;

    fn options(text: &str) -> Result<GrpoSplit> {
        let text = format!("weighting = \"advantage\"\nbeta = 0.0\n{text}");
        super::options::<GrpoSplit>("grpo-split", text.parse().unwrap())?.checked()
    }

    /// The gradients of `draws` and `answers`, and the metrics.
    type Learned = ([Option<[f64; 2]>; 2], BTreeMap<&'static str, f64>);

    /// A step with one group of two.
    fn step(options: &str, step: u64) -> Learned {
        step_by(options, step, None, false)
    }

    fn step_by(options: &str, step: u64, answer_rules: Option<&RuleSet>, shuffle_rewards: bool) -> Learned {
        let mut model = Halves::decoupled([[0.0; 2]; 2], [[0.0; 2]; 2]);
        let batch = Batch { prompts: 1, group: 2, step, answer_rules, shuffle_rewards, ..TWO_GROUPS };
        let outcome = batch.accumulate(&self::options(options).unwrap(), &mut model);
        (model.gradients(), outcome.metrics)
    }

    /// Descent towards the first of two. Advantages of the rewards 1 and 0 are ±w, w = 1/2 / (1/2 + 1e-4) / 2; the loss
    /// −w·(log p₀ − log p₁) is −w·(θ₀ − θ₁).
    const FIRST: [f64; 2] = [-0.499_900_02, 0.499_900_02];
    const SECOND: [f64; 2] = [0.499_900_02, -0.499_900_02];

    const IMAGE: &str = "image = { coefficient = 1.0, beta = 0.0 }";

    /// Codes and words have ¾ and ¼, the reference gives ½ each. By the logits d log p₀ = (¼, −¼) and
    /// d log p₁ = (−¾, ¾); that of k3 by log p is ⅓ and −1.
    fn model() -> Halves {
        Halves::decoupled([[f64::ln(3.0), 0.0]; 2], [[0.0; 2]; 2])
    }

    fn split(weighting: Weighting, [answer_coefficient, beta]: [f64; 2], image: [f64; 2]) -> GrpoSplit {
        let image = ImageTerm { coefficient: image[0], beta: image[1], ..ImageTerm::default() };
        let schedule = Schedule::Joint;
        GrpoSplit { schedule, weighting, weight_temperature: TAU, answer_coefficient, beta, image }
    }

    #[test]
    fn accumulate_both_terms_match_numbers_by_hand() {
        let loss = policy_term(f64::ln(0.75), f64::ln(0.25));
        // Of 6 images 3 are code 0 and 3 code 1; the answers have 3 tokens of word 0 and 6 of word 1.
        let image_kl = (K3_LIKELY + K3_UNLIKELY) / 2.0;
        let answer_kl = (3.0 * K3_LIKELY + 6.0 * K3_UNLIKELY) / 9.0;
        for (answer, image) in [([1.0, 0.2], [1.0, 0.2]), ([0.1, 0.5], [2.0, 0.02]), ([3.0, 2.0], [0.5, 4.0])]
        {
            for micro_batch in MICRO_BATCHES {
                let mut model = model();
                let batch = Batch { micro_batch, ..TWO_GROUPS };
                let outcome = batch.accumulate(&split(Weighting::Softmax, answer, image), &mut model);
                let [draws, answers] = model.gradients();
                // Policy: −0.65 · ¼ + 0.35 · ¾ = 0.1. KL: (⅓ · ¼ + (−1) · (−¾)) / 2 = 5/12.
                let expected = image[0] * (0.1 + image[1] * 5.0 / 12.0);
                close("draws", draws, [expected, -expected]);
                // KL: (3 · ⅓ · ¼ + 6 · (−1) · (−¾)) / 9 = 4.75/9.
                let expected = answer[0] * (0.1 + answer[1] * 4.75 / 9.0);
                close("answers", answers, [expected, -expected]);
                assert_metrics(
                    &outcome.metrics,
                    &[
                        ("kl/answer", answer_kl),
                        ("kl/answer_clamped", 0.0),
                        ("kl/image", image_kl),
                        ("kl/image_clamped", 0.0),
                        ("loss/answer", loss),
                        ("loss/image", loss),
                        ("reward/informative", 1.0),
                        ("reward/mean", 0.5),
                        ("reward/pass", 0.5),
                    ],
                );
            }
        }
    }

    #[test]
    fn accumulate_advantages_match_numbers_by_hand() {
        // Rewards 1 0 1 | 0 1 0 are ⅓ or ⅔ from their mean, with the standard deviation √2/3: weights a −2a a | −a 2a −a.
        // Policy: −½ · (4a · l₀ − 4a · l₁), and ¼ + ¾ = 1 by the logits.
        let a = 1.0 / 3.0 / (f64::sqrt(2.0) / 3.0 + 1e-4) / 3.0;
        let expected = -2.0 * a;
        for micro_batch in MICRO_BATCHES {
            let mut model = model();
            let batch = Batch { micro_batch, ..TWO_GROUPS };
            let outcome = batch.accumulate(&split(Weighting::Advantage, [1.0, 0.0], [1.0, 0.0]), &mut model);
            let [draws, answers] = model.gradients();
            close("draws", draws, [expected, -expected]);
            close("answers", answers, [expected, -expected]);
            let loss = expected * (f64::ln(0.75) - f64::ln(0.25));
            let rewards = [("reward/informative", 1.0), ("reward/mean", 0.5), ("reward/pass", 0.5)];
            assert_metrics(
                &outcome.metrics,
                &[&[("loss/answer", loss), ("loss/image", loss)], &rewards[..]].concat(),
            );
        }
    }

    #[test]
    fn both_objectives_learn_in_a_joint_step() {
        for number in 1..=2 {
            let ([draws, answers], metrics) = step(IMAGE, number);
            close("draws", draws, FIRST);
            close("answers", answers, FIRST);
            assert!(metrics.contains_key("loss/image") && metrics.contains_key("loss/answer"));
        }
    }

    #[test]
    fn alternate_steps_draw_and_answer_in_turn() {
        let options = format!("schedule = \"alternate\"\n{IMAGE}");
        for number in [1, 3] {
            let ([draws, answers], metrics) = step(&options, number);
            close("draws", draws, FIRST);
            assert!(answers.is_none() && !metrics.contains_key("loss/answer"));
            assert!(metrics.contains_key("loss/image") && metrics.contains_key("reward/mean"));
        }
        for number in [2, 4] {
            let ([draws, answers], metrics) = step(&options, number);
            close("answers", answers, FIRST);
            assert!(draws.is_none() && !metrics.contains_key("loss/image"));
            assert!(metrics.contains_key("loss/answer") && metrics.contains_key("reward/mean"));
        }
    }

    #[test]
    fn answers_may_have_rules_of_their_own() {
        let own = prefers("1");
        let ([draws, answers], metrics) = step_by(IMAGE, 1, Some(&own), false);
        close("draws", draws, FIRST);
        close("answers", answers, SECOND);
        assert_eq!((metrics["reward/mean"], metrics["reward/answer_mean"]), (0.5, 0.5));
        assert!(!step(IMAGE, 1).1.contains_key("reward/answer_mean"));
        let never = step_by(IMAGE, 1, Some(&prefers("2")), false);
        close("draws", never.0[0], FIRST);
        close("answers", never.0[1], [0.0, 0.0]);
        assert_eq!((never.1["reward/mean"], never.1["reward/answer_mean"]), (0.5, 0.0));
    }

    #[test]
    fn both_rewards_are_shuffled_alike() {
        let own = prefers("1");
        let mut orders = [0, 0];
        for number in 1..=8 {
            let ([draws, answers], _) = step_by(IMAGE, number, Some(&own), true);
            let kept = draws.unwrap()[0] < 0.0;
            orders[usize::from(kept)] += 1;
            close("draws", draws, if kept { FIRST } else { SECOND });
            close("answers", answers, if kept { SECOND } else { FIRST });
        }
        assert!(orders[0] > 0 && orders[1] > 0, "{orders:?}: else the test shows nothing");
    }

    #[test]
    fn only_a_joint_step_has_gradients_of_both() {
        let beside = |text| -> Vec<bool> {
            let passes = options(text)
                .unwrap()
                .passes(&Rollout::default(), Halves::decoupled([[0.0; 2]; 2], [[0.0; 2]; 2]).card());
            passes.iter().map(|pass| pass.beside).collect()
        };
        assert_eq!(beside(""), [false, true]);
        assert_eq!(beside("image = { coefficient = 0.0 }"), [false]);
        assert_eq!(beside("schedule = \"alternate\"\nimage = { coefficient = 1.0 }"), [false, false]);
    }

    #[test]
    fn what_an_inner_table_leaves_out_is_as_in_grpo_split() {
        let image = options("image = { beta = 0.5 }").unwrap().image;
        assert_eq!(image, ImageTerm { beta: 0.5, ..GrpoSplit::default().image });
    }

    #[test]
    fn a_schedule_with_steps_that_do_nothing_is_refused() {
        for (text, name) in [
            ("answer_coefficient = 0.0", "answer_coefficient"),
            ("image = { coefficient = 0.0 }", "image.coefficient"),
        ] {
            let error = options(&format!("schedule = \"alternate\"\n{text}")).unwrap_err();
            assert!(error.message().contains(&format!("grpo-split.{name}`")), "{error}");
            assert!(options(text).is_ok());
        }
    }
}
