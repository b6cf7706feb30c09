//! The properties of a model.

use serde::{Deserialize, Serialize};

use super::ImageSampling;

/// Whether a model understands images through the same tokens that it generates (§3.5 of the paper).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSpace {
    /// One token space for both, as in Show-o: the gradient of an answer reaches the image tokens.
    Shared,
    /// Two representations, as in Janus: only split objectives apply.
    Decoupled,
}

/// The order in which image tokens are generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageDecoding {
    /// In a few parallel steps, each of which reveals some tokens (MaskGIT).
    Masked,
    /// One token after the other.
    Autoregressive,
}

/// The properties of a model that the framework uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// The model family, such as `showo`.
    pub name: String,
    /// Whether generation and understanding share the image tokens.
    pub image_space: ImageSpace,
    /// The order in which image tokens are generated.
    pub image_decoding: ImageDecoding,
    /// `N`, the number of tokens of an image.
    pub image_tokens: i64,
    /// `K`, the size of the image codebook.
    pub codebook_size: i64,
    /// Height and width of a generated image in pixels.
    pub resolution: i64,
    /// Height and width of the input of [`UnifiedModel::encode`](super::UnifiedModel::encode), if not `resolution`.
    #[serde(rename = "reads_at", default, skip_serializing_if = "Option::is_none")]
    pub input_resolution: Option<i64>,
    /// The grey value, `0..=255`, that pads an input image to a square; without one, the image is center-cropped.
    #[serde(rename = "pads_with", default, skip_serializing_if = "Option::is_none")]
    pub pad_value: Option<u8>,
    /// The benchmark whose prompts and images the model knows, such as `tiles`; it decides the default preset, prompts and judge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub benchmark: Option<String>,
    /// The sampling options of the checkpoint, used as defaults.
    #[serde(default)]
    pub sampling: ImageSampling,
}

impl ModelCard {
    /// Returns the card of a model whose input and output images are squares of `resolution` pixels, encoded as `tokens`
    /// tokens from a codebook of `codes`. The model belongs to no benchmark.
    pub fn new(
        name: &str,
        image_space: ImageSpace,
        image_decoding: ImageDecoding,
        [tokens, codes, resolution]: [i64; 3],
    ) -> Self {
        Self {
            name: name.into(),
            image_space,
            image_decoding,
            image_tokens: tokens,
            codebook_size: codes,
            resolution,
            input_resolution: None,
            pad_value: None,
            benchmark: None,
            sampling: ImageSampling::default(),
        }
    }
}
