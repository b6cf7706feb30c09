//! Generation: the text blocks are computed once, the image rows in every step, and logits only for unknown tokens.

use tch::{Kind, Tensor};
use unirl::Result;
use unirl::model::{ImageSampling, Images};
use unirl_layers::attention::{self, AttnMask};
use unirl_layers::decoder::{ParallelDecodeState, StackInput};
use unirl_layers::guidance::Guidance;
use unirl_layers::kv_cache::KvCache;
use unirl_layers::rows::{deduplicate, padded};

use super::Showo;
use crate::mask;
use crate::maskgit::{self, UNKNOWN};
use crate::phi::Phi;

/// The KV cache of the text blocks of distinct prompts. Text never attends to the image, so the image rows of every step, every
/// copy of a prompt and every masked state reuse it.
#[derive(Debug)]
pub struct TextBlocks {
    cache: KvCache,
    /// Columns of the cache.
    columns: i64,
    /// Columns of padding before the text of each block. Image rows attend to everything after it, including a pad token that
    /// a prompt spells out.
    padding: Vec<i64>,
    /// The block of each prompt.
    pub index: Vec<i64>,
}

impl TextBlocks {
    /// The block of the empty prompt, the unconditional branch of guidance.
    pub const EMPTY: i64 = 0;

    /// Columns of padding before each of the blocks `index`.
    fn padding(&self, index: &[i64]) -> Vec<i64> {
        index.iter().map(|block| self.padding[*block as usize]).collect()
    }
}

impl Showo {
    /// Computes the text blocks of tokenized prompts and of the empty prompt.
    pub fn text_blocks(&self, phi: &Phi, prompts: &[Vec<i64>]) -> Result<TextBlocks> {
        let (blocks, mut index) = deduplicate([&[Vec::new()], prompts].concat());
        index.remove(0); // of the empty prompt
        let rows: Vec<Vec<i64>> = blocks.iter().map(|prompt| self.prompting.t2i_text(prompt)).collect();

        // No other row attends to columns that are padding for every prompt: drop them and shift the positions.
        let pads = |row: &Vec<i64>| row.iter().take_while(|id| **id == self.special.pad).count();
        let skipped = rows.iter().map(pads).min().unwrap_or(0);
        let padding = rows.iter().map(|row| (pads(row) - skipped) as i64).collect();
        let rows: Vec<Vec<i64>> = rows.into_iter().map(|row| row[skipped..].to_vec()).collect();
        let ids = padded(&rows, self.special.pad, self.device).0;
        let length = ids.size()[1];
        let positions = Tensor::arange(length, (Kind::Int64, self.device)).unsqueeze(0) + skipped as i64;
        let visible = mask::t2i(&ids, &self.special, true);
        let mask = attention::additive_mask(&visible);
        let x = phi.language.embed(&ids);
        let (_, cache) = phi.language.forward(StackInput::new(x, &positions, &mask))?;
        Ok(TextBlocks { cache, columns: length, padding, index })
    }

    /// Embeds `<soi> codes <eoi>` of images `codes [rows,N]`, masked where [`UNKNOWN`]: `[rows,N+2,D]`.
    fn embed_image_tokens(&self, phi: &Phi, codes: &Tensor) -> Tensor {
        let masked = codes.full_like(self.special.mask);
        let ids = masked.where_self(&codes.eq(UNKNOWN), &(codes + self.special.image));
        let edge = |id: i64| Tensor::full([codes.size()[0], 1], id, (Kind::Int64, self.device));
        phi.language.embed(&Tensor::cat(&[edge(self.special.soi), ids, edge(self.special.eoi)], 1))
    }

    /// The positions `[1,N+2]` of an image's rows.
    fn image_positions(&self) -> Tensor {
        let start = self.config.max_text_len + 1;
        let end = start + self.card.image_tokens + 2;
        Tensor::arange_start(start, end, (Kind::Int64, self.device)).unsqueeze(0)
    }

    /// The hidden states that predict `positions [rows,m]` of images `codes [rows,N]`, each after its text block:
    /// `[rows,m,D]`.
    pub(super) fn code_hidden(
        &self,
        phi: &Phi,
        blocks: &TextBlocks,
        index: &[i64],
        codes: &Tensor,
        positions: &Tensor,
    ) -> Result<Tensor> {
        let text = Tensor::from_slice(index).to_device(self.device);
        phi.language.hidden_states(StackInput {
            x: self.embed_image_tokens(phi, codes),
            positions: &self.image_positions(),
            mask: AttnMask::FromColumn(&blocks.padding(index)),
            past: Some(&blocks.cache.select(&text)),
            outputs: Some(&(positions + 1)), // after `<soi>`
        })
    }

    /// Code logits `[rows,N,K]` of images `codes [rows,N]`, masked where [`UNKNOWN`], each after its text block.
    pub fn code_logits(
        &self,
        phi: &Phi,
        blocks: &TextBlocks,
        index: &[i64],
        codes: &Tensor,
    ) -> Result<Tensor> {
        let positions = maskgit::all_positions(codes);
        Ok(phi.code_logits(&self.code_hidden(phi, blocks, index, codes, &positions)?))
    }

    /// Generates the tokens that are [`UNKNOWN`] in `codes [B,N]`. `uniforms` returns the random numbers of a step: for
    /// sampling and for noise, each `[B,N]`.
    pub fn generate_tokens(
        &self,
        prompts: &[Vec<i64>],
        codes: Tensor,
        sampling: &ImageSampling,
        uniforms: impl Fn(i64) -> (Tensor, Tensor),
    ) -> Result<Images> {
        let guidance = Guidance::BeyondConditional(sampling.guidance);
        tch::no_grad(|| {
            let blocks = self.text_blocks(&self.phi, prompts)?;
            let mut revealed_at = codes.full_like(sampling.steps - 1);
            let mut logp = codes.zeros_like().to_kind(Kind::Float);
            let (mut tokens, mut codes) = (codes.shallow_clone(), codes);
            let all = codes.size()[1];
            let all_unknown = !bool::try_from(codes.ne(UNKNOWN).any())?;
            let state = self.parallel_decode_state(&blocks, guidance);
            let mut temperature = sampling.temperature;
            let mut unknown_count = all; // an upper bound for every row
            for at in 0..sampling.steps {
                let positions = maskgit::first_positions(&codes.eq(UNKNOWN), unknown_count);
                let logits = match at {
                    0 if all_unknown => self.first_logits(&blocks, guidance)?,
                    _ => self.step_logits(&state, &codes, &positions, guidance),
                };
                temperature = maskgit::anneal(temperature, at, sampling.steps);
                let (uniforms, noise) = uniforms(at);
                let step = maskgit::step(
                    self.schedule,
                    (&logits, &positions),
                    &codes,
                    (at, sampling.steps),
                    temperature,
                    &uniforms,
                    &noise,
                );
                let unknown = codes.eq(UNKNOWN);
                // The log-probability of the last sample of each token. Rounding can sample a code of probability 0: clamp.
                let sampled = step.confidence.clamp_min(f64::from(f32::MIN_POSITIVE)).log();
                logp = sampled.where_self(&unknown, &logp);
                let revealed = unknown.logical_and(&step.masked.logical_not());
                revealed_at = revealed_at.full_like(at).where_self(&revealed, &revealed_at);
                (codes, tokens) = (step.codes, step.sampled);
                unknown_count = maskgit::mask_len(self.schedule, all, at, sampling.steps).clamp(1, all);
            }
            Ok(Images { revealed_at: Some(revealed_at), logp: Some(logp), ..Images::from_tokens(tokens) })
        })
    }

    /// The static KV cache of all prompts, followed by the empty prompt for each under guidance. Each step overwrites the image
    /// rows.
    fn parallel_decode_state(&self, blocks: &TextBlocks, guidance: Guidance) -> ParallelDecodeState {
        let index = guidance.branches().conditions(&blocks.index, |_| TextBlocks::EMPTY);
        let text = Tensor::from_slice(&index).to_device(self.device);
        let cache = blocks.cache.to_static(&text, self.card.image_tokens + 2);
        let (language, padding) = (&self.phi.language, blocks.padding(&index));
        let (positions, mask) = (self.image_positions(), AttnMask::FromColumn(&padding));
        language.stack.parallel_decode_state(cache, &positions, mask, blocks.columns, language.kind())
    }

    /// Guided logits `[B,m,K]` at `positions [B,m]` of `codes [B,N]`.
    fn step_logits(
        &self,
        state: &ParallelDecodeState,
        codes: &Tensor,
        positions: &Tensor,
        guidance: Guidance,
    ) -> Tensor {
        let language = &self.phi.language;
        let branches = guidance.branches();
        let x = branches.repeat(&self.embed_image_tokens(&self.phi, codes));
        let hidden = language.stack.parallel_decode(state, x, &(branches.repeat(positions) + 1));
        guidance.combine_batch(&self.phi.code_logits(&language.norm.apply(&hidden)))
    }

    /// Guided logits `[B,N,K]` of fully masked images, computed once per distinct prompt.
    fn first_logits(&self, blocks: &TextBlocks, guidance: Guidance) -> Result<Tensor> {
        let each: Vec<i64> = (0..blocks.padding.len() as i64).collect();
        let codes =
            Tensor::full([each.len() as i64, self.card.image_tokens], UNKNOWN, (Kind::Int64, self.device));
        let logits = self.code_logits(&self.phi, blocks, &each, &codes)?;
        let guided = match guidance.is_active() {
            true => guidance.combine(&logits, &logits.narrow(0, TextBlocks::EMPTY, 1)),
            false => logits,
        };
        Ok(guided.index_select(0, &Tensor::from_slice(&blocks.index).to_device(self.device)))
    }
}
