//! Show-o behind the framework's trait.

mod generate;
mod score;
mod understand;

use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};
use unirl::model::{
    Answers, BatchSlice, Footprint, ImageDecoding, ImageLogits, ImageSampling, ImageSpace, Images, Masking,
    Mode, ModelCard, ModelSource, Parameter, ParameterGroup, Policy, TextSampling, TokenLogp, UnifiedModel,
    Workload,
};
use unirl::weights::{Expected, Store};
use unirl::{Error, Result};
use unirl_layers::decoding::GeneratedText;
use unirl_layers::lora::LoraConfig;
use unirl_text::{Text, padded, warn_too_long};

use crate::checkpoint::{self, Files, LoadedCheckpoint};
use crate::clip::{self, Clip};
use crate::config::{CheckpointConfig, MagvitConfig, ShowoConfig, Special};
use crate::footprint::Sizes;
use crate::magvit::Magvit;
use crate::maskgit::{Schedule, UNKNOWN};
use crate::phi::Phi;
use crate::prompt::Prompting;

pub use generate::TextBlocks;
pub use understand::TextDecoding;

/// What stands before the picture where understanding reads CLIP features.
pub(crate) const SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, \
                      detailed, and polite answers to the user's questions.";

/// A Show-o model.
pub struct Showo {
    card: ModelCard,
    config: CheckpointConfig,
    files: Files,
    special: Special,
    prompting: Prompting,
    text: Text,
    phi: Phi,
    reference: Option<Phi>,
    magvit: Magvit,
    schedule: Schedule,
    precision: Kind,
    magvit_config: MagvitConfig,
    /// Reads pictures for understanding; without it, understanding reads image tokens.
    vision: Option<VisionEncoder>,
    phi_weights: Vec<(String, Tensor)>,
    magvit_weights: Vec<(String, Tensor)>,
    adapters: Option<Adapters>,
    device: Device,
}

/// The vision tower, and what stands between it and the text.
struct VisionEncoder {
    tower: Clip,
    folder: PathBuf,
    /// The system prompt, as ids.
    system: Vec<i64>,
}

/// Low-rank adapters, which learn in the place of the transformer's weights.
struct Adapters {
    config: LoraConfig,
    weights: Vec<(String, Tensor)>,
}

impl Showo {
    /// Loads or makes a model.
    #[expect(
        clippy::new_ret_no_self,
        clippy::needless_pass_by_value,
        reason = "the constructor that the plugin registers"
    )]
    pub fn new(config: ShowoConfig, source: &ModelSource) -> Result<Box<dyn UnifiedModel>> {
        Ok(Box::new(Self::from_parts(checkpoint::parts(&config, source)?, source.device)?))
    }

    /// Puts a model together from the parts of a checkpoint.
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
                "`codebook_size`: expected {}, as `z_channels` of the image tokenizer says, got {}",
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
                    tower: Clip::take(&mut store, sizes)?,
                    folder,
                    system: text.encode(SYSTEM)?,
                })
            })
            .transpose()?;
        let (rows, _) = config.grid();
        let card = ModelCard {
            name: "showo".into(),
            image_space: ImageSpace::Shared,
            image_decoding: ImageDecoding::Masked,
            image_tokens: config.num_vq_tokens,
            codebook_size: config.codebook_size,
            resolution: rows * magvit_config.factor(),
            input_resolution: vision.as_ref().map(|vision| vision.tower.config().image_size),
            pad_value: None,
            sampling: config.sampling.clone().unwrap_or_default(),
        };
        Ok(Self {
            card,
            special: config.special(),
            prompting: Prompting::new(&config),
            text,
            phi,
            reference: None,
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
            warn_too_long(prompt, ids.len(), self.prompting.most(), "the rest is cut off");
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
        let of = |weights: &[(String, Tensor)], group| -> Vec<Parameter> {
            let parameter = |(name, tensor): &(String, Tensor)| Parameter {
                name: name.clone(),
                tensor: tensor.shallow_clone(),
                group,
            };
            weights.iter().map(parameter).collect()
        };
        if let Some(adapters) = &self.adapters {
            return Ok(of(&adapters.weights, ParameterGroup::Shared));
        }
        let mut all = of(&self.phi_weights, ParameterGroup::Shared);
        all.extend(of(&self.magvit_weights, ParameterGroup::Tokenizer));
        Ok(all)
    }

    /// Nothing here behaves differently in training: all dropout rates of the family are 0.
    fn set_mode(&mut self, _mode: Mode) -> Result<()> {
        Ok(())
    }

    fn freeze_reference(&mut self) -> Result<()> {
        let copied = |weights: &[(String, Tensor)]| -> Vec<(String, Tensor)> {
            weights.iter().map(|(name, tensor)| (name.clone(), tensor.detach().copy())).collect()
        };
        let weights = match &self.adapters {
            Some(_) => self.phi_weights.clone_handles(), // they do not learn
            None => copied(&self.phi_weights),
        };
        let mut reference = Phi::take(&mut Store::of_tensors("the reference policy", weights), &self.config)?;
        if let Some(adapters) = &self.adapters {
            let mut store = Store::of_tensors("the reference policy", copied(&adapters.weights));
            reference.attach(&mut store, &adapters.config)?;
        }
        self.reference = Some(reference);
        Ok(())
    }

    fn footprint(&self, workload: &Workload) -> Result<Footprint> {
        let bytes = self.precision.elt_size_in_bytes() as i64;
        let checkpointing = self.phi.language.stack.checkpointing;
        let sizes = Sizes::new(&self.config, self.prefix(), bytes, checkpointing, self.adapters.is_some());
        let values = |of: &[Expected]| -> i64 {
            of.iter().filter(|expected| expected.required).map(Expected::values).sum()
        };
        let transformer = Phi::expected(&self.config)?;
        let adapters = match &self.adapters {
            Some(adapters) => Some(Phi::expected_adapters(&self.config, &adapters.config)?),
            None => None,
        };
        let tower = match &self.vision {
            Some(vision) => values(&Clip::expected(vision.tower.config())?),
            None => 0,
        };
        let others = values(&Magvit::expected(&self.magvit_config)?) + tower; // always in f32
        let added = adapters.as_deref().map_or(0, values);
        let learning = adapters.as_ref().unwrap_or(&transformer);
        let trainable = values(learning);
        Ok(Footprint {
            values: values(&transformer) + added + others,
            weights: (values(&transformer) + added) * bytes + others * 4,
            trainable,
            trainable_weights: trainable * bytes,
            largest: learning.iter().map(Expected::values).max().unwrap_or(0),
            reference: trainable * bytes,
            generate: sizes.generate(&workload.images),
            answer: sizes.answer(&workload.answers),
            image_logits: sizes.image_logits(workload.states),
            answer_logp: sizes.answer_logp(&workload.answers),
        })
    }

    fn generate(&mut self, prompts: &[String], sampling: &ImageSampling) -> Result<Images> {
        sampling.check(prompts.len())?;
        tch::manual_seed(sampling.seed as i64);
        let shape = [prompts.len() as i64, self.card.image_tokens];
        let codes = Tensor::full(shape, UNKNOWN, (Kind::Int64, self.device));
        let uniform = || BatchSlice::rows(sampling.part, shape[0], |of| self.uniform(&[of, shape[1]]));
        let uniforms = |_| (uniform(), uniform());
        self.draw(&self.prompt_ids(prompts)?, codes, sampling, uniforms)
    }

    fn answer(&mut self, images: &Images, questions: &[String], sampling: &TextSampling) -> Result<Answers> {
        images.check(&self.card, "questions", questions.len())?;
        sampling.check()?;
        tch::manual_seed(sampling.seed as i64);
        let GeneratedText { tokens, mask, logp } =
            self.write(images, &self.question_ids(questions)?, sampling, self.special.eos)?;
        Ok(Answers { logp: Some(logp), ..self.text.answers(tokens, mask, self.special.eos)? })
    }

    fn encode_answers(&self, texts: &[String]) -> Result<Answers> {
        let rows = texts
            .iter()
            .map(|text| {
                let mut ids = self.text.encode(&format!(" {text}"))?; // answers begin with a blank
                ids.push(self.special.eos);
                Ok(ids)
            })
            .collect::<Result<Vec<_>>>()?;
        let (tokens, mask) = padded(&rows, self.special.pad, self.device);
        Ok(Answers::new(texts.to_vec(), tokens, mask))
    }

    fn image_logits(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        replay: &Masking,
    ) -> Result<ImageLogits> {
        self.rescored(prompts, images, policy, replay, |phi, scored, targets| {
            Ok(ImageLogits { logits: scored.logits(phi, &targets.size()), targets })
        })
    }

    fn image_logp(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        replay: &Masking,
    ) -> Result<TokenLogp> {
        self.rescored(prompts, images, policy, replay, |phi, scored, mask| {
            Ok(TokenLogp { logp: scored.logp(phi, &images.tokens)?, mask })
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
        policy.run(&self.phi, self.reference.as_ref(), |phi| self.score(phi, images, &questions, answers))
    }

    fn pixels(&self, images: &Images) -> Result<Tensor> {
        let drawn = Images::from_tokens(images.tokens.shallow_clone());
        Ok(tch::no_grad(|| self.seen(&drawn)))
    }

    fn encode(&self, pixels: &Tensor) -> Result<Images> {
        tch::no_grad(|| {
            let pixels = pixels.to_device(self.device);
            let (rows, columns) = self.config.grid();
            let size = pixels.size();
            if size[2..] != [self.card.resolution; 2] && size.get(2).copied() != self.card.input_resolution {
                let expected = self.card.input_resolution.unwrap_or(self.card.resolution);
                return Err(Error::usage(format!(
                    "pictures: expected [B,3,{expected},{expected}] for {rows}x{columns} tokens, got {size:?}"
                )));
            }
            let fitting = clip::resize(&pixels, self.card.resolution);
            let tokens = self.magvit.codes(&self.magvit.latents(&(fitting * 2.0 - 1.0)));
            Ok(Images { pixels: self.vision.is_some().then_some(pixels), ..Images::from_tokens(tokens) })
        })
    }

    fn tokenizer_loss(&self, pixels: &Tensor, progress: f64) -> Result<Tensor> {
        Ok(self.magvit.loss(&(pixels.to_device(self.device) * 2.0 - 1.0), progress))
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let mut magvit = self.magvit_weights.clone_handles();
        magvit.extend(self.magvit.buffers());
        let mut phi = self.phi_weights.clone_handles();
        if let Some(adapters) = &self.adapters {
            if !adapters.config.merge {
                return checkpoint::save_adapters(dir, &self.files, &adapters.config, &adapters.weights);
            }
            tch::no_grad(|| {
                for (name, added) in self.phi.adapted() {
                    if let Some((_, weight)) = phi.iter_mut().find(|(known, _)| *known == name) {
                        *weight = &*weight + added;
                    }
                }
            });
        }
        let vision = self.vision.as_ref().map(|vision| vision.folder.as_path());
        checkpoint::save(dir, &self.files, &self.text, &phi, &magvit, vision)
    }
}

/// `Tensor` has no `Clone`: a copy of the handles, not of the weights.
trait CloneHandles {
    fn clone_handles(&self) -> Self;
}

impl CloneHandles for Vec<(String, Tensor)> {
    fn clone_handles(&self) -> Self {
        self.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
    }
}
