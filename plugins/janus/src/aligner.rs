//! Projectors of image features and image codes to rows of the language model, and the head from hidden states to codes.

use tch::{Kind, Tensor};
use unirl::Result;
use unirl::weights::{Init, Store};
use unirl_layers::Linear;

use crate::config::JanusConfig;

/// Linear layers with GELU between them.
pub struct Aligner(Vec<Linear>);

impl Aligner {
    /// Takes `depth` layers from `store`, from rows of width `inputs` to rows of width `outputs`.
    pub fn take(store: &mut Store, name: &str, depth: i64, inputs: i64, outputs: i64) -> Result<Self> {
        let mut layers = vec![Linear::take(store, &format!("{name}.fc1"), inputs, outputs)?];
        for index in 0..depth - 1 {
            layers.push(Linear::take(store, &format!("{name}.hidden_layers.{index}"), outputs, outputs)?);
        }
        Ok(Self(layers))
    }

    /// Rows `[..,inputs]` to rows `[..,outputs]`.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        let (first, rest) = (&self.0[0], &self.0[1..]);
        rest.iter().fold(first.apply(x), |x, layer| layer.apply(&x.gelu("none")))
    }
}

/// The head over image codes.
pub struct CodeHead {
    first: Linear,
    second: Linear,
}

impl CodeHead {
    fn take(store: &mut Store, config: &JanusConfig) -> Result<Self> {
        let (width, inner) = (config.language.hidden_size, config.generation.head_size);
        let name = |part: &str| format!("model.generation_head.{part}");
        Ok(Self {
            first: Linear::take(store, &name("proj_out"), width, inner)?,
            second: Linear::take(store, &name("vision_head"), inner, config.generation.codebook_size)?,
        })
    }

    /// A head that shares its tensors with this one.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self { first: self.first.shallow_clone(), second: self.second.shallow_clone() }
    }

    /// Logits over the codes, of hidden states `[..,D]`: `[..,K]` f32.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        self.second.apply(&self.first.apply(hidden).gelu("none")).to_kind(Kind::Float)
    }
}

/// The input and output path of image codes.
pub struct Codes {
    /// `[K,d]`; not the image tokenizer's codebook.
    embed: Tensor,
    aligner: Aligner,
    /// Hidden states to codes.
    pub head: CodeHead,
}

impl Codes {
    /// Takes its weights from `store`.
    pub fn take(store: &mut Store, config: &JanusConfig) -> Result<Self> {
        let generation = &config.generation;
        Ok(Self {
            embed: store.take(
                "model.generation_embeddings.weight",
                &[generation.codebook_size, generation.embed_dim],
                Init::Normal,
            )?,
            aligner: Aligner::take(
                store,
                "model.generation_aligner",
                generation.aligner_depth,
                generation.embed_dim,
                config.language.hidden_size,
            )?,
            head: CodeHead::take(store, config)?,
        })
    }

    /// Embeds `codes [B,n]`: `[B,n,D]`.
    pub fn embed(&self, codes: &Tensor) -> Tensor {
        self.aligner.apply(&Tensor::embedding(&self.embed, codes, -1, false, false))
    }
}
