//! The operations that algorithms share before their loss: generate images, answer about them, score the answers, and
//! complete re-masked images by the straight-through Gumbel-softmax (§3.3).

use std::ops::Range;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};
use unirl::error::{Code, Error, Result};
use unirl::model::{Answers, BatchSlice, ImageSampling, Images, TextSampling, UnifiedModel};
use unirl::reward::{Reward, Sample};
use unirl_base::seed;
use unirl_prompts::Task;

use super::ReaderWeights;
use crate::rewards::{RewardOptions, RewardSet};

/// Generation of images and answers, in training and evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rollout {
    /// Prompts per training step.
    #[serde(alias = "prompts")]
    #[schemars(range(min = 1), extend("x-former-names" = ["prompts"]))]
    pub prompts_per_step: usize,
    /// `G`, images per prompt.
    #[serde(alias = "group")]
    #[schemars(range(min = 1), extend("x-former-names" = ["group"]))]
    pub group_size: usize,
    /// Images that pass through the model at once; 0 for every image of a step. A smaller value takes less memory and, if the
    /// gradient flows through images (`sft`, `grpo`), one more forward pass; the result is the same.
    pub micro_batch: usize,
    /// Sampling of images.
    pub images: ImageSampling,
    /// Sampling of answers.
    pub answers: TextSampling,
}

impl Rollout {
    /// Splits a batch into micro-batches, as row ranges.
    pub fn parts(&self, batch: usize) -> Vec<Range<usize>> {
        let size = if self.micro_batch == 0 { batch } else { self.micro_batch };
        (0..batch).step_by(size.max(1)).map(|first| first..(first + size).min(batch)).collect()
    }
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            prompts_per_step: 1,
            group_size: 3,
            micro_batch: 0,
            images: ImageSampling::default(),
            answers: TextSampling::default(),
        }
    }
}

/// The rewards of a batch of answers.
#[derive(Debug)]
pub struct Scored {
    /// One per answer, for the metrics.
    pub rewards: Vec<Reward>,
    /// `[B]`: the scores that the loss uses; permuted in the shuffled-reward control.
    pub scores: Tensor,
}

/// The rows of a batch that pass through the model at once. The losses of the micro-batches add up to that of the batch.
#[derive(Debug, Clone, Copy)]
pub struct MicroBatch {
    /// The index of the first row.
    pub first: i64,
    /// The number of rows.
    pub len: i64,
    of: i64,
    group: i64,
}

impl MicroBatch {
    /// Returns the rows as a range.
    pub fn rows(self) -> Range<usize> {
        self.first as usize..(self.first + self.len) as usize
    }

    /// The position in the batch; `None` for the whole batch.
    pub fn slice(self) -> Option<BatchSlice> {
        (self.len < self.of).then_some(BatchSlice { first: self.first, of: self.of })
    }

    /// The share of the sequences of the batch.
    pub fn share(self) -> f64 {
        self.len as f64 / self.of as f64
    }

    /// The number of groups; fractional if the micro-batch cuts a group.
    pub fn groups(self) -> f64 {
        self.len as f64 / self.group as f64
    }
}

/// The time of each phase of an iteration.
#[derive(Debug, Clone, Copy, Default)]
pub struct Phases {
    /// Generating images.
    pub generate: Duration,
    /// Answering questions.
    pub answer: Duration,
    /// Scoring answers.
    pub score: Duration,
    /// All passes with gradient, and the weight update.
    pub update: Duration,
}

impl Phases {
    /// Returns the seconds, under the names of [`crate::metrics`].
    pub(crate) fn metrics(&self) -> [(String, f64); 4] {
        [("draw", self.generate), ("answer", self.answer), ("score", self.score), ("update", self.update)]
            .map(|(name, time)| (format!("time/{name}"), time.as_secs_f64()))
    }
}

/// The state of one training step while an [`Algorithm`](super::Algorithm) computes its gradients: the model, the batch of
/// tasks, the rewards and the random streams. Its methods are the rollout; they split the batch into micro-batches and measure
/// the time of each phase.
pub struct Iteration<'a> {
    /// The policy.
    pub model: &'a mut dyn UnifiedModel,
    /// `B = P·G` tasks, the `G` copies of a task in consecutive rows.
    pub tasks: &'a [Task],
    /// The rewards of the answers.
    pub rules: &'a RewardSet,
    /// The rewards of the answer objective, if it has separate ones.
    pub answer_rules: Option<&'a RewardSet>,
    /// How the images of the image objective are rewarded.
    pub reward: &'a RewardOptions,
    /// The weights that read them.
    pub reader: &'a mut ReaderWeights,
    /// How images and answers are sampled.
    pub rollout: &'a Rollout,
    /// The training step, from 1.
    pub step: u64,
    /// The seed of this iteration.
    pub seed: u64,
    /// Permutes rewards, and right answers with their questions, over the batch: the shuffled-reward control, which must not gain.
    pub shuffle_rewards: bool,
    /// The time of each phase so far.
    pub phases: Phases,
}

/// The random streams of an iteration. The numbers are fixed: they decide what is sampled.
#[derive(Debug, Clone, Copy)]
pub enum Stream {
    /// Sampling of images.
    Generate = 1,
    /// Sampling of answers.
    Answer,
    /// Re-masking of image tokens.
    Masking,
    /// Noise of the Gumbel-softmax.
    Gumbel,
    /// The permutation of shuffled rewards.
    Shuffle,
    /// The choice of reveal steps.
    Steps,
}

impl Iteration<'_> {
    /// Returns `G`.
    pub fn group(&self) -> i64 {
        self.rollout.group_size as i64
    }

    /// Returns the seed of a stream.
    pub fn stream(&self, stream: Stream) -> u64 {
        seed::derive(self.seed, &[stream as u64])
    }

    /// Returns the prompts, one per sample.
    pub fn prompts(&self) -> Vec<String> {
        self.tasks.iter().map(|task| task.prompt.clone()).collect()
    }

    /// Returns the questions, one per sample.
    pub fn questions(&self) -> Vec<String> {
        self.tasks.iter().map(|task| task.question.clone()).collect()
    }

    /// Splits the batch into micro-batches.
    pub fn micro_batches(&self) -> Vec<MicroBatch> {
        let of = self.tasks.len();
        let micro_batch = |rows: Range<usize>| MicroBatch {
            first: rows.start as i64,
            len: rows.len() as i64,
            of: of as i64,
            group: self.group(),
        };
        self.rollout.parts(of).into_iter().map(micro_batch).collect()
    }

    /// Returns the tasks that supervise each image with their right answers: its own, or, for the shuffled-reward control, that of a
    /// random image of the batch.
    pub(super) fn supervision(&self) -> Vec<Task> {
        if !self.shuffle_rewards {
            return self.tasks.to_vec();
        }
        let order = self.shuffled(Device::Cpu);
        (0..self.tasks.len())
            .map(|row| self.tasks[order.int64_value(&[row as i64]) as usize].clone())
            .collect()
    }

    /// A random order of the batch, `[B]`.
    fn shuffled(&self, device: Device) -> Tensor {
        tch::manual_seed(self.stream(Stream::Shuffle) as i64);
        Tensor::randperm(self.tasks.len() as i64, (Kind::Int64, device))
    }

    /// Chooses `count` decoding steps of this iteration at random, in order; every step if `count` is 0.
    pub(super) fn reveal_steps(&self, count: i64) -> Vec<i64> {
        let total = self.rollout.images.steps;
        if count <= 0 || count >= total {
            return (0..total).collect();
        }
        tch::manual_seed(self.stream(Stream::Steps) as i64);
        let order = Tensor::randperm(total, (Kind::Int64, Device::Cpu));
        let mut steps: Vec<i64> = (0..count).map(|i| order.int64_value(&[i])).collect();
        steps.sort_unstable();
        steps
    }

    /// Generates one image per task, without gradient.
    pub fn generate(&mut self) -> Result<Images> {
        let started = Instant::now();
        let (prompts, seed) = (self.prompts(), self.stream(Stream::Generate));
        let mut images = Vec::new();
        for micro in self.micro_batches() {
            let part = micro.slice();
            let sampling = ImageSampling { seed, part, ..self.rollout.images.clone() };
            images.push(tch::no_grad(|| self.model.generate(&prompts[micro.rows()], &sampling))?);
        }
        self.phases.generate += started.elapsed();
        Ok(Images::cat(images))
    }

    /// Answers the question of each task about its image, without gradient.
    pub fn answer(&mut self, images: &Images) -> Result<Answers> {
        self.answer_to(images, &self.questions(), self.stream(Stream::Answer))
    }

    /// Scores the answers.
    pub fn score(&mut self, images: &Images, answers: &Answers) -> Result<Scored> {
        self.score_by(self.rules, images, answers)
    }

    /// Scores the answers with the rewards of the answer objective, if it has separate ones. A shuffle permutes both alike.
    pub fn score_answers(&mut self, images: &Images, answers: &Answers) -> Result<Option<Scored>> {
        self.answer_rules.map(|rules| self.score_by(rules, images, answers)).transpose()
    }

    fn score_by(&mut self, rules: &RewardSet, images: &Images, answers: &Answers) -> Result<Scored> {
        let started = Instant::now();
        let samples: Vec<Sample> =
            self.tasks.iter().zip(&answers.text).map(|(task, answer)| task.sample(answer)).collect();
        let rewards = self.score_samples(rules, images, &samples)?;
        let scored = self.scored(rewards, answers.tokens.device())?;
        self.phases.score += started.elapsed();
        Ok(scored)
    }

    pub(super) fn score_samples(
        &self,
        rules: &RewardSet,
        images: &Images,
        samples: &[Sample],
    ) -> Result<Vec<Reward>> {
        let pixels = rules.wants_pixels().then(|| pixels(&*self.model, images, self.rollout)).transpose()?;
        rules.score(samples, pixels.as_ref())
    }

    /// Returns the scores `[B]` of rewards with the rewards. Errors if one is not finite.
    pub(super) fn scored(&self, rewards: Vec<Reward>, device: Device) -> Result<Scored> {
        let non_finite = |reward: &Reward| !(reward.score.is_finite() && reward.max.is_finite());
        if let Some((task, _)) = self.tasks.iter().zip(&rewards).find(|(_, reward)| non_finite(reward)) {
            let prompt = &task.prompt;
            return Err(Error::new(
                Code::NonFinite,
                format!("the reward is not finite for the prompt `{prompt}`"),
            ));
        }
        let scores: Vec<f32> = rewards.iter().map(|reward| reward.score as f32).collect();
        let mut scores = Tensor::from_slice(&scores).to_device(device);
        if self.shuffle_rewards {
            scores = scores.index_select(0, &self.shuffled(device));
        }
        Ok(Scored { rewards, scores })
    }
}

/// Decodes images to `[B,3,H,W]` in `0..=1` on the CPU, by micro-batches.
pub(crate) fn pixels(model: &dyn UnifiedModel, images: &Images, rollout: &Rollout) -> Result<Tensor> {
    let batches = rollout.parts(images.len() as usize).into_iter().map(|rows| {
        let images = images.narrow(rows.start as i64, rows.len() as i64);
        Ok(tch::no_grad(|| model.pixels(&images))?.to_device(tch::Device::Cpu))
    });
    Ok(Tensor::cat(&batches.collect::<Result<Vec<_>>>()?, 0))
}
