//! Drawing: text blocks once, image rows in every step, and logits only of what is still unknown.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};
use unirl::Result;
use unirl::model::{ImageSampling, Images};
use unirl_layers::attention::{self, AttnMask};
use unirl_layers::decoder::{ParallelDecodeState, StackInput};
use unirl_layers::kv_cache::KvCache;
use unirl_text::padded;

use super::Showo;
use crate::mask;
use crate::maskgit::{self, UNKNOWN};
use crate::phi::Phi;

/// Text blocks of distinct prompts, run through the transformer once. Text never sees the image, so the image
/// rows of every step, of every copy of a prompt, and of every replayed state continue the same cache.
#[derive(Debug)]
pub struct TextBlocks {
    cache: KvCache,
    /// Columns of the cache.
    columns: i64,
    /// Columns of padding before the text of each block. Image rows see all that is behind; a pad in a prompt, which only one
    /// that spells it has, is text to them.
    padding: Vec<i64>,
    /// Which block each prompt got.
    pub index: Vec<i64>,
}

impl TextBlocks {
    /// The block of the empty prompt, for guidance.
    pub const EMPTY: i64 = 0;

    /// Columns of padding before each of some blocks.
    fn padding(&self, index: &[i64]) -> Vec<i64> {
        index.iter().map(|block| self.padding[*block as usize]).collect()
    }
}

impl Showo {
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
        let pads = |row: &Vec<i64>| row.iter().take_while(|id| **id == self.special.pad).count();
        let skipped = rows.iter().map(pads).min().unwrap_or(0);
        let padding = rows.iter().map(|row| (pads(row) - skipped) as i64).collect();
        let rows: Vec<Vec<i64>> = rows.into_iter().map(|row| row[skipped..].to_vec()).collect();
        let ids = padded(&rows, self.special.pad, self.device).0;
        let length = ids.size()[1];
        let positions = Tensor::arange(length, (Kind::Int64, self.device)).unsqueeze(0) + skipped as i64;
        let visible = mask::t2i(&ids, &self.special, true);
        let mask = attention::additive(&visible);
        let x = phi.language.embed(&ids);
        let rows =
            StackInput { x, positions: &positions, sees: AttnMask::Mask(&mask), past: None, read: None };
        let (_, cache) = phi.language.forward(rows)?;
        Ok(TextBlocks { cache, columns: length, padding, index })
    }

    /// `<soi> codes <eoi>` of images `codes [rows,N]`, hidden where [`UNKNOWN`], embedded: `[rows,N+2,D]`.
    fn embed_image_tokens(&self, phi: &Phi, codes: &Tensor) -> Tensor {
        let hidden = codes.full_like(self.special.mask);
        let ids = hidden.where_self(&codes.eq(UNKNOWN), &(codes + self.special.image));
        let edge = |id: i64| Tensor::full([codes.size()[0], 1], id, (Kind::Int64, self.device));
        phi.language.embed(&Tensor::cat(&[edge(self.special.soi), ids, edge(self.special.eoi)], 1))
    }

    /// The positions `[1,N+2]` of an image's rows.
    fn image_positions(&self) -> Tensor {
        let start = self.config.max_text_len + 1;
        let end = start + self.card.image_tokens + 2;
        Tensor::arange_start(start, end, (Kind::Int64, self.device)).unsqueeze(0)
    }

    /// The hidden rows that predict `places [rows,m]` of images `codes [rows,N]`, each behind its text block: `[rows,m,D]`.
    pub(super) fn code_rows(
        &self,
        phi: &Phi,
        blocks: &TextBlocks,
        index: &[i64],
        codes: &Tensor,
        places: &Tensor,
    ) -> Result<Tensor> {
        let text = Tensor::from_slice(index).to_device(self.device);
        phi.language.hidden(StackInput {
            x: self.embed_image_tokens(phi, codes),
            positions: &self.image_positions(),
            sees: AttnMask::From(&blocks.padding(index)),
            past: Some(&blocks.cache.select(&text)),
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
                let places = maskgit::places(&codes.eq(UNKNOWN), unknown_count);
                let logits = match at {
                    0 if blank => self.first_logits(&blocks, sampling.guidance)?,
                    _ => self.logits_on(&canvas, &codes, &places, sampling.guidance),
                };
                temperature = maskgit::cool(temperature, at, sampling.steps);
                let (uniforms, noise) = uniforms(at);
                let step = maskgit::step(
                    self.schedule,
                    (&logits, &places),
                    &codes,
                    (at, sampling.steps),
                    temperature,
                    &uniforms,
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
    fn canvas(&self, blocks: &TextBlocks, guidance: f64) -> ParallelDecodeState {
        let index = if guidance > 0.0 { with_empty(&blocks.index) } else { blocks.index.clone() };
        let text = Tensor::from_slice(&index).to_device(self.device);
        let room = blocks.cache.with_room(&text, self.card.image_tokens + 2);
        let (language, sees) = (&self.phi.language, blocks.padding(&index));
        let positions = self.image_positions();
        language.stack.canvas(room, &positions, AttnMask::From(&sees), blocks.columns, language.kind())
    }

    /// Logits `[B,m,K]` of the `places [B,m]` of `codes [B,N]`, with guidance.
    fn logits_on(
        &self,
        canvas: &ParallelDecodeState,
        codes: &Tensor,
        places: &Tensor,
        guidance: f64,
    ) -> Tensor {
        let language = &self.phi.language;
        let twice = |tensor: &Tensor| match guidance > 0.0 {
            true => Tensor::cat(&[tensor, tensor], 0),
            false => tensor.shallow_clone(),
        };
        let x = self.embed_image_tokens(&self.phi, codes);
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
        let each: Vec<i64> = (0..blocks.padding.len() as i64).collect();
        let codes =
            Tensor::full([each.len() as i64, self.card.image_tokens], UNKNOWN, (Kind::Int64, self.device));
        let logits = self.code_logits(&self.phi, blocks, &each, &codes)?;
        let guided = match guidance > 0.0 {
            true => maskgit::guided(&logits, &logits.narrow(0, TextBlocks::EMPTY, 1), guidance),
            false => logits,
        };
        Ok(guided.index_select(0, &Tensor::from_slice(&blocks.index).to_device(self.device)))
    }
}

/// Text blocks, and behind them that of the empty prompt as often.
pub(super) fn with_empty(index: &[i64]) -> Vec<i64> {
    let empty = std::iter::repeat_n(TextBlocks::EMPTY, index.len());
    index.iter().copied().chain(empty).collect()
}
