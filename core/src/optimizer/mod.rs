//! The optimizers of the paper. `Optimizer` is the user's word for the post-training algorithm (`--optimizer grpo`); the
//! AdamW step that follows is [`crate::update`].

pub mod grpo;
pub mod grpo_split;
pub mod objective;
pub mod sft;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::{Kind, Tensor};

use crate::config::{Rollout, RunConfig};
use crate::error::{Code, Error, Result, unknown_name};
use crate::model::{
    Answers, ImageDecoding, ImageSampling, ImageSpace, Images, ModelCard, Part, Policy, Replay, Scoring,
    TextSampling, TokenLogp, UnifiedModel,
};
use crate::reward::{Reward, RuleSet, Sample};
use crate::scene::Task;
use crate::seed;
use objective::Weighting;

/// One post-training algorithm: turns drawings, answers and rewards of one iteration into gradients.
pub trait Optimizer {
    /// Runs the model on the iteration's tasks, calls `backward` on the loss and says what happened. The caller has zeroed
    /// the gradients and applies the update.
    fn accumulate(&self, iteration: &mut Iteration<'_>) -> Result<Outcome>;

    /// Which passes with gradient it runs, for the memory plan.
    fn passes(&self, rollout: &Rollout, card: &ModelCard) -> Vec<Pass>;
}

/// A pass with gradient, from its first forward to its backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    /// States of each image that are scored, 0 where none is.
    pub states: i64,
    /// Whether answers are scored.
    pub answers: bool,
    /// Whether a pass before it in the same step has left gradients.
    pub beside: bool,
}

/// What an iteration did, for the metrics and the sample pictures.
#[derive(Debug)]
pub struct Outcome {
    /// Scalars under the names documented in [`crate::metrics`].
    pub metrics: BTreeMap<&'static str, f64>,
    /// The images the rewards belong to, `[B,N]` tokens.
    pub images: Images,
    /// The model's answers about them.
    pub answers: Vec<String>,
    /// The worth of the answers.
    pub rewards: Vec<Reward>,
}

/// An entry of the registry.
pub struct OptimizerEntry {
    /// The name that `--optimizer` takes.
    pub name: &'static str,
    /// One line on what it does.
    pub summary: &'static str,
    /// Whether its gradient passes through image tokens, which needs [`ImageSpace::Shared`].
    pub end_to_end: bool,
    /// Whether its answer objective may have rules of its own.
    pub answer_rules: bool,
    /// The JSON Schema of its options.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// Builds it from its options.
    pub build: fn(toml::Table) -> Result<Box<dyn Optimizer>>,
}

inventory::collect!(OptimizerEntry);

/// All optimizers by name.
pub fn all() -> Vec<&'static OptimizerEntry> {
    let mut entries: Vec<_> = inventory::iter::<OptimizerEntry>().collect();
    entries.sort_by_key(|entry| entry.name);
    entries
}

/// The optimizer called `name`.
pub fn find(name: &str) -> Result<&'static OptimizerEntry> {
    let entries = all();
    entries.iter().find(|entry| entry.name == name).copied().ok_or_else(|| {
        unknown_name("optimizer", name, &entries.iter().map(|entry| entry.name).collect::<Vec<_>>())
    })
}

/// The optimizer of a run, with its options; refuses rules that it would not read.
pub fn build(entry: &OptimizerEntry, config: &RunConfig) -> Result<Box<dyn Optimizer>> {
    if config.reward.answer_rules.is_some() && !entry.answer_rules {
        return Err(Error::usage(format!(
            "`reward.answer_rules`: expected an optimizer with an objective for answers alone, got `{}`",
            entry.name
        ))
        .hint("use `--optimizer grpo-split`, or leave `reward.answer_rules` out"));
    }
    (entry.build)(config.optimizer.table()?)
}

/// Refuses what cannot work and warns of what the paper saw fail (§3.5, §4.4).
pub fn check_fits(entry: &OptimizerEntry, card: &ModelCard) -> Result<()> {
    if card.image_space == ImageSpace::Shared || !entry.end_to_end {
        return Ok(());
    }
    if entry.name == "sft" {
        tracing::warn!(
            "`sft` on `{}`, which reads images through another representation than it draws: the paper saw drawing \
             collapse (§4.4)",
            card.name
        );
        return Ok(());
    }
    Err(Error::usage(format!(
        "optimizer `{}` needs a model that reads the image tokens it draws, `{}` does not",
        entry.name, card.name
    ))
    .hint("use `--optimizer grpo-split` (§3.5 of the paper)"))
}

/// The options of an algorithm: what is not said, in an inner table too, is as in its own defaults.
pub(crate) fn options<T: Default + Serialize + DeserializeOwned + JsonSchema>(
    name: &str,
    table: toml::Table,
) -> Result<T> {
    let mut whole = toml::Table::try_from(T::default())
        .map_err(|error| Error::failure(format!("the defaults of `{name}`")).cause(error))?;
    crate::table::merge(&mut whole, table);
    crate::settings::read(&format!("optimizer.{name}"), whole)
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
    pub rules: &'a RuleSet,
    /// What they are worth to the answer objective, where that has its own rules.
    pub answer_rules: Option<&'a RuleSet>,
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
    Replay,
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
    pub(crate) fn parts(&self) -> Vec<Range<usize>> {
        self.rollout.parts(self.tasks.len())
    }

    /// The place of some rows in the batch; none where they are all of it.
    fn part(&self, rows: &Range<usize>) -> Option<Part> {
        let of = self.tasks.len();
        (rows.len() < of).then_some(Part { first: rows.start as i64, of: of as i64 })
    }

    /// What share of the batch some rows are.
    fn share(&self, rows: &Range<usize>) -> f64 {
        rows.len() as f64 / self.tasks.len() as f64
    }

    /// Draws one image a task, without gradient.
    pub fn draw(&mut self) -> Result<Images> {
        let started = Instant::now();
        let (prompts, seed) = (self.prompts(), self.stream(Stream::Draw));
        let mut images = Vec::new();
        for rows in self.parts() {
            let part = self.part(&rows);
            let sampling = ImageSampling { seed, part, ..self.rollout.images.clone() };
            images.push(tch::no_grad(|| self.model.generate(&prompts[rows], &sampling))?);
        }
        self.phases.draw += started.elapsed();
        Ok(Images::cat(images))
    }

    /// Asks the model about every image, without gradient.
    pub fn answer(&mut self, images: &Images) -> Result<Answers> {
        let started = Instant::now();
        let (questions, seed) = (self.questions(), self.stream(Stream::Answer));
        let mut answers = Vec::new();
        for rows in self.parts() {
            let part = self.part(&rows);
            let sampling = TextSampling { seed, part, ..self.rollout.answers.clone() };
            let images = images.narrow(rows.start as i64, rows.len() as i64);
            answers.push(tch::no_grad(|| self.model.answer(&images, &questions[rows], &sampling))?);
        }
        self.phases.answer += started.elapsed();
        Ok(Answers::cat(answers))
    }

    /// The worth of every answer, and the rewards `[B]` to learn from (permuted in the shuffled control).
    pub fn score(&mut self, images: &Images, answers: &Answers) -> Result<(Vec<Reward>, Tensor)> {
        self.score_by(self.rules, images, answers)
    }

    /// The same by the rules of the answer objective, where it has its own: with the same permutation.
    pub(crate) fn score_answers(
        &mut self,
        images: &Images,
        answers: &Answers,
    ) -> Result<Option<(Vec<Reward>, Tensor)>> {
        self.answer_rules.map(|rules| self.score_by(rules, images, answers)).transpose()
    }

    fn score_by(
        &mut self,
        rules: &RuleSet,
        images: &Images,
        answers: &Answers,
    ) -> Result<(Vec<Reward>, Tensor)> {
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
        Ok((rewards, scores))
    }

    /// Feeds the drawings of some `rows` back re-masked and completes them by the straight-through Gumbel-softmax (§3.3,
    /// eq. 3).
    pub(crate) fn complete(
        &mut self,
        drawn: &Images,
        rows: &Range<usize>,
        temperature: f64,
    ) -> Result<Images> {
        let images = drawn.narrow(rows.start as i64, rows.len() as i64);
        let replay = Replay::remask(self.stream(Stream::Replay), self.part(rows));
        let prompts = &self.prompts()[rows.clone()];
        let logits = self.model.image_logits(prompts, &images, Policy::Current, &replay)?;
        tch::manual_seed(self.stream(Stream::Gumbel) as i64);
        let one = logits.logits.get(0).detach(); // [N,K]
        // An image at a time from the start of the batch: an image gets the same noise in any part.
        let noise: Vec<Tensor> = (0..rows.end)
            .map(|_| one.rand_like())
            .enumerate()
            .filter(|(row, _)| *row >= rows.start)
            .map(|(_, noise)| noise)
            .collect();
        let noise = objective::gumbel(&Tensor::stack(&noise, 0)); // [B,N,K]
        let sampled = objective::straight_through(&logits.logits, &noise, temperature);
        let (relaxed, tokens) = objective::complete(&sampled, &images.tokens, &logits.targets);
        Ok(Images { relaxed: Some(relaxed), ..Images::from_tokens(tokens) })
    }

    /// All drawings, completed. Only a batch of one part keeps its gradient: of several, each is completed again when
    /// its gradient is due.
    pub(crate) fn complete_all(&mut self, drawn: &Images, temperature: f64) -> Result<Images> {
        let started = Instant::now();
        let parts = self.parts();
        let completed = if let [all] = &parts[..] {
            self.complete(drawn, all, temperature)?
        } else {
            let mut tokens = Vec::new();
            for rows in &parts {
                tokens.push(tch::no_grad(|| self.complete(drawn, rows, temperature))?.tokens);
            }
            Images::from_tokens(Tensor::cat(&tokens, 0))
        };
        self.phases.update += started.elapsed();
        Ok(completed)
    }
}

/// A divergence with the share of its tokens that had to be clamped.
pub(crate) struct Divergence {
    pub(crate) mean: Tensor,
    pub(crate) clamped: Tensor,
}

impl Divergence {
    pub(crate) fn of(logp: &Tensor, reference: &Tensor, mask: &Tensor) -> Self {
        let (k3, clamped) = objective::k3(logp, reference);
        Self {
            mean: objective::token_mean(&k3, mask),
            clamped: objective::token_mean(&clamped.to_kind(Kind::Float), mask),
        }
    }
}

/// Adds `coefficient · (−Σ w_i · mean log p(answer_i | image_i) + beta · KL)` to the gradients (eq. 5, A.3), part by part,
/// and notes it in `metrics`. `images` answers for the rows of a part; relaxed ones carry the gradient on, the reference
/// policy reads their hard tokens.
pub(crate) fn accumulate_answers(
    iteration: &mut Iteration<'_>,
    mut images: impl FnMut(&mut Iteration<'_>, &Range<usize>) -> Result<Images>,
    answers: &Answers,
    weights: &Tensor,
    (coefficient, beta): (f64, f64),
    metrics: &mut BTreeMap<&'static str, f64>,
) -> Result<()> {
    let questions = iteration.questions();
    let tokens = count(&answers.mask);
    for rows in iteration.parts() {
        let images = images(iteration, &rows)?;
        let (first, len) = (rows.start as i64, rows.len() as i64);
        let (answers, weights) = (answers.narrow(first, len), weights.narrow(0, first, len));
        let (share, token_share) = (iteration.share(&rows), count(&answers.mask) / tokens);
        let questions = &questions[rows];
        let scored = iteration.model.answer_logp(&images, questions, &answers, Policy::Current)?;
        let mut loss =
            objective::weighted_loss(&scored.logp, &scored.mask, &weights, iteration.group()) * share;
        add(metrics, "loss/answer", &loss);
        if beta > 0.0 {
            let hard = Images::from_tokens(images.tokens.shallow_clone());
            let reference =
                tch::no_grad(|| iteration.model.answer_logp(&hard, questions, &answers, Policy::Reference))?;
            let kl = Divergence::of(&scored.logp, &reference.logp, &scored.mask);
            add(metrics, "kl/answer", &(&kl.mean * token_share));
            add(metrics, "kl/answer_clamped", &(kl.clamped * token_share));
            loss += kl.mean * (beta * token_share);
        }
        backward(&(loss * coefficient), "loss/answer")?;
    }
    Ok(())
}

/// True positions.
fn count(mask: &Tensor) -> f64 {
    mask.to_kind(Kind::Float).sum(Kind::Float).double_value(&[]).max(1.0)
}

fn add(metrics: &mut BTreeMap<&'static str, f64>, name: &'static str, value: &Tensor) {
    *metrics.entry(name).or_default() += value.double_value(&[]);
}

/// How the log-likelihood of a drawing is measured and weighted: the image side of `grpo-split`, and an addition to `grpo`.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImageTerm {
    /// Factor of the term; 0 leaves it out.
    #[schemars(range(min = 0.0))]
    pub coefficient: f64,
    /// `remask`: the tokens hidden by a random re-masking (the paper's replay); `reveal`: every token in the state in which
    /// it was drawn.
    pub replay: ReplayKind,
    /// Of the reveal steps, how many to replay an iteration, drawn at random; 0 replays all.
    #[schemars(range(min = 0))]
    pub reveal_steps: i64,
    /// The distribution that scores the tokens: `conditional`, `guided` or `guided-detached`.
    pub scoring: Scoring,
    /// Factor of the divergence of the image tokens from the reference policy; 0 leaves it out.
    #[schemars(range(min = 0.0))]
    pub beta: f64,
}

/// The states in which image tokens are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplayKind {
    /// [`Replay::Remask`].
    Remask,
    /// [`Replay::Reveal`].
    Reveal,
}

impl Default for ImageTerm {
    fn default() -> Self {
        Self {
            coefficient: 0.0,
            replay: ReplayKind::Remask,
            reveal_steps: 0,
            scoring: Scoring::Conditional,
            beta: 0.0,
        }
    }
}

impl ImageTerm {
    /// Adds `coefficient · (−Σ w_i · mean log p(u_i | prompt) + beta · KL)` to the gradients (A.3), part by part, and notes
    /// it in `metrics`. Every image of a replay has as many targets.
    pub(crate) fn accumulate(
        &self,
        iteration: &Iteration<'_>,
        images: &Images,
        weights: &Tensor,
        metrics: &mut BTreeMap<&'static str, f64>,
    ) -> Result<()> {
        let prompts = iteration.prompts();
        for rows in iteration.parts() {
            let replay = self.replay(iteration, &rows);
            let (first, len) = (rows.start as i64, rows.len() as i64);
            let (images, weights) = (images.narrow(first, len), weights.narrow(0, first, len));
            let share = iteration.share(&rows);
            let prompts = &prompts[rows];
            let TokenLogp { logp, mask: targets } =
                iteration.model.image_logp(prompts, &images, Policy::Current, &replay)?; // [B,N]
            let mut loss = objective::weighted_loss(&logp, &targets, &weights, iteration.group()) * share;
            add(metrics, "loss/image", &loss);
            if self.beta > 0.0 {
                let reference = tch::no_grad(|| {
                    iteration.model.image_logp(prompts, &images, Policy::Reference, &replay)
                })?;
                let kl = Divergence::of(&logp, &reference.logp, &targets);
                add(metrics, "kl/image", &(&kl.mean * share));
                add(metrics, "kl/image_clamped", &(kl.clamped * share));
                loss += kl.mean * (self.beta * share);
            }
            backward(&(loss * self.coefficient), "loss/image")?;
        }
        Ok(())
    }

    /// States of an image that are scored together: the branches of guidance count apart.
    pub(crate) fn states(&self, rollout: &Rollout, card: &ModelCard) -> i64 {
        let branches = if self.scoring == Scoring::Conditional { 1 } else { 2 };
        let steps = match (self.replay, card.image_decoding) {
            (ReplayKind::Reveal, ImageDecoding::Masked) if self.reveal_steps > 0 => {
                self.reveal_steps.min(rollout.images.steps)
            }
            (ReplayKind::Reveal, ImageDecoding::Masked) => rollout.images.steps,
            _ => 1,
        };
        steps * branches
    }

    fn replay(&self, iteration: &Iteration<'_>, rows: &Range<usize>) -> Replay {
        let (scoring, guidance) = (self.scoring, iteration.rollout.images.guidance);
        match self.replay {
            ReplayKind::Remask => {
                let (seed, part) = (iteration.stream(Stream::Replay), iteration.part(rows));
                Replay::Remask { seed, part, scoring, guidance }
            }
            ReplayKind::Reveal => {
                let total = iteration.rollout.images.steps;
                let mut steps: Vec<i64> = (0..total).collect();
                if self.reveal_steps > 0 && self.reveal_steps < total {
                    tch::manual_seed(iteration.stream(Stream::Steps) as i64);
                    let order = Tensor::randperm(total, (Kind::Int64, tch::Device::Cpu));
                    steps = (0..self.reveal_steps).map(|i| order.int64_value(&[i])).collect();
                    steps.sort_unstable();
                }
                Replay::Reveal { steps, scoring, guidance }
            }
        }
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

/// Backpropagates a scalar, refusing one that is not finite.
pub(crate) fn backward(loss: &Tensor, name: &str) -> Result<()> {
    let value = loss.double_value(&[]);
    if !value.is_finite() {
        return Err(Error::new(Code::NonFinite, format!("`{name}` is {value}"))
            .hint("lower `update.learning_rate`, or raise the KL coefficients"));
    }
    Ok(loss.f_backward()?)
}

/// The mean of rewards as shares of their maximum, over those that are not abstained from; 0 if there is none.
pub(crate) fn mean_reward(rewards: &[Reward]) -> f64 {
    let shares: Vec<f64> = rewards.iter().filter(|r| !r.abstains()).map(|r| r.score / r.max).collect();
    shares.iter().sum::<f64>() / shares.len().max(1) as f64
}

/// The reward figures that every optimizer logs.
pub(crate) fn reward_metrics(
    rewards: &[Reward],
    scores: &Tensor,
    group: i64,
    metrics: &mut BTreeMap<&'static str, f64>,
) {
    let share = |count: usize| count as f64 / rewards.len() as f64;
    metrics.insert("reward/mean", mean_reward(rewards));
    metrics.insert("reward/pass", share(rewards.iter().filter(|r| r.passes()).count()));
    let spread = Weighting::Advantage.weights(scores, group, 1.0).abs().gt(1e-6).to_kind(Kind::Float);
    metrics.insert("reward/informative", spread.mean(Kind::Float).double_value(&[]));
}

/// The mean points of the parts of rewards, and the share of drawings about which no rule had anything to say.
pub(crate) fn part_metrics(rewards: &[Reward]) -> BTreeMap<String, f64> {
    let mut parts: BTreeMap<String, (f64, usize)> = BTreeMap::new();
    for (name, points) in rewards.iter().flat_map(|reward| &reward.parts) {
        let (sum, count) = parts.entry(format!("reward/part/{name}")).or_default();
        *sum += points;
        *count += 1;
    }
    let mut figures: BTreeMap<String, f64> =
        parts.into_iter().map(|(name, (sum, count))| (name, sum / count as f64)).collect();
    let abstained = rewards.iter().filter(|reward| reward.abstains()).count();
    if abstained > 0 {
        figures.insert("reward/abstained".into(), abstained as f64 / rewards.len() as f64);
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_means_over_the_samples_that_have_them() {
        let reward = |parts: &[(&str, f64)]| Reward {
            parts: parts.iter().map(|(name, points)| ((*name).to_string(), *points)).collect(),
            ..Reward::new(1.0, 2.0)
        };
        let rewards = [
            reward(&[("noun", 1.0), ("color", 0.0)]),
            reward(&[("noun", 2.0)]),
            Reward::abstain("nothing to say"),
            reward(&[("noun", 0.0), ("color", 1.0)]),
        ];
        let expected = [("reward/abstained", 0.25), ("reward/part/color", 0.5), ("reward/part/noun", 1.0)];
        assert_eq!(part_metrics(&rewards), expected.map(|(name, value)| (name.to_string(), value)).into());
    }
}
