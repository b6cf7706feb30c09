//! Pretraining on the images of a benchmark, for any plugin. The embedded checkpoints are made this way.
//!
//! The first stage trains the image tokenizer to reconstruct images. The second stage trains generation on captions of which
//! a share has one mistake, like captions on the web, and understanding on questions with correct answers about images of
//! which a share has mistakes. The resulting base model generates well-formed images that often differ from the prompt in one
//! detail, and recognizes these mistakes.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Kind, Tensor};
use unirl::error::{Error, Result, unknown_name};
use unirl::model::{Images, Masking, Mode, ParameterGroup, Policy, UnifiedModel};
use unirl::prompt::Category;
use unirl_base::{seed, settings};
use unirl_benchmarks::Benchmark;
use unirl_benchmarks::pretraining::{PretrainingData, Question};
use unirl_prompts::rng::Rng;

use crate::algorithms::backward;
use crate::algorithms::objective::mean_per_token;
use crate::config::{EvalOptions, ModelOptions, Rollout};
use crate::home;
use crate::optim::{AdamW, UpdateOptions};

/// The configuration of a pretraining run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PretrainConfig {
    /// The plugin; its options set the sizes of the fresh model.
    pub model: ModelOptions,
    /// The seed of the run.
    pub seed: u64,
    /// The stage that trains the image tokenizer.
    pub tokenizer: TokenizerStage,
    /// The stage that trains generation and understanding.
    pub joint: JointStage,
    /// The training data.
    pub data: DataOptions,
    /// How images are sampled in the final evaluation.
    pub rollout: Rollout,
    /// The final evaluation.
    pub eval: EvalOptions,
}

impl Default for PretrainConfig {
    fn default() -> Self {
        Self {
            model: ModelOptions::default(),
            seed: 1,
            tokenizer: TokenizerStage::default(),
            joint: JointStage::default(),
            data: DataOptions::default(),
            rollout: Rollout::default(),
            eval: EvalOptions::default(),
        }
    }
}

/// The stage that trains the image tokenizer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TokenizerStage {
    /// The number of steps.
    pub steps: u64,
    /// Images per step.
    #[serde(alias = "pictures")]
    #[schemars(range(min = 1), extend("x-former-names" = ["pictures"]))]
    pub images_per_step: usize,
    /// The optimizer and its schedule.
    pub update: UpdateOptions,
}

impl Default for TokenizerStage {
    fn default() -> Self {
        Self { steps: 1000, images_per_step: 32, update: schedule() }
    }
}

/// The stage that trains generation and understanding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JointStage {
    /// The number of steps.
    pub steps: u64,
    /// Images with captions per step.
    #[schemars(range(min = 1))]
    pub captions: usize,
    /// Images with questions per step.
    #[schemars(range(min = 1))]
    pub questions: usize,
    /// The optimizer and its schedule.
    pub update: UpdateOptions,
}

impl Default for JointStage {
    fn default() -> Self {
        Self { steps: 4000, captions: 128, questions: 48, update: schedule() }
    }
}

fn schedule() -> UpdateOptions {
    UpdateOptions { learning_rate: 1e-3, min_lr_ratio: 0.02, warmup_steps: 100, ..UpdateOptions::default() }
}

/// The training data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataOptions {
    /// The share of captions with one mistake.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub caption_noise: f64,
    /// The share of images with mistakes in the training data of understanding.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mistakes: f64,
    /// The relative frequency of each category among captions, by name; 1 by default.
    #[serde(alias = "drawing_weights")]
    #[schemars(extend(
        "additionalProperties" = json!({ "type": "number", "minimum": 0 }),
        "x-former-names" = ["drawing_weights"]
    ))]
    pub generation_weights: BTreeMap<String, f64>,
    /// The relative frequency of each category among questions, by name; 1 by default.
    #[schemars(extend("additionalProperties" = json!({ "type": "number", "minimum": 0 })))]
    pub understanding_weights: BTreeMap<String, f64>,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            caption_noise: 0.45,
            mistakes: 0.5,
            generation_weights: BTreeMap::new(),
            understanding_weights: BTreeMap::new(),
        }
    }
}

impl PretrainConfig {
    /// Reads the configuration from a merged table.
    pub fn from_table(mut table: toml::Table) -> Result<Self> {
        home::expand_table(&mut table);
        let config: Self = settings::read("", table)?;
        for name in config.data.generation_weights.keys().chain(config.data.understanding_weights.keys()) {
            if !Category::ALL.iter().any(|category| category.name() == name) {
                let known = Category::ALL.map(Category::name);
                return Err(unknown_name("category", name, &known));
            }
        }
        Ok(config)
    }
}

/// Progress of a pretraining run.
#[derive(Debug)]
pub enum Event {
    /// A stage begins: its name and its number of steps.
    Stage(&'static str, u64),
    /// A step is done: smoothed losses by name.
    Stepped(Vec<(&'static str, f64)>),
    /// The tokenizer is trained: the share of images of which it reconstructs every tile.
    Reconstructed(f64),
}

/// The number of images that measure the reconstruction of the tokenizer.
const RECONSTRUCTED: usize = 512;

/// Trains a model in both stages.
pub fn pretrain(
    model: &mut dyn UnifiedModel,
    benchmark: &dyn Benchmark,
    config: &PretrainConfig,
    watch: &mut dyn FnMut(Event),
) -> Result<()> {
    let data = benchmark.pretraining().ok_or_else(|| {
        Error::usage(format!("benchmark `{}` has no images to pretrain on", benchmark.name()))
    })?;
    model.set_mode(Mode::Train)?;
    train_tokenizer(model, data, config, watch)?;
    train_jointly(model, data, config, watch)?;
    model.set_mode(Mode::Eval)
}

fn parameters(model: &dyn UnifiedModel, tokenizer: bool) -> Result<Vec<unirl::model::Parameter>> {
    let wanted = |group| (group == ParameterGroup::Tokenizer) == tokenizer;
    Ok(model.parameters()?.into_iter().filter(|parameter| wanted(parameter.group)).collect())
}

fn train_tokenizer(
    model: &mut dyn UnifiedModel,
    data: &dyn PretrainingData,
    config: &PretrainConfig,
    watch: &mut dyn FnMut(Event),
) -> Result<()> {
    let stage = &config.tokenizer;
    let trained = parameters(model, true)?;
    if trained.is_empty() {
        return Ok(());
    }
    let mut update = AdamW::new(trained, stage.update.clone(), stage.steps);
    let mut smooth = Smooth::default();
    watch(Event::Stage("tokenizer", stage.steps));
    for step in 1..=stage.steps {
        let step_seed = seed::derive(config.seed, &[1, step]);
        let mut rng = Rng::new(step_seed);
        let images: Vec<Tensor> = (0..stage.images_per_step).map(|_| data.image(&mut rng)).collect();
        update.zero_grad();
        tch::manual_seed(step_seed as i64);
        let loss = model.tokenizer_loss(&Tensor::stack(&images, 0), step as f64 / stage.steps as f64)?;
        backward(&loss, "loss/tokenizer").map_err(|error| error.context(format!("tokenizer step {step}")))?;
        update.apply()?;
        watch(Event::Stepped(vec![("loss/tokenizer", smooth.add(loss.double_value(&[])))]));
    }
    watch(Event::Reconstructed(reconstructed(model, data, config)?));
    Ok(())
}

/// Returns the share of images, as in the training data of understanding, of which the tokenizer reconstructs the content.
fn reconstructed(
    model: &dyn UnifiedModel,
    data: &dyn PretrainingData,
    config: &PretrainConfig,
) -> Result<f64> {
    let mut rng = Rng::new(seed::derive(config.seed, &[3]));
    let (_, _, images) = understanding_batch(&mut rng, RECONSTRUCTED, data, &config.data)?;
    data.same_content(&images, &model.pixels(&model.encode(&images)?)?)
}

fn train_jointly(
    model: &mut dyn UnifiedModel,
    data: &dyn PretrainingData,
    config: &PretrainConfig,
    watch: &mut dyn FnMut(Event),
) -> Result<()> {
    let stage = &config.joint;
    let mut update = AdamW::new(parameters(model, false)?, stage.update.clone(), stage.steps);
    let [mut smooth_image, mut smooth_answer] = [Smooth::default(), Smooth::default()];
    watch(Event::Stage("joint", stage.steps));
    for step in 1..=stage.steps {
        let step_seed = seed::derive(config.seed, &[2, step]);
        let mut rng = Rng::new(step_seed);
        update.zero_grad();

        // 1. Generation, from noisy captions.
        let (prompts, pixels) = generation_batch(&mut rng, stage.captions, data, &config.data)?;
        let images = tch::no_grad(|| model.encode(&pixels))?;
        let scored =
            model.image_logp(&prompts, &images, Policy::Current, &Masking::Pretrain { seed: step_seed })?;
        let image_loss = -mean_per_token(&scored.logp, &scored.mask);

        // 2. Understanding, from correct answers about images with and without mistakes.
        let (questions, answers, pixels) =
            understanding_batch(&mut rng, stage.questions, data, &config.data)?;
        let images = tch::no_grad(|| understanding_input(model, &pixels))?;
        let answers = model.encode_answers(&answers)?;
        let scored = model.answer_logp(&images, &questions, &answers, Policy::Current)?;
        let answer_loss = -mean_per_token(&scored.logp, &scored.mask);

        backward(&(&image_loss + &answer_loss).sum(Kind::Float), "loss")
            .map_err(|error| error.context(format!("joint step {step}")))?;
        update.apply()?;
        watch(Event::Stepped(vec![
            ("loss/image", smooth_image.add(image_loss.double_value(&[]))),
            ("loss/answer", smooth_answer.add(answer_loss.double_value(&[]))),
        ]));
    }
    Ok(())
}

/// Encodes images for understanding. For a model that understands pixels, half of the images are reconstructed by the image
/// tokenizer, like the images that the model generates.
fn understanding_input(model: &dyn UnifiedModel, pixels: &Tensor) -> Result<Images> {
    let mut images = model.encode(pixels)?;
    if let Some(pixels) = &images.pixels {
        let (half, all) = (images.len() / 2, images.len());
        let reconstructed = model.pixels(&images.narrow(0, half))?;
        images.pixels = Some(Tensor::cat(&[reconstructed, pixels.narrow(0, half, all - half)], 0));
    }
    Ok(images)
}

/// Samples prompts with images `[B,3,H,W]`. A share of the images shows a prompt that differs in one detail.
fn generation_batch(
    rng: &mut Rng,
    batch: usize,
    data: &dyn PretrainingData,
    options: &DataOptions,
) -> Result<(Vec<String>, Tensor)> {
    let weights = category_weights(&options.generation_weights);
    let (mut prompts, mut images) = (Vec::with_capacity(batch), Vec::with_capacity(batch));
    for _ in 0..batch {
        let category = Category::ALL[weighted(rng, &weights)?];
        let (prompt, image) = data.captioned(category, options.caption_noise, rng)?;
        prompts.push(prompt);
        images.push(image);
    }
    Ok((prompts, Tensor::stack(&images, 0)))
}

/// Samples questions with correct answers and images `[B,3,H,W]`. A share of the images has mistakes.
fn understanding_batch(
    rng: &mut Rng,
    batch: usize,
    data: &dyn PretrainingData,
    options: &DataOptions,
) -> Result<(Vec<String>, Vec<String>, Tensor)> {
    let weights = category_weights(&options.understanding_weights);
    let (mut questions, mut answers, mut images) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..batch {
        let category = Category::ALL[weighted(rng, &weights)?];
        let Question { question, answer, image } = data.question(category, options.mistakes, rng)?;
        questions.push(question);
        answers.push(answer);
        images.push(image);
    }
    Ok((questions, answers, Tensor::stack(&images, 0)))
}

fn category_weights(named: &BTreeMap<String, f64>) -> [f64; 6] {
    Category::ALL.map(|category| named.get(category.name()).copied().unwrap_or(1.0))
}

/// Samples an index with probabilities proportional to `weights`.
fn weighted(rng: &mut Rng, weights: &[f64]) -> Result<usize> {
    const RESOLUTION: usize = 1 << 20;
    let total: f64 = weights.iter().sum();
    if total <= 0.0 {
        return Err(Error::usage("category weights in `data`: expected at least one above 0, got all 0"));
    }
    let mut remaining = rng.below(RESOLUTION) as f64 / RESOLUTION as f64 * total;
    for (index, weight) in weights.iter().enumerate() {
        remaining -= weight;
        if remaining < 0.0 {
            return Ok(index);
        }
    }
    Ok(weights.len() - 1)
}

/// An exponential moving average that starts at its first value.
#[derive(Default)]
struct Smooth(Option<f64>);

impl Smooth {
    fn add(&mut self, value: f64) -> f64 {
        let mean = self.0.map_or(value, |mean| 0.98 * mean + 0.02 * value);
        self.0 = Some(mean);
        mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_settings_are_refused_with_their_path() {
        for (text, expected) in [
            ("joint.pictures = 3", "unknown key `joint.pictures`"),
            ("steps = 3", "did you mean `tokenizer.steps`?"),
            (
                "data.mistakes = 1.5",
                "`data.mistakes`: expected a number of at least 0 and at most 1, got 1.5",
            ),
            (
                "data.generation_weights.counting = -1",
                "`data.generation_weights.counting`: expected a number of at least 0",
            ),
            ("data.generation_weights.count = 1", "unknown category `count`"),
            (
                "tokenizer.update.beta1 = 2",
                "`tokenizer.update.beta1`: expected a number of at least 0 and below 1",
            ),
            (
                "tokenizer.pictures = 0",
                "`tokenizer.images_per_step`: expected a whole number of at least 1, got 0",
            ),
            (
                "rollout.images.guidance = \"much\"",
                "`rollout.images.guidance`: expected a number, got the string",
            ),
        ] {
            let error = PretrainConfig::from_table(text.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
