//! The whole network but for the image tokenizer: one language model with a path in for features of pictures, and
//! another one, in and out, for image codes.

use tch::{Device, Kind, Tensor};
use unirl::weights::{Expected, Store};
use unirl::{Error, Result};
use unirl_layers::attention::{self, AttnMask};
use unirl_layers::decoder::StackInput;
use unirl_layers::decoding::{SampledTokens, StepDecoding};

use crate::aligner::{Aligner, Codes};
use crate::config::JanusConfig;
use crate::llama::{self, Llama};
use crate::siglip::Siglip;

/// The network.
pub struct Network {
    /// The language model.
    pub llama: Llama,
    /// The vision tower.
    pub siglip: Siglip,
    aligner: Aligner,
    /// Image codes in and out.
    pub codes: Codes,
}

impl Network {
    /// Takes its weights from `store`.
    pub fn take(store: &mut Store, config: &JanusConfig) -> Result<Self> {
        let (features, width) = (config.vision.hidden_size, config.language.hidden_size);
        Ok(Self {
            siglip: Siglip::take(store, &config.vision)?,
            aligner: Aligner::take(store, "model.aligner", config.aligner_depth, features, width)?,
            codes: Codes::take(store, config)?,
            llama: llama::take(store, &config.language)?,
        })
    }

    /// The weights of a network of these sizes.
    pub fn expected(config: &JanusConfig) -> Result<Vec<Expected>> {
        Store::planned(|plan| Self::take(plan, config))
    }

    /// Pictures `pixels [n,3,S,S]` in `-1..=1` as rows of the language model: `[n,patches,D]`.
    pub fn align(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.aligner.apply(&self.siglip.features(pixels)?))
    }

    /// Embeds `ids [B,L]` with the rows `aligned [n,patches,D]` of pictures, in order, in their `places [B,L]`: `[B,L,D]`.
    pub fn embed_images_at(&self, ids: &Tensor, places: &Tensor, aligned: &Tensor) -> Result<Tensor> {
        let expected = places.sum(Kind::Int64).int64_value(&[]);
        let got = aligned.size()[0] * aligned.size()[1];
        if expected != got {
            return Err(Error::failure(format!("rows of pictures: expected {expected} of them, got {got}")));
        }
        Ok(self.llama.embed(ids).masked_scatter(&places.unsqueeze(-1), aligned))
    }

    /// Embeds `prompts [B,L]`, which end with the token that begins an image, and `codes [B,n]` behind them: `[B,L+n,D]`.
    pub fn embed_image_tokens(&self, prompts: &Tensor, codes: &Tensor) -> Tensor {
        Tensor::cat(&[self.llama.embed(prompts), self.codes.embed(codes)], 1)
    }

    /// The hidden rows `[B,N,D]` that predict `codes [B,N]` behind `prompts [B,L]`: those of the last token of the prompt
    /// and of all codes but the last. `present [B,L]` is false where a prompt is padded on its left; without it all is
    /// seen, padding of an empty prompt included, as in the original.
    pub fn generation_hidden(
        &self,
        prompts: &Tensor,
        present: Option<&Tensor>,
        codes: &Tensor,
    ) -> Result<Tensor> {
        let (batch, length, tokens) = (prompts.size()[0], prompts.size()[1], codes.size()[1]);
        let x = self.embed_image_tokens(prompts, &codes.narrow(1, 0, tokens - 1));
        let everything = Tensor::ones([batch, length + tokens - 1], (Kind::Bool, prompts.device()));
        let present = match present {
            None => everything,
            Some(present) => Tensor::cat(&[present, &everything.narrow(1, length, tokens - 1)], 1),
        };
        let read = Tensor::arange_start(length - 1, length + tokens - 1, (Kind::Int64, prompts.device()));
        self.llama.hidden_states(StackInput {
            x,
            positions: &positions(&present),
            mask: AttnMask::Additive(&causal(&present, length + tokens - 1)),
            past: None,
            outputs: Some(&read.expand([batch, -1], false)),
        })
    }

    /// Draws behind `prompts [P,L]`, of which `index [R]` names the one of each row, as many codes, one after the other, as
    /// there is room for in `sampled`. `present [P,L]` is false where a prompt is padded on its left. `mix` makes the logits that
    /// a code is sampled by, `[C,K]`, of those of all rows, `[R,K]`: where `R` is more than `C`, rows `C`, `C + 1`, … go on with
    /// the codes of the first again.
    pub fn generate_tokens(
        &self,
        prompts: &Tensor,
        present: &Tensor,
        index: &Tensor,
        sampled: &mut SampledTokens,
        mut mix: impl FnMut(&Tensor) -> Tensor,
    ) -> Result<()> {
        let (batch, length) = (prompts.size()[0], prompts.size()[1]);
        let last = Tensor::full([batch, 1], length - 1, (Kind::Int64, prompts.device()));
        let (hidden, cache) = self.llama.forward(StackInput {
            x: self.llama.embed(prompts),
            positions: &positions(present),
            mask: AttnMask::Additive(&causal(present, length)),
            past: None,
            outputs: Some(&last),
        })?;
        let (rows, tokens) = (index.size()[0], sampled.tokens.size()[1]);
        let copies = rows / sampled.tokens.size()[0];
        let present = present.index_select(0, index);
        let place = present.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64);
        let hidden = hidden.squeeze_dim(1).index_select(0, index);
        let mut decoding =
            StepDecoding::new(&self.llama, (&cache, index), &present, place, &hidden, tokens - 1);
        sampled.sample_next(&mix(&self.codes.head.logits(decoding.hidden())));
        decoding.run(tokens - 1, |push| {
            let hidden = push(&self.codes.embed(&sampled.last.repeat([copies]).unsqueeze(1)));
            sampled.sample_next(&mix(&self.codes.head.logits(&hidden)));
        })
    }
}

/// Whether a weight of guidance leaves `cond` as it is.
pub fn is_unguided(weight: f64) -> bool {
    (weight - 1.0).abs() < f64::EPSILON
}

/// Logits under guidance of `weight`, where 1 is `cond` and 0 is `uncond`.
pub fn guided(cond: &Tensor, uncond: &Tensor, weight: f64) -> Tensor {
    uncond + weight * (cond - uncond)
}

/// The additive mask `[B,1,rows,S]` of the last `rows` of `S` rows: each sees itself and what is before it, where
/// `present [B,S]`.
pub fn causal(present: &Tensor, rows: i64) -> Tensor {
    let length = present.size()[1];
    let before = Tensor::ones([rows, length], (Kind::Bool, present.device())).tril(length - rows);
    let visible = present.unsqueeze(1).logical_and(&before); // [B,rows,S]
    attention::additive_mask(&visible)
}

/// Positions `[B,S]`, counted without what is not `present [B,S]`; there they are 0.
pub fn positions(present: &Tensor) -> Tensor {
    (present.to_kind(Kind::Int64).cumsum(1, Kind::Int64) - 1).clamp_min(0)
}

/// Visibility `[B,S]` of rows that are all there.
pub fn present(batch: i64, length: i64, device: Device) -> Tensor {
    Tensor::ones([batch, length], (Kind::Bool, device))
}
