//! Show-o behind the framework's trait.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, IndexOp, Kind, Tensor};
use unirl::model::{
    Answers, ImageDecoding, ImageLogits, ImageSampling, ImageSpace, Images, Mode, ModelCard, ModelSource, Parameter,
    ParameterGroup, Policy, Replay, TextSampling, TokenLogp, UnifiedModel,
};
use unirl::{Error, Result};

use crate::checkpoint::{self, Parts};
use crate::config::{CheckpointConfig, MagvitConfig, ShowoConfig, Special};
use crate::magvit::Magvit;
use crate::maskgit::{self, UNKNOWN};
use crate::phi::{Cache, Phi};
use crate::prompt::{self, Prompting};
use crate::store::Store;
use crate::text::Text;
use crate::mask;

/// The share of images whose prompt is dropped in pretraining, from which guidance learns its other branch.
const DROPPED_PROMPTS: f64 = 0.1;

/// A Show-o model.
pub struct Showo {
    card: ModelCard,
    config: CheckpointConfig,
    magvit_config: MagvitConfig,
    special: Special,
    prompting: Prompting,
    text: Text,
    phi: Phi,
    reference: Option<Phi>,
    magvit: Magvit,
    phi_weights: Vec<(String, Tensor)>,
    magvit_weights: Vec<(String, Tensor)>,
    device: Device,
}

/// Text blocks of distinct prompts, run through the transformer once. Text never sees the image, so the image rows of
/// every step, of every copy of a prompt, and of every replayed state continue the same cache.
struct TextBlocks {
    cache: Cache,
    /// `[prompts,rows]` bool: what image rows may see.
    visible: Tensor,
    /// Which block each prompt got.
    index: Vec<i64>,
    /// Of the empty prompt, for guidance.
    empty: i64,
}

impl Showo {
    /// Loads or makes a model.
    #[expect(clippy::new_ret_no_self, reason = "the constructor that the plugin registers")]
    pub fn new(config: ShowoConfig, source: &ModelSource) -> Result<Box<dyn UnifiedModel>> {
        Ok(Box::new(Self::from_parts(checkpoint::parts(config, source)?, source.device)?))
    }

    /// Puts a model together from the parts of a checkpoint.
    pub fn from_parts(parts: Parts, device: Device) -> Result<Self> {
        let Parts { config, magvit_config, text, mut phi_store, mut magvit_store } = parts;
        let phi = Phi::take(&mut phi_store, &config)?;
        let magvit = Magvit::take(&mut magvit_store, &magvit_config, device)?;
        let (rows, _) = config.grid();
        let card = ModelCard {
            name: "showo".into(),
            image_space: ImageSpace::Shared,
            image_decoding: ImageDecoding::Masked,
            image_tokens: config.num_vq_tokens,
            codebook_size: config.codebook_size,
            resolution: rows * magvit_config.factor(),
        };
        Ok(Self {
            card,
            special: config.special(),
            prompting: Prompting::new(&config),
            text,
            phi,
            reference: None,
            magvit,
            phi_weights: phi_store.finish(),
            magvit_weights: magvit_store.finish(),
            config,
            magvit_config,
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

    fn policy(&self, policy: Policy) -> Result<&Phi> {
        match policy {
            Policy::Current => Ok(&self.phi),
            Policy::Reference => self
                .reference
                .as_ref()
                .ok_or_else(|| Error::failure("there is no reference policy yet").hint("call `freeze_reference` first")),
        }
    }

    fn text_blocks(&self, phi: &Phi, prompts: &[String]) -> Result<TextBlocks> {
        let mut places: BTreeMap<&str, i64> = BTreeMap::new();
        let mut rows: Vec<Vec<i64>> = Vec::new();
        let mut place = |prompt| -> Result<i64> {
            if let Some(place) = places.get(prompt) {
                return Ok(*place);
            }
            rows.push(self.prompting.t2i_text(&self.text.encode(prompt)?));
            places.insert(prompt, rows.len() as i64 - 1);
            Ok(rows.len() as i64 - 1)
        };
        let empty = place("")?;
        let index = prompts.iter().map(|prompt| place(prompt)).collect::<Result<_>>()?;

        // Columns that are padding for every prompt are seen by no other row: they only shift positions.
        let pads = rows.iter().map(|row| row.iter().take_while(|id| **id == self.special.pad).count()).min();
        let skipped = pads.unwrap_or(0);
        let rows: Vec<Vec<i64>> = rows.into_iter().map(|row| row[skipped..].to_vec()).collect();
        let ids = prompt::batch(&rows, self.device);
        let length = ids.size()[1];
        let positions = Tensor::arange(length, (Kind::Int64, self.device)).unsqueeze(0) + skipped as i64;
        let visible = mask::t2i(&ids, &self.special, true);
        let (_, cache) = phi.forward(phi.embed(&ids), &positions, &mask::additive(&visible), None);
        Ok(TextBlocks { cache, visible: ids.ne(self.special.pad), index, empty })
    }

    /// Code logits `[rows,N,K]` of images `codes [rows,N]` (hidden where [`UNKNOWN`]), each behind its text block.
    fn code_logits(&self, phi: &Phi, blocks: &TextBlocks, index: &[i64], codes: &Tensor) -> Tensor {
        let (rows, tokens) = (codes.size()[0], codes.size()[1]);
        let hidden = codes.full_like(self.special.mask);
        let ids = hidden.where_self(&codes.eq(UNKNOWN), &(codes + self.special.image));
        let edge = |id: i64| Tensor::full([rows, 1], id, (Kind::Int64, self.device));
        let ids = Tensor::cat(&[edge(self.special.soi), ids, edge(self.special.eoi)], 1); // [rows,N+2]
        let index = Tensor::from_slice(index).to_device(self.device);
        let start = self.config.max_text_len + 1;
        let positions = Tensor::arange_start(start, start + tokens + 2, (Kind::Int64, self.device)).unsqueeze(0);
        let image = Tensor::ones([rows, tokens + 2], (Kind::Bool, self.device));
        let visible = Tensor::cat(&[blocks.visible.index_select(0, &index), image], 1).unsqueeze(1);
        let visible = visible.expand([-1, tokens + 2, -1], false);
        let past = blocks.cache.select(&index);
        let (h, _) = phi.forward(phi.embed(&ids), &positions, &mask::additive(&visible), Some(&past));
        phi.code_logits(&h.narrow(1, 1, tokens))
    }

    /// [`Self::code_logits`] with guidance; both branches in one pass.
    fn guided_logits(&self, phi: &Phi, blocks: &TextBlocks, index: &[i64], codes: &Tensor, guidance: f64) -> Tensor {
        if guidance <= 0.0 {
            return self.code_logits(phi, blocks, index, codes);
        }
        let mut both = index.to_vec();
        both.resize(index.len() * 2, blocks.empty);
        let logits = self.code_logits(phi, blocks, &both, &Tensor::cat(&[codes, codes], 0)).chunk(2, 0);
        maskgit::guided(&logits[0], &logits[1], guidance)
    }

    fn uniform(&self, shape: &[i64]) -> Tensor {
        Tensor::rand(shape, (Kind::Float, self.device))
    }

    fn question_ids(&self, question: &str) -> Result<Vec<i64>> {
        let text = self.config.question_template.replace("{question}", question);
        Ok(self.prompting.question(&self.text.encode(&text)?))
    }

    /// The rows `<mmu> <soi> image <eoi>`, embedded: `[B,N+3,D]`. Relaxed images carry gradient.
    fn embed_images(&self, phi: &Phi, images: &Images) -> Tensor {
        let rows = images.tokens.size()[0];
        let edge = |ids: &[i64]| {
            let ids = Tensor::from_slice(ids).to_device(self.device).unsqueeze(0);
            phi.embed(&ids.expand([rows, -1], false))
        };
        let image = match &images.relaxed {
            Some(relaxed) => phi.embed_codes(relaxed),
            None => phi.embed(&(&images.tokens + self.special.image)),
        };
        Tensor::cat(&[edge(&[self.special.mmu, self.special.soi]), image, edge(&[self.special.eoi])], 1)
    }

    fn check_same(&self, what: &str, images: &Images, texts: usize) -> Result<()> {
        let size = images.tokens.size();
        if size == [texts as i64, self.card.image_tokens] {
            return Ok(());
        }
        Err(Error::usage(format!(
            "expected images of shape [{texts},{}] for {texts} {what}, got {size:?}",
            self.card.image_tokens
        )))
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
        let mut all = of(&self.phi_weights, ParameterGroup::Shared);
        all.extend(of(&self.magvit_weights, ParameterGroup::Tokenizer));
        Ok(all)
    }

    /// Nothing here behaves differently in training: all dropout rates of the family are 0.
    fn set_mode(&mut self, _mode: Mode) -> Result<()> {
        Ok(())
    }

    fn freeze_reference(&mut self) -> Result<()> {
        let copies = self.phi_weights.iter().map(|(name, tensor)| (name.clone(), tensor.detach().copy())).collect();
        let mut store = Store::from_tensors("the reference policy".into(), copies, self.device);
        self.reference = Some(Phi::take(&mut store, &self.config)?);
        Ok(())
    }

    fn generate(&mut self, prompts: &[String], sampling: &ImageSampling) -> Result<Images> {
        if sampling.steps < 1 {
            return Err(Error::usage(format!("drawing steps: expected at least 1, got {}", sampling.steps)));
        }
        tch::manual_seed(sampling.seed as i64);
        tch::no_grad(|| {
            let blocks = self.text_blocks(&self.phi, prompts)?;
            let shape = [prompts.len() as i64, self.card.image_tokens];
            let options = (Kind::Int64, self.device);
            let mut codes = Tensor::full(shape, UNKNOWN, options);
            let mut revealed_at = Tensor::full(shape, sampling.steps - 1, options);
            let mut tokens = codes.shallow_clone();
            let mut temperature = sampling.temperature;
            for at in 0..sampling.steps {
                let logits = self.guided_logits(&self.phi, &blocks, &blocks.index, &codes, sampling.guidance);
                temperature = maskgit::cool(temperature, at, sampling.steps);
                let (draws, noise) = (self.uniform(&shape), self.uniform(&shape));
                let step = maskgit::step(&logits, &codes, (at, sampling.steps), temperature, &draws, &noise);
                let settled = codes.eq(UNKNOWN).logical_and(&step.masked.logical_not());
                revealed_at = revealed_at.full_like(at).where_self(&settled, &revealed_at);
                (codes, tokens) = (step.codes, step.sampled);
            }
            Ok(Images { tokens, relaxed: None, revealed_at: Some(revealed_at) })
        })
    }

    fn answer(&mut self, images: &Images, questions: &[String], sampling: &TextSampling) -> Result<Answers> {
        self.check_same("questions", images, questions.len())?;
        tch::manual_seed(sampling.seed as i64);
        tch::no_grad(|| {
            let phi = &self.phi;
            let device = self.device;
            let batch = questions.len() as i64;
            let rows = questions.iter().map(|q| self.question_ids(q)).collect::<Result<Vec<_>>>()?;
            let lengths: Vec<i64> = rows.iter().map(|row| row.len() as i64).collect();
            let lengths = Tensor::from_slice(&lengths).to_device(device).unsqueeze(1); // [B,1]
            let (ids, there) = prompt::padded(&rows, self.special.pad, device);

            // 1. Image and question in one pass; padding stands behind the question and is hidden from the answer.
            let prefix = self.card.image_tokens + 3;
            let width = ids.size()[1];
            let x = Tensor::cat(&[self.embed_images(phi, images), phi.embed(&ids)], 1);
            let columns = Tensor::arange(prefix + width, (Kind::Int64, device));
            let visible = mask::causal(prefix + width, 0, device).logical_or(&columns.lt(prefix)).unsqueeze(0);
            let (hidden, mut cache) = phi.forward(x, &columns.unsqueeze(0), &mask::additive(&visible), None);
            let last = (&lengths - 1 + prefix).unsqueeze(-1).expand([-1, -1, hidden.size()[2]], false);
            let mut hidden = hidden.gather(1, &last, false).squeeze_dim(1); // [B,D]
            let mut visible =
                Tensor::cat(&[Tensor::ones([batch, prefix], (Kind::Bool, device)), there], 1);

            // 2. One token after the other, until every answer has ended.
            let mut tokens: Vec<Tensor> = Vec::new();
            let mut masks: Vec<Tensor> = Vec::new();
            let mut open = Tensor::ones([batch], (Kind::Bool, device));
            for at in 0..sampling.max_tokens {
                let logits = phi.logits(&hidden);
                let next = if sampling.temperature > 0.0 {
                    (logits / sampling.temperature).softmax(-1, Kind::Float).multinomial(1, false).squeeze_dim(1)
                } else {
                    logits.argmax(-1, false)
                };
                tokens.push(next.where_self(&open, &next.full_like(self.special.pad)));
                masks.push(open.shallow_clone());
                open = open.logical_and(&next.ne(self.special.eos));
                if at + 1 == sampling.max_tokens || !bool::try_from(open.any())? {
                    break;
                }
                visible = Tensor::cat(&[visible, Tensor::ones([batch, 1], (Kind::Bool, device))], 1);
                let positions = &lengths + prefix + at;
                let added = mask::additive(&visible.unsqueeze(1));
                let (row, grown) = phi.forward(phi.embed(&next.unsqueeze(1)), &positions, &added, Some(&cache));
                (hidden, cache) = (row.squeeze_dim(1), grown);
            }
            let tokens = Tensor::stack(&tokens, 1);
            let mask = Tensor::stack(&masks, 1);
            let text = (0..batch)
                .map(|row| self.text.decode(&Vec::<i64>::try_from(tokens.get(row).masked_select(&mask.get(row)))?))
                .collect::<Result<_>>()?;
            Ok(Answers { text, tokens, mask })
        })
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
        let (tokens, mask) = prompt::padded(&rows, self.special.pad, self.device);
        Ok(Answers { text: texts.to_vec(), tokens, mask })
    }

    fn image_logits(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        replay: &Replay,
    ) -> Result<ImageLogits> {
        self.check_same("prompts", images, prompts.len())?;
        let phi = self.policy(policy)?;
        let tokens = &images.tokens;
        let hide = |hidden: &Tensor| tokens.full_like(UNKNOWN).where_self(hidden, tokens);
        match replay {
            Replay::Remask { seed } => {
                tch::manual_seed(*seed as i64);
                let t = self.uniform(&[1]);
                let targets = maskgit::remask(&self.uniform(&tokens.size()), &t);
                let blocks = self.text_blocks(phi, prompts)?;
                let logits = self.code_logits(phi, &blocks, &blocks.index, &hide(&targets));
                Ok(ImageLogits { logits, targets })
            }
            Replay::Pretrain { seed } => {
                tch::manual_seed(*seed as i64);
                let t = self.uniform(&[images.len()]);
                let targets = maskgit::remask(&self.uniform(&tokens.size()), &t);
                let dropped = Vec::<bool>::try_from(self.uniform(&[images.len()]).lt(DROPPED_PROMPTS))?;
                let kept: Vec<String> = prompts
                    .iter()
                    .zip(dropped)
                    .map(|(prompt, dropped)| if dropped { String::new() } else { prompt.clone() })
                    .collect();
                let blocks = self.text_blocks(phi, &kept)?;
                let logits = self.code_logits(phi, &blocks, &blocks.index, &hide(&targets));
                Ok(ImageLogits { logits, targets })
            }
            Replay::Reveal { steps, guidance } => {
                let revealed_at = images.revealed_at.as_ref().ok_or_else(|| {
                    Error::usage("the images do not know at which steps they were revealed")
                        .hint("replay drawings as `generate` returned them")
                })?;
                if steps.is_empty() {
                    return Err(Error::usage("no reveal step to replay"));
                }
                let blocks = self.text_blocks(phi, prompts)?;
                let states: Vec<Tensor> = steps.iter().map(|step| hide(&revealed_at.ge(*step))).collect();
                let index: Vec<i64> = steps.iter().flat_map(|_| blocks.index.iter().copied()).collect();
                let logits = self.guided_logits(phi, &blocks, &index, &Tensor::cat(&states, 0), *guidance);
                let batch = images.len();
                let mut chosen = logits.narrow(0, 0, batch);
                let mut targets = revealed_at.eq(steps[0]);
                for (at, step) in steps.iter().enumerate().skip(1) {
                    let here = revealed_at.eq(*step);
                    chosen = logits.narrow(0, at as i64 * batch, batch).where_self(&here.unsqueeze(-1), &chosen);
                    targets = targets.logical_or(&here);
                }
                Ok(ImageLogits { logits: chosen, targets })
            }
        }
    }

    fn answer_logp(
        &self,
        images: &Images,
        questions: &[String],
        answers: &Answers,
        policy: Policy,
    ) -> Result<TokenLogp> {
        self.check_same("questions", images, questions.len())?;
        let phi = self.policy(policy)?;
        let prefix = self.card.image_tokens + 3;
        let device = self.device;
        let lengths = answers.mask.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64);
        let lengths = Vec::<i64>::try_from(lengths)?;
        let mut rows = Vec::with_capacity(questions.len());
        let mut places = Vec::new(); // of the hidden rows that predict answer tokens, row by row
        for (row, question) in questions.iter().enumerate() {
            let mut ids = self.question_ids(question)?;
            let before = prefix + ids.len() as i64 - 1;
            places.push((before..before + lengths[row]).collect::<Vec<_>>());
            ids.extend(Vec::<i64>::try_from(answers.tokens.get(row as i64).i(..lengths[row]))?);
            rows.push(ids);
        }
        let (ids, _) = prompt::padded(&rows, self.special.pad, device);
        let x = Tensor::cat(&[self.embed_images(phi, images), phi.embed(&ids)], 1);
        let length = x.size()[1];
        let columns = Tensor::arange(length, (Kind::Int64, device));
        let visible = mask::causal(length, 0, device).logical_or(&columns.lt(prefix)).unsqueeze(0);
        let (hidden, _) = phi.forward(x, &columns.unsqueeze(0), &mask::additive(&visible), None);

        // The head is wide: only the rows that predict an answer token go through it.
        let flat: Vec<i64> =
            places.iter().enumerate().flat_map(|(row, at)| at.iter().map(move |at| row as i64 * length + at)).collect();
        let flat = Tensor::from_slice(&flat).to_device(device);
        let width = hidden.size()[2];
        let logits = phi.logits(&hidden.reshape([-1, width]).index_select(0, &flat)).to_kind(Kind::Float); // [n,V]
        let targets = answers.tokens.masked_select(&answers.mask).unsqueeze(1);
        let picked = logits.log_softmax(-1, Kind::Float).gather(1, &targets, false).squeeze_dim(1);
        let blank = Tensor::zeros(answers.mask.size(), (Kind::Float, device));
        Ok(TokenLogp { logp: blank.masked_scatter(&answers.mask, &picked), mask: answers.mask.shallow_clone() })
    }

    fn pixels(&self, images: &Images) -> Result<Tensor> {
        tch::no_grad(|| {
            let decoded = self.magvit.decode(&images.tokens, self.config.grid());
            Ok(((decoded + 1.0) / 2.0).clamp(0.0, 1.0))
        })
    }

    fn encode(&self, pixels: &Tensor) -> Result<Images> {
        tch::no_grad(|| {
            let latents = self.magvit.latents(&(pixels.to_device(self.device) * 2.0 - 1.0));
            Ok(Images::from_tokens(self.magvit.codes(&latents)))
        })
    }

    fn tokenizer_loss(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.magvit.loss(&(pixels.to_device(self.device) * 2.0 - 1.0)))
    }

    fn save(&self, dir: &Path) -> Result<()> {
        let mut magvit = self.magvit_weights.clone_handles();
        magvit.extend(self.magvit.buffers());
        checkpoint::save(dir, &self.config, &self.magvit_config, &self.text, &self.phi_weights, &magvit)
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
