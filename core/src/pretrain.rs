//! Pretraining on drawn images: how the embedded checkpoints are made, for any plugin.
//!
//! First the image tokenizer learns to reproduce drawings. Then drawing is learned from captions of which a part has one
//! fact wrong, as captions on the web have, and understanding from right questions and answers about drawings of which a
//! part has the mistakes that drawings make. So the base draws well-formed and often wrong in a fact, and sees that itself.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tch::{Kind, Tensor};

use crate::algorithms::backward;
use crate::algorithms::objective::mean_per_token;
use crate::config::{EvalOptions, ModelOptions, Rollout};
use crate::error::{Error, Result, unknown_name};
use crate::model::{Images, Masking, Mode, ParameterGroup, Policy, UnifiedModel};
use crate::optim::{AdamW, UpdateOptions};
use crate::prompts::rng::Rng;
use crate::prompts::{Category, Split, Task};
use crate::tiles::{self, TileGrid};
use crate::{eval, home, judge, seed, settings};

/// Everything that decides a pretraining run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PretrainConfig {
    /// Which plugin; its options name the sizes of the fresh model.
    pub model: ModelOptions,
    /// The seed of everything random.
    pub seed: u64,
    /// The stage that trains the image tokenizer.
    pub tokenizer: TokenizerStage,
    /// The stage that trains drawing and understanding.
    pub joint: JointStage,
    /// What the drawings and captions are like.
    pub data: DataOptions,
    /// How images are drawn in the evaluation at the end.
    pub rollout: Rollout,
    /// The evaluation at the end.
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
    /// Updates of the weights.
    pub steps: u64,
    /// Pictures a step.
    #[schemars(range(min = 1))]
    pub pictures: usize,
    /// The weight update.
    pub update: UpdateOptions,
}

impl Default for TokenizerStage {
    fn default() -> Self {
        Self { steps: 1000, pictures: 32, update: schedule() }
    }
}

/// The stage that trains drawing and understanding.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JointStage {
    /// Updates of the weights.
    pub steps: u64,
    /// Drawings with captions a step.
    #[schemars(range(min = 1))]
    pub captions: usize,
    /// Drawings with questions a step.
    #[schemars(range(min = 1))]
    pub questions: usize,
    /// The weight update.
    pub update: UpdateOptions,
}

impl Default for JointStage {
    fn default() -> Self {
        Self { steps: 4000, captions: 128, questions: 48, update: schedule() }
    }
}

fn schedule() -> UpdateOptions {
    UpdateOptions { learning_rate: 1e-3, final_rate: 0.02, warmup: 100, ..UpdateOptions::default() }
}

/// What the drawings and captions are like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataOptions {
    /// Share of captions with one fact wrong.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub caption_noise: f64,
    /// Share of drawings with mistakes among those that understanding learns from.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub mistakes: f64,
    /// How often a caption is of each category, relative to the others, by its name; 1 if it is not named.
    #[schemars(extend("additionalProperties" = json!({ "type": "number", "minimum": 0 })))]
    pub drawing_weights: BTreeMap<String, f64>,
    /// The same for understanding.
    #[schemars(extend("additionalProperties" = json!({ "type": "number", "minimum": 0 })))]
    pub understanding_weights: BTreeMap<String, f64>,
}

impl Default for DataOptions {
    fn default() -> Self {
        Self {
            caption_noise: 0.45,
            mistakes: 0.5,
            drawing_weights: BTreeMap::new(),
            understanding_weights: BTreeMap::new(),
        }
    }
}

impl PretrainConfig {
    /// Reads a merged table.
    pub fn from_table(mut table: toml::Table) -> Result<Self> {
        home::expand_table(&mut table);
        let config: Self = settings::read("", table)?;
        for name in config.data.drawing_weights.keys().chain(config.data.understanding_weights.keys()) {
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
    /// A stage of so many steps begins.
    Stage(&'static str, u64),
    /// A step is done; smoothed losses by name.
    Stepped(Vec<(&'static str, f64)>),
    /// The tokenizer is trained: the share of scenes, of the kind that understanding learns from, of which it reproduces
    /// every tile.
    Reproduced(f64),
}

/// How many scenes show how well the tokenizer reproduces them.
const REPRODUCED: usize = 512;

/// Trains a model through both stages.
pub fn pretrain(
    model: &mut dyn UnifiedModel,
    config: &PretrainConfig,
    watch: &mut dyn FnMut(Event),
) -> Result<()> {
    eval::check_tiles(model.card())?;
    model.set_mode(Mode::Train)?;
    train_tokenizer(model, config, watch)?;
    train_jointly(model, config, watch)?;
    model.set_mode(Mode::Eval)
}

fn parameters(model: &dyn UnifiedModel, tokenizer: bool) -> Result<Vec<crate::model::Parameter>> {
    let wanted = |group| (group == ParameterGroup::Tokenizer) == tokenizer;
    Ok(model.parameters()?.into_iter().filter(|parameter| wanted(parameter.group)).collect())
}

fn train_tokenizer(
    model: &mut dyn UnifiedModel,
    config: &PretrainConfig,
    watch: &mut dyn FnMut(Event),
) -> Result<()> {
    let stage = &config.tokenizer;
    let learning = parameters(model, true)?;
    if learning.is_empty() {
        return Ok(());
    }
    let mut update = AdamW::new(learning, stage.update.clone(), stage.steps);
    let mut smooth = Smooth::default();
    watch(Event::Stage("tokenizer", stage.steps));
    for step in 1..=stage.steps {
        let step_seed = seed::derive(config.seed, &[1, step]);
        let scenes: Vec<TileGrid> = {
            let mut rng = Rng::new(step_seed);
            (0..stage.pictures).map(|_| TileGrid::scattered(&mut rng)).collect()
        };
        update.zero_grad();
        tch::manual_seed(step_seed as i64);
        let loss = model.tokenizer_loss(&tiles::render(&scenes), step as f64 / stage.steps as f64)?;
        backward(&loss, "loss/tokenizer").map_err(|error| error.context(format!("tokenizer step {step}")))?;
        update.apply()?;
        watch(Event::Stepped(vec![("loss/tokenizer", smooth.add(loss.double_value(&[])))]));
    }
    watch(Event::Reproduced(reproduced(model, config)?));
    Ok(())
}

fn reproduced(model: &dyn UnifiedModel, config: &PretrainConfig) -> Result<f64> {
    let mut rng = Rng::new(seed::derive(config.seed, &[3]));
    let (_, _, scenes) = questioned(&mut rng, REPRODUCED, &config.data)?;
    let seen = judge::tiles::recognize(&model.pixels(&model.encode(&tiles::render(&scenes))?)?)?;
    let same =
        scenes.iter().zip(&seen).filter(|(scene, reading)| reading.grid().as_ref() == Some(*scene)).count();
    Ok(same as f64 / scenes.len() as f64)
}

fn train_jointly(
    model: &mut dyn UnifiedModel,
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

        // 1. Drawing, from captions that are not always right.
        let (prompts, scenes) = captioned(&mut rng, stage.captions, &config.data)?;
        let images = tch::no_grad(|| model.encode(&tiles::render(&scenes)))?;
        let scored =
            model.image_logp(&prompts, &images, Policy::Current, &Masking::Pretrain { seed: step_seed })?;
        let image_loss = -mean_per_token(&scored.logp, &scored.mask);

        // 2. Understanding, from right answers about drawings that are not always right.
        let (questions, answers, scenes) = questioned(&mut rng, stage.questions, &config.data)?;
        let images = tch::no_grad(|| seen(model, &scenes))?;
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

/// Drawings as understanding sees them. Where it looks at pixels, half are as the image tokenizer gives them back: so it
/// will see the model's own.
fn seen(model: &dyn UnifiedModel, scenes: &[TileGrid]) -> Result<Images> {
    let mut images = model.encode(&tiles::render(scenes))?;
    if let Some(pixels) = &images.pixels {
        let (half, all) = (images.len() / 2, images.len());
        let given_back = model.pixels(&images.narrow(0, half))?;
        images.pixels = Some(Tensor::cat(&[given_back, pixels.narrow(0, half, all - half)], 0));
    }
    Ok(images)
}

/// Prompts with drawings; a share of the drawings follows another prompt that differs in one fact.
fn captioned(rng: &mut Rng, batch: usize, data: &DataOptions) -> Result<(Vec<String>, Vec<TileGrid>)> {
    let weights = category_weights(&data.drawing_weights);
    let mut pairs = Vec::with_capacity(batch);
    for _ in 0..batch {
        let task = tiles::sample(Category::ALL[weighted(rng, &weights)?], Split::All, rng)?;
        let drawn: Task =
            if rng.chance(data.caption_noise) { tiles::caption_noise(&task, rng)? } else { task.clone() };
        pairs.push((task.prompt, TileGrid::sample(&drawn.spec, rng)?));
    }
    Ok(pairs.into_iter().unzip())
}

/// Questions, right answers, drawings; a share of the drawings has the mistakes that drawings make.
fn questioned(
    rng: &mut Rng,
    batch: usize,
    data: &DataOptions,
) -> Result<(Vec<String>, Vec<String>, Vec<TileGrid>)> {
    let weights = category_weights(&data.understanding_weights);
    let (mut questions, mut answers, mut scenes) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..batch {
        let category = Category::ALL[weighted(rng, &weights)?];
        let task = tiles::sample(category, Split::All, rng)?;
        let scene = if rng.chance(data.mistakes) {
            TileGrid::with_mistake(&task.spec, rng)?
        } else {
            TileGrid::sample(&task.spec, rng)?
        };
        questions.push(task.question);
        answers.push(tiles::reference_answer(category, &scene));
        scenes.push(scene);
    }
    Ok((questions, answers, scenes))
}

fn category_weights(named: &BTreeMap<String, f64>) -> [f64; 6] {
    Category::ALL.map(|category| named.get(category.name()).copied().unwrap_or(1.0))
}

fn weighted(rng: &mut Rng, weights: &[f64]) -> Result<usize> {
    const RESOLUTION: usize = 1 << 20;
    let total: f64 = weights.iter().sum();
    if total <= 0.0 {
        return Err(Error::usage("the weights of categories in `data`: expected one above 0, got 0 for all"));
    }
    let mut left = rng.below(RESOLUTION) as f64 / RESOLUTION as f64 * total;
    for (index, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return Ok(index);
        }
    }
    Ok(weights.len() - 1)
}

/// An exponential mean that starts at its first value.
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
    fn wrong_settings_are_refused_by_their_path() {
        for (text, expected) in [
            ("joint.pictures = 3", "unknown key `joint.pictures`"),
            ("steps = 3", "did you mean `tokenizer.steps`?"),
            (
                "data.mistakes = 1.5",
                "`data.mistakes`: expected a number of at least 0 and at most 1, got 1.5",
            ),
            (
                "data.drawing_weights.counting = -1",
                "`data.drawing_weights.counting`: expected a number of at least 0",
            ),
            ("data.drawing_weights.count = 1", "unknown category `count`"),
            (
                "tokenizer.update.beta1 = 2",
                "`tokenizer.update.beta1`: expected a number of at least 0 and below 1",
            ),
            ("tokenizer.pictures = 0", "`tokenizer.pictures`: expected a whole number of at least 1, got 0"),
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
