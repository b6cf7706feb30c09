//! Options of the plugin `janus`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unirl_layers::Precision;

use crate::config::{GenerationConfig, JanusConfig, LlamaConfig, SiglipConfig};
use crate::vq::VqConfig;

/// Options of the plugin `janus`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JanusOptions {
    /// Sizes of a fresh model. Not allowed with a checkpoint, which has its own sizes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
    /// The folder of `tokenizer.json`. Default: the checkpoint's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_tokenizer: Option<String>,
    /// The system prompt before a question. Default: the original's ("You are a helpful language and vision assistant. …"),
    /// or none if `processor_config.json` disables it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// The data type of the weights. The image tokenizer is always f32.
    pub precision: Precision,
    /// Gradient checkpointing of the language model: keep only the input of each layer and recompute its activations in the
    /// backward pass. A third more computation for a fraction of the memory.
    pub gradient_checkpointing: bool,
}

/// Sizes of a fresh model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// The width of the language model.
    #[schemars(range(min = 1))]
    pub hidden_size: i64,
    /// The hidden width of its feed-forward networks.
    #[schemars(range(min = 1))]
    pub intermediate_size: i64,
    /// The number of layers.
    #[schemars(range(min = 1))]
    pub layers: i64,
    /// The number of attention heads.
    #[schemars(range(min = 1))]
    pub heads: i64,
    /// The number of key and value heads.
    #[schemars(range(min = 1))]
    pub key_value_heads: i64,
    /// Tokens along either edge of an image.
    #[schemars(range(min = 1))]
    pub grid: i64,
    /// The vocabulary of the text tokenizer. Default: the words of the tiles benchmark.
    pub words: Vec<String>,
    /// Default guidance of generation; 1 is none.
    #[schemars(range(min = 0.0))]
    pub guidance: f64,
    /// Default sampling temperature of generation.
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// The vision encoder.
    pub vision: Vision,
    /// The image tokenizer.
    pub vq: VqConfig,
}

/// The vision encoder of a fresh model; a patch covers the pixels of one image token.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Vision {
    /// The width.
    #[schemars(range(min = 1))]
    pub hidden_size: i64,
    /// The hidden width of the feed-forward networks.
    #[schemars(range(min = 1))]
    pub intermediate_size: i64,
    /// The number of layers.
    #[schemars(range(min = 1))]
    pub layers: i64,
    /// The number of attention heads.
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
    /// The sizes of the network for a tokenizer of `vocab_size` tokens.
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
