//! CLIP's vision encoder and the projector to the transformer: the input of understanding in `w_clip_vit` checkpoints. The
//! encoder is frozen; the projector is trained with the transformer.

use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};
use unirl::Result;
use unirl::error::Context;
use unirl::weights::{Expected, Init, Store, read_json};
use unirl_layers::checkpoint::{MAX_LAYERS, check_at_most, check_multiple, check_positive};
pub use unirl_layers::vision::Activation;
use unirl_layers::vision::{Layer, LayerSize};
use unirl_layers::{LayerNorm, Linear};

/// Mean and standard deviation of the pixels that CLIP was trained on.
const MEAN: [f64; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f64; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Sizes of the vision encoder, under the names of transformers' `CLIPVisionConfig`; the default is
/// `openai/clip-vit-large-patch14-336`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default = "ClipConfig::transformers_default")]
pub struct ClipConfig {
    /// Width.
    pub hidden_size: i64,
    /// Hidden width of the feed-forward network.
    pub intermediate_size: i64,
    /// The number of layers, including the last one, which is not computed.
    pub num_hidden_layers: i64,
    /// The number of attention heads.
    pub num_attention_heads: i64,
    /// Pixels along the edge of an image.
    pub image_size: i64,
    /// Pixels along the edge of a patch.
    pub patch_size: i64,
    /// Added to variances.
    pub layer_norm_eps: f64,
    /// The activation of the feed-forward network.
    pub hidden_act: Activation,
}

impl Default for ClipConfig {
    fn default() -> Self {
        Self {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            image_size: 336,
            patch_size: 14,
            layer_norm_eps: 1e-5,
            hidden_act: Activation::QuickGelu,
        }
    }
}

impl ClipConfig {
    /// Transformers' defaults, which apply to keys that a published file leaves out.
    fn transformers_default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            ..Self::default()
        }
    }

    /// Reads a published `config.json`: that of the vision encoder, or of a full CLIP model with a `vision_config`.
    pub fn read(path: &Path) -> Result<Self> {
        let json: serde_json::Value = read_json(path)?;
        let vision = json.get("vision_config").unwrap_or(&json);
        let config = Self::deserialize(vision).context(|| format!("cannot read `{}`", path.display()))?;
        config.check(&path.display().to_string())?;
        Ok(config)
    }

    /// `n`, the number of patches of an image; each gives one feature.
    pub fn patches(&self) -> i64 {
        (self.image_size / self.patch_size).pow(2)
    }

    /// Errors if the sizes are inconsistent; `file` names the source.
    pub fn check(&self, file: &str) -> Result<()> {
        let layers = ("num_hidden_layers", self.num_hidden_layers);
        let (width, image) = (("hidden_size", self.hidden_size), ("image_size", self.image_size));
        check_positive(
            file,
            [
                width,
                ("intermediate_size", self.intermediate_size),
                layers,
                ("num_attention_heads", self.num_attention_heads),
                image,
                ("patch_size", self.patch_size),
            ],
        )?;
        check_at_most(file, layers, MAX_LAYERS)?;
        check_multiple(file, width, (self.num_attention_heads, "heads"))?;
        check_multiple(file, image, (self.patch_size, "pixels, the edge of a patch"))?;
        Ok(())
    }
}

/// The vision encoder up to the second-to-last layer, whose output is used.
pub struct Clip {
    config: ClipConfig,
    /// `[D]`, the class token before the patches.
    class: Tensor,
    /// `[D,3,p,p]`.
    patch: Tensor,
    /// `[n+1,D]`.
    position: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
}

impl Clip {
    /// Takes its weights from a frozen `store`, without the last layer and what follows it.
    pub fn take(store: &mut Store, config: ClipConfig) -> Result<Self> {
        let (width, edge) = (config.hidden_size, config.patch_size);
        let size = LayerSize {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            eps: config.layer_norm_eps,
            activation: config.hidden_act,
        };
        let mut embedding = |part: &str, shape: &[i64]| -> Result<Tensor> {
            let name = format!("vision_model.embeddings.{part}");
            store.take(&name, shape, Init::Normal)
        };
        Ok(Self {
            class: embedding("class_embedding", &[width])?,
            patch: embedding("patch_embedding.weight", &[width, 3, edge, edge])?,
            position: embedding("position_embedding.weight", &[config.patches() + 1, width])?,
            // The published spelling.
            norm: LayerNorm::take(store, "vision_model.pre_layrnorm", width, config.layer_norm_eps)?,
            layers: (0..config.num_hidden_layers - 1)
                .map(|index| {
                    Layer::take(store, &format!("vision_model.encoder.layers.{index}"), "out_proj", size)
                })
                .collect::<Result<_>>()?,
            config,
        })
    }

    /// The weights that an encoder of these sizes takes.
    pub fn expected(config: &ClipConfig) -> Result<Vec<Expected>> {
        Store::planned(|plan| Self::take(plan, config.clone()))
    }

    /// The sizes.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Features `[B,n,D]` of square images `pixels [B,3,H,W]` in `0..=1`, patches in row-major order. The gradient flows to
    /// the pixels, not to the weights.
    pub fn features(&self, pixels: &Tensor) -> Tensor {
        let (batch, edge) = (pixels.size()[0], self.config.patch_size);
        let [mean, std] = [MEAN, STD].map(|channels| {
            Tensor::from_slice(&channels).to_kind(Kind::Float).view([3, 1, 1]).to_device(pixels.device())
        });
        let pixels = (resize(pixels, self.config.image_size) - mean) / std;
        let patches = pixels
            .conv2d(&self.patch, None::<&Tensor>, [edge, edge], [0, 0], [1, 1], 1)
            .flatten(2, 3)
            .transpose(1, 2); // [B,n,D]
        let class = self.class.expand([batch, 1, -1], false);
        let x = Tensor::cat(&[class, patches], 1) + &self.position;
        let x = self.norm.apply(&x);
        let x = self.layers.iter().fold(x, |x, layer| layer.apply(&x));
        x.narrow(1, 1, self.config.patches())
    }
}

/// Resizes images `[B,3,H,W]` to `edge` pixels, bicubic with antialiasing, with gradient. Values may slightly leave `0..=1`,
/// where a resize in bytes would clamp.
pub fn resize(pixels: &Tensor, edge: i64) -> Tensor {
    if pixels.size()[2..] == [edge, edge] {
        return pixels.shallow_clone();
    }
    pixels.internal_upsample_bicubic2d_aa([edge, edge], false, None, None)
}

/// CLIP features to rows of the transformer: two linear layers with GELU between them.
pub struct Projector {
    first: Linear,
    second: Linear,
}

impl Projector {
    /// Takes its weights from the transformer's `store`: features of width `inputs` to rows of width `outputs`.
    pub fn take(store: &mut Store, inputs: i64, outputs: i64) -> Result<Self> {
        Ok(Self {
            first: Linear::take(store, "mm_projector.0", inputs, outputs)?,
            second: Linear::take(store, "mm_projector.2", outputs, outputs)?,
        })
    }

    /// Features `[B,n,inputs]` to rows `[B,n,outputs]`.
    pub fn apply(&self, features: &Tensor) -> Tensor {
        self.second.apply(&self.first.apply(features).gelu("none"))
    }
}
