//! SigLIP, the vision encoder of understanding: one row per patch, without class token and pooling.

use tch::Tensor;
use unirl::weights::{Init, Store};
use unirl::{Error, Result};
use unirl_layers::LayerNorm;
use unirl_layers::vision::{Activation, Layer, LayerSize};

use crate::config::SiglipConfig;

/// The vision encoder.
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
        let size = LayerSize {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            eps: config.layer_norm_eps,
            activation: Activation::Gelu,
        };
        let mut embedding = |part: &str, shape: &[i64], init: Init| -> Result<Tensor> {
            store.take(&format!("model.vision_model.embeddings.{part}"), shape, init)
        };
        Ok(Self {
            patch: embedding("patch_embedding.weight", &[width, 3, edge, edge], Init::Normal)?,
            bias: embedding("patch_embedding.bias", &[width], Init::Zeros)?,
            position: embedding("position_embedding.weight", &[config.patches(), width], Init::Normal)?,
            layers: (0..config.num_hidden_layers)
                .map(|index| {
                    let name = format!("model.vision_model.encoder.layers.{index}");
                    Layer::take(store, &name, "projection_layer", size)
                })
                .collect::<Result<_>>()?,
            // Applied even if layers before it are left out.
            norm: LayerNorm::take(store, "model.vision_model.post_layernorm", width, config.layer_norm_eps)?,
            config: config.clone(),
        })
    }

    /// Embeds the patches of images `pixels [B,3,S,S]` in `-1..=1`, in row-major order: `[B,n,W]`.
    pub fn embed(&self, pixels: &Tensor) -> Result<Tensor> {
        let edge = self.config.image_size;
        if pixels.dim() != 4 || pixels.size()[1..] != [3, edge, edge] {
            return Err(Error::failure(format!(
                "vision encoder: expected pixels of shape [B, 3, {edge}, {edge}], got {:?}",
                pixels.size()
            )));
        }
        let mut pixels = pixels.shallow_clone();
        if let Some(normalization) = &self.config.normalisation {
            let [mean, std] = normalization
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

    /// The number of layers.
    pub fn depth(&self) -> usize {
        self.layers.len()
    }

    /// Applies layer `index` to `x [B,n,W]`.
    pub fn layer(&self, index: usize, x: &Tensor) -> Tensor {
        self.layers[index].apply(x)
    }

    /// Features `[B,n,W]` of images `pixels [B,3,S,S]` in `-1..=1`.
    pub fn features(&self, pixels: &Tensor) -> Result<Tensor> {
        let x = (0..self.depth()).fold(self.embed(pixels)?, |x, index| self.layer(index, &x));
        Ok(self.norm.apply(&x))
    }
}
