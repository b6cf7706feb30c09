//! What a model is.

use serde::{Deserialize, Serialize};

use super::ImageSampling;

/// Whether a model reads images through the same tokens that it draws (§3.5 of the paper).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSpace {
    /// One token space for both, as Show-o: gradients of an answer reach the image tokens.
    Shared,
    /// Two representations, as Janus: only split objectives make sense.
    Decoupled,
}

/// How image tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageDecoding {
    /// In a few parallel steps, each revealing some tokens (MaskGIT).
    Masked,
    /// One after the other.
    Autoregressive,
}

/// What a model is, as far as the framework cares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// The family, e.g. `showo`.
    pub name: String,
    /// Whether images are read as they are drawn.
    pub image_space: ImageSpace,
    /// How images are drawn.
    pub image_decoding: ImageDecoding,
    /// `N`, tokens of an image.
    pub image_tokens: i64,
    /// `K`, codes an image token can take.
    pub codebook_size: i64,
    /// Height and width of an image in pixels.
    pub resolution: i64,
    /// Height and width of the pictures that [`UnifiedModel::encode`] is given, where it is not `resolution`.
    #[serde(rename = "reads_at", default, skip_serializing_if = "Option::is_none")]
    pub input_resolution: Option<i64>,
    /// The grey, of 255, around a picture that is read and not square; without one, its middle is read.
    #[serde(rename = "pads_with", default, skip_serializing_if = "Option::is_none")]
    pub pad_value: Option<u8>,
    /// How the checkpoint is meant to draw: what holds where the user says nothing.
    #[serde(default)]
    pub sampling: ImageSampling,
}

impl ModelCard {
    /// The card of a model that reads square images as large as it draws them, of `tokens` tokens among `codes` codes, and
    /// `resolution` pixels along an edge.
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
            sampling: ImageSampling::default(),
        }
    }
}
