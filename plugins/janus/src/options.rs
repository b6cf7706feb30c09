//! Options of the plugin.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unirl_layers::Precision;

use crate::config::{GenerationConfig, JanusConfig, LlamaConfig, SiglipConfig};
use crate::vq::VqConfig;

/// Options of the plugin.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JanusOptions {
    /// The sizes of a fresh model; a checkpoint brings its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
    /// The folder of `tokenizer.json`; the checkpoint's own without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_tokenizer: Option<String>,
    /// What stands before a question. Without one it is the original's ("You are a helpful language and vision
    /// assistant. …"), or nothing where `processor_config.json` says so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// The type of the weights. The image tokenizer is always f32.
    pub precision: Precision,
    /// Remember only the input of each layer of the language model and compute the rest again on the way back: a third
    /// more arithmetic for a fraction of the memory.
    pub gradient_checkpointing: bool,
}

/// The sizes of a fresh model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// Width of the language model.
    #[schemars(range(min = 1))]
    pub hidden_size: i64,
    /// Width of its feed-forward layers.
    #[schemars(range(min = 1))]
    pub intermediate_size: i64,
    /// Its layers.
    #[schemars(range(min = 1))]
    pub layers: i64,
    /// Its attention heads.
    #[schemars(range(min = 1))]
    pub heads: i64,
    /// Heads of keys and values.
    #[schemars(range(min = 1))]
    pub key_value_heads: i64,
    /// Tokens along either edge of an image.
    #[schemars(range(min = 1))]
    pub grid: i64,
    /// The words of the tokenizer; none for those of the drawn world.
    pub words: Vec<String>,
    /// How the model is meant to draw: guidance, 1 being none.
    #[schemars(range(min = 0.0))]
    pub guidance: f64,
    /// How the model is meant to draw: temperature.
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// The vision tower.
    pub vision: Vision,
    /// The image tokenizer.
    pub vq: VqConfig,
}

/// The vision tower of a fresh model; its patches are as large as the pixels of a code.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Vision {
    /// Width.
    #[schemars(range(min = 1))]
    pub hidden_size: i64,
    /// Width of the feed-forward layers.
    #[schemars(range(min = 1))]
    pub intermediate_size: i64,
    /// Layers.
    #[schemars(range(min = 1))]
    pub layers: i64,
    /// Attention heads.
    #[schemars(range(min = 1))]
    pub heads: i64,
}

impl Default for Vision {
    fn default() -> Self {
        Self { hidden_size: 64, intermediate_size: 128, layers: 2, heads: 2 }
    }
}

impl Default for Architecture {
    fn default() -> Self {
        Self {
            hidden_size: 96,
            intermediate_size: 256,
            layers: 3,
            heads: 3,
            key_value_heads: 3,
            grid: 4,
            words: Vec::new(),
            guidance: 1.0,
            temperature: 1.0,
            vision: Vision::default(),
            vq: VqConfig {
                base_channels: 16,
                channel_multiplier: vec![1, 2, 2, 2],
                num_res_blocks: 1,
                latent_channels: 32,
                num_embeddings: 1024,
                embed_dim: 8,
                norm_groups: 8,
            },
        }
    }
}

impl Architecture {
    /// The sizes of the network for a tokenizer of so many tokens.
    pub fn sizes(&self, vocab_size: i64) -> JanusConfig {
        let patch_size = self.vq.factor();
        JanusConfig {
            language: LlamaConfig {
                vocab_size,
                hidden_size: self.hidden_size,
                intermediate_size: self.intermediate_size,
                num_hidden_layers: self.layers,
                num_attention_heads: self.heads,
                num_key_value_heads: self.key_value_heads,
                head_dim: self.hidden_size / self.heads.max(1),
                ..LlamaConfig::default()
            },
            vision: SiglipConfig {
                hidden_size: self.vision.hidden_size,
                intermediate_size: self.vision.intermediate_size,
                num_hidden_layers: self.vision.layers,
                num_attention_heads: self.vision.heads,
                image_size: self.grid * patch_size,
                patch_size,
                ..SiglipConfig::default()
            },
            aligner_depth: 2,
            generation: GenerationConfig {
                codebook_size: self.vq.num_embeddings,
                embed_dim: self.vq.embed_dim,
                aligner_depth: 2,
                head_size: self.hidden_size,
            },
            vq: self.vq.clone(),
        }
    }
}
