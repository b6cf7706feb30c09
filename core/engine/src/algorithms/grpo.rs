//! GRPO end to end (§3.4, eq. 5): the gradient of the answers flows through the image tokens.
//!
//! For `P` prompts with `G` images each, with `ũ_i` the completed image, `a_i` the answer about it and `w_i` its weight:
//!
//! ```text
//! L = answer_weight · [ −(1/P) Σ_p Σ_i w_i · (1/|a_i|) Σ_t log π_θ(a_it | ũ_i, q)  +  beta · KL(π_θ ‖ π_ref) ]
//! ```
//!
//! Reductions: the policy term is a mean over the tokens of each answer, a weighted sum over the `G` answers of a prompt
//! (softmax weights add up to 1, advantages are divided by `G`) and a mean over prompts. The KL is a mean over all answer
//! tokens of the batch.
//!
//! Deviations from the paper, and choices that it leaves open:
//! 1. The log-likelihood of an answer is a mean over its tokens.
//! 2. The KL is the k3 estimate on answer tokens, with log-ratios clamped to ±20. `answer_weight` also scales it, so its
//!    weight in the loss is `answer_weight · beta`.
//! 3. The current policy samples the answers, without gradient. There is one update per rollout, so `π_old = π_θ`: no
//!    importance ratio and no clipping (eq. 2).
//! 4. Answers are greedy unless `rollout.answers.temperature` is above 0.
//! 5. `weighting = "advantage"` is the signed weight of standard GRPO (eq. 2); `"softmax"` is the paper's.
//! 6. `image` adds the log-likelihood of the generated image tokens, weighted by the rewards of the answers about the
//!    *generated* images; these rewards are then logged. Preset `paper` uses neither 5 nor 6.

use std::collections::BTreeMap;
use std::time::Instant;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use unirl::error::Result;
use unirl::model::{Answers, Images, Policy, Scoring, TokenLogp, UnifiedModel};

use super::metrics::{add, reward_metrics};
use super::objective::{self, Weighting};
use super::right_answers::RightAnswers;
use super::straight_through::through;
use super::{
    Algorithm, Decoupled, ImageTerm, Iteration, MaskingKind, Outcome, Reading, RightAnswer, Scored,
    StraightThrough, Terms, backward,
};
use crate::register_algorithm;

/// The answers of the answer term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AnswerKind {
    /// Answers sampled by the model.
    Sampled,
    /// The right answers.
    Right,
}

/// Options of `grpo`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Grpo {
    /// How rewards become weights.
    pub weighting: Weighting,
    /// `τ` of the softmax weights.
    #[serde(alias = "weight_temperature")]
    #[schemars(extend("exclusiveMinimum" = 0.0, "x-former-names" = ["weight_temperature"]))]
    pub reward_temperature: f64,
    /// Weight of the end-to-end answer term in the loss; 0 disables it.
    #[serde(alias = "answer_coefficient")]
    #[schemars(range(min = 0.0), extend("x-former-names" = ["answer_coefficient"]))]
    pub answer_weight: f64,
    /// Weight of the KL on answer tokens.
    #[schemars(range(min = 0.0))]
    pub beta: f64,
    /// `τ` of the straight-through Gumbel-softmax (eq. 7).
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub gumbel_temperature: f64,
    /// The answers of the answer term: `sampled` by the model, as in the paper, and rewarded each; or the `right` ones, weighted by
    /// the rewards of the images.
    pub answers: AnswerKind,
    /// For `answers = "right"`: `reference`, `likeliest` or `any`.
    pub right_answer: RightAnswer,
    /// How rewards become the weights of answers, if not by `weighting`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_weighting: Option<Weighting>,
    /// The states in which images are fed back for the answer term. `remask`: masked at random and sampled again, as in the paper;
    /// `reveal`: as they were sampled.
    pub replay: MaskingKind,
    /// For `replay = "reveal"`: the number of randomly chosen decoding steps per training step; 0 for all.
    #[schemars(range(min = 0))]
    pub reveal_steps: i64,
    /// For `replay = "reveal"`: the distribution of the image tokens: `conditional`, `guided` or `guided-detached`.
    pub scoring: Scoring,
    /// Whether the answer term also changes the weights as those of the reader, as in the paper.
    pub reader_gradient: bool,
    /// The log-likelihood of the generated image tokens, weighted by the same rewards.
    pub image: ImageTerm,
}

impl Default for Grpo {
    /// The form of the paper; `β` = 0.2 is taken from the names of the authors' runs.
    fn default() -> Self {
        Self {
            weighting: Weighting::Softmax,
            reward_temperature: 1.0,
            answer_weight: 1.0,
            beta: 0.2,
            gumbel_temperature: 1.0,
            answers: AnswerKind::Sampled,
            right_answer: RightAnswer::Any,
            answer_weighting: None,
            replay: MaskingKind::Remask,
            reveal_steps: 0,
            scoring: Scoring::Guided,
            reader_gradient: true,
            image: ImageTerm::default(),
        }
    }
}

register_algorithm!(
    "grpo",
    Grpo,
    "reward-weighted log-likelihood of sampled answers, end to end through the image tokens (eq. 5)",
    Decoupled::Refuses,
    answer_rules: false
);

impl Algorithm for Grpo {
    fn accumulate(&self, iteration: &mut Iteration<'_>) -> Result<Outcome> {
        let group = iteration.group();
        let mut metrics = BTreeMap::new();

        // 1. Generate a group of G images per prompt.
        let generated = iteration.generate()?; // u [B,N]
        let mut trained_on = None;
        let mut reading = None;

        // 2. Addition to the paper: the image term, weighted by the rewards of the generated images.
        if self.image.coefficient > 0.0 {
            let read = iteration.read(&generated)?;
            let Scored { rewards, scores } = &read.scored; // [B]
            reward_metrics(rewards, scores, group, &mut metrics);
            let started = Instant::now();
            let weights = self.weighting.weights(scores, group, self.reward_temperature); // [B]
            self.image.accumulate(iteration, &generated, &weights, &mut metrics)?;
            iteration.phases.update += started.elapsed();
            reading = Some(read);
        }

        if self.answer_weight > 0.0 {
            // 3. Feed the images back by the straight-through Gumbel-softmax (eqs. 3, 7 and 8).
            let path = self.straight_through();
            let joint = self.reader_gradient && self.answers == AnswerKind::Sampled;
            let mut completed = match joint {
                true => path.complete_all(iteration, &generated)?, // ũ [B,N,K]
                false => path.tokens_of_all(iteration, &generated)?,
            };

            // 4. Answer about the completed images, reward them, and weigh the answers.
            let (answers, read) = match (self.answers, &reading) {
                (AnswerKind::Sampled, _) => {
                    let answers = iteration.answer(&completed)?; // a [B,T]
                    let scored = iteration.score(&completed, &answers)?; // r [B]
                    let text = answers.text.clone();
                    (Some(answers), Reading { answers: text, sampled: None, scored })
                }
                // Fed back as they were generated, they were read above.
                (AnswerKind::Right, Some(read)) if self.replay == MaskingKind::Reveal => {
                    (None, read.shallow_clone())
                }
                (AnswerKind::Right, _) => (None, iteration.read(&completed)?),
            };
            let started = Instant::now();
            let weighting = self.answer_weighting.unwrap_or(self.weighting);
            let weights = weighting.weights(&read.scored.scores, group, self.reward_temperature); // w [B]

            // 5. The loss (eq. 5).
            let (images, answers) = ((&generated, &mut completed), answers.as_ref());
            self.accumulate_answers(iteration, images, answers, &weights, &mut metrics)?;
            iteration.phases.update += started.elapsed();

            // Without the image term, the completed images are the rewarded ones.
            if reading.is_none() {
                reward_metrics(&read.scored.rewards, &read.scored.scores, group, &mut metrics);
                trained_on = Some(Images::from_tokens(completed.tokens));
                reading = Some(read);
            }
        }

        let images = trained_on.unwrap_or(generated);
        let (answers, rewards) =
            reading.map_or_else(Default::default, |read| (read.answers, read.scored.rewards));
        Ok(Outcome { metrics, images, answers, rewards })
    }

    fn terms(&self) -> Terms<'_> {
        Terms {
            image: (self.image.coefficient > 0.0).then_some(&self.image),
            answer: self.answer_weight > 0.0,
            end_to_end: Some(self.straight_through()),
            alternate: false,
        }
    }
}

impl Grpo {
    /// Accumulates the gradient of the answer term, micro-batch by micro-batch. `answers` are the sampled ones about the
    /// `completed` images, `None` for the right ones. Takes the relaxed tokens of `completed`, if it has any, and completes
    /// each micro-batch otherwise.
    fn accumulate_answers(
        &self,
        iteration: &mut Iteration<'_>,
        (generated, completed): (&Images, &mut Images),
        answers: Option<&Answers>,
        weights: &Tensor,
        metrics: &mut BTreeMap<&'static str, f64>,
    ) -> Result<()> {
        let tasks = iteration.supervision();
        let tokens = match answers {
            Some(answers) => objective::token_count(&answers.mask),
            None => objective::token_count(&RightAnswers::new(&*iteration.model, &tasks)?.answers.mask),
        };
        let questions = iteration.questions();
        for micro in iteration.micro_batches() {
            let weights = weights.narrow(0, micro.first, micro.len); // [b]
            let term = match answers {
                Some(answers) => AnswerRows::Sampled {
                    answers: answers.narrow(micro.first, micro.len),
                    questions: &questions[micro.rows()],
                },
                None => AnswerRows::Right {
                    right: RightAnswers::new(&*iteration.model, &tasks[micro.rows()])?,
                    form: self.right_answer,
                },
            };
            // Policy term: a mean per sequence, weighted, averaged over the prompts.
            let policy = |scored: &TokenLogp| {
                let per_sequence = term.per_sequence(scored); // [b]
                -(per_sequence * &weights).sum(Kind::Float) / micro.groups() * micro.share()
            };
            let read = if self.reader_gradient {
                None
            } else {
                let images = completed.narrow(micro.first, micro.len);
                let loss = |model: &dyn UnifiedModel, images: &Images| {
                    Ok(policy(&term.score(model, images, Policy::Current)?))
                };
                Some(iteration.token_gradient(&images, loss)?)
            };
            let images = match completed.relaxed.take() {
                Some(relaxed) => {
                    Images { relaxed: Some(relaxed), ..Images::from_tokens(completed.tokens.shallow_clone()) }
                }
                None => self.straight_through().complete(iteration, generated, micro)?.0,
            };
            let model = &*iteration.model;
            let (mut loss, scored) = if let Some((loss, gradient)) = &read {
                add(metrics, "loss/answer", loss);
                (through(&images, gradient), None)
            } else {
                let scored = term.score(model, &images, Policy::Current)?;
                let loss = policy(&scored);
                add(metrics, "loss/answer", &loss);
                (loss, Some(scored))
            };

            // KL: a mean over all answer tokens of the batch.
            if self.beta > 0.0 {
                let hard = Images::from_tokens(images.tokens.shallow_clone());
                let scored = match scored {
                    Some(scored) => scored,
                    None => term.score(model, &hard, Policy::Current)?,
                };
                let reference = tch::no_grad(|| term.score(model, &hard, Policy::Reference))?;
                let (k3, clamped) = objective::k3(&scored.logp, &reference.logp); // [b,T]
                let kl = objective::mean_per_token(&k3, &scored.mask);
                let clamped = objective::mean_per_token(&clamped, &scored.mask);
                let token_share = objective::token_count(&scored.mask) / tokens;
                add(metrics, "kl/answer", &(&kl * token_share));
                add(metrics, "kl/answer_clamped", &(clamped * token_share));
                loss += kl * (self.beta * token_share);
            }
            backward(&(loss * self.answer_weight), "loss/answer")?;
        }
        Ok(())
    }

    fn straight_through(&self) -> StraightThrough {
        StraightThrough {
            temperature: self.gumbel_temperature,
            replay: self.replay,
            reveal_steps: self.reveal_steps,
            scoring: self.scoring,
        }
    }
}

/// The answers of the answer term about a micro-batch.
enum AnswerRows<'a> {
    Sampled { answers: Answers, questions: &'a [String] },
    Right { right: RightAnswers, form: RightAnswer },
}

impl AnswerRows<'_> {
    fn score(&self, model: &dyn UnifiedModel, images: &Images, policy: Policy) -> Result<TokenLogp> {
        match self {
            Self::Sampled { answers, questions } => model.answer_logp(images, questions, answers, policy),
            Self::Right { right, .. } => right.score(model, images, policy),
        }
    }

    /// The mean log-likelihood per token of the answer about each image, `[b]`.
    fn per_sequence(&self, scored: &TokenLogp) -> Tensor {
        match self {
            Self::Sampled { .. } => objective::mean_per_sequence(&scored.logp, &scored.mask),
            Self::Right { right, form } => right.logp(scored, *form) / &right.lengths,
        }
    }
}

#[cfg(test)]
mod tests {
    use unirl::reward::Reward;

    use super::*;
    use crate::algorithms::testing::{
        Halves, K3_LIKELY, K3_UNLIKELY, MICRO_BATCHES, TAU, TestStep, assert_gradient, assert_metrics,
        policy_term, two_groups,
    };

    const GUMBEL_TAU: f64 = 1e4;

    /// Code 0 is 12 above code 1, so every completed image is code 0: the words have probabilities ¾ and ¼, and ½ each under
    /// the reference policy.
    fn model() -> Halves {
        Halves::shared([[12.0, 0.0], [0.0, 0.0]], [[10.0, 0.0], [-f64::ln(3.0), 0.0]])
    }

    fn grpo(answer_weight: f64, beta: f64, image: ImageTerm) -> Grpo {
        let weighting = Weighting::Softmax;
        Grpo {
            weighting,
            reward_temperature: TAU,
            answer_weight,
            beta,
            gumbel_temperature: GUMBEL_TAU,
            image,
            ..Grpo::default()
        }
    }

    const LOG_P: (f64, f64) = (-0.287_682_072_452, -1.386_294_361_120); // ln ¾, ln ¼

    /// The answers have 3 tokens of word 0 and 6 of word 1.
    const KL: f64 = (3.0 * K3_LIKELY + 6.0 * K3_UNLIKELY) / 9.0;

    /// With respect to the logits of the words, d log p₀ = (¼, −¼) and d log p₁ = (−¾, ¾).
    /// Policy: −0.65 · ¼ + 0.35 · ¾ = 0.1. KL: (3 · ⅓ · ¼ + 6 · (−1) · (−¾)) / 9 = 4.75/9.
    fn answer_gradient(coefficient: f64, beta: f64) -> f64 {
        coefficient * (0.1 + beta * 4.75 / 9.0)
    }

    /// Through ũ, which the logit of a word contains times ln 3; the Gumbel-softmax of a large τ has the derivative ¼/τ.
    fn end_to_end(answers: f64) -> f64 {
        f64::ln(3.0) * answers / 2.0 / GUMBEL_TAU
    }

    #[test]
    fn accumulate_answer_term_matches_numbers_by_hand() {
        for (coefficient, beta) in [(1.0, 0.2), (0.1, 0.5), (0.5, 0.0), (2.0, 3.0)] {
            for micro_batch in MICRO_BATCHES {
                let mut model = model();
                let batch = TestStep { micro_batch, ..two_groups() };
                let outcome = batch.accumulate(&grpo(coefficient, beta, ImageTerm::default()), &mut model);
                let answers = answer_gradient(coefficient, beta);
                let generation = end_to_end(answers) * GUMBEL_TAU;
                let [got_generation, got_answers] = model.gradients();
                assert_gradient("answers", got_answers, [answers, -answers]);
                assert_gradient(
                    "generation · τ",
                    got_generation.map(|g| g.map(|g| g * GUMBEL_TAU)),
                    [generation, -generation],
                );
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

    /// The right answers are word 0 about the first three images and word 1 about the others, and the rewards 1 0 1 | 0 1 0.
    #[test]
    fn right_answers_are_weighted_by_the_rewards_of_images() {
        let (l0, l1) = LOG_P;
        for (reader_gradient, micro_batch) in MICRO_BATCHES.into_iter().flat_map(|m| [(true, m), (false, m)])
        {
            let mut model = model();
            let batch = TestStep { micro_batch, ..two_groups() };
            let grpo = Grpo {
                answers: AnswerKind::Right,
                answer_weighting: Some(Weighting::Reward),
                reader_gradient,
                ..grpo(1.0, 0.0, ImageTerm::default())
            };
            let outcome = batch.accumulate(&grpo, &mut model);
            let loss = -f64::midpoint(2.0 * l0 / 3.0, l1 / 3.0);
            assert!((outcome.metrics["loss/answer"] - loss).abs() < 2e-6, "{:?}", outcome.metrics);
            // d log p₀ = (¼, −¼) and d log p₁ = (−¾, ¾).
            let answers = -f64::midpoint(2.0 / 3.0 * 0.25, -0.75 / 3.0);
            let generation = end_to_end(answers) * GUMBEL_TAU;
            let [got_generation, got_answers] = model.gradients();
            assert_eq!(got_answers.is_some(), reader_gradient);
            if reader_gradient {
                assert_gradient("answers", got_answers, [answers, -answers]);
            }
            assert_gradient(
                "generation · τ",
                got_generation.map(|g| g.map(|g| g * GUMBEL_TAU)),
                [generation, -generation],
            );
        }
    }

    /// Half of the generated images are code 0 and half code 1, with `q` = softmax(12, 0); the reference has softmax(10, 0).
    #[test]
    fn accumulate_image_term_matches_numbers_by_hand() {
        let log_softmax = |gap: f64| [-(-gap).exp().ln_1p(), -gap - (-gap).exp().ln_1p()];
        let ([q0, q1], [r0, r1]) = (log_softmax(12.0), log_softmax(10.0));
        let (d0, d1) = (r0 - q0, r1 - q1);
        let kl = (d0.exp() - d0 - 1.0 + d1.exp() - d1 - 1.0) / 2.0;
        // d log q₀ = (q₁, −q₁), d log q₁ = (−q₀, q₀); d k3 / d log q = 1 − exp(d).
        let (up, down) = (q1.exp(), -q0.exp());
        let policy = -0.65 * up - 0.35 * down;
        let divergence = 0.5 * ((1.0 - d0.exp()) * up + (1.0 - d1.exp()) * down);
        for (coefficient, image_beta) in [(1.0, 0.1), (0.5, 0.3), (3.0, 0.0)] {
            for (answer_weight, beta) in [(0.0, 0.2), (0.1, 0.5)] {
                for micro_batch in MICRO_BATCHES {
                    let image = ImageTerm { coefficient, beta: image_beta, ..ImageTerm::default() };
                    let mut model = model();
                    let batch = TestStep { micro_batch, ..two_groups() };
                    let outcome = batch.accumulate(&grpo(answer_weight, beta, image), &mut model);
                    let answers = answer_gradient(answer_weight, beta);
                    let generation = coefficient * (policy + image_beta * divergence) + end_to_end(answers);
                    let [got_generation, got_answers] = model.gradients();
                    assert_gradient("generation", got_generation, [generation, -generation]);
                    let mut expected = vec![
                        ("loss/image", policy_term(q0, q1)),
                        ("reward/informative", 1.0),
                        ("reward/mean", 0.5),
                        ("reward/pass", 0.5),
                    ];
                    if image_beta > 0.0 {
                        expected.splice(0..0, [("kl/image", kl), ("kl/image_clamped", 0.0)]);
                    }
                    if answer_weight > 0.0 {
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

    /// Generated images alternate between code 0 and code 1; completed images are all code 0, whose answers are rewarded.
    fn answers_by_code() -> Halves {
        model().answering_by(1)
    }

    #[test]
    fn accumulate_without_image_term_logs_completed_images() {
        for micro_batch in MICRO_BATCHES {
            let mut model = answers_by_code();
            let batch = TestStep { micro_batch, ..two_groups() };
            let outcome = batch.accumulate(&grpo(1.0, 0.2, ImageTerm::default()), &mut model);
            let metrics = &outcome.metrics;
            assert_eq!((metrics["reward/mean"], metrics["reward/informative"]), (1.0, 0.0));
            assert_eq!(Vec::<i64>::try_from(outcome.images.tokens.select(1, 1)).unwrap(), [0; 6]);
            assert!(outcome.images.relaxed.is_none(), "the outcome keeps no graph");
            assert_eq!(outcome.answers, ["0"; 6]);
            assert!(outcome.rewards.iter().all(Reward::passes));
            let calls = if micro_batch == 0 { 1 } else { 6usize.div_ceil(micro_batch) };
            assert_eq!(model.answer_calls.get(), calls, "answers are generated once");
        }
    }

    #[test]
    fn accumulate_with_image_term_logs_generated_images() {
        let image = ImageTerm { coefficient: 1.0, ..ImageTerm::default() };
        let outcome = two_groups().accumulate(&grpo(1.0, 0.2, image), &mut answers_by_code());
        assert_eq!((outcome.metrics["reward/mean"], outcome.metrics["reward/informative"]), (0.5, 1.0));
        assert_eq!(Vec::<i64>::try_from(outcome.images.tokens.select(1, 1)).unwrap(), [0, 1, 0, 1, 0, 1]);
        assert_eq!(outcome.answers, ["0", "1", "0", "1", "0", "1"]);
    }

    #[test]
    fn accumulate_without_terms_has_no_gradients() {
        let mut model = model();
        let outcome = two_groups().accumulate(&grpo(0.0, 0.2, ImageTerm::default()), &mut model);
        assert!(outcome.metrics.is_empty() && outcome.answers.is_empty() && outcome.rewards.is_empty());
        assert_eq!(model.gradients(), [None, None]);
    }
}
