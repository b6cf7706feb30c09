//! SigLIP's vision tower: what understanding sees of a picture. It has a row for every patch and none for the whole, and
//! its pooling is left out.

use tch::Tensor;
use unirl::weights::{Init, Store};
use unirl::{Error, Result};

use crate::config::SiglipConfig;
use crate::layers::{LayerNorm, Linear};

struct Layer {
    norm1: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Layer {
    fn take(store: &mut Store, index: i64, config: &SiglipConfig) -> Result<Self> {
        let (width, inner, eps) = (config.hidden_size, config.intermediate_size, config.layer_norm_eps);
        let name = |part: &str| format!("model.vision_model.encoder.layers.{index}.{part}");
        Ok(Self {
            norm1: LayerNorm::take(store, &name("layer_norm1"), width, eps)?,
            // In this order they are one weight in the original.
            query: Linear::take(store, &name("self_attn.q_proj"), width, width)?,
            key: Linear::take(store, &name("self_attn.k_proj"), width, width)?,
            value: Linear::take(store, &name("self_attn.v_proj"), width, width)?,
            out: Linear::take(store, &name("self_attn.projection_layer"), width, width)?,
            norm2: LayerNorm::take(store, &name("layer_norm2"), width, eps)?,
            fc1: Linear::take(store, &name("mlp.fc1"), width, inner)?,
            fc2: Linear::take(store, &name("mlp.fc2"), inner, width)?,
        })
    }

    /// Rows `x [B,n,W]`, all of which see each other, to as many.
    fn apply(&self, x: &Tensor, config: &SiglipConfig) -> Tensor {
        let heads = |t: Tensor| t.unflatten(2, [config.num_attention_heads, -1]).transpose(1, 2);
        let h = self.norm1.apply(x);
        let [q, k, v] = [&self.query, &self.key, &self.value].map(|linear| heads(linear.apply(&h)));
        let attended =
            Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None::<f64>, false);
        let x = x + self.out.apply(&attended.transpose(1, 2).flatten(2, 3));
        let fed = self.fc2.apply(&self.fc1.apply(&self.norm2.apply(&x)).gelu("none"));
        x + fed
    }
}

/// The vision tower.
pub struct Siglip {
    config: SiglipConfig,
    /// `[W,3,p,p]`.
    patch: Tensor,
    /// `[W]`.
    bias: Tensor,
    /// `[n,W]`.
    position: Tensor,
    layers: Vec<Layer>,
    norm: LayerNorm,
}

impl Siglip {
    /// Takes its weights from `store`.
    pub fn take(store: &mut Store, config: &SiglipConfig) -> Result<Self> {
        let (width, edge) = (config.hidden_size, config.patch_size);
        let mut embedding = |part: &str, shape: &[i64], init: Init| -> Result<Tensor> {
            store.take(&format!("model.vision_model.embeddings.{part}"), shape, init)
        };
        Ok(Self {
            patch: embedding("patch_embedding.weight", &[width, 3, edge, edge], Init::Normal)?,
            bias: embedding("patch_embedding.bias", &[width], Init::Zeros)?,
            position: embedding("position_embedding.weight", &[config.patches(), width], Init::Normal)?,
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::take(store, index, config))
                .collect::<Result<_>>()?,
            // Applied however many layers are left out before it.
            norm: LayerNorm::take(store, "model.vision_model.post_layernorm", width, config.layer_norm_eps)?,
            config: config.clone(),
        })
    }

    /// The rows that the layers read, `[B,n,W]`, of pictures `pixels [B,3,S,S]` in `-1..=1`; patches row by row.
    pub fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let edge = self.config.image_size;
        if pixels.dim() != 4 || pixels.size()[1..] != [3, edge, edge] {
            return Err(Error::failure(format!(
                "the vision tower: expected pixels of shape [B, 3, {edge}, {edge}], got {:?}",
                pixels.size()
            )));
        }
        let mut pixels = pixels.shallow_clone();
        if let Some(normalisation) = &self.config.normalisation {
            let [mean, std] = normalisation
                .map(|channels| Tensor::from_slice(&channels).view([3, 1, 1]).to_device(pixels.device()));
            pixels = (pixels - mean) / std;
        }
        let patch = self.config.patch_size;
        let patches = pixels.to_kind(self.patch.kind()).conv2d(
            &self.patch,
            Some(&self.bias),
            [patch, patch],
            [0, 0],
            [1, 1],
            1,
        );
        Ok(patches.flatten(2, 3).transpose(1, 2) + &self.position)
    }

    /// Layers.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Rows `x [B,n,W]` behind layer `index`.
    pub fn layer(&self, index: usize, x: &Tensor) -> Tensor {
        self.layers[index].apply(x, &self.config)
    }

    /// Features `[B,n,W]` of pictures `pixels [B,3,S,S]` in `-1..=1`.
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        let x = (0..self.depth()).fold(self.embed(pixels)?, |x, index| self.layer(index, &x));
        Ok(self.norm.apply(&x))
    }
}
