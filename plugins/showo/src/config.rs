//! Sizes and special tokens: from a checkpoint's own files, or from the options of a fresh model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unirl::{Error, Result};

/// Options of the plugin.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ShowoConfig {
    /// The sizes of a fresh model; a checkpoint brings its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
}

/// The sizes of a fresh model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Architecture {
    /// Width of the transformer.
    pub hidden_size: i64,
    /// Width of its feed-forward layers.
    pub intermediate_size: i64,
    /// Its layers.
    pub layers: i64,
    /// Its attention heads.
    pub heads: i64,
    /// `M`, text tokens of a prompt.
    pub max_text_len: i64,
    /// Tokens along either edge of an image.
    pub grid: i64,
    /// The words of the tokenizer; none for those of the drawn world.
    pub words: Vec<String>,
    /// What the model reads before its answer.
    pub question_template: String,
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

/// `config.json` of a checkpoint. Published ones lack what follows `mask_token_id`: their values are the
/// defaults.
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
    #[serde(default = "default_template")]
    pub question_template: String,
}

fn default_max_text_len() -> i64 {
    128
}

fn default_template() -> String {
    "USER: \n{question} ASSISTANT:".into()
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
    /// Width of a head.
    pub fn head_dim(&self) -> i64 {
        self.hidden_size / self.num_attention_heads
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
    pub z_channels: i64,
    /// Groups of the group normalisation.
    pub norm_groups: i64,
    /// Added to variances.
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
    pub ch: i64,
    /// Multipliers by level.
    pub ch_mult: Vec<i64>,
    /// Residual blocks by level.
    pub num_res_blocks: Vec<i64>,
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

impl MagvitConfig {
    /// `K`.
    pub fn codebook_size(&self) -> i64 {
        1 << self.z_channels
    }

    /// Pixels along the edge of a token.
    pub fn factor(&self) -> i64 {
        1 << (self.encoder.ch_mult.len() - 1)
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
            question_template: architecture.question_template.clone(),
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
        if self.w_clip_vit {
            return Err(Error::failure(format!(
                "`{file}`: checkpoints that read CLIP features are not supported"
            ))
            .hint("use one without `w-clip-vit` in its name"));
        }
        let (rows, columns) = self.grid();
        expect("num_vq_tokens", rows * columns, self.num_vq_tokens)?;
        expect("vocab_size", self.special().image + self.codebook_size + 1, self.vocab_size)?;
        expect("mask_token_id", self.vocab_size - 1, self.mask_token_id)?;
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
