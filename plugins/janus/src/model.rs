//! Janus as a [`UnifiedModel`].

use std::path::Path;

use tch::{Device, Kind, Tensor};
use unirl::model::{
    Answers, Footprint, ImageDecoding, ImageLogits, ImageSampling, ImageSpace, Images, Masking,
    MemoryEstimate, ModelCard, ModelSource, Parameter, ParameterGroup, Policy, TextSampling, TokenLogp,
    TrainableTokenizer, UnifiedModel, Workload,
};
use unirl::weights::ReferencePolicy;
use unirl::{Error, Result};
use unirl_layers::answering::{EmbeddedRows, Questions, encode_answers};
use unirl_layers::decoding::{GeneratedText, SampledTokens, SamplingChoice};
use unirl_layers::footprint::{self, values};
use unirl_layers::guidance::{Guidance, drop_prompts};
use unirl_layers::rows::{deduplicate, padded_left};
use unirl_layers::scoring::{ScoredImages, scored_branches};
use unirl_layers::vqgan::{from_unit, to_unit};
use unirl_text::warn_too_long;

use crate::checkpoint::{self, LoadedCheckpoint, SavedFiles};
use crate::config::JanusConfig;
use crate::footprint::Sizes;
use crate::network::{self, Network};
use crate::options::JanusOptions;
use crate::prompt::Prompting;
use crate::vq::Vq;

/// The gray that pads an image to a square: 255 / 2, rounded down.
const GREY: u8 = 127;

/// A Janus model.
pub struct Janus {
    card: ModelCard,
    config: JanusConfig,
    prompting: Prompting,
    network: Network,
    reference: ReferencePolicy<Network>,
    vq: Vq,
    /// Mean and standard deviation of pixels, each `[3,1,1]`.
    normalisation: [Tensor; 2],
    saved: SavedFiles,
    /// Weights of the network, then of the image tokenizer.
    weights: Vec<(String, Tensor)>,
    precision: Kind,
    device: Device,
}

/// The parameter group of a weight. Both tasks share the language model's layers and embedding.
fn group(name: &str) -> ParameterGroup {
    let begins_with = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    if begins_with(&["model.vqmodel."]) {
        ParameterGroup::Tokenizer
    } else if begins_with(&["model.generation_"]) {
        ParameterGroup::Generation
    } else if begins_with(&["model.vision_model.", "model.aligner.", "lm_head."]) {
        ParameterGroup::Understanding
    } else {
        ParameterGroup::Shared
    }
}

impl Janus {
    /// Loads a checkpoint or initializes a fresh model.
    #[expect(
        clippy::new_ret_no_self,
        clippy::needless_pass_by_value,
        reason = "the constructor that the plugin registers"
    )]
    pub fn new(options: JanusOptions, source: &ModelSource) -> Result<Box<dyn UnifiedModel>> {
        Ok(Box::new(Self::from_parts(checkpoint::load(&options, source)?, source.device)?))
    }

    /// Builds a model from a loaded checkpoint.
    pub fn from_parts(parts: LoadedCheckpoint, device: Device) -> Result<Self> {
        let LoadedCheckpoint { config, prompting, sampling, normalisation, mut store, saved, .. } = parts;
        let mut network = Network::take(&mut store, &config)?;
        network.llama.stack.checkpointing = parts.gradient_checkpointing;
        let vq = store.of_kind(Kind::Float, |store| Vq::take(store, &config.vq))?;
        let card = ModelCard {
            name: "janus".into(),
            image_space: ImageSpace::Decoupled,
            image_decoding: ImageDecoding::Autoregressive,
            image_tokens: config.image_tokens(),
            codebook_size: config.generation.codebook_size,
            resolution: config.vision.image_size,
            input_resolution: None,
            pad_value: Some(GREY),
            benchmark: prompting.text().benchmark(config.vision.image_size),
            sampling,
        };
        Ok(Self {
            card,
            prompting,
            network,
            reference: ReferencePolicy::default(),
            vq,
            normalisation: normalisation.map(|channels| {
                Tensor::from_slice(&channels).to_kind(Kind::Float).view([3, 1, 1]).to_device(device)
            }),
            saved,
            weights: store.finish(),
            config,
            precision: parts.precision,
            device,
        })
    }

    /// The tokenization of prompts and questions.
    pub fn prompting(&self) -> &Prompting {
        &self.prompting
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    fn prompt_ids(&self, prompts: &[String]) -> Result<Vec<Vec<i64>>> {
        // Nothing is truncated, but the model was not trained on larger positions.
        let limit = self.config.language.max_position_embeddings - self.card.image_tokens;
        let ids = |prompt: &String| {
            let ids = self.prompting.generation_ids(prompt)?;
            warn_too_long(
                prompt,
                ids.len(),
                limit.max(0) as usize,
                "the model was not trained on longer prompts",
            );
            Ok(ids)
        };
        prompts.iter().map(ids).collect()
    }

    /// The hidden states `[B,N,D]` that predict image `tokens [B,N]` after tokenized prompts.
    fn code_hidden(&self, network: &Network, prompts: &[Vec<i64>], tokens: &Tensor) -> Result<Tensor> {
        let (ids, present) = padded_left(prompts, self.prompting.special.pad, self.device);
        network.generation_hidden(&ids, Some(&present), tokens)
    }

    /// Tokenized prompts, some of them dropped in pretraining.
    fn masked_prompts(&self, prompts: &[String], masking: &Masking) -> Result<Vec<Vec<i64>>> {
        let mut prompts = self.prompt_ids(prompts)?;
        if let Masking::Pretrain { seed } = masking {
            tch::manual_seed(*seed as i64);
            drop_prompts(&mut prompts, self.device, |ids| self.prompting.unconditional(ids))?;
        }
        Ok(prompts)
    }

    /// Scores images under `policy`. `score` gets the hidden states and the targets `[B,N]`, which are all tokens.
    fn score_images<R>(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        masking: &Masking,
        score: impl FnOnce(ScoredImages, Tensor) -> Result<R>,
    ) -> Result<R> {
        images.check(&self.card, "prompts", prompts.len())?;
        let prompts = self.masked_prompts(prompts, masking)?;
        let (scoring, guidance) = masking.scoring();
        let guidance = Guidance::FromUnconditional(guidance);
        let targets = Tensor::ones(images.tokens.size(), (Kind::Bool, self.device));
        self.reference.run(policy, &self.network, |network| {
            let branches = scored_branches(scoring, guidance, |branches| {
                let prompts = branches.conditions(&prompts, |ids| self.prompting.unconditional(ids));
                self.code_hidden(network, &prompts, &branches.repeat(&images.tokens))
            })?;
            let (head, codes) = (network.codes.head.shallow_clone(), self.card.codebook_size);
            let head = Box::new(move |hidden: &Tensor| head.logits(hidden));
            score(ScoredImages { head, codes, branches, targets: None, guidance }, targets)
        })
    }

    /// Generates images for tokenized prompts: tokens and their log-probabilities, both `[B,N]`.
    pub fn generate_tokens(
        &self,
        prompts: &[Vec<i64>],
        sampling: &ImageSampling,
    ) -> Result<(Tensor, Tensor)> {
        let guidance = Guidance::FromUnconditional(sampling.guidance);
        let rows = guidance.branches().conditions(prompts, |ids| self.prompting.unconditional(ids));
        let (rows, index) = deduplicate(rows);
        let (ids, present) = padded_left(&rows, self.prompting.special.pad, self.device);
        let index = Tensor::from_slice(&index).to_device(self.device);
        let choice = SamplingChoice { temperature: sampling.temperature, top_k: 0, part: sampling.part };
        let mut sampled =
            SampledTokens::new(prompts.len() as i64, self.card.image_tokens, choice, self.device);
        self.network
            .generate_tokens(&ids, &present, &index, &mut sampled, |logits| guidance.combine_batch(logits))?;
        Ok((sampled.tokens, sampled.logp))
    }

    /// Decodes `tokens [B,N]` to pixels `[B,3,H,W]` in `0..=1`.
    fn decode(&self, tokens: &Tensor) -> Tensor {
        to_unit(&self.vq.decode(tokens, self.grid()))
    }

    /// Rows and columns of image tokens.
    fn grid(&self) -> (i64, i64) {
        let edge = self.config.vision.image_size / self.config.vision.patch_size;
        (edge, edge)
    }

    /// Encodes images as rows of the language model, `[B,patches,D]`. The gradient of relaxed images flows through the image
    /// tokenizer's decoder.
    fn align(&self, network: &Network, images: &Images) -> Result<Tensor> {
        let pixels = match (&images.relaxed, &images.pixels) {
            (Some(relaxed), _) => to_unit(&self.vq.decode_relaxed(relaxed, self.grid())),
            (None, Some(pixels)) => pixels.to_device(self.device),
            (None, None) => tch::no_grad(|| self.decode(&images.tokens)),
        };
        let [mean, std] = &self.normalisation;
        network.align(&((pixels - mean) / std))
    }

    /// Embeds images within the text `ids [B,L]`.
    fn embed_with_images(&self, network: &Network, images: &Images, ids: &Tensor) -> Result<EmbeddedRows> {
        let (batch, length) = (ids.size()[0], ids.size()[1]);
        let positions = Tensor::arange(length, (Kind::Int64, self.device)).unsqueeze(0);
        let rows = self.prompting.image_rows();
        let is_image = positions.ge(rows.start).logical_and(&positions.lt(rows.end));
        let is_image = is_image.expand([batch, -1], false);
        let x = network.embed_images_at(ids, &is_image, &self.align(network, images)?)?;
        let mask = network::causal(&network::present(batch, length, self.device), length);
        Ok(EmbeddedRows { x, positions, mask })
    }

    fn question_ids(&self, questions: &[String]) -> Result<Vec<Vec<i64>>> {
        questions.iter().map(|question| self.prompting.question(question)).collect()
    }

    fn questions<'a>(&self, ids: &'a [Vec<i64>]) -> Questions<'a> {
        Questions { ids, before: 0, pad: self.prompting.special.pad }
    }
}

impl UnifiedModel for Janus {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn parameters(&self) -> Result<Vec<Parameter>> {
        Ok(Parameter::list(&self.weights, group))
    }

    fn freeze_reference(&mut self) -> Result<()> {
        let network = self.weights.iter().filter(|(name, _)| group(name) != ParameterGroup::Tokenizer);
        self.reference.freeze(network, |store| Network::take(store, &self.config))
    }

    fn generate(&mut self, prompts: &[String], sampling: &ImageSampling) -> Result<Images> {
        sampling.check(prompts.len())?;
        tch::manual_seed(sampling.seed as i64);
        tch::no_grad(|| {
            let (tokens, logp) = self.generate_tokens(&self.prompt_ids(prompts)?, sampling)?;
            let pixels = Some(self.decode(&tokens));
            Ok(Images { pixels, logp: Some(logp), ..Images::from_tokens(tokens) })
        })
    }

    fn answer(&mut self, images: &Images, questions: &[String], sampling: &TextSampling) -> Result<Answers> {
        images.check(&self.card, "questions", questions.len())?;
        sampling.check()?;
        tch::manual_seed(sampling.seed as i64);
        let (special, ids) = (self.prompting.special, self.question_ids(questions)?);
        let GeneratedText { tokens, mask, logp } = tch::no_grad(|| {
            let embed = |ids: &Tensor| self.embed_with_images(&self.network, images, ids);
            let questions = self.questions(&ids);
            let decoding = questions.prefill(&self.network.llama, sampling.max_tokens, embed)?;
            decoding.generate(sampling, special.eos, special.pad)
        })?;
        self.prompting.text().answers([tokens, mask, logp], special.eos)
    }

    fn encode_answers(&self, texts: &[String]) -> Result<Answers> {
        let special = self.prompting.special;
        encode_answers(texts, |text| self.prompting.answer(text), (special.eos, special.pad), self.device)
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
        let ids = self.question_ids(questions)?;
        self.reference.run(policy, &self.network, |network| {
            let embed = |ids: &Tensor| self.embed_with_images(network, images, ids);
            self.questions(&ids).score(&network.llama, answers, embed)
        })
    }

    fn pixels(&self, images: &Images) -> Result<Tensor> {
        Ok(tch::no_grad(|| self.decode(&images.tokens)))
    }

    fn encode(&self, pixels: &Tensor) -> Result<Images> {
        let side = self.card.resolution;
        let size = pixels.size();
        if size.len() != 4 || size[1..] != [3, side, side] {
            return Err(Error::usage(format!("images: expected [B,3,{side},{side}], got {size:?}")));
        }
        tch::no_grad(|| {
            let pixels = pixels.to_device(self.device);
            let tokens = self.vq.encode(&from_unit(&pixels));
            Ok(Images { pixels: Some(pixels), ..Images::from_tokens(tokens) })
        })
    }

    fn save(&self, dir: &Path) -> Result<()> {
        self.saved.save(dir, &self.weights)
    }

    fn memory_estimate(&self) -> Option<&dyn MemoryEstimate> {
        Some(self)
    }

    fn trainable_tokenizer(&self) -> Option<&dyn TrainableTokenizer> {
        Some(self)
    }
}

impl MemoryEstimate for Janus {
    fn footprint(&self, workload: &Workload) -> Result<Footprint> {
        let bytes = self.precision.elt_size_in_bytes() as i64;
        let sizes = Sizes::new(&self.config, bytes, self.network.llama.stack.checkpointing);
        let tokenizer = values(&Vq::expected(&self.config.vq)?);
        Ok(Footprint {
            generate: sizes.generate(&workload.images),
            answer: sizes.answer(&workload.answers),
            image_logits: sizes.image_logits(workload.states),
            answer_logp: sizes.answer_logp(&workload.answers),
            ..footprint::of_weights(&Network::expected(&self.config)?, 0, tokenizer, bytes)
        })
    }
}

impl TrainableTokenizer for Janus {
    fn tokenizer_loss(&self, pixels: &Tensor, progress: f64) -> Result<Tensor> {
        Ok(self.vq.loss(&from_unit(&pixels.to_device(self.device)), progress))
    }
}
