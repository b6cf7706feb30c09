//! Sizes and special tokens, from a checkpoint's files or from the options of a fresh model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unirl::model::ImageSampling;
use unirl::weights::Weights;
use unirl::{Error, Result};
use unirl_layers::Precision;
use unirl_layers::checkpoint::{MAX_LAYERS, check_at_most, check_positive};
use unirl_layers::lora::LoraConfig;
use unirl_layers::vqgan::{LevelSize, Norm};

/// See [`MAX_LAYERS`].
pub(crate) const MAX_TEXT_LEN: i64 = 1 << 16;

/// Options of the plugin `showo`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ShowoConfig {
    /// Sizes of a fresh model. Not allowed with a checkpoint, which has its own sizes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
    /// The folder of the image tokenizer (`showlab/magvitv2`). Default: `magvitv2` in the checkpoint's folder or next to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// The folder of the text tokenizer (`microsoft/phi-1_5`: `tokenizer.json`, or `vocab.json` and `merges.txt`). Default: the
    /// checkpoint's folder, or `phi-1_5` in it or next to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_tokenizer: Option<String>,
    /// The folder of the vision encoder of a `w_clip_vit` checkpoint (`openai/clip-vit-large-patch14-336`). Default:
    /// `clip-vit-large-patch14-336` in the checkpoint's folder or next to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<String>,
    /// The mask schedule: how the share of masked tokens falls during generation. `cosine` (as in Show-o), `linear`, `sigmoid`,
    /// or `pow` with an exponent, such as `pow2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_schedule: Option<String>,
    /// The data type of the transformer's weights.
    pub precision: Precision,
    /// `M`, the maximum number of text tokens of a prompt. Default: the checkpoint's, or 128.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 4, max = MAX_TEXT_LEN))]
    pub max_text_len: Option<i64>,
    /// Train LoRA adapters instead of the weights. Possible targets: `q_proj`, `k_proj`, `v_proj`, `dense`, `fc1`, `fc2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Gradient checkpointing: keep only the input of each layer and recompute its activations in the backward pass. A third
    /// more computation for a fraction of the memory.
    pub gradient_checkpointing: bool,
}

/// Sizes of a fresh model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// The width of the transformer.
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
    /// `M`, the maximum number of text tokens of a prompt.
    #[schemars(range(min = 4))]
    pub max_text_len: i64,
    /// Tokens along either edge of an image.
    #[schemars(range(min = 1))]
    pub grid: i64,
    /// The vocabulary of the text tokenizer. Default: the words of the tiles benchmark.
    pub words: Vec<String>,
    /// The template of a question, with `{question}` in it.
    pub question_template: String,
    /// Default image sampling. Default: the paper's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling: Option<ImageSampling>,
    /// The image tokenizer.
    pub magvit: MagvitConfig,
}

impl Default for Architecture {
    fn default() -> Self {
        Self {
            hidden_size: 96,
            intermediate_size: 288,
            layers: 3,
            heads: 3,
            max_text_len: 20,
            grid: 4,
            words: Vec::new(),
            question_template: "{question}".into(),
            sampling: None,
            magvit: MagvitConfig {
                z_channels: 10,
                norm_groups: 8,
                encoder: Pyramid { ch: 16, ch_mult: vec![1, 2, 2, 2], num_res_blocks: vec![1, 1, 1, 1] },
                decoder: Pyramid { ch: 16, ch_mult: vec![1, 2, 2, 2], num_res_blocks: vec![1, 1, 1, 1] },
                ..MagvitConfig::default()
            },
        }
    }
}

/// `config.json` of a checkpoint. Published files lack the keys after `w_clip_vit`: the transformer's sizes then come from its
/// weights, the rest are defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointConfig {
    /// `K`, the number of image codes.
    pub codebook_size: i64,
    /// The size of the text vocabulary, without special tokens.
    pub llm_vocab_size: i64,
    /// `N`, the number of image tokens.
    pub num_vq_tokens: i64,
    /// The size of the whole vocabulary.
    pub vocab_size: i64,
    /// The mask token, which is the last one.
    pub mask_token_id: i64,
    /// Whether understanding uses CLIP features instead of image tokens.
    #[serde(default)]
    pub w_clip_vit: bool,
    /// The width of CLIP features.
    #[serde(default = "default_clip_width")]
    pub clip_width: i64,
    /// Sizes of the transformer.
    #[serde(default)]
    pub phi: PhiConfig,
    /// The end token of text; the other special tokens follow from `llm_vocab_size`.
    #[serde(default)]
    pub ids: EndToken,
    /// `M`, the maximum number of text tokens of a prompt.
    #[serde(default = "default_max_text_len")]
    pub max_text_len: i64,
    /// Rows and columns of image tokens. Default: a square.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_grid: Option<[i64; 2]>,
    /// The template of a question, with `{question}` in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question_template: Option<String>,
    /// Default image sampling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<ImageSampling>,
}

fn default_clip_width() -> i64 {
    1024
}

fn default_max_text_len() -> i64 {
    128
}

/// The text token that begins, ends and separates texts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EndToken {
    /// Its id.
    pub eos: i64,
}

impl Default for EndToken {
    fn default() -> Self {
        Self { eos: 50_256 }
    }
}

/// Sizes of the transformer; the default is Phi-1.5.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PhiConfig {
    /// The width.
    pub hidden_size: i64,
    /// The hidden width of the feed-forward networks.
    pub intermediate_size: i64,
    /// The number of layers.
    pub num_hidden_layers: i64,
    /// The number of attention heads.
    pub num_attention_heads: i64,
    /// The share of a head's dimensions that is rotated.
    pub partial_rotary_factor: f64,
    /// The base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added to variances.
    pub layer_norm_eps: f64,
}

impl Default for PhiConfig {
    fn default() -> Self {
        Self {
            hidden_size: 2048,
            intermediate_size: 8192,
            num_hidden_layers: 24,
            num_attention_heads: 32,
            partial_rotary_factor: 0.5,
            rope_theta: 10_000.0,
            layer_norm_eps: 1e-5,
        }
    }
}

impl PhiConfig {
    /// Infers the sizes from weights, with Phi-1.5's for missing weights.
    pub fn of(weights: &Weights) -> Self {
        let default = Self::default();
        let size = |name: &str, at: usize| {
            weights.shape(&format!("showo.model.{name}")).and_then(|shape| shape.get(at)).copied()
        };
        let layers = count_while(|i| size(&format!("layers.{i}.mlp.fc1.weight"), 0).is_some());
        let hidden_size = size("embed_tokens.weight", 1).unwrap_or(default.hidden_size);
        let head_dim = size("layers.0.self_attn.q_layernorm.weight", 0).unwrap_or(default.head_dim()).max(1);
        Self {
            hidden_size,
            intermediate_size: size("layers.0.mlp.fc1.weight", 0).unwrap_or(default.intermediate_size),
            num_hidden_layers: if layers == 0 { default.num_hidden_layers } else { layers },
            num_attention_heads: hidden_size / head_dim,
            ..default
        }
    }

    /// The width of a head.
    pub fn head_dim(&self) -> i64 {
        self.hidden_size / self.num_attention_heads.max(1)
    }

    /// The number of rotated dimensions of a head.
    pub fn rotary_dim(&self) -> i64 {
        (self.partial_rotary_factor * self.head_dim() as f64) as i64
    }
}

/// Sizes of the image tokenizer; the default is the published MAGVIT-v2.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MagvitConfig {
    /// Bits of a code: `K = 2^z_channels`.
    #[schemars(range(min = 1, max = 30))]
    pub z_channels: i64,
    /// The number of groups of group normalization.
    #[schemars(range(min = 1))]
    pub norm_groups: i64,
    /// Added to variances.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub norm_eps: f64,
    /// Pixels to latents.
    pub encoder: Pyramid,
    /// Latents to pixels.
    pub decoder: Pyramid,
}

/// The encoder or decoder of the image tokenizer; level 0 has the resolution of the pixels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pyramid {
    /// Base channels.
    #[schemars(range(min = 1))]
    pub ch: i64,
    /// Channel multipliers by level.
    #[schemars(length(min = 1), inner(range(min = 1)))]
    pub ch_mult: Vec<i64>,
    /// Residual blocks by level.
    #[schemars(length(min = 1), inner(range(min = 1)))]
    pub num_res_blocks: Vec<i64>,
}

impl Pyramid {
    /// The sizes of each level, level 0 first.
    pub fn levels(&self) -> Vec<LevelSize> {
        let sizes = self.ch_mult.iter().zip(&self.num_res_blocks).enumerate();
        sizes
            .map(|(index, (mult, blocks))| LevelSize {
                index,
                channels: self.ch * mult,
                blocks: *blocks,
                attention: false,
            })
            .collect()
    }
}

impl Default for MagvitConfig {
    fn default() -> Self {
        Self {
            z_channels: 13,
            norm_groups: 32,
            norm_eps: 1e-6,
            encoder: Pyramid { ch: 128, ch_mult: vec![1, 2, 2, 4, 4], num_res_blocks: vec![4, 3, 4, 3, 4] },
            decoder: Pyramid { ch: 128, ch_mult: vec![1, 1, 2, 2, 4], num_res_blocks: vec![4, 4, 3, 4, 3] },
        }
    }
}

/// The number of consecutive indices from 0 on that exist.
fn count_while(exists: impl Fn(i64) -> bool) -> i64 {
    let mut count = 0;
    while exists(count) {
        count += 1;
    }
    count
}

impl MagvitConfig {
    /// Infers the sizes from weights, with the published ones for missing weights.
    pub fn of(weights: &Weights) -> Self {
        let default = Self::default();
        let size = |name: &str| weights.shape(name).and_then(|shape| shape.first()).copied();
        let pyramid = |path: &str, ch: i64| {
            let block = |level: i64, block: i64| size(&format!("{path}.{level}.block.{block}.conv1.weight"));
            let levels = count_while(|level| block(level, 0).is_some());
            Pyramid {
                ch,
                ch_mult: (0..levels)
                    .filter_map(|level| block(level, 0))
                    .map(|width| width / ch.max(1))
                    .collect(),
                num_res_blocks: (0..levels).map(|level| count_while(|j| block(level, j).is_some())).collect(),
            }
        };
        let known = |found: Pyramid, default: Pyramid| if found.ch_mult.is_empty() { default } else { found };
        // The level at the resolution of the pixels is the narrowest: its width is the base width.
        let base = |name: &str, default: &Pyramid| size(name).unwrap_or(default.ch);
        let encoder = pyramid("encoder.down", base("encoder.conv_in.weight", &default.encoder));
        let decoder = pyramid("decoder.up", base("decoder.norm_out.weight", &default.decoder));
        Self {
            z_channels: size("encoder.quant_conv.weight").unwrap_or(default.z_channels),
            encoder: known(encoder, default.encoder),
            decoder: known(decoder, default.decoder),
            ..Self::default()
        }
    }

    /// `K`, the number of image codes.
    pub fn codebook_size(&self) -> i64 {
        1 << self.z_channels
    }

    /// Pixels along the edge of a token.
    pub fn factor(&self) -> i64 {
        1 << (self.encoder.ch_mult.len() - 1)
    }

    /// Group normalization.
    pub fn norm(&self) -> Norm {
        Norm { groups: self.norm_groups, eps: self.norm_eps }
    }

    /// Errors if the sizes are inconsistent.
    pub fn check(&self) -> Result<()> {
        for (name, half) in [("encoder", &self.encoder), ("decoder", &self.decoder)] {
            if half.ch_mult.len() != half.num_res_blocks.len() || half.ch_mult.is_empty() {
                return Err(Error::usage(format!(
                    "magvit {name}: expected as many `num_res_blocks` as `ch_mult`, got {} and {}",
                    half.num_res_blocks.len(),
                    half.ch_mult.len()
                )));
            }
            if half.ch_mult.iter().any(|mult| half.ch * mult % self.norm_groups != 0) {
                return Err(Error::usage(format!(
                    "magvit {name}: expected channels divisible by {} groups, got {} times {:?}",
                    self.norm_groups, half.ch, half.ch_mult
                )));
            }
        }
        if self.encoder.ch_mult.len() != self.decoder.ch_mult.len() {
            return Err(Error::usage(format!(
                "magvit: expected as many levels in the decoder as in the encoder, got {} and {}",
                self.decoder.ch_mult.len(),
                self.encoder.ch_mult.len()
            )));
        }
        Ok(())
    }
}

/// The special tokens, in the order in which Show-o adds them after the text tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Special {
    /// Begins, ends and separates texts.
    pub eos: i64,
    /// Padding.
    pub pad: i64,
    /// Start of an image.
    pub soi: i64,
    /// End of an image.
    pub eoi: i64,
    /// Marks generation.
    pub t2i: i64,
    /// Marks understanding.
    pub mmu: i64,
    /// Image code 0.
    pub image: i64,
    /// A masked image token.
    pub mask: i64,
}

impl CheckpointConfig {
    /// Tokens that Show-o adds after the text tokens: padding and nine others, of which five are used.
    const NEW_TOKENS: i64 = 10;

    /// The configuration of a fresh model with a word-level tokenizer of `words` tokens, including unknown and end token.
    pub fn fresh(architecture: &Architecture, words: i64) -> Self {
        let codebook_size = architecture.magvit.codebook_size();
        let vocab_size = words + Self::NEW_TOKENS + codebook_size + 1;
        Self {
            codebook_size,
            llm_vocab_size: words,
            num_vq_tokens: architecture.grid * architecture.grid,
            vocab_size,
            mask_token_id: vocab_size - 1,
            w_clip_vit: false,
            clip_width: default_clip_width(),
            phi: PhiConfig {
                hidden_size: architecture.hidden_size,
                intermediate_size: architecture.intermediate_size,
                num_hidden_layers: architecture.layers,
                num_attention_heads: architecture.heads,
                ..PhiConfig::default()
            },
            ids: EndToken { eos: words - 1 },
            max_text_len: architecture.max_text_len,
            image_grid: Some([architecture.grid; 2]),
            question_template: Some(architecture.question_template.clone()),
            sampling: architecture.sampling.clone(),
        }
    }

    /// The special tokens.
    pub fn special(&self) -> Special {
        let pad = self.llm_vocab_size;
        Special {
            eos: self.ids.eos,
            pad,
            soi: pad + 1,
            eoi: pad + 2,
            t2i: pad + 5,
            mmu: pad + 6,
            image: pad + Self::NEW_TOKENS,
            mask: self.mask_token_id,
        }
    }

    /// The template of a question, with `{question}` in it. With CLIP features the original omits the line break.
    pub fn question_template(&self) -> &str {
        let default =
            if self.w_clip_vit { "USER: {question} ASSISTANT:" } else { "USER: \n{question} ASSISTANT:" };
        self.question_template.as_deref().unwrap_or(default)
    }

    /// Rows and columns of image tokens.
    pub fn grid(&self) -> (i64, i64) {
        let edge = (self.num_vq_tokens as f64).sqrt().round() as i64;
        self.image_grid.map_or((edge, edge), |[rows, columns]| (rows, columns))
    }

    /// Errors if the sizes are inconsistent; `file` names the source.
    pub fn check(&self, file: &str) -> Result<()> {
        let expect = |name: &str, expected: i64, got: i64| {
            if expected == got {
                return Ok(());
            }
            Err(Error::failure(format!("`{file}`: `{name}`: expected {expected}, got {got}")))
        };
        let (rows, columns) = self.grid();
        expect("num_vq_tokens", rows * columns, self.num_vq_tokens)?;
        expect("vocab_size", self.special().image + self.codebook_size + 1, self.vocab_size)?;
        expect("mask_token_id", self.vocab_size - 1, self.mask_token_id)?;
        let phi = &self.phi;
        let layers = ("phi.num_hidden_layers", phi.num_hidden_layers);
        let text = ("max_text_len", self.max_text_len);
        check_positive(
            file,
            [
                ("phi.hidden_size", phi.hidden_size),
                ("phi.intermediate_size", phi.intermediate_size),
                layers,
                ("phi.num_attention_heads", phi.num_attention_heads),
                ("codebook_size", self.codebook_size),
                text,
            ],
        )?;
        check_at_most(file, layers, MAX_LAYERS)?;
        check_at_most(file, text, MAX_TEXT_LEN)?;
        expect("phi.hidden_size", self.phi.head_dim() * self.phi.num_attention_heads, self.phi.hidden_size)?;
        if self.phi.head_dim() % 2 != 0 || self.phi.rotary_dim() % 2 != 0 || self.phi.rotary_dim() == 0 {
            return Err(Error::failure(format!(
                "`{file}`: expected an even head width with an even, positive number of rotated dimensions, got {} of {}",
                self.phi.rotary_dim(),
                self.phi.head_dim()
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_sizes_beyond_the_bounds_are_refused() {
        let config = CheckpointConfig::fresh(&Architecture::default(), 100);
        config.check("config.json").unwrap();
        let mut deep = config.clone();
        deep.phi.num_hidden_layers = 1_000_000_000;
        let mut long = config;
        long.max_text_len = 1 << 40;
        for (config, expected) in [
            (deep, "`config.json`: `phi.num_hidden_layers`: expected at most 1000, got 1000000000"),
            (long, "`config.json`: `max_text_len`: expected at most 65536, got 1099511627776"),
        ] {
            assert_eq!(config.check("config.json").unwrap_err().message(), expected);
        }
    }
}
