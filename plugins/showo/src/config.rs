//! Sizes and special tokens: from a checkpoint's own files, or from the options of a fresh model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unirl::model::ImageSampling;
use unirl::weights::Weights;
use unirl::{Error, Result};
use unirl_layers::Precision;
use unirl_layers::lora::LoraConfig;
use unirl_layers::vqgan::{LevelSize, Norm};

/// Bounds which are far above any model, and keep a made-up file from filling the memory.
pub(crate) const MAX_LAYERS: i64 = 1000;
/// The same for the tokens of a prompt.
pub(crate) const MAX_TEXT_LEN: i64 = 1 << 16;

/// Options of the plugin.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ShowoConfig {
    /// The sizes of a fresh model; a checkpoint brings its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
    /// The folder of the image tokenizer (`showlab/magvitv2`); `magvitv2` in the checkpoint's folder or beside it
    /// without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<String>,
    /// The folder of the text tokenizer (`microsoft/phi-1_5`: `tokenizer.json`, or `vocab.json` and `merges.txt`); the
    /// checkpoint's own, or `phi-1_5` in it or beside it, without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text_tokenizer: Option<String>,
    /// The folder of the vision tower of a `w_clip_vit` checkpoint (`openai/clip-vit-large-patch14-336`); a folder of
    /// that name in the checkpoint's or beside it without one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip: Option<String>,
    /// How the share of hidden tokens falls while an image is drawn: `cosine` (the original's), `linear`, `sigmoid`, or
    /// `pow` with an exponent, as in `pow2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask_schedule: Option<String>,
    /// The type of the transformer's weights.
    pub precision: Precision,
    /// `M`, text tokens of a prompt, where it is to differ from the checkpoint's (128 where that says nothing).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 4, max = MAX_TEXT_LEN))]
    pub max_text_len: Option<i64>,
    /// Learn low-rank adapters instead of the weights themselves; `q_proj`, `k_proj`, `v_proj`, `dense`, `fc1` and `fc2` can
    /// have some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lora: Option<LoraConfig>,
    /// Remember only the input of each layer and compute the rest again on the way back: a third more arithmetic for
    /// a fraction of the memory.
    pub gradient_checkpointing: bool,
}

/// The sizes of a fresh model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// Width of the transformer.
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
    /// `M`, text tokens of a prompt.
    #[schemars(range(min = 4))]
    pub max_text_len: i64,
    /// Tokens along either edge of an image.
    #[schemars(range(min = 1))]
    pub grid: i64,
    /// The words of the tokenizer; none for those of the drawn world.
    pub words: Vec<String>,
    /// What the model reads before its answer.
    pub question_template: String,
    /// How the model is meant to draw; as the paper's without one.
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

/// `config.json` of a checkpoint. Published ones lack what follows `w_clip_vit`: sizes of the transformer are then those
/// of its weights, the rest are the defaults.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointConfig {
    /// `K`, image codes.
    pub codebook_size: i64,
    /// Tokens of the text tokenizer, before the special ones.
    pub llm_vocab_size: i64,
    /// `N`, tokens of an image.
    pub num_vq_tokens: i64,
    /// All tokens.
    pub vocab_size: i64,
    /// The token that hides an image token: the last one.
    pub mask_token_id: i64,
    /// Whether understanding reads CLIP features instead of image tokens.
    #[serde(default)]
    pub w_clip_vit: bool,
    /// Width of these features.
    #[serde(default = "default_clip_width")]
    pub clip_width: i64,
    /// Sizes of the transformer.
    #[serde(default)]
    pub phi: PhiConfig,
    /// The text's end token; the special ones follow from `llm_vocab_size`.
    #[serde(default)]
    pub ids: EndToken,
    /// `M`, text tokens of a prompt.
    #[serde(default = "default_max_text_len")]
    pub max_text_len: i64,
    /// Rows and columns of image tokens; square by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_grid: Option<[i64; 2]>,
    /// What the model reads before its answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub question_template: Option<String>,
    /// How the model is meant to draw.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<ImageSampling>,
}

fn default_clip_width() -> i64 {
    1024
}

fn default_max_text_len() -> i64 {
    128
}

/// The one text token that is begin, end and separator.
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
    /// Width.
    pub hidden_size: i64,
    /// Width of the feed-forward layers.
    pub intermediate_size: i64,
    /// Layers.
    pub num_hidden_layers: i64,
    /// Attention heads.
    pub num_attention_heads: i64,
    /// The share of a head that is rotated.
    pub partial_rotary_factor: f64,
    /// Base of the rotary frequencies.
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
    /// The sizes of weights; where a weight is missing, those of Phi-1.5.
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

    /// Width of a head.
    pub fn head_dim(&self) -> i64 {
        self.hidden_size / self.num_attention_heads.max(1)
    }

    /// The dimensions of a head that are rotated.
    pub fn rotary_dim(&self) -> i64 {
        (self.partial_rotary_factor * self.head_dim() as f64) as i64
    }
}

/// Sizes of the image tokenizer; the default is the published one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct MagvitConfig {
    /// Bits of a code: `K = 2^z_channels`.
    #[schemars(range(min = 1, max = 30))]
    pub z_channels: i64,
    /// Groups of the group normalisation.
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

/// One half of the image tokenizer, level 0 at the resolution of the pixels.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Pyramid {
    /// Channels at a multiplier of 1.
    #[schemars(range(min = 1))]
    pub ch: i64,
    /// Multipliers by level.
    #[schemars(length(min = 1), inner(range(min = 1)))]
    pub ch_mult: Vec<i64>,
    /// Residual blocks by level.
    #[schemars(length(min = 1), inner(range(min = 1)))]
    pub num_res_blocks: Vec<i64>,
}

impl Pyramid {
    /// The sizes of the blocks, level 0 first.
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

/// How many numbers from 0 on are there, one after the other.
fn count_while(there: impl Fn(i64) -> bool) -> i64 {
    let mut count = 0;
    while there(count) {
        count += 1;
    }
    count
}

impl MagvitConfig {
    /// The sizes of weights; where a weight is missing, the published ones.
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
        // The narrowest level is the one at the resolution of the pixels.
        let narrow = |name: &str, default: &Pyramid| size(name).unwrap_or(default.ch);
        let encoder = pyramid("encoder.down", narrow("encoder.conv_in.weight", &default.encoder));
        let decoder = pyramid("decoder.up", narrow("decoder.norm_out.weight", &default.decoder));
        Self {
            z_channels: size("encoder.quant_conv.weight").unwrap_or(default.z_channels),
            encoder: known(encoder, default.encoder),
            decoder: known(decoder, default.decoder),
            ..Self::default()
        }
    }

    /// `K`.
    pub fn codebook_size(&self) -> i64 {
        1 << self.z_channels
    }

    /// Pixels along the edge of a token.
    pub fn factor(&self) -> i64 {
        1 << (self.encoder.ch_mult.len() - 1)
    }

    /// How its channels are normalised.
    pub fn norm(&self) -> Norm {
        Norm { groups: self.norm_groups, eps: self.norm_eps }
    }

    /// Refuses sizes that do not fit together.
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
                    "magvit {name}: expected channels that {} groups divide, got {} times {:?}",
                    self.norm_groups, half.ch, half.ch_mult
                )));
            }
        }
        if self.encoder.ch_mult.len() != self.decoder.ch_mult.len() {
            return Err(Error::usage("magvit: encoder and decoder have different numbers of levels"));
        }
        Ok(())
    }
}

/// The special tokens that follow the text tokens, in the order in which Show-o added them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Special {
    /// Begin, end and separator of text.
    pub eos: i64,
    /// Padding.
    pub pad: i64,
    /// Start of an image.
    pub soi: i64,
    /// End of an image.
    pub eoi: i64,
    /// Task: text to image.
    pub t2i: i64,
    /// Task: understanding.
    pub mmu: i64,
    /// Image code 0.
    pub image: i64,
    /// A hidden image token.
    pub mask: i64,
}

impl CheckpointConfig {
    /// Tokens added behind the text tokens: padding, and nine of which five are used.
    const NEW_TOKENS: i64 = 10;

    /// The configuration of a fresh model with a word-level tokenizer of `words` words, unknown and end token
    /// included.
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

    /// What the model reads before its answer; `{question}` stands for the question. Behind CLIP features the original
    /// leaves out the line break.
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

    /// Refuses sizes that do not fit together, naming `file`.
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
        let positive =
            [phi.hidden_size, phi.intermediate_size, phi.num_hidden_layers, phi.num_attention_heads];
        if positive.into_iter().chain([self.codebook_size, self.max_text_len]).any(|size| size < 1) {
            return Err(Error::failure(format!("`{file}`: a size is not positive: {phi:?}")));
        }
        for (name, size, most) in [
            ("phi.num_hidden_layers", phi.num_hidden_layers, MAX_LAYERS),
            ("max_text_len", self.max_text_len, MAX_TEXT_LEN),
        ] {
            if size > most {
                return Err(Error::failure(format!(
                    "`{file}`: `{name}`: expected at most {most}, got {size}"
                )));
            }
        }
        expect("phi.hidden_size", self.phi.head_dim() * self.phi.num_attention_heads, self.phi.hidden_size)?;
        if self.phi.head_dim() % 2 != 0 || self.phi.rotary_dim() % 2 != 0 || self.phi.rotary_dim() == 0 {
            return Err(Error::failure(format!(
                "`{file}`: expected heads of which an even number of dimensions is rotated, got {} of {}",
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
    fn sizes_that_would_fill_the_memory_are_refused() {
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
