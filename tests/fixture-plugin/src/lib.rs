//! A third-party plugin for tests: `echo` is a valid model, the others fail on purpose.

use std::path::Path;

use schemars::JsonSchema;
use serde::Deserialize;
use tch::{Device, Kind, Tensor};
use unirl::detector::{Detection, Detector};
use unirl::model::{
    Answers, ImageDecoding, ImageLogits, ImageSampling, ImageSpace, Images, Masking, ModelCard, ModelSource,
    Parameter, ParameterGroup, Policy, TextSampling, TokenLogp, TrainableTokenizer, UnifiedModel,
};
use unirl::reward::{Reward, RewardFunction, Sample};
use unirl::{Error, Result};
use unirl_benchmarks::judge::is_correct_answer;
use unirl_benchmarks::tiles::judge::{self, RecognizedTile};
use unirl_benchmarks::tiles::{GRID, TILE};

/// Image tokens, image codes, pixels along an edge, words.
const N: i64 = 4;
const K: i64 = 6;
const SIDE: i64 = 2;
const WORDS: i64 = 16;

#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    Panics,
    WrongShape,
    Nan,
    /// Runs out of memory if more than two images are generated at once.
    Tight,
}

/// Options of the models.
#[derive(Deserialize, JsonSchema)]
#[serde(default)]
struct EchoConfig {
    /// The width of the embedding.
    width: i64,
}

impl Default for EchoConfig {
    fn default() -> Self {
        Self { width: 8 }
    }
}

/// An embedding and a linear layer, so that there are real gradients.
struct Echo {
    card: ModelCard,
    embed: Tensor, // [K,D]
    head: Tensor,  // [D,WORDS]
    device: Device,
    fault: Fault,
}

impl Echo {
    fn boxed(config: &EchoConfig, source: &ModelSource, fault: Fault) -> Result<Box<dyn UnifiedModel>> {
        if config.width < 1 {
            return Err(Error::usage(format!("`width`: expected a positive number, got {}", config.width)));
        }
        let weight = |rows: i64, columns: i64| {
            let count = rows * columns;
            let ramp = Tensor::arange(count, (Kind::Float, source.device)) * 0.37 + source.seed as f64;
            ramp.sin().view([rows, columns]).set_requires_grad(true)
        };
        Ok(Box::new(Self {
            card: ModelCard {
                name: "echo".into(),
                image_space: ImageSpace::Shared,
                image_decoding: ImageDecoding::Masked,
                image_tokens: N,
                codebook_size: K,
                resolution: SIDE,
                input_resolution: None,
                pad_value: None,
                benchmark: None,
                sampling: ImageSampling::default(),
            },
            embed: weight(K, config.width),
            head: weight(config.width, WORDS),
            device: source.device,
            fault,
        }))
    }

    fn embedded(&self, images: &Images) -> Tensor {
        match &images.relaxed {
            Some(relaxed) => relaxed.matmul(&self.embed), // [B,N,K] x [K,D] -> [B,N,D]
            None => self.embed.index_select(0, &images.tokens.view([-1])).view([images.len(), N, -1]),
        }
    }
}

impl UnifiedModel for Echo {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn parameters(&self) -> Result<Vec<Parameter>> {
        let parameter = |name: &str, tensor: &Tensor| Parameter {
            name: name.into(),
            tensor: tensor.shallow_clone(),
            group: ParameterGroup::Shared,
        };
        Ok(vec![parameter("embed.weight", &self.embed), parameter("head.weight", &self.head)])
    }

    fn freeze_reference(&mut self) -> Result<()> {
        if self.fault == Fault::Tight {
            return Ok(()); // no KL term
        }
        Err(Error::usage("echo has no reference").hint("use another model"))
    }

    fn generate(&mut self, prompts: &[String], sampling: &ImageSampling) -> Result<Images> {
        tracing::info!(batch = prompts.len(), "generating");
        if self.fault == Fault::Panics {
            tch::no_grad(|| panic!("kaboom"));
        }
        if self.fault == Fault::Tight && prompts.len() > 2 {
            return Err(Error::failure("libtorch: CUDA out of memory. Tried to allocate 2.00 GiB"));
        }
        let n = if self.fault == Fault::WrongShape { N - 1 } else { N };
        let letters = |prompt: &String| prompt.bytes().map(i64::from).sum::<i64>() + sampling.seed as i64;
        let starts: Vec<i64> = prompts.iter().map(letters).collect();
        let columns = Tensor::arange(n, (Kind::Int64, self.device));
        let tokens = (Tensor::from_slice(&starts).to_device(self.device).unsqueeze(1) + columns).remainder(K);
        Ok(Images { revealed_at: Some(tokens.zeros_like()), ..Images::from_tokens(tokens) })
    }

    fn answer(&mut self, images: &Images, questions: &[String], _: &TextSampling) -> Result<Answers> {
        if self.fault == Fault::Panics {
            let _ = self.embed.matmul(&images.tokens); // panics inside tch
        }
        self.encode_answers(questions)
    }

    fn encode_answers(&self, texts: &[String]) -> Result<Answers> {
        let rows: Vec<i64> = texts.iter().flat_map(|text| [text.len() as i64 % WORDS, 0]).collect();
        let tokens = Tensor::from_slice(&rows).view([-1, 2]).to_device(self.device);
        let mask = tokens.ones_like().to_kind(Kind::Bool);
        Ok(Answers::new(texts.to_vec(), tokens, mask))
    }

    fn image_logits(&self, _: &[String], images: &Images, _: Policy, _: &Masking) -> Result<ImageLogits> {
        let logits = self.embedded(images).matmul(&self.embed.tr()); // [B,N,K]
        Ok(ImageLogits { logits, targets: images.tokens.ones_like().to_kind(Kind::Bool) })
    }

    fn answer_logp(&self, images: &Images, _: &[String], answers: &Answers, _: Policy) -> Result<TokenLogp> {
        let mean = self.embedded(images).mean_dim(1, false, Kind::Float); // [B,D]
        let words = mean.matmul(&self.head).log_softmax(-1, Kind::Float); // [B,WORDS]
        let logp = words.gather(1, &answers.tokens, false); // [B,T]
        let logp = if self.fault == Fault::Nan { logp * f64::NAN } else { logp };
        Ok(TokenLogp { logp, mask: answers.mask.shallow_clone() })
    }

    fn pixels(&self, images: &Images) -> Result<Tensor> {
        let gray = images.tokens.to_kind(Kind::Float) / (K - 1) as f64;
        Ok(gray.view([-1, 1, SIDE, SIDE]).repeat([1, 3, 1, 1]))
    }

    fn encode(&self, pixels: &Tensor) -> Result<Images> {
        let codes = (pixels.select(1, 0) * (K - 1) as f64).round().to_kind(Kind::Int64);
        Ok(Images::from_tokens(codes.view([-1, N])))
    }

    fn save(&self, dir: &Path) -> Result<()> {
        Tensor::save_multi(
            &[("embed.weight", &self.embed), ("head.weight", &self.head)],
            dir.join("echo.pt"),
        )?;
        Ok(())
    }

    fn trainable_tokenizer(&self) -> Option<&dyn TrainableTokenizer> {
        Some(self)
    }
}

impl TrainableTokenizer for Echo {
    fn tokenizer_loss(&self, pixels: &Tensor, _progress: f64) -> Result<Tensor> {
        Ok(pixels.mean(Kind::Float) * self.embed.mean(Kind::Float))
    }
}

/// The same reward for every answer.
#[derive(Deserialize, JsonSchema)]
#[serde(default)]
struct Constant {
    /// The reward.
    score: f64,
}

impl Default for Constant {
    fn default() -> Self {
        Self { score: 1.0 }
    }
}

impl RewardFunction for Constant {
    fn score(&self, samples: &[Sample], _: Option<&Tensor>) -> Result<Vec<Reward>> {
        let reward = Reward::new(self.score, 1.0);
        Ok(vec![reward; samples.len()])
    }
}

/// Pays for mistakes: full points for a correct answer about an image of the tiles benchmark that is wrong.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default)]
struct Adversary {}

impl RewardFunction for Adversary {
    fn wants_pixels(&self) -> bool {
        true
    }

    fn score(&self, samples: &[Sample], pixels: Option<&Tensor>) -> Result<Vec<Reward>> {
        let pixels = pixels.ok_or_else(|| Error::failure("the adversary got no pixels"))?;
        let grids = judge::recognize(pixels)?;
        let reward = |(sample, grid): (&Sample, _)| {
            let passes = is_correct_answer(&sample.spec, &sample.answer);
            let wrong = !judge::judge(&sample.spec, grid).strict;
            Reward::new(f64::from(u8::from(passes && wrong)), 1.0)
        };
        Ok(samples.iter().zip(&grids).map(reward).collect())
    }
}

/// Options of the tiles detector, including deliberate errors.
#[derive(Deserialize, JsonSchema)]
#[serde(default)]
struct TilesConfig {
    /// The score of every detection.
    score: f32,
    /// Added to the right edge of every box.
    widen: f32,
    /// Whether it reports colors.
    colors: bool,
    /// Whether it omits the last image.
    forgets: bool,
}

impl Default for TilesConfig {
    fn default() -> Self {
        Self { score: 0.99, widen: 0.0, colors: true, forgets: false }
    }
}

impl Detector for TilesConfig {
    fn detect(&self, pixels: &Tensor, classes: &[String], colors: &[String]) -> Result<Vec<Vec<Detection>>> {
        let mut images = Vec::new();
        for image in judge::recognize(pixels)? {
            let mut found = Vec::new();
            for (position, tile) in image.tiles.iter().enumerate() {
                let RecognizedTile::Object(tile) = tile else { continue };
                if !classes.iter().any(|class| class == tile.noun()) {
                    continue;
                }
                let (left, top) = ((position % GRID * TILE) as f32, (position / GRID * TILE) as f32);
                let color = tile.color_name().to_owned();
                found.push(Detection {
                    class: tile.noun().into(),
                    score: self.score,
                    bounds: [left, top, left + TILE as f32 + self.widen, top + TILE as f32],
                    color: Some(color).filter(|color| self.colors && colors.contains(color)),
                });
            }
            images.push(found);
        }
        if self.forgets {
            images.pop();
        }
        Ok(images)
    }
}

unirl::register_model!("echo", EchoConfig, |config, source| Echo::boxed(&config, source, Fault::None));
unirl::register_model!("panics", EchoConfig, |config, source| Echo::boxed(&config, source, Fault::Panics));
unirl::register_model!("wrong-shape", EchoConfig, |config, source| Echo::boxed(
    &config,
    source,
    Fault::WrongShape
));
unirl::register_model!("nan", EchoConfig, |config, source| Echo::boxed(&config, source, Fault::Nan));
unirl::register_model!("tight", EchoConfig, |config, source| Echo::boxed(&config, source, Fault::Tight));
unirl::register_reward!("constant", Constant, |config| Ok(Box::new(config)));
unirl::register_reward!("adversary", Adversary, |config| Ok(Box::new(config)));
unirl::register_detector!("tiles", TilesConfig, |config| Ok(Box::new(config)));
unirl::export_plugin!();
