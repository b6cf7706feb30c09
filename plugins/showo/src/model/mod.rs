//! Show-o as a [`UnifiedModel`].

mod generate;
mod score;
mod understand;

use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};
use unirl::model::{
    Answers, BatchSlice, Footprint, ImageDecoding, ImageLogits, ImageSampling, ImageSpace, Images, Masking,
    MemoryEstimate, ModelCard, ModelSource, Parameter, ParameterGroup, Policy, TextSampling, TokenLogp,
    TrainableTokenizer, UnifiedModel, Workload,
};
use unirl::weights::{ReferencePolicy, Store};
use unirl::{Error, Result};
use unirl_layers::answering::encode_answers;
use unirl_layers::decoding::GeneratedText;
use unirl_layers::footprint::{self, values};
use unirl_layers::lora::LoraConfig;
use unirl_layers::vqgan::from_unit;
use unirl_text::{Text, warn_too_long};

use crate::checkpoint::{self, Files, LoadedCheckpoint};
use crate::clip::{self, Clip};
use crate::config::{CheckpointConfig, MagvitConfig, ShowoConfig, Special};
use crate::footprint::Sizes;
use crate::magvit::Magvit;
use crate::maskgit::{Schedule, UNKNOWN};
use crate::phi::Phi;
use crate::prompt::{Prompting, SYSTEM};

pub use generate::TextBlocks;
pub use understand::TextDecoding;

/// A Show-o model.
pub struct Showo {
    card: ModelCard,
    config: CheckpointConfig,
    files: Files,
    special: Special,
    prompting: Prompting,
    text: Text,
    phi: Phi,
    reference: ReferencePolicy<Phi>,
    magvit: Magvit,
    schedule: Schedule,
    precision: Kind,
    magvit_config: MagvitConfig,
    /// The CLIP encoder for understanding; without it, understanding uses image tokens.
    vision: Option<VisionEncoder>,
    phi_weights: Vec<(String, Tensor)>,
    magvit_weights: Vec<(String, Tensor)>,
    adapters: Option<Adapters>,
    device: Device,
}

/// The vision encoder and the system prompt.
struct VisionEncoder {
    encoder: Clip,
    folder: PathBuf,
    /// The tokenized system prompt.
    system: Vec<i64>,
}

/// LoRA adapters, which are trained instead of the transformer's weights.
struct Adapters {
    config: LoraConfig,
    weights: Vec<(String, Tensor)>,
}

impl Showo {
    /// Loads a checkpoint or initializes a fresh model.
    #[expect(
        clippy::new_ret_no_self,
        clippy::needless_pass_by_value,
        reason = "the constructor that the plugin registers"
    )]
    pub fn new(config: ShowoConfig, source: &ModelSource) -> Result<Box<dyn UnifiedModel>> {
        Ok(Box::new(Self::from_parts(checkpoint::load(&config, source)?, source.device)?))
    }

    /// Builds a model from a loaded checkpoint.
    pub fn from_parts(parts: LoadedCheckpoint, device: Device) -> Result<Self> {
        let (gradient_checkpointing, schedule, precision) =
            (parts.gradient_checkpointing, parts.schedule, parts.precision);
        let LoadedCheckpoint {
            config,
            magvit_config,
            files,
            text,
            mut phi_store,
            mut magvit_store,
            clip,
            adapters,
            ..
        } = parts;
        let mut phi = Phi::take(&mut phi_store, &config)?;
        phi.language.stack.checkpointing = gradient_checkpointing;
        let magvit = Magvit::take(&mut magvit_store, &magvit_config, device)?;
        if config.codebook_size != magvit_config.codebook_size() {
            return Err(Error::failure(format!(
                "`codebook_size`: expected {}, given `z_channels` of the image tokenizer, got {}",
                magvit_config.codebook_size(),
                config.codebook_size
            )));
        }
        let adapters = adapters
            .map(|(config, mut store)| {
                phi.attach(&mut store, &config)?;
                Ok::<_, Error>(Adapters { config, weights: store.finish() })
            })
            .transpose()?;
        let vision = clip
            .map(|(sizes, mut store, folder)| {
                Ok::<_, Error>(VisionEncoder {
                    encoder: Clip::take(&mut store, sizes)?,
                    folder,
                    system: text.encode(SYSTEM)?,
                })
            })
            .transpose()?;
        let resolution = config.grid().0 * magvit_config.factor();
        let card = ModelCard {
            name: "showo".into(),
            image_space: ImageSpace::Shared,
            image_decoding: ImageDecoding::Masked,
            image_tokens: config.num_vq_tokens,
            codebook_size: config.codebook_size,
            resolution,
            input_resolution: vision.as_ref().map(|vision| vision.encoder.config().image_size),
            pad_value: None,
            benchmark: text.benchmark(resolution),
            sampling: config.sampling.clone().unwrap_or_default(),
        };
        Ok(Self {
            card,
            special: config.special(),
            prompting: Prompting::new(&config),
            text,
            phi,
            reference: ReferencePolicy::default(),
            magvit,
            schedule,
            precision,
            magvit_config,
            vision,
            phi_weights: phi_store.finish(),
            magvit_weights: magvit_store.finish(),
            adapters,
            config,
            files,
            device,
        })
    }

    /// The transformer.
    pub fn phi(&self) -> &Phi {
        &self.phi
    }

    /// The image tokenizer.
    pub fn magvit(&self) -> &Magvit {
        &self.magvit
    }

    fn prompt_ids(&self, prompts: &[String]) -> Result<Vec<Vec<i64>>> {
        let ids = |prompt: &String| {
            let ids = self.text.encode(prompt)?;
            warn_too_long(prompt, ids.len(), self.prompting.max_prompt_tokens(), "it is truncated");
            Ok(ids)
        };
        prompts.iter().map(ids).collect()
    }

    fn uniform(&self, shape: &[i64]) -> Tensor {
        Tensor::rand(shape, (Kind::Float, self.device))
    }
}

impl UnifiedModel for Showo {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn parameters(&self) -> Result<Vec<Parameter>> {
        if let Some(adapters) = &self.adapters {
            return Ok(Parameter::list(&adapters.weights, |_| ParameterGroup::Shared));
        }
        let mut all = Parameter::list(&self.phi_weights, |_| ParameterGroup::Shared);
        all.extend(Parameter::list(&self.magvit_weights, |_| ParameterGroup::Tokenizer));
        Ok(all)
    }

    fn freeze_reference(&mut self) -> Result<()> {
        let Some(adapters) = &self.adapters else {
            return self.reference.freeze(&self.phi_weights, |store| Phi::take(store, &self.config));
        };
        self.reference.freeze(&adapters.weights, |store| {
            let mut base = Store::of_tensors("the reference policy", shared(&self.phi_weights)); // frozen
            let mut phi = Phi::take(&mut base, &self.config)?;
            phi.attach(store, &adapters.config)?;
            Ok(phi)
        })
    }

    fn generate(&mut self, prompts: &[String], sampling: &ImageSampling) -> Result<Images> {
        sampling.check(prompts.len())?;
        tch::manual_seed(sampling.seed as i64);
        let shape = [prompts.len() as i64, self.card.image_tokens];
        let codes = Tensor::full(shape, UNKNOWN, (Kind::Int64, self.device));
        let uniform = || BatchSlice::rows(sampling.part, shape[0], |of| self.uniform(&[of, shape[1]]));
        let uniforms = |_| (uniform(), uniform());
        self.generate_tokens(&self.prompt_ids(prompts)?, codes, sampling, uniforms)
    }

    fn answer(&mut self, images: &Images, questions: &[String], sampling: &TextSampling) -> Result<Answers> {
        images.check(&self.card, "questions", questions.len())?;
        sampling.check()?;
        tch::manual_seed(sampling.seed as i64);
        let GeneratedText { tokens, mask, logp } =
            self.generate_text(images, &self.question_ids(questions)?, sampling, self.special.eos)?;
        self.text.answers([tokens, mask, logp], self.special.eos)
    }

    fn encode_answers(&self, texts: &[String]) -> Result<Answers> {
        let ids = |text: &str| self.text.encode(&format!(" {text}")); // answers begin with a space
        encode_answers(texts, ids, (self.special.eos, self.special.pad), self.device)
    }

    fn image_logits(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        masking: &Masking,
    ) -> Result<ImageLogits> {
        self.score_images(prompts, images, policy, masking, |scored, targets| {
            Ok(ImageLogits { logits: scored.logits(&targets.size()), targets })
        })
    }

    fn image_logp(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        masking: &Masking,
    ) -> Result<TokenLogp> {
        self.score_images(prompts, images, policy, masking, |scored, mask| {
            Ok(TokenLogp { logp: scored.logp(&images.tokens)?, mask })
        })
    }

    fn answer_logp(
        &self,
        images: &Images,
        questions: &[String],
        answers: &Answers,
        policy: Policy,
    ) -> Result<TokenLogp> {
        images.check(&self.card, "questions", questions.len())?;
        let questions = self.question_ids(questions)?;
        self.reference.run(policy, &self.phi, |phi| self.score_answers(phi, images, &questions, answers))
    }

    fn pixels(&self, images: &Images) -> Result<Tensor> {
        let generated = Images::from_tokens(images.tokens.shallow_clone());
        Ok(tch::no_grad(|| self.pixels_for_understanding(&generated)))
    }

    fn encode(&self, pixels: &Tensor) -> Result<Images> {
        tch::no_grad(|| {
            let pixels = pixels.to_device(self.device);
            let (rows, columns) = self.config.grid();
            let size = pixels.size();
            if size[2..] != [self.card.resolution; 2] && size.get(2).copied() != self.card.input_resolution {
                let expected = self.card.input_resolution.unwrap_or(self.card.resolution);
                return Err(Error::usage(format!(
                    "images: expected [B,3,{expected},{expected}] for {rows}x{columns} tokens, got {size:?}"
                )));
            }
            let resized = clip::resize(&pixels, self.card.resolution);
            let tokens = self.magvit.codes(&self.magvit.latents(&from_unit(&resized)));
            Ok(Images { pixels: self.vision.is_some().then_some(pixels), ..Images::from_tokens(tokens) })
        })
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let mut magvit = shared(&self.magvit_weights);
        magvit.extend(self.magvit.buffers());
        let mut phi = shared(&self.phi_weights);
        if let Some(adapters) = &self.adapters {
            if !adapters.config.merge {
                return checkpoint::save_adapters(dir, &self.files, &adapters.config, &adapters.weights);
            }
            tch::no_grad(|| {
                for (name, added) in self.phi.adapter_deltas() {
                    if let Some((_, weight)) = phi.iter_mut().find(|(known, _)| *known == name) {
                        *weight = &*weight + added;
                    }
                }
            });
        }
        let vision = self.vision.as_ref().map(|vision| vision.folder.as_path());
        checkpoint::save(dir, &self.files, &self.text, &phi, &magvit, vision)
    }

    fn memory_estimate(&self) -> Option<&dyn MemoryEstimate> {
        Some(self)
    }

    fn trainable_tokenizer(&self) -> Option<&dyn TrainableTokenizer> {
        Some(self)
    }
}

impl MemoryEstimate for Showo {
    fn footprint(&self, workload: &Workload) -> Result<Footprint> {
        let bytes = self.precision.elt_size_in_bytes() as i64;
        let checkpointing = self.phi.language.stack.checkpointing;
        let sizes =
            Sizes::new(&self.config, self.prefix_len(), bytes, checkpointing, self.adapters.is_some());
        let vision = match &self.vision {
            Some(vision) => values(&Clip::expected(vision.encoder.config())?),
            None => 0,
        };
        let frozen_f32 = values(&Magvit::expected(&self.magvit_config)?) + vision;
        let transformer = Phi::expected(&self.config)?;
        let weights = match &self.adapters {
            Some(adapters) => {
                let trained = Phi::expected_adapters(&self.config, &adapters.config)?;
                footprint::of_weights(&trained, values(&transformer), frozen_f32, bytes)
            }
            None => footprint::of_weights(&transformer, 0, frozen_f32, bytes),
        };
        Ok(Footprint {
            generate: sizes.generate(&workload.images),
            answer: sizes.answer(&workload.answers),
            image_logits: sizes.image_logits(workload.states),
            answer_logp: sizes.answer_logp(&workload.answers),
            ..weights
        })
    }
}

impl TrainableTokenizer for Showo {
    fn tokenizer_loss(&self, pixels: &Tensor, progress: f64) -> Result<Tensor> {
        Ok(self.magvit.loss(&from_unit(&pixels.to_device(self.device)), progress))
    }
}

/// Handles of the same tensors: `Tensor` has no `Clone`.
fn shared(weights: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
    weights.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}
