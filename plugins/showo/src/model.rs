//! Show-o behind the framework's trait.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};
use unirl::model::{
    Answers, Footprint, ImageDecoding, ImageLogits, ImageSampling, ImageSpace, Images, Mode, ModelCard,
    ModelSource, Parameter, ParameterGroup, Part, Policy, Replay, Scoring, TextSampling, TokenLogp,
    UnifiedModel, Workload,
};
use unirl::weights::{Expected, Store};
use unirl::{Error, Result};
use unirl_layers::decoder::{self, Cache, Canvas, Rows};
use unirl_layers::decoding::{self, Written};
use unirl_layers::language::{self, answered};
use unirl_layers::lora::LoraConfig;
use unirl_layers::{LayerNorm, Linear};
use unirl_text::{Text, padded};

use crate::checkpoint::{self, Files, Parts};
use crate::clip::{self, Clip};
use crate::config::{CheckpointConfig, MagvitConfig, ShowoConfig, Special};
use crate::footprint::Sizes;
use crate::magvit::Magvit;
use crate::mask;
use crate::maskgit::{self, Schedule, UNKNOWN};
use crate::phi::{self, Phi};
use crate::prompt::Prompting;

/// The share of images whose prompt is dropped in pretraining, from which guidance learns its other branch.
const DROPPED_PROMPTS: f64 = 0.1;

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
    eyes: Option<Eyes>,
    phi_weights: Vec<(String, Tensor)>,
    magvit_weights: Vec<(String, Tensor)>,
    adapters: Option<Adapters>,
    device: Device,
}

/// The vision tower, and what stands between it and the text.
struct Eyes {
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

/// Answers under way.
pub type Answering<'a> = decoding::Answering<'a, phi::Layer, LayerNorm>;

/// Text blocks of distinct prompts, run through the transformer once. Text never sees the image, so the image
/// rows of every step, of every copy of a prompt, and of every replayed state continue the same cache.
#[derive(Debug)]
pub struct TextBlocks {
    cache: Cache,
    /// `[blocks,rows]` bool: what image rows may see.
    visible: Tensor,
    /// Which block each prompt got.
    pub index: Vec<i64>,
}

impl TextBlocks {
    /// The block of the empty prompt, for guidance.
    pub const EMPTY: i64 = 0;
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
    pub fn from_parts(parts: Parts, device: Device) -> Result<Self> {
        let (gradient_checkpointing, schedule, precision) =
            (parts.gradient_checkpointing, parts.schedule, parts.precision);
        let Parts {
            config, magvit_config, files, text, mut phi_store, mut magvit_store, clip, adapters, ..
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
        let eyes = clip
            .map(|(sizes, mut store, folder)| {
                Ok::<_, Error>(Eyes {
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
            reads_at: eyes.as_ref().map(|eyes| eyes.tower.config().image_size),
            pads_with: None,
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
            eyes,
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
        prompts.iter().map(|prompt| self.text.encode(prompt)).collect()
    }

    /// Runs the text blocks of prompts, given as ids, and that of the empty prompt.
    pub fn text_blocks(&self, phi: &Phi, prompts: &[Vec<i64>]) -> Result<TextBlocks> {
        let mut places: BTreeMap<&[i64], i64> = BTreeMap::from([(&[][..], TextBlocks::EMPTY)]);
        let mut rows = vec![self.prompting.t2i_text(&[])];
        let mut index = Vec::with_capacity(prompts.len());
        for prompt in prompts {
            index.push(*places.entry(prompt).or_insert_with(|| {
                rows.push(self.prompting.t2i_text(prompt));
                rows.len() as i64 - 1
            }));
        }

        // Columns that are padding for every prompt are seen by no other row: they only shift positions.
        let pads = rows.iter().map(|row| row.iter().take_while(|id| **id == self.special.pad).count()).min();
        let skipped = pads.unwrap_or(0);
        let rows: Vec<Vec<i64>> = rows.into_iter().map(|row| row[skipped..].to_vec()).collect();
        let ids = padded(&rows, self.special.pad, self.device).0;
        let length = ids.size()[1];
        let positions = Tensor::arange(length, (Kind::Int64, self.device)).unsqueeze(0) + skipped as i64;
        let visible = mask::t2i(&ids, &self.special, true);
        let mask = decoder::additive(&visible);
        let x = phi.language.embed(&ids);
        let rows = Rows { x, positions: &positions, mask: &mask, past: None, read: None };
        let (_, cache) = phi.language.forward(rows)?;
        Ok(TextBlocks { cache, visible: ids.ne(self.special.pad), index })
    }

    /// `<soi> codes <eoi>` of images `codes [rows,N]`, hidden where [`UNKNOWN`], embedded: `[rows,N+2,D]`.
    fn embed_drawing(&self, phi: &Phi, codes: &Tensor) -> Tensor {
        let hidden = codes.full_like(self.special.mask);
        let ids = hidden.where_self(&codes.eq(UNKNOWN), &(codes + self.special.image));
        let edge = |id: i64| Tensor::full([codes.size()[0], 1], id, (Kind::Int64, self.device));
        phi.language.embed(&Tensor::cat(&[edge(self.special.soi), ids, edge(self.special.eoi)], 1))
    }

    /// The positions `[1,N+2]` of an image's rows, and what they see, `[rows,1,1,text + N+2]`: all but padding, each the same.
    fn behind_text(&self, blocks: &TextBlocks, index: &Tensor) -> (Tensor, Tensor) {
        let rows = self.card.image_tokens + 2;
        let start = self.config.max_text_len + 1;
        let positions = Tensor::arange_start(start, start + rows, (Kind::Int64, self.device)).unsqueeze(0);
        let text = blocks.visible.index_select(0, index);
        let image = Tensor::ones([index.size()[0], rows], (Kind::Bool, self.device));
        (positions, decoder::additive(&Tensor::cat(&[text, image], 1).unsqueeze(1)))
    }

    /// The hidden rows that predict `places [rows,m]` of images `codes [rows,N]`, each behind its text block: `[rows,m,D]`.
    fn code_rows(
        &self,
        phi: &Phi,
        blocks: &TextBlocks,
        index: &[i64],
        codes: &Tensor,
        places: &Tensor,
    ) -> Result<Tensor> {
        let index = Tensor::from_slice(index).to_device(self.device);
        let (positions, mask) = self.behind_text(blocks, &index);
        phi.language.hidden(Rows {
            x: self.embed_drawing(phi, codes),
            positions: &positions,
            mask: &mask,
            past: Some(&blocks.cache.select(&index)),
            read: Some(&(places + 1)), // behind `<soi>`
        })
    }

    /// Code logits `[rows,N,K]` of images `codes [rows,N]` (hidden where [`UNKNOWN`]), each behind its text
    /// block.
    pub fn code_logits(
        &self,
        phi: &Phi,
        blocks: &TextBlocks,
        index: &[i64],
        codes: &Tensor,
    ) -> Result<Tensor> {
        let places = maskgit::all_places(codes);
        Ok(phi.code_logits(&self.code_rows(phi, blocks, index, codes, &places)?))
    }

    /// [`Self::code_logits`] with guidance; both branches in one pass.
    pub fn guided_logits(
        &self,
        phi: &Phi,
        blocks: &TextBlocks,
        index: &[i64],
        codes: &Tensor,
        guidance: f64,
    ) -> Result<Tensor> {
        if guidance <= 0.0 {
            return self.code_logits(phi, blocks, index, codes);
        }
        let both = with_empty(index);
        let logits = self.code_logits(phi, blocks, &both, &Tensor::cat(&[codes, codes], 0))?.chunk(2, 0);
        Ok(maskgit::guided(&logits[0], &logits[1], guidance))
    }

    /// What predicts the `targets [B,N]` of images, by the distribution that is to be scored. `states [S·B,N]` are `S` states of
    /// each image, and `wanted [S·B,N]` says which targets each is asked for: none is asked for twice.
    fn scored(
        &self,
        phi: &Phi,
        prompts: &[Vec<i64>],
        (states, wanted): (&Tensor, &Tensor),
        (scoring, guidance): (Scoring, f64),
    ) -> Result<Scored> {
        let blocks = self.text_blocks(phi, prompts)?;
        let batch = prompts.len() as i64;
        let copies = (states.size()[0] / batch) as usize;
        let index = blocks.index.repeat(copies);

        // As many places of each state as the one with the most of them; what is too many is read and let go.
        let counts = wanted.sum_dim_intlist([1i64].as_slice(), true, Kind::Int64);
        let most = counts.max().int64_value(&[]).max(1);
        let places = wanted.argsort_stable(true, 1, true).narrow(1, 0, most); // [S·B,m]
        let there = Tensor::arange(most, (Kind::Int64, self.device)).unsqueeze(0).lt_tensor(&counts);
        let there = there.view([-1]).nonzero().squeeze_dim(1); // [T]
        let first = Tensor::arange(batch, (Kind::Int64, self.device)) * states.size()[1];
        let tokens =
            (&places + first.repeat([copies as i64]).unsqueeze(1)).view([-1]).index_select(0, &there);
        let pick = |rows: &Tensor| rows.flatten(0, 1).index_select(0, &there); // [T,D]

        let rows = |index: &[i64], states: &Tensor, places: &Tensor| {
            self.code_rows(phi, &blocks, index, states, places)
        };
        let empty = vec![TextBlocks::EMPTY; index.len()];
        let branches = match scoring {
            Scoring::Guided if guidance > 0.0 => {
                let twice = |tensor: &Tensor| Tensor::cat(&[tensor, tensor], 0);
                let both = rows(&with_empty(&index), &twice(states), &twice(&places))?.chunk(2, 0);
                vec![pick(&both[0]), pick(&both[1])]
            }
            Scoring::Conditional | Scoring::Guided => vec![pick(&rows(&index, states, &places)?)],
            Scoring::GuidedDetached => {
                let cond = pick(&rows(&index, states, &places)?);
                vec![cond, tch::no_grad(|| Ok::<_, Error>(pick(&rows(&empty, states, &places)?)))?]
            }
        };
        Ok(Scored { branches, tokens, guidance })
    }

    /// The states in which the tokens of images are scored, `[S·B,N]`, which of them each is asked for, and all targets `[B,N]`.
    fn replayed(&self, images: &Images, replay: &Replay) -> Result<(Tensor, Tensor, Tensor)> {
        let tokens = &images.tokens;
        let size = tokens.size(); // [B,N]
        let masked = |targets: Tensor| (hide(tokens, &targets), targets.shallow_clone(), targets);
        match replay {
            Replay::Remask { seed, part, .. } => {
                tch::manual_seed(*seed as i64);
                let t = self.uniform(&[1]);
                let uniforms = Part::rows(*part, size[0], |of| self.uniform(&[of, size[1]]));
                Ok(masked(maskgit::remask(self.schedule, &uniforms, &t)))
            }
            Replay::Pretrain { seed } => {
                tch::manual_seed(*seed as i64);
                let t = self.uniform(&[size[0]]);
                Ok(masked(maskgit::remask(self.schedule, &self.uniform(&size), &t)))
            }
            Replay::Reveal { steps, .. } => {
                let revealed_at = images.revealed_at.as_ref().ok_or_else(|| {
                    Error::usage("the images do not know at which steps they were revealed")
                        .hint("replay drawings as `generate` returned them")
                })?;
                if steps.is_empty() {
                    return Err(Error::usage("no reveal step to replay"));
                }
                let each = |of: &dyn Fn(i64) -> Tensor| -> Vec<Tensor> {
                    steps.iter().map(|step| of(*step)).collect()
                };
                let states = each(&|step| hide(tokens, &revealed_at.ge(step)));
                // A step that is named twice is replayed once.
                let mut seen = std::collections::BTreeSet::new();
                let wanted: Vec<Tensor> = steps
                    .iter()
                    .map(|step| match seen.insert(*step) {
                        true => revealed_at.eq(*step),
                        false => revealed_at.zeros_like().to_kind(Kind::Bool),
                    })
                    .collect();
                let targets = Tensor::stack(&wanted, 0).any_dim(0, false);
                Ok((Tensor::cat(&states, 0), Tensor::cat(&wanted, 0), targets))
            }
        }
    }

    /// Prompts as ids, of which pretraining drops some; behind [`Self::replayed`], whose random numbers come before these.
    fn replayed_prompts(&self, prompts: &[String], replay: &Replay) -> Result<Vec<Vec<i64>>> {
        let mut prompts = self.prompt_ids(prompts)?;
        if let Replay::Pretrain { .. } = replay {
            let dropped = Vec::<bool>::try_from(self.uniform(&[prompts.len() as i64]).lt(DROPPED_PROMPTS))?;
            let dropped = prompts.iter_mut().zip(dropped).filter(|(_, dropped)| *dropped);
            dropped.for_each(|(ids, _)| ids.clear());
        }
        Ok(prompts)
    }

    /// Logits of images `tokens [B,N]` with the `targets [B,N]` hidden.
    pub fn masked_logits(
        &self,
        phi: &Phi,
        prompts: &[Vec<i64>],
        tokens: &Tensor,
        targets: Tensor,
        scoring: (Scoring, f64),
    ) -> Result<ImageLogits> {
        let states = hide(tokens, &targets);
        let scored = self.scored(phi, prompts, (&states, &targets), scoring)?;
        Ok(ImageLogits { logits: scored.logits(phi, &tokens.size()), targets })
    }

    /// Draws what is [`UNKNOWN`] in `codes [B,N]`. `uniforms` answers the draws and the noise of a step, each
    /// `[B,N]`.
    pub fn draw(
        &self,
        prompts: &[Vec<i64>],
        codes: Tensor,
        sampling: &ImageSampling,
        uniforms: impl Fn(i64) -> (Tensor, Tensor),
    ) -> Result<Images> {
        tch::no_grad(|| {
            let blocks = self.text_blocks(&self.phi, prompts)?;
            let mut revealed_at = codes.full_like(sampling.steps - 1);
            let mut logp = codes.zeros_like().to_kind(Kind::Float);
            let (mut tokens, mut codes) = (codes.shallow_clone(), codes);
            let all = codes.size()[1];
            let blank = !bool::try_from(codes.ne(UNKNOWN).any())?;
            let canvas = self.canvas(&blocks, sampling.guidance);
            let mut temperature = sampling.temperature;
            let mut unknown_count = all; // of no row there are more
            for at in 0..sampling.steps {
                let places = codes.eq(UNKNOWN).argsort_stable(true, 1, true).narrow(1, 0, unknown_count);
                let logits = match at {
                    0 if blank => self.first_logits(&blocks, sampling.guidance)?,
                    _ => self.logits_on(&canvas, &codes, &places, sampling.guidance),
                };
                temperature = maskgit::cool(temperature, at, sampling.steps);
                let (draws, noise) = uniforms(at);
                let step = maskgit::step(
                    self.schedule,
                    (&logits, &places),
                    &codes,
                    (at, sampling.steps),
                    temperature,
                    &draws,
                    &noise,
                );
                let unknown = codes.eq(UNKNOWN);
                // That of the last draw stays. Where rounding drew what has no probability, it is the least there is.
                let drawn = step.confidence.clamp_min(f64::from(f32::MIN_POSITIVE)).log();
                logp = drawn.where_self(&unknown, &logp);
                let settled = unknown.logical_and(&step.masked.logical_not());
                revealed_at = revealed_at.full_like(at).where_self(&settled, &revealed_at);
                (codes, tokens) = (step.codes, step.sampled);
                unknown_count = maskgit::mask_len(self.schedule, all, at, sampling.steps).clamp(1, all);
            }
            Ok(Images { revealed_at: Some(revealed_at), logp: Some(logp), ..Images::from_tokens(tokens) })
        })
    }

    /// Where all prompts draw, with the empty prompt behind them under guidance: their text, and room for the image rows, which
    /// are written anew in each step.
    fn canvas(&self, blocks: &TextBlocks, guidance: f64) -> Canvas {
        let index = if guidance > 0.0 { with_empty(&blocks.index) } else { blocks.index.clone() };
        let index = Tensor::from_slice(&index).to_device(self.device);
        let (positions, mask) = self.behind_text(blocks, &index);
        let room = blocks.cache.with_room(&index, self.card.image_tokens + 2);
        let text = blocks.visible.size()[1];
        let language = &self.phi.language;
        language.stack.canvas(room, &positions, &mask, text, language.kind())
    }

    /// Logits `[B,m,K]` of the `places [B,m]` of `codes [B,N]`, with guidance.
    fn logits_on(&self, canvas: &Canvas, codes: &Tensor, places: &Tensor, guidance: f64) -> Tensor {
        let language = &self.phi.language;
        let twice = |tensor: &Tensor| match guidance > 0.0 {
            true => Tensor::cat(&[tensor, tensor], 0),
            false => tensor.shallow_clone(),
        };
        let x = self.embed_drawing(&self.phi, codes);
        let hidden = language.stack.run_on(canvas, twice(&x), &(twice(places) + 1));
        let logits = self.phi.code_logits(&language.norm.apply(&hidden));
        if guidance <= 0.0 {
            return logits;
        }
        let branches = logits.chunk(2, 0);
        maskgit::guided(&branches[0], &branches[1], guidance)
    }

    /// Logits `[B,N,K]` of images of which nothing is known: the same for all of a prompt.
    fn first_logits(&self, blocks: &TextBlocks, guidance: f64) -> Result<Tensor> {
        let each: Vec<i64> = (0..blocks.visible.size()[0]).collect();
        let codes =
            Tensor::full([each.len() as i64, self.card.image_tokens], UNKNOWN, (Kind::Int64, self.device));
        let logits = self.code_logits(&self.phi, blocks, &each, &codes)?;
        let guided = match guidance > 0.0 {
            true => maskgit::guided(&logits, &logits.narrow(0, TextBlocks::EMPTY, 1), guidance),
            false => logits,
        };
        Ok(guided.index_select(0, &Tensor::from_slice(&blocks.index).to_device(self.device)))
    }

    /// Reads images and questions, given as ids, in one pass: padding stands behind a question, hidden from
    /// the answer, of at most `room` tokens.
    pub fn ask<'a>(
        &self,
        phi: &'a Phi,
        images: &Images,
        questions: &[Vec<i64>],
        room: i64,
    ) -> Result<Answering<'a>> {
        let (ids, there) = padded(questions, self.special.pad, self.device);
        let (x, positions, mask) = self.understanding(phi, images, &ids)?;
        let image = Tensor::ones([images.len(), self.prefix()], (Kind::Bool, self.device));
        let rows = Rows { x, positions: &positions, mask: &mask, past: None, read: None };
        Answering::read(&phi.language, rows, &Tensor::cat(&[image, there], 1), room)
    }

    /// Writes answers to questions, given as ids, until each has emitted `stop`.
    pub fn write(
        &self,
        images: &Images,
        questions: &[Vec<i64>],
        sampling: &TextSampling,
        stop: i64,
    ) -> Result<Written> {
        tch::no_grad(|| {
            let answering = self.ask(&self.phi, images, questions, sampling.max_tokens)?;
            answering.write(sampling, stop, self.special.pad)
        })
    }

    /// Log-probabilities of answers to questions that are given as ids.
    pub fn score(
        &self,
        phi: &Phi,
        images: &Images,
        questions: &[Vec<i64>],
        answers: &Answers,
    ) -> Result<TokenLogp> {
        let (ids, _) = padded(&answered(questions, answers)?, self.special.pad, self.device);
        let (x, positions, mask) = self.understanding(phi, images, &ids)?;
        let ends: Vec<i64> =
            questions.iter().map(|question| self.prefix() + question.len() as i64 - 1).collect();
        let rows = Rows { x, positions: &positions, mask: &mask, past: None, read: None };
        phi.language.score(rows, &ends, answers)
    }

    /// Images and the text `ids [B,L]` behind them as rows, with their positions and who sees whom.
    fn understanding(&self, phi: &Phi, images: &Images, ids: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let x = Tensor::cat(&[self.embed_images(phi, images)?, phi.language.embed(ids)], 1);
        let length = x.size()[1];
        let columns = Tensor::arange(length, (Kind::Int64, self.device));
        let visible = match &self.eyes {
            Some(eyes) => {
                let features = eyes.tower.config().patches();
                mask::mmu_clip(length, eyes.system.len() as i64, features, self.device)
            }
            None => mask::causal(length, 0, self.device).logical_or(&columns.lt(self.prefix())).unsqueeze(0),
        };
        Ok((x, columns.unsqueeze(0), decoder::additive(&visible)))
    }

    /// Rows before the text of understanding: `<mmu> <soi> image <eoi>`, or with the system prompt behind `<mmu>` and
    /// features for the image.
    fn prefix(&self) -> i64 {
        match &self.eyes {
            Some(eyes) => eyes.system.len() as i64 + eyes.tower.config().patches() + 3,
            None => self.card.image_tokens + 3,
        }
    }

    fn uniform(&self, shape: &[i64]) -> Tensor {
        Tensor::rand(shape, (Kind::Float, self.device))
    }

    fn question_ids(&self, questions: &[String]) -> Result<Vec<Vec<i64>>> {
        let ids = |question: &String| -> Result<Vec<i64>> {
            let text = self.config.question_template().replace("{question}", question);
            let ids = self.text.encode(&text)?;
            Ok(if self.eyes.is_some() { ids } else { self.prompting.question(&ids) })
        };
        questions.iter().map(ids).collect()
    }

    /// The rows before the text, embedded: `[B,prefix,D]`. Relaxed images carry gradient.
    fn embed_images(&self, phi: &Phi, images: &Images) -> Result<Tensor> {
        let rows = images.len();
        let edge = |ids: &[i64]| {
            let ids = Tensor::from_slice(ids).to_device(self.device).unsqueeze(0);
            phi.language.embed(&ids.expand([rows, -1], false))
        };
        let Special { mmu, soi, eoi, image, .. } = self.special;
        let mut before = vec![mmu];
        let image = match (&self.eyes, &images.relaxed) {
            (Some(eyes), _) => {
                before.extend(&eyes.system);
                phi.embed_features(&eyes.tower.features(&self.seen(images)))?
            }
            (None, Some(relaxed)) => phi.embed_codes(relaxed),
            (None, None) => phi.language.embed(&(&images.tokens + image)),
        };
        before.push(soi);
        Ok(Tensor::cat(&[edge(&before), image, edge(&[eoi])], 1))
    }

    /// The pictures that understanding looks at, `[B,3,H,W]` in `0..=1`: those that were read, or drawings, decoded with
    /// gradient where they are relaxed.
    fn seen(&self, images: &Images) -> Tensor {
        let decoded = match (&images.pixels, &images.relaxed) {
            (Some(pixels), _) => return pixels.to_device(self.device),
            (None, Some(relaxed)) => self.magvit.decode_relaxed(relaxed, self.config.grid()),
            (None, None) => self.magvit.decode(&images.tokens, self.config.grid()),
        };
        ((decoded + 1.0) / 2.0).clamp(0.0, 1.0)
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
        let tower = match &self.eyes {
            Some(eyes) => values(&Clip::expected(eyes.tower.config())?),
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
        let uniform = || Part::rows(sampling.part, shape[0], |of| self.uniform(&[of, shape[1]]));
        let uniforms = |_| (uniform(), uniform());
        self.draw(&self.prompt_ids(prompts)?, codes, sampling, uniforms)
    }

    fn answer(&mut self, images: &Images, questions: &[String], sampling: &TextSampling) -> Result<Answers> {
        images.check(&self.card, "questions", questions.len())?;
        sampling.check()?;
        tch::manual_seed(sampling.seed as i64);
        let Written { tokens, mask, logp } =
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
        replay: &Replay,
    ) -> Result<ImageLogits> {
        images.check(&self.card, "prompts", prompts.len())?;
        let (states, wanted, targets) = self.replayed(images, replay)?;
        let prompts = self.replayed_prompts(prompts, replay)?;
        policy.run(&self.phi, self.reference.as_ref(), |phi| {
            let scored = self.scored(phi, &prompts, (&states, &wanted), replay.scoring())?;
            Ok(ImageLogits { logits: scored.logits(phi, &targets.size()), targets })
        })
    }

    fn image_logp(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        replay: &Replay,
    ) -> Result<TokenLogp> {
        images.check(&self.card, "prompts", prompts.len())?;
        let (states, wanted, mask) = self.replayed(images, replay)?;
        let prompts = self.replayed_prompts(prompts, replay)?;
        policy.run(&self.phi, self.reference.as_ref(), |phi| {
            let scored = self.scored(phi, &prompts, (&states, &wanted), replay.scoring())?;
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
            if size[2..] != [self.card.resolution; 2] && size.get(2).copied() != self.card.reads_at {
                let expected = self.card.reads_at.unwrap_or(self.card.resolution);
                return Err(Error::usage(format!(
                    "pictures: expected [B,3,{expected},{expected}] for {rows}x{columns} tokens, got {size:?}"
                )));
            }
            let fitting = clip::resize(&pixels, self.card.resolution);
            let tokens = self.magvit.codes(&self.magvit.latents(&(fitting * 2.0 - 1.0)));
            Ok(Images { pixels: self.eyes.is_some().then_some(pixels), ..Images::from_tokens(tokens) })
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
        let eyes = self.eyes.as_ref().map(|eyes| eyes.folder.as_path());
        checkpoint::save(dir, &self.files, &self.text, &phi, &magvit, eyes)
    }
}

/// The rows that predict tokens of a batch of images.
struct Scored {
    /// `[T,D]`: conditional, and unconditional ones if there is guidance.
    branches: Vec<Tensor>,
    /// `[T]`: which tokens, of all `B·N`.
    tokens: Tensor,
    guidance: f64,
}

impl Scored {
    /// The logits of rows of both branches.
    fn mixed(head: &Linear, branches: &[Tensor], guidance: f64) -> Tensor {
        let logits = |rows: &Tensor| head.apply(rows).to_kind(Kind::Float);
        match branches {
            [cond, uncond] => maskgit::guided(&logits(cond), &logits(uncond), guidance),
            rows => logits(&rows[0]),
        }
    }

    /// `[B,N,K]`, for images of `size [B,N]`; what was not scored means nothing.
    fn logits(&self, phi: &Phi, size: &[i64]) -> Tensor {
        let everywhere = |rows: &Tensor| {
            let blank = Tensor::zeros([size[0] * size[1], rows.size()[1]], (rows.kind(), rows.device()));
            blank.index_copy(0, &self.tokens, rows).view([size[0], size[1], -1])
        };
        let branches: Vec<Tensor> = self.branches.iter().map(everywhere).collect();
        Self::mixed(&phi.code_head(), &branches, self.guidance)
    }

    /// Log-probabilities of image `tokens [B,N]`: 0 where nothing was scored.
    fn logp(&self, phi: &Phi, tokens: &Tensor) -> Result<Tensor> {
        let targets = tokens.view([-1]).index_select(0, &self.tokens);
        let (head, guidance) = (phi.code_head(), self.guidance);
        let codes = head.weight.size()[0];
        let logp = language::logp(&self.branches, &targets, codes, move |branches| {
            Self::mixed(&head, branches, guidance)
        })?;
        let blank = Tensor::zeros([tokens.numel() as i64], (Kind::Float, tokens.device()));
        Ok(blank.index_copy(0, &self.tokens, &logp).view_as(tokens))
    }
}

/// Text blocks, and behind them that of the empty prompt as often.
fn with_empty(index: &[i64]) -> Vec<i64> {
    let empty = std::iter::repeat_n(TextBlocks::EMPTY, index.len());
    index.iter().copied().chain(empty).collect()
}

/// `tokens` with [`UNKNOWN`] where `hidden`.
fn hide(tokens: &Tensor, hidden: &Tensor) -> Tensor {
    tokens.full_like(UNKNOWN).where_self(hidden, tokens)
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
