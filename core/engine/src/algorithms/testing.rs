//! A model small enough that losses and gradients are derived by hand, for tests of [`Algorithm::accumulate`].
//!
//! Two weights of two logits: `generation` generates an image, `answers` answers about it. An image is two tokens: the first
//! identifies the image and is never re-masked, the second is sampled from `generation`. Row `i` of a batch has the image
//! `[i % 2, i % 2]`. An answer to image `[k, _]` is word `k`, once for word 0 and twice for word 1, so that a mean over
//! tokens differs from a mean over sequences.
//!
//! The logits of the words are `answers + sees · ũ`, with `ũ` the (relaxed) one-hot of the second image token.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;

use tch::{Kind, Tensor};
use unirl::error::Result;
use unirl::model::{
    Answers, ImageDecoding, ImageLogits, ImageSampling, ImageSpace, Images, Masking, Mode, ModelCard,
    Parameter, ParameterGroup, Policy, TextSampling, TokenLogp, UnifiedModel,
};
use unirl::prompt::{Category, PromptSpec};
use unirl::reward::{Reward, RewardFunction, Sample};
use unirl_prompts::Task;

use super::{Algorithm, Iteration, Outcome, Phases, ReaderWeights, Rollout};
use crate::rewards::{RewardOptions, RewardSet, WeightedReward};

/// Tolerance: f32 arithmetic on a handful of numbers near 1.
const F32: f64 = 2e-6;

pub(super) struct Halves {
    card: ModelCard,
    generation: Tensor, // [2]
    answers: Tensor,    // [2]
    /// Logits of the reference policy.
    reference_generation: Tensor, // [2]
    reference_answers: Tensor, // [2]
    sees: f64,
    /// The position of the image token that an answer names.
    answers_by: i64,
    /// The number of calls of `answer`.
    pub(super) answer_calls: Cell<usize>,
}

fn weight(logits: [f64; 2]) -> Tensor {
    Tensor::from_slice(&logits).to_kind(Kind::Float)
}

impl Halves {
    fn new(
        image_space: ImageSpace,
        sees: f64,
        [generation, answers]: [[f64; 2]; 2],
        reference: [[f64; 2]; 2],
    ) -> Self {
        Self {
            card: ModelCard::new("halves", image_space, ImageDecoding::Autoregressive, [2, 2, 1]),
            generation: weight(generation).set_requires_grad(true),
            answers: weight(answers).set_requires_grad(true),
            reference_generation: weight(reference[0]),
            reference_answers: weight(reference[1]),
            sees,
            answers_by: 0,
            answer_calls: Cell::new(0),
        }
    }

    /// Returns a model that does not see the tokens it generates.
    pub(super) fn decoupled(weights: [[f64; 2]; 2], reference: [[f64; 2]; 2]) -> Self {
        Self::new(ImageSpace::Decoupled, 0.0, weights, reference)
    }

    /// Returns a model that sees the tokens it generates, with `sees` = ln 3.
    pub(super) fn shared(weights: [[f64; 2]; 2], reference: [[f64; 2]; 2]) -> Self {
        Self::new(ImageSpace::Shared, f64::ln(3.0), weights, reference)
    }

    /// Names the image token at this position in its answers.
    pub(super) fn answering_by(self, position: i64) -> Self {
        Self { answers_by: position, ..self }
    }

    /// Returns the gradients of `generation` and `answers`.
    pub(super) fn gradients(&self) -> [Option<[f64; 2]>; 2] {
        [&self.generation, &self.answers].map(|weight| {
            let gradient = weight.grad();
            gradient.defined().then(|| [0, 1].map(|index| gradient.double_value(&[index])))
        })
    }
}

/// Encodes answers: word 0 once, word 1 twice, padded to two tokens.
fn encode(words: &[i64]) -> Answers {
    let text = words.iter().map(ToString::to_string).collect();
    let tokens: Vec<i64> = words.iter().flat_map(|word| [*word, *word]).collect();
    let mask: Vec<bool> = words.iter().flat_map(|word| [true, *word == 1]).collect();
    Answers::new(text, Tensor::from_slice(&tokens).view([-1, 2]), Tensor::from_slice(&mask).view([-1, 2]))
}

impl UnifiedModel for Halves {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn generate(&mut self, prompts: &[String], sampling: &ImageSampling) -> Result<Images> {
        let first = sampling.part.map_or(0, |slice| slice.first);
        let codes = (Tensor::arange(prompts.len() as i64, tch::kind::INT64_CPU) + first).remainder(2); // [B]
        Ok(Images::from_tokens(Tensor::stack(&[&codes, &codes], 1))) // [B,2]
    }

    fn answer(&mut self, images: &Images, _: &[String], _: &TextSampling) -> Result<Answers> {
        self.answer_calls.set(self.answer_calls.get() + 1);
        Ok(encode(&Vec::<i64>::try_from(images.tokens.select(1, self.answers_by))?))
    }

    fn encode_answers(&self, texts: &[String]) -> Result<Answers> {
        let words: Vec<i64> = texts.iter().map(|text| text.parse().unwrap()).collect();
        Ok(encode(&words))
    }

    fn image_logits(
        &self,
        _: &[String],
        images: &Images,
        policy: Policy,
        _: &Masking,
    ) -> Result<ImageLogits> {
        let generation = match policy {
            Policy::Current => &self.generation,
            Policy::Reference => &self.reference_generation,
        };
        let logits = generation.expand([images.len(), 2, 2], true); // [B,N,K]
        let targets = Tensor::from_slice(&[false, true]).expand([images.len(), 2], true); // [B,N]
        Ok(ImageLogits { logits, targets })
    }

    fn answer_logp(
        &self,
        images: &Images,
        _: &[String],
        answers: &Answers,
        policy: Policy,
    ) -> Result<TokenLogp> {
        let weight = match policy {
            Policy::Current => &self.answers,
            Policy::Reference => &self.reference_answers,
        };
        assert!(
            policy == Policy::Current || images.relaxed.is_none(),
            "the reference policy gets hard tokens"
        );
        let codes = match &images.relaxed {
            Some(relaxed) => relaxed.shallow_clone(),
            None => images.tokens.one_hot(2).to_kind(Kind::Float),
        }; // [B,2,2]
        let logits = codes.select(1, 1) * self.sees + weight; // [B,2]
        let logp = logits.log_softmax(-1, Kind::Float).gather(1, &answers.tokens, false); // [B,T]
        let logp = logp.where_self(&answers.mask, &logp.zeros_like());
        Ok(TokenLogp { logp, mask: answers.mask.shallow_clone() })
    }

    fn parameters(&self) -> Result<Vec<Parameter>> {
        let weights = [("generation", &self.generation), ("answers", &self.answers)];
        let weights = weights.map(|(name, tensor)| (name.to_string(), tensor.shallow_clone()));
        Ok(Parameter::list(&weights, |_| ParameterGroup::Shared))
    }

    fn set_mode(&mut self, _: Mode) -> Result<()> {
        unreachable!()
    }

    fn freeze_reference(&mut self) -> Result<()> {
        unreachable!()
    }

    fn pixels(&self, _: &Images) -> Result<Tensor> {
        unreachable!()
    }

    fn encode(&self, _: &Tensor) -> Result<Images> {
        unreachable!()
    }

    fn save(&self, _: &Path) -> Result<()> {
        unreachable!()
    }
}

/// Rewards one answer.
struct Prefers(&'static str);

impl RewardFunction for Prefers {
    fn score(&self, samples: &[Sample], _: Option<&Tensor>) -> Result<Vec<Reward>> {
        let score = |sample: &Sample| f64::from(u8::from(sample.answer == self.0));
        Ok(samples.iter().map(|sample| Reward::new(score(sample), 1.0)).collect())
    }
}

pub(super) fn prefers(answer: &'static str) -> RewardSet {
    RewardSet::new(vec![(WeightedReward::named("prefers"), Box::new(Prefers(answer)))]).unwrap()
}

/// The batch of a step. The reward prefers the answer "0"; the reference answer of prompt `p` is `p % 2`.
pub(super) struct TestStep<'a> {
    pub(super) prompts: usize,
    pub(super) group: usize,
    pub(super) micro_batch: usize,
    pub(super) step: u64,
    pub(super) answer_rules: Option<&'a RewardSet>,
    pub(super) shuffle_rewards: bool,
    pub(super) reward: RewardOptions,
}

/// Two prompts with three images each: the words of the answers are 0 1 0 | 1 0 1 and the rewards 1 0 1 | 0 1 0.
pub(super) fn two_groups() -> TestStep<'static> {
    let reward = RewardOptions::default();
    TestStep {
        prompts: 2,
        group: 3,
        micro_batch: 0,
        step: 1,
        answer_rules: None,
        shuffle_rewards: false,
        reward,
    }
}

/// Micro-batch sizes for six rows.
pub(super) const MICRO_BATCHES: [usize; 5] = [0, 1, 2, 4, 6];

impl TestStep<'_> {
    pub(super) fn accumulate(&self, algorithm: &dyn Algorithm, model: &mut Halves) -> Outcome {
        let task = |row: usize| Task {
            spec: PromptSpec { category: Category::Counting, objects: Vec::new(), relation: None },
            prompt: String::new(),
            question: String::new(),
            reference_answer: (row / self.group % 2).to_string(),
            keywords: Vec::new(),
        };
        let tasks: Vec<Task> = (0..self.prompts * self.group).map(task).collect();
        let (prompts, group, micro_batch) = (self.prompts, self.group, self.micro_batch);
        let mut reader = ReaderWeights::new(&model.parameters().unwrap(), &self.reward);
        let mut iteration = Iteration {
            model,
            tasks: &tasks,
            rules: &prefers("0"),
            answer_rules: self.answer_rules,
            reward: &self.reward,
            reader: &mut reader,
            rollout: &Rollout {
                prompts_per_step: prompts,
                group_size: group,
                micro_batch,
                ..Rollout::default()
            },
            step: self.step,
            seed: self.step,
            shuffle_rewards: self.shuffle_rewards,
            phases: Phases::default(),
        };
        algorithm.accumulate(&mut iteration).unwrap()
    }
}

#[track_caller]
pub(super) fn assert_gradient(what: &str, gradient: Option<[f64; 2]>, expected: [f64; 2]) {
    let gradient = gradient.unwrap();
    for (got, expected) in gradient.iter().zip(expected) {
        assert!((got - expected).abs() <= F32, "gradient of {what}: expected {expected:?}, got {gradient:?}");
    }
}

#[track_caller]
pub(super) fn assert_metrics(metrics: &BTreeMap<&'static str, f64>, expected: &[(&'static str, f64)]) {
    assert_eq!(metrics.keys().collect::<Vec<_>>(), expected.iter().map(|(name, _)| name).collect::<Vec<_>>());
    for (name, expected) in expected {
        let got = metrics[name];
        assert!(
            (got - expected).abs() <= F32 * (1.0 + expected.abs()),
            "`{name}`: expected {expected}, got {got}"
        );
    }
}

/// The reward temperature at which exp(reward / τ) is 2 or 1: the softmax weights of [`two_groups`] are
/// 2/5 1/5 2/5 | 1/4 2/4 1/4.
pub(super) const TAU: f64 = std::f64::consts::LOG2_E;

/// The policy term of [`two_groups`] from the log-probabilities of word (or code) 0 and 1, averaged over the tokens of a
/// sequence and over two groups: −½ · ((2/5 + 2/5 + 2/4) · l₀ + (1/5 + 1/4 + 1/4) · l₁).
pub(super) fn policy_term(l0: f64, l1: f64) -> f64 {
    -0.65 * l0 - 0.35 * l1
}

/// k3 for policy ¾ and reference ½: d = ln ⅔, exp(d) − d − 1; the derivative with respect to log p is 1 − exp(d) = ⅓.
pub(super) const K3_LIKELY: f64 = 0.072_131_774_775;
/// k3 for policy ¼ and reference ½: d = ln 2; the derivative is −1.
pub(super) const K3_UNLIKELY: f64 = 0.306_852_819_440;
