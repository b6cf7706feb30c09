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
    use std::path::Path;

    use tch::Kind;

    use super::*;
    use crate::model::{
        Answers, ImageDecoding, ImageLogits, ImageSampling, ImageSpace, Images, Mode, ModelCard, Parameter,
        Policy, Replay, TextSampling, TokenLogp, UnifiedModel,
    };
    use crate::optimizer::Phases;
    use crate::reward::{Reward, RewardFunction, RuleSet, Sample, WeightedRule};
    use crate::scene::{Category, Facts, Task};

    /// One weight draws, another answers: two codes and two words, each equally likely. Image and answer `i` are `i`.
    struct Halves {
        card: ModelCard,
        draws: Tensor,   // [2]
        answers: Tensor, // [2]
    }

    impl Halves {
        fn new() -> Self {
            let weight = || Tensor::zeros([2], tch::kind::FLOAT_CPU).set_requires_grad(true);
            let card = ModelCard {
                name: "halves".into(),
                image_space: ImageSpace::Decoupled,
                image_decoding: ImageDecoding::Autoregressive,
                image_tokens: 1,
                codebook_size: 2,
                resolution: 1,
                reads_at: None,
                pads_with: None,
                sampling: ImageSampling::default(),
            };
            Self { card, draws: weight(), answers: weight() }
        }
    }

    fn all(tensor: &Tensor) -> Tensor {
        tensor.ones_like().to_kind(Kind::Bool)
    }

    impl UnifiedModel for Halves {
        fn card(&self) -> &ModelCard {
            &self.card
        }

        fn generate(&mut self, prompts: &[String], _: &ImageSampling) -> Result<Images> {
            Ok(Images::from_tokens(Tensor::arange(prompts.len() as i64, tch::kind::INT64_CPU).unsqueeze(1)))
        }

        fn answer(&mut self, images: &Images, _: &[String], _: &TextSampling) -> Result<Answers> {
            let tokens = images.tokens.shallow_clone();
            let text = (0..images.len()).map(|row| row.to_string()).collect();
            let mask = all(&tokens);
            Ok(Answers::new(text, tokens, mask))
        }

        fn image_logits(&self, _: &[String], images: &Images, _: Policy, _: &Replay) -> Result<ImageLogits> {
            let logits = self.draws.expand([images.len(), 1, 2], true); // [B,N,K]
            Ok(ImageLogits { logits, targets: all(&images.tokens) })
        }

        fn answer_logp(&self, _: &Images, _: &[String], answers: &Answers, _: Policy) -> Result<TokenLogp> {
            let words = self.answers.log_softmax(-1, Kind::Float);
            let logp = words.index_select(0, &answers.tokens.view([-1])).view_as(&answers.tokens); // [B,T]
            Ok(TokenLogp { logp, mask: answers.mask.shallow_clone() })
        }

        fn parameters(&self) -> Result<Vec<Parameter>> {
            unreachable!()
        }

        fn set_mode(&mut self, _: Mode) -> Result<()> {
            unreachable!()
        }

        fn freeze_reference(&mut self) -> Result<()> {
            unreachable!()
        }

        fn encode_answers(&self, _: &[String]) -> Result<Answers> {
            unreachable!()
        }

        fn pixels(&self, _: &Images) -> Result<Tensor> {
            unreachable!()
        }

        fn encode(&self, _: &Tensor) -> Result<Images> {
            unreachable!()
        }

        fn tokenizer_loss(&self, _: &Tensor, _: f64) -> Result<Tensor> {
            unreachable!()
        }

        fn save(&self, _: &Path) -> Result<()> {
            unreachable!()
        }
    }

    /// A point for one answer.
    struct Prefers(&'static str);

    impl RewardFunction for Prefers {
        fn score(&self, samples: &[Sample], _: Option<&Tensor>) -> Result<Vec<Reward>> {
            let score = |sample: &Sample| f64::from(u8::from(sample.answer == self.0));
            let reward = |sample| Reward::new(score(sample), 1.0);
            Ok(samples.iter().map(reward).collect())
        }
    }

    fn prefers(answer: &'static str) -> RuleSet {
        let rule = WeightedRule::named("prefers");
        RuleSet::new(vec![(rule, Box::new(Prefers(answer)))]).unwrap()
    }

    fn options(text: &str) -> Result<GrpoSplit> {
        let text = format!("weighting = \"advantage\"\nbeta = 0.0\n{text}");
        super::options::<GrpoSplit>("grpo-split", text.parse().unwrap())?.checked()
    }

    /// The gradients of what draws and what answers, and the metrics.
    type Learned = ([Option<Vec<f32>>; 2], BTreeMap<&'static str, f64>);

    /// A step with one group of two.
    fn step(options: &str, step: u64) -> Learned {
        step_by(options, step, None, false)
    }

    fn step_by(options: &str, step: u64, answer_rules: Option<&RuleSet>, shuffle_rewards: bool) -> Learned {
        let mut model = Halves::new();
        let facts = Facts { category: Category::Counting, objects: Vec::new(), relation: None };
        let [prompt, question, truth] = std::array::from_fn(|_| String::new());
        let keywords = Vec::new();
        let tasks = vec![Task { facts, prompt, question, truth, keywords }; 2];
        let mut iteration = Iteration {
            model: &mut model,
            tasks: &tasks,
            rules: &prefers("0"),
            answer_rules,
            rollout: &Rollout { prompts: 1, group: 2, ..Rollout::default() },
            step,
            seed: step,
            shuffle_rewards,
            phases: Phases::default(),
        };
        let optimizer = self::options(options).unwrap();
        let metrics = optimizer.accumulate(&mut iteration).unwrap().metrics;
        let gradient = |weight: &Tensor| weight.grad().defined().then(|| weight.grad().try_into().unwrap());
        ([gradient(&model.draws), gradient(&model.answers)], metrics)
    }

    #[track_caller]
    fn close(gradient: Option<&Vec<f32>>, expected: [f32; 2]) {
        const F32: f32 = 1e-6; // a handful of numbers near 1
        let gradient = gradient.unwrap();
        let off = gradient.iter().zip(expected).map(|(got, expected)| (got - expected).abs());
        assert!(off.fold(0.0, f32::max) < F32, "got {gradient:?}, expected {expected:?}");
    }

    /// Descent towards the first of two. Advantages of the rewards 1 and 0 are ±w, w = 1/2 / (1/2 + 1e-4) / 2; the loss
    /// −w·(log p₀ − log p₁) is −w·(θ₀ − θ₁).
    const FIRST: [f32; 2] = [-0.499_9, 0.499_9];
    const SECOND: [f32; 2] = [0.499_9, -0.499_9];

    const IMAGE: &str = "image = { coefficient = 1.0, beta = 0.0 }";

    #[test]
    fn both_objectives_learn_in_a_joint_step() {
        for number in 1..=2 {
            let ([draws, answers], metrics) = step(IMAGE, number);
            close(draws.as_ref(), FIRST);
            close(answers.as_ref(), FIRST);
            assert!(metrics.contains_key("loss/image") && metrics.contains_key("loss/answer"));
        }
    }

    #[test]
    fn alternate_steps_draw_and_answer_in_turn() {
        let options = format!("schedule = \"alternate\"\n{IMAGE}");
        for number in [1, 3] {
            let ([draws, answers], metrics) = step(&options, number);
            close(draws.as_ref(), FIRST);
            assert!(answers.is_none() && !metrics.contains_key("loss/answer"));
            assert!(metrics.contains_key("loss/image") && metrics.contains_key("reward/mean"));
        }
        for number in [2, 4] {
            let ([draws, answers], metrics) = step(&options, number);
            close(answers.as_ref(), FIRST);
            assert!(draws.is_none() && !metrics.contains_key("loss/image"));
            assert!(metrics.contains_key("loss/answer") && metrics.contains_key("reward/mean"));
        }
    }

    #[test]
    fn answers_may_have_rules_of_their_own() {
        let own = prefers("1");
        let ([draws, answers], metrics) = step_by(IMAGE, 1, Some(&own), false);
        close(draws.as_ref(), FIRST);
        close(answers.as_ref(), SECOND);
        assert_eq!((metrics["reward/mean"], metrics["reward/answer_mean"]), (0.5, 0.5));
        assert!(!step(IMAGE, 1).1.contains_key("reward/answer_mean"));
        let never = step_by(IMAGE, 1, Some(&prefers("2")), false);
        close(never.0[0].as_ref(), FIRST);
        close(never.0[1].as_ref(), [0.0, 0.0]);
        assert_eq!((never.1["reward/mean"], never.1["reward/answer_mean"]), (0.5, 0.0));
    }

    #[test]
    fn both_rewards_are_shuffled_alike() {
        let own = prefers("1");
        let mut orders = [0, 0];
        for number in 1..=8 {
            let ([draws, answers], _) = step_by(IMAGE, number, Some(&own), true);
            let kept = draws.as_ref().unwrap()[0] < 0.0;
            orders[usize::from(kept)] += 1;
            close(draws.as_ref(), if kept { FIRST } else { SECOND });
            close(answers.as_ref(), if kept { SECOND } else { FIRST });
        }
        assert!(orders[0] > 0 && orders[1] > 0, "{orders:?}: else the test shows nothing");
    }

    #[test]
    fn only_a_joint_step_has_gradients_of_both() {
        let beside = |text| -> Vec<bool> {
            let passes = options(text).unwrap().passes(&Rollout::default(), Halves::new().card());
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
