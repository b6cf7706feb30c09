//! GRPO with separate objectives for generation and understanding (§3.5, A.3), for models that understand images through
//! another representation than the one they generate. It also runs on models with a shared token space.
//!
//! For `P` prompts with `G` images each, with `u_i` a generated image and `a_i` the answer about it:
//!
//! ```text
//! L_image  = image.coefficient  · [ −(1/P) Σ_p Σ_i w_i · (1/|u_i|) Σ_n log π_θ(u_in | prompt)  + image.beta · KL_image ]
//! L_answer = answer_weight · [ −(1/P) Σ_p Σ_i v_i · (1/|a_i|) Σ_t log π_θ(a_it | u_i, q)  + beta · KL_answer ]
//! ```
//!
//! No gradient passes from one objective to the other. Both weights `w` and `v` come from the rewards of the answers; `v` has
//! separate rewards if `reward.answer_rules` is set.
//!
//! Reductions: each policy term is a mean over the tokens of a sequence, a weighted sum over the `G` sequences of a prompt
//! (softmax weights add up to 1, advantages are divided by `G`) and a mean over prompts. Each KL is a mean over all its
//! tokens of the batch. `L_image` is written out in `image_term.rs`.
//!
//! Deviations from the paper, and choices that it leaves open:
//! 1. Both log-likelihoods are means over their tokens.
//! 2. The KL terms are k3 estimates, with log-ratios clamped to ±20. The coefficient of a term also scales its KL.
//! 3. The current policy samples the answers, without gradient. There is one update per rollout, so `π_old = π_θ`: no
//!    importance ratio and no clipping (eq. 2).
//! 4. Answers are greedy unless `rollout.answers.temperature` is above 0.
//! 5. `weighting = "advantage"` and the scoring of the reveal steps (`image.replay = "reveal"`) are additions.
//! 6. A.3 only says that the two objectives are optimized independently. Here every step trains both, or, with
//!    `schedule = "alternate"`, odd steps train generation and even steps understanding.

use std::collections::BTreeMap;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use unirl::error::{Error, Result};
use unirl::model::{Images, Policy, TokenLogp};

use super::metrics::{add, mean_reward, reward_metrics};
use super::objective::{self, Weighting};
use super::{Algorithm, Decoupled, ImageTerm, Iteration, Outcome, Reading, Scored, Terms, backward};
use crate::register_algorithm;

/// The steps in which each objective is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Both in every step.
    Joint,
    /// Generation in steps 1, 3, …, understanding in steps 2, 4, ….
    Alternate,
}

/// Options of `grpo-split`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GrpoSplit {
    /// The steps in which each objective is trained.
    pub schedule: Schedule,
    /// How rewards become weights.
    pub weighting: Weighting,
    /// `τ` of the softmax weights.
    #[serde(alias = "weight_temperature")]
    #[schemars(extend("exclusiveMinimum" = 0.0, "x-former-names" = ["weight_temperature"]))]
    pub reward_temperature: f64,
    /// Weight of the answer objective in the loss; 0 disables it.
    #[serde(alias = "answer_coefficient")]
    #[schemars(range(min = 0.0), extend("x-former-names" = ["answer_coefficient"]))]
    pub answer_weight: f64,
    /// Weight of the KL on answer tokens.
    #[schemars(range(min = 0.0))]
    pub beta: f64,
    /// The generation objective.
    pub image: ImageTerm,
}

impl Default for GrpoSplit {
    fn default() -> Self {
        Self {
            schedule: Schedule::Joint,
            weighting: Weighting::Softmax,
            reward_temperature: 1.0,
            answer_weight: 1.0,
            beta: 0.2,
            image: ImageTerm { coefficient: 1.0, beta: 0.2, ..ImageTerm::default() },
        }
    }
}

register_algorithm!(
    "grpo-split",
    GrpoSplit,
    "separate reward-weighted objectives for generation and understanding (A.3)",
    Decoupled::Trains,
    answer_rules: true,
    GrpoSplit::checked
);

impl GrpoSplit {
    /// Errors if the alternate schedule has an objective that is disabled.
    fn checked(self) -> Result<Self> {
        for (name, coefficient) in
            [("image.coefficient", self.image.coefficient), ("answer_weight", self.answer_weight)]
        {
            if self.schedule == Schedule::Alternate && coefficient <= 0.0 {
                return Err(Error::usage(format!(
                    "`optimizer.grpo-split.{name}`: expected a number above 0 with `schedule = \"alternate\"`, got \
                     {coefficient}"
                ))
                .hint("use `schedule = \"joint\"` to disable an objective"));
            }
        }
        Ok(self)
    }

    /// Whether a step trains generation, and whether it trains understanding.
    fn trained_in(&self, step: u64) -> (bool, bool) {
        let odd = step % 2 == 1;
        match self.schedule {
            Schedule::Joint => (self.image.coefficient > 0.0, self.answer_weight > 0.0),
            Schedule::Alternate => (odd, !odd),
        }
    }
}

impl Algorithm for GrpoSplit {
    fn accumulate(&self, iteration: &mut Iteration<'_>) -> Result<Outcome> {
        let (generation, understanding) = self.trained_in(iteration.step);
        let mut metrics = BTreeMap::new();

        // 1. Generate a group of G images per prompt, and reward them.
        let generated = iteration.generate()?; // u [B,N]
        let Reading { answers: read, sampled, scored: Scored { rewards, scores } } =
            iteration.read(&generated)?; // r [B]
        let group = iteration.group();
        reward_metrics(&rewards, &scores, group, &mut metrics);
        let weigh = |scores: &Tensor| self.weighting.weights(scores, group, self.reward_temperature);

        // 2. L_image.
        if generation {
            let started = Instant::now();
            self.image.accumulate(iteration, &generated, &weigh(&scores), &mut metrics)?;
            iteration.phases.update += started.elapsed();
        }

        // 3. L_answer, micro-batch by micro-batch: gradients add up.
        if understanding {
            // Answers of the policy that were rewarded above need no new ones.
            let (answers, of_images) = match sampled {
                Some(answers) => (answers, Some(scores)),
                None => (iteration.answer(&generated)?, None),
            }; // a [B,T]
            let scores = match (iteration.score_answers(&generated, &answers)?, of_images) {
                (Some(separate), _) => {
                    metrics.insert("reward/answer_mean", mean_reward(&separate.rewards));
                    separate.scores
                }
                (None, Some(scores)) => scores,
                (None, None) => iteration.score(&generated, &answers)?.scores,
            };
            let started = Instant::now();
            let weights = weigh(&scores); // v [B]
            let questions = iteration.questions();
            let tokens = objective::token_count(&answers.mask);
            for micro in iteration.micro_batches() {
                let images = generated.narrow(micro.first, micro.len);
                let questions = &questions[micro.rows()];
                let answers = answers.narrow(micro.first, micro.len);
                let weights = weights.narrow(0, micro.first, micro.len); // [b]
                let model = &*iteration.model;
                let TokenLogp { logp, mask } =
                    model.answer_logp(&images, questions, &answers, Policy::Current)?; // [b,T]

                // Policy term: a mean per sequence, weighted, averaged over the prompts.
                let per_sequence = objective::mean_per_sequence(&logp, &mask); // [b]
                let policy = -(per_sequence * weights).sum(Kind::Float) / micro.groups() * micro.share();
                add(&mut metrics, "loss/answer", &policy);
                let mut loss = policy;

                // KL: a mean over all answer tokens of the batch.
                if self.beta > 0.0 {
                    let hard = Images::from_tokens(images.tokens.shallow_clone());
                    let reference =
                        tch::no_grad(|| model.answer_logp(&hard, questions, &answers, Policy::Reference))?;
                    let (k3, clamped) = objective::k3(&logp, &reference.logp); // [b,T]
                    let kl = objective::mean_per_token(&k3, &mask);
                    let clamped = objective::mean_per_token(&clamped, &mask);
                    let token_share = objective::token_count(&answers.mask) / tokens;
                    add(&mut metrics, "kl/answer", &(&kl * token_share));
                    add(&mut metrics, "kl/answer_clamped", &(clamped * token_share));
                    loss += kl * (self.beta * token_share);
                }
                backward(&(loss * self.answer_weight), "loss/answer")?;
            }
            iteration.phases.update += started.elapsed();
        }

        Ok(Outcome { metrics, images: generated, answers: read, rewards })
    }

    fn terms(&self) -> Terms<'_> {
        Terms {
            image: (self.image.coefficient > 0.0).then_some(&self.image),
            answer: self.answer_weight > 0.0,
            end_to_end: None,
            alternate: self.schedule == Schedule::Alternate,
        }
    }
}

#[cfg(test)]
mod tests {
    use unirl::model::UnifiedModel as _;

    use super::*;
    use crate::algorithms::Rollout;
    use crate::algorithms::passes;
    use crate::algorithms::testing::{
        Halves, K3_LIKELY, K3_UNLIKELY, MICRO_BATCHES, TAU, TestStep, assert_gradient, assert_metrics,
        policy_term, prefers, two_groups,
    };
    use crate::rewards::RewardSet;

    fn options(text: &str) -> Result<GrpoSplit> {
        let text = format!("weighting = \"advantage\"\nbeta = 0.0\n{text}");
        crate::algorithms::__private::options::<GrpoSplit>("grpo-split", text.parse().unwrap())?.checked()
    }

    /// The gradients of `generation` and `answers`, and the metrics.
    type StepResult = ([Option<[f64; 2]>; 2], BTreeMap<&'static str, f64>);

    /// A step with one group of two.
    fn step(options: &str, step: u64) -> StepResult {
        step_with(options, step, None, false)
    }

    fn step_with(
        options: &str,
        step: u64,
        answer_rules: Option<&RewardSet>,
        shuffle_rewards: bool,
    ) -> StepResult {
        let mut model = Halves::decoupled([[0.0; 2]; 2], [[0.0; 2]; 2]);
        let batch = TestStep { prompts: 1, group: 2, step, answer_rules, shuffle_rewards, ..two_groups() };
        let outcome = batch.accumulate(&self::options(options).unwrap(), &mut model);
        (model.gradients(), outcome.metrics)
    }

    /// The gradient that raises the first of two. The weights of the rewards 1 and 0 are ±w, w = 1/2 / (1/2 + 1e-4) / 2; the
    /// loss −w·(log p₀ − log p₁) is −w·(θ₀ − θ₁).
    const FIRST: [f64; 2] = [-0.499_900_02, 0.499_900_02];
    const SECOND: [f64; 2] = [0.499_900_02, -0.499_900_02];

    const IMAGE: &str = "image = { coefficient = 1.0, beta = 0.0 }";

    /// Codes and words have probabilities ¾ and ¼, and ½ each under the reference policy. With respect to the logits,
    /// d log p₀ = (¼, −¼) and d log p₁ = (−¾, ¾); d k3 / d log p is ⅓ and −1.
    fn model() -> Halves {
        Halves::decoupled([[f64::ln(3.0), 0.0]; 2], [[0.0; 2]; 2])
    }

    fn split(weighting: Weighting, [answer_weight, beta]: [f64; 2], image: [f64; 2]) -> GrpoSplit {
        let image = ImageTerm { coefficient: image[0], beta: image[1], ..ImageTerm::default() };
        let schedule = Schedule::Joint;
        GrpoSplit { schedule, weighting, reward_temperature: TAU, answer_weight, beta, image }
    }

    #[test]
    fn accumulate_both_terms_match_numbers_by_hand() {
        let loss = policy_term(f64::ln(0.75), f64::ln(0.25));
        // Of 6 images 3 are code 0 and 3 code 1; the answers have 3 tokens of word 0 and 6 of word 1.
        let image_kl = 0.5 * (K3_LIKELY + K3_UNLIKELY);
        let answer_kl = (3.0 * K3_LIKELY + 6.0 * K3_UNLIKELY) / 9.0;
        for (answer, image) in [([1.0, 0.2], [1.0, 0.2]), ([0.1, 0.5], [2.0, 0.02]), ([3.0, 2.0], [0.5, 4.0])]
        {
            for micro_batch in MICRO_BATCHES {
                let mut model = model();
                let batch = TestStep { micro_batch, ..two_groups() };
                let outcome = batch.accumulate(&split(Weighting::Softmax, answer, image), &mut model);
                let [generation, answers] = model.gradients();
                // Policy: −0.65 · ¼ + 0.35 · ¾ = 0.1. KL: (⅓ · ¼ + (−1) · (−¾)) / 2 = 5/12.
                let expected = image[0] * (0.1 + image[1] * 5.0 / 12.0);
                assert_gradient("generation", generation, [expected, -expected]);
                // KL: (3 · ⅓ · ¼ + 6 · (−1) · (−¾)) / 9 = 4.75/9.
                let expected = answer[0] * (0.1 + answer[1] * 4.75 / 9.0);
                assert_gradient("answers", answers, [expected, -expected]);
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
        // Policy: −½ · (4a · l₀ − 4a · l₁), whose derivative with respect to the logits has the factor ¼ + ¾ = 1.
        let a = 1.0 / 3.0 / (f64::sqrt(2.0) / 3.0 + 1e-4) / 3.0;
        let expected = -2.0 * a;
        for micro_batch in MICRO_BATCHES {
            let mut model = model();
            let batch = TestStep { micro_batch, ..two_groups() };
            let outcome = batch.accumulate(&split(Weighting::Advantage, [1.0, 0.0], [1.0, 0.0]), &mut model);
            let [generation, answers] = model.gradients();
            assert_gradient("generation", generation, [expected, -expected]);
            assert_gradient("answers", answers, [expected, -expected]);
            let loss = expected * (f64::ln(0.75) - f64::ln(0.25));
            let rewards = [("reward/informative", 1.0), ("reward/mean", 0.5), ("reward/pass", 0.5)];
            assert_metrics(
                &outcome.metrics,
                &[&[("loss/answer", loss), ("loss/image", loss)], &rewards[..]].concat(),
            );
        }
    }

    #[test]
    fn joint_schedule_trains_both_objectives() {
        for number in 1..=2 {
            let ([generation, answers], metrics) = step(IMAGE, number);
            assert_gradient("generation", generation, FIRST);
            assert_gradient("answers", answers, FIRST);
            assert!(metrics.contains_key("loss/image") && metrics.contains_key("loss/answer"));
        }
    }

    #[test]
    fn alternate_schedule_trains_one_objective_per_step() {
        let options = format!("schedule = \"alternate\"\n{IMAGE}");
        for number in [1, 3] {
            let ([generation, answers], metrics) = step(&options, number);
            assert_gradient("generation", generation, FIRST);
            assert!(answers.is_none() && !metrics.contains_key("loss/answer"));
            assert!(metrics.contains_key("loss/image") && metrics.contains_key("reward/mean"));
        }
        for number in [2, 4] {
            let ([generation, answers], metrics) = step(&options, number);
            assert_gradient("answers", answers, FIRST);
            assert!(generation.is_none() && !metrics.contains_key("loss/image"));
            assert!(metrics.contains_key("loss/answer") && metrics.contains_key("reward/mean"));
        }
    }

    #[test]
    fn answer_rules_weight_the_answer_objective() {
        let separate = prefers("1");
        let ([generation, answers], metrics) = step_with(IMAGE, 1, Some(&separate), false);
        assert_gradient("generation", generation, FIRST);
        assert_gradient("answers", answers, SECOND);
        assert_eq!((metrics["reward/mean"], metrics["reward/answer_mean"]), (0.5, 0.5));
        assert!(!step(IMAGE, 1).1.contains_key("reward/answer_mean"));
        let ([generation, answers], metrics) = step_with(IMAGE, 1, Some(&prefers("2")), false);
        assert_gradient("generation", generation, FIRST);
        assert_gradient("answers", answers, [0.0, 0.0]);
        assert_eq!((metrics["reward/mean"], metrics["reward/answer_mean"]), (0.5, 0.0));
    }

    #[test]
    fn shuffle_permutes_both_rewards_alike() {
        let separate = prefers("1");
        let mut orders = [0, 0];
        for number in 1..=8 {
            let ([generation, answers], _) = step_with(IMAGE, number, Some(&separate), true);
            let kept = generation.unwrap()[0] < 0.0;
            orders[usize::from(kept)] += 1;
            assert_gradient("generation", generation, if kept { FIRST } else { SECOND });
            assert_gradient("answers", answers, if kept { SECOND } else { FIRST });
        }
        assert!(orders[0] > 0 && orders[1] > 0, "both orders must occur: {orders:?}");
    }

    #[test]
    fn passes_accumulate_gradients_in_joint_steps_only() {
        let grads_accumulated = |text| -> Vec<bool> {
            let options = options(text).unwrap();
            let passes = passes(
                options.terms(),
                &Rollout::default(),
                Halves::decoupled([[0.0; 2]; 2], [[0.0; 2]; 2]).card(),
            );
            passes.iter().map(|pass| pass.grads_accumulated).collect()
        };
        assert_eq!(grads_accumulated(""), [false, true]);
        assert_eq!(grads_accumulated("image = { coefficient = 0.0 }"), [false]);
        assert_eq!(
            grads_accumulated("schedule = \"alternate\"\nimage = { coefficient = 1.0 }"),
            [false, false]
        );
    }

    #[test]
    fn image_options_left_out_keep_the_defaults_of_grpo_split() {
        let image = options("image = { beta = 0.5 }").unwrap().image;
        assert_eq!(image, ImageTerm { beta: 0.5, ..GrpoSplit::default().image });
    }

    #[test]
    fn alternate_schedule_with_a_disabled_objective_is_refused() {
        for (text, name) in
            [("answer_weight = 0.0", "answer_weight"), ("image = { coefficient = 0.0 }", "image.coefficient")]
        {
            let error = options(&format!("schedule = \"alternate\"\n{text}")).unwrap_err();
            assert!(error.message().contains(&format!("grpo-split.{name}`")), "{error}");
            assert!(options(text).is_ok());
        }
    }
}
