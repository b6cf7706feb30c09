//! The network without the image tokenizer: a language model with an input path for image features, and an input and output
//! path for image codes.

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
    /// The vision encoder.
    pub siglip: Siglip,
    aligner: Aligner,
    /// The input and output path of image codes.
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

    /// The weights that a network of these sizes takes.
    pub fn expected(config: &JanusConfig) -> Result<Vec<Expected>> {
        Store::planned(|plan| Self::take(plan, config))
    }

    /// Encodes images `pixels [n,3,S,S]` in `-1..=1` as rows of the language model: `[n,patches,D]`.
    pub fn align(&self, pixels: &Tensor) -> Result<Tensor> {
        Ok(self.aligner.apply(&self.siglip.features(pixels)?))
    }

    /// Embeds `ids [B,L]`, with the image rows `aligned [n,patches,D]`, in order, where `is_image [B,L]`: `[B,L,D]`.
    pub fn embed_images_at(&self, ids: &Tensor, is_image: &Tensor, aligned: &Tensor) -> Result<Tensor> {
        let expected = is_image.sum(Kind::Int64).int64_value(&[]);
        let got = aligned.size()[0] * aligned.size()[1];
        if expected != got {
            return Err(Error::failure(format!("image features: expected {expected} rows, got {got}")));
        }
        Ok(self.llama.embed(ids).masked_scatter(&is_image.unsqueeze(-1), aligned))
    }

    /// Embeds `prompts [B,L]`, which end with the begin-of-image token, followed by `codes [B,n]`: `[B,L+n,D]`.
    pub fn embed_image_tokens(&self, prompts: &Tensor, codes: &Tensor) -> Tensor {
        Tensor::cat(&[self.llama.embed(prompts), self.codes.embed(codes)], 1)
    }

    /// The hidden states `[B,N,D]` that predict `codes [B,N]` after `prompts [B,L]`: those of the last prompt token and of all
    /// codes but the last. `present [B,L]` is false at left padding; without it every row is attended to, including the padding of
    /// an unconditional prompt, as in the original.
    pub fn generation_hidden(
        &self,
        prompts: &Tensor,
        present: Option<&Tensor>,
        codes: &Tensor,
    ) -> Result<Tensor> {
        let (batch, length, tokens) = (prompts.size()[0], prompts.size()[1], codes.size()[1]);
        let x = self.embed_image_tokens(prompts, &codes.narrow(1, 0, tokens - 1));
        let all = Tensor::ones([batch, length + tokens - 1], (Kind::Bool, prompts.device()));
        let present = match present {
            None => all,
            Some(present) => Tensor::cat(&[present, &all.narrow(1, length, tokens - 1)], 1),
        };
        let outputs = Tensor::arange_start(length - 1, length + tokens - 1, (Kind::Int64, prompts.device()));
        self.llama.hidden_states(StackInput {
            x,
            positions: &positions(&present),
            mask: AttnMask::Additive(&causal(&present, length + tokens - 1)),
            past: None,
            outputs: Some(&outputs.expand([batch, -1], false)),
        })
    }

    /// Generates codes after `prompts [P,L]` until `sampled` is full. `index [R]` maps each row to its prompt; `present [P,L]` is
    /// false at left padding. `guide` combines the logits of all rows, `[R,K]`, into those to sample from, `[C,K]`. If `R` is a
    /// multiple of `C`, rows `C`, `C + 1`, … continue with the codes of the first `C` rows.
    pub fn generate_tokens(
        &self,
        prompts: &Tensor,
        present: &Tensor,
        index: &Tensor,
        sampled: &mut SampledTokens,
        mut guide: impl FnMut(&Tensor) -> Tensor,
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
        let position = present.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64);
        let hidden = hidden.squeeze_dim(1).index_select(0, index);
        let mut decoding =
            StepDecoding::new(&self.llama, (&cache, index), &present, position, &hidden, tokens - 1);
        sampled.sample_next(&guide(&self.codes.head.logits(decoding.hidden())));
        decoding.run(tokens - 1, |append| {
            let hidden = append(&self.codes.embed(&sampled.last.repeat([copies]).unsqueeze(1)));
            sampled.sample_next(&guide(&self.codes.head.logits(&hidden)));
        })
    }
}

/// The additive causal mask `[B,1,rows,S]` of the last `rows` of `S` rows, restricted to `present [B,S]`.
pub fn causal(present: &Tensor, rows: i64) -> Tensor {
    let length = present.size()[1];
    let before = Tensor::ones([rows, length], (Kind::Bool, present.device())).tril(length - rows);
    let visible = present.unsqueeze(1).logical_and(&before); // [B,rows,S]
    attention::additive_mask(&visible)
}

/// Positions `[B,S]`, counted over `present [B,S]`; 0 at padding.
pub fn positions(present: &Tensor) -> Tensor {
    (present.to_kind(Kind::Int64).cumsum(1, Kind::Int64) - 1).clamp_min(0)
}

/// A `[B,S]` tensor of true: no padding.
pub fn present(batch: i64, length: i64, device: Device) -> Tensor {
    Tensor::ones([batch, length], (Kind::Bool, device))
}
