//! What every algorithm does before its loss: generate images, answer about them, score the answers, and complete re-masked
//! images by the straight-through Gumbel-softmax (§3.3).

use std::ops::Range;
use std::time::{Duration, Instant};

use tch::{Kind, Tensor};

use super::objective;
use crate::config::Rollout;
use crate::error::{Code, Error, Result};
use crate::model::{Answers, BatchSlice, ImageSampling, Images, Masking, Policy, TextSampling, UnifiedModel};
use crate::prompts::Task;
use crate::reward::{Reward, RewardSet, Sample};
use crate::seed;

/// The rewards of a batch of answers.
#[derive(Debug)]
pub struct Scored {
    /// One per answer, for the log.
    pub rewards: Vec<Reward>,
    /// `[B]`: what the policy learns from; permuted in the shuffled control.
    pub scores: Tensor,
}

/// Rows of a batch that go through the model at once. Losses of micro-batches add up to that of the batch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MicroBatch {
    pub(crate) first: i64,
    pub(crate) len: i64,
    of: i64,
    group: i64,
}

impl MicroBatch {
    pub(crate) fn rows(self) -> Range<usize> {
        self.first as usize..(self.first + self.len) as usize
    }

    /// Its place in the batch; none if it is the whole batch.
    pub(crate) fn part(self) -> Option<BatchSlice> {
        (self.len < self.of).then_some(BatchSlice { first: self.first, of: self.of })
    }

    /// Its share of the sequences of the batch.
    pub(crate) fn share(self) -> f64 {
        self.len as f64 / self.of as f64
    }

    /// Prompts in it; a fraction if it cuts a group.
    pub(crate) fn groups(self) -> f64 {
        self.len as f64 / self.group as f64
    }
}

/// Where the time of an iteration went.
#[derive(Debug, Clone, Copy, Default)]
pub struct Phases {
    /// Drawing images.
    pub draw: Duration,
    /// Answering questions.
    pub answer: Duration,
    /// Judging answers.
    pub score: Duration,
    /// Everything with gradient, and the weight update.
    pub update: Duration,
}

impl Phases {
    /// Seconds, under the names of [`crate::metrics`].
    pub(crate) fn metrics(&self) -> [(String, f64); 4] {
        [("draw", self.draw), ("answer", self.answer), ("score", self.score), ("update", self.update)]
            .map(|(name, time)| (format!("time/{name}"), time.as_secs_f64()))
    }
}

/// The model, the tasks and the rule set of one iteration, and the steps that all optimizers share.
pub struct Iteration<'a> {
    /// The model that learns.
    pub model: &'a mut dyn UnifiedModel,
    /// `B = P·G` tasks, the `G` copies of a task side by side.
    pub tasks: &'a [Task],
    /// What answers are worth.
    pub rules: &'a RewardSet,
    /// What they are worth to the answer objective, where that has its own rules.
    pub answer_rules: Option<&'a RewardSet>,
    /// How images and answers are sampled.
    pub rollout: &'a Rollout,
    /// The step of training, from 1.
    pub step: u64,
    /// The seed of this iteration.
    pub seed: u64,
    /// Permutes the rewards over the whole batch: the control that must learn nothing.
    pub shuffle_rewards: bool,
    /// Where the time went so far.
    pub phases: Phases,
}

/// Distinct streams of one iteration's seed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stream {
    Draw = 1,
    Answer,
    Masking,
    Gumbel,
    Shuffle,
    Steps,
}

impl Iteration<'_> {
    /// `G`.
    pub fn group(&self) -> i64 {
        self.rollout.group as i64
    }

    pub(crate) fn stream(&self, stream: Stream) -> u64 {
        seed::derive(self.seed, &[stream as u64])
    }

    /// The prompts, one a sample.
    pub fn prompts(&self) -> Vec<String> {
        self.tasks.iter().map(|task| task.prompt.clone()).collect()
    }

    /// The questions, one a sample.
    pub fn questions(&self) -> Vec<String> {
        self.tasks.iter().map(|task| task.question.clone()).collect()
    }

    /// The rows that go through the model at once.
    pub(crate) fn micro_batches(&self) -> Vec<MicroBatch> {
        let of = self.tasks.len();
        let micro_batch = |rows: Range<usize>| MicroBatch {
            first: rows.start as i64,
            len: rows.len() as i64,
            of: of as i64,
            group: self.group(),
        };
        self.rollout.parts(of).into_iter().map(micro_batch).collect()
    }

    /// Generates one image per task, without gradient.
    pub fn generate(&mut self) -> Result<Images> {
        let started = Instant::now();
        let (prompts, seed) = (self.prompts(), self.stream(Stream::Draw));
        let mut images = Vec::new();
        for micro in self.micro_batches() {
            let part = micro.part();
            let sampling = ImageSampling { seed, part, ..self.rollout.images.clone() };
            images.push(tch::no_grad(|| self.model.generate(&prompts[micro.rows()], &sampling))?);
        }
        self.phases.draw += started.elapsed();
        Ok(Images::cat(images))
    }

    /// Asks the model about every image, without gradient.
    pub fn answer(&mut self, images: &Images) -> Result<Answers> {
        let started = Instant::now();
        let (questions, seed) = (self.questions(), self.stream(Stream::Answer));
        let mut answers = Vec::new();
        for micro in self.micro_batches() {
            let part = micro.part();
            let sampling = TextSampling { seed, part, ..self.rollout.answers.clone() };
            let images = images.narrow(micro.first, micro.len);
            answers.push(tch::no_grad(|| self.model.answer(&images, &questions[micro.rows()], &sampling))?);
        }
        self.phases.answer += started.elapsed();
        Ok(Answers::cat(answers))
    }

    /// The rewards of the answers.
    pub fn score(&mut self, images: &Images, answers: &Answers) -> Result<Scored> {
        self.score_by(self.rules, images, answers)
    }

    /// The same by the rules of the answer objective, where it has its own: with the same permutation.
    pub(crate) fn score_answers(&mut self, images: &Images, answers: &Answers) -> Result<Option<Scored>> {
        self.answer_rules.map(|rules| self.score_by(rules, images, answers)).transpose()
    }

    fn score_by(&mut self, rules: &RewardSet, images: &Images, answers: &Answers) -> Result<Scored> {
        let started = Instant::now();
        let pixels = rules.wants_pixels().then(|| pixels(&*self.model, images, self.rollout)).transpose()?;
        let samples: Vec<Sample> =
            self.tasks.iter().zip(&answers.text).map(|(task, answer)| Sample::new(task, answer)).collect();
        let rewards = rules.score(&samples, pixels.as_ref())?;
        let wrong = |reward: &Reward| !(reward.score.is_finite() && reward.max.is_finite());
        if let Some((task, _)) = self.tasks.iter().zip(&rewards).find(|(_, reward)| wrong(reward)) {
            let prompt = &task.prompt;
            return Err(Error::new(
                Code::NonFinite,
                format!("`reward` is not finite for the prompt `{prompt}`"),
            ));
        }
        let scores: Vec<f32> = rewards.iter().map(|reward| reward.score as f32).collect();
        let mut scores = Tensor::from_slice(&scores).to_device(answers.tokens.device());
        if self.shuffle_rewards {
            tch::manual_seed(self.stream(Stream::Shuffle) as i64);
            let order = Tensor::randperm(scores.size()[0], (Kind::Int64, scores.device()));
            scores = scores.index_select(0, &order);
        }
        self.phases.score += started.elapsed();
        Ok(Scored { rewards, scores })
    }

    /// Feeds the generated images of a micro-batch back re-masked and completes them by the straight-through
    /// Gumbel-softmax (§3.3, eq. 3).
    pub(crate) fn complete(
        &mut self,
        generated: &Images,
        micro: MicroBatch,
        temperature: f64,
    ) -> Result<Images> {
        let images = generated.narrow(micro.first, micro.len);
        let replay = Masking::remask(self.stream(Stream::Masking), micro.part());
        let prompts = &self.prompts()[micro.rows()];
        let logits = self.model.image_logits(prompts, &images, Policy::Current, &replay)?;
        tch::manual_seed(self.stream(Stream::Gumbel) as i64);
        let one = logits.logits.get(0).detach(); // [N,K]
        // An image at a time from the start of the batch: an image gets the same noise in any part.
        let noise: Vec<Tensor> = (0..micro.first + micro.len)
            .map(|_| one.rand_like())
            .enumerate()
            .filter(|(row, _)| *row >= micro.rows().start)
            .map(|(_, noise)| noise)
            .collect();
        let noise = objective::gumbel(&Tensor::stack(&noise, 0)); // [B,N,K]
        let sampled = objective::straight_through(&logits.logits, &noise, temperature);
        let (relaxed, tokens) = objective::complete(&sampled, &images.tokens, &logits.targets);
        Ok(Images { relaxed: Some(relaxed), ..Images::from_tokens(tokens) })
    }

    /// All generated images, completed. Only a single micro-batch keeps its gradient; of several, each is completed again,
    /// with the same noise, when its gradient is computed.
    pub(crate) fn complete_all(&mut self, generated: &Images, temperature: f64) -> Result<Images> {
        let started = Instant::now();
        let micro_batches = self.micro_batches();
        let completed = if let [all] = &micro_batches[..] {
            self.complete(generated, *all, temperature)?
        } else {
            let mut tokens = Vec::new();
            for micro in &micro_batches {
                tokens.push(tch::no_grad(|| self.complete(generated, *micro, temperature))?.tokens);
            }
            Images::from_tokens(Tensor::cat(&tokens, 0))
        };
        self.phases.update += started.elapsed();
        Ok(completed)
    }
}

/// Decodes images as many at once as go through the model otherwise: `[B,3,H,W]` in `0..=1` on the CPU.
pub(crate) fn pixels(model: &dyn UnifiedModel, images: &Images, rollout: &Rollout) -> Result<Tensor> {
    let parts = rollout.parts(images.len() as usize).into_iter().map(|rows| {
        let part = images.narrow(rows.start as i64, rows.len() as i64);
        Ok(tch::no_grad(|| model.pixels(&part))?.to_device(tch::Device::Cpu))
    });
    Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0))
}
