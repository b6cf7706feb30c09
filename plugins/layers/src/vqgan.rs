//! The convolutional encoder and decoder of VQGAN (taming-transformers) and of the image tokenizers derived from it. Each
//! family brings its own quantizer. Pixels and latents are `[B,C,H,W]`.
//!
//! `name` maps the name of a module to its name in the checkpoint, which differs between families. The modules are
//! `conv_in`, `down.{index}.block.{j}` (in the decoder `up.…`), `down.{index}.attn.{j}`, `down.{index}.downsample.conv`
//! (`up.{index}.upsample.conv`), `mid.block_1`, `mid.attn_1`, `mid.block_2`, `norm_out` and `conv_out`.

use tch::{Kind, Tensor};
use unirl::Result;
use unirl::weights::{Init, Store};

/// A convolution with a bias.
pub struct Conv {
    weight: Tensor,
    bias: Tensor,
}

impl Conv {
    /// Takes `{name}.weight [outputs,inputs,size,size]` and `{name}.bias` from `store`.
    pub fn take(store: &mut Store, name: &str, inputs: i64, outputs: i64, size: i64) -> Result<Self> {
        Self::take_with(store, name, [outputs, inputs, size], Init::Fan(inputs * size * size))
    }

    /// The last convolution of a residual branch, initialized to zero: a fresh block is the identity, so deep stacks are stable.
    fn take_zero_init(store: &mut Store, name: &str, channels: i64, size: i64) -> Result<Self> {
        Self::take_with(store, name, [channels, channels, size], Init::Zeros)
    }

    fn take_with(
        store: &mut Store,
        name: &str,
        [outputs, inputs, size]: [i64; 3],
        init: Init,
    ) -> Result<Self> {
        Ok(Self {
            weight: store.take(&format!("{name}.weight"), &[outputs, inputs, size, size], init)?,
            bias: store.take(&format!("{name}.bias"), &[outputs], Init::Zeros)?,
        })
    }

    /// Keeps the resolution of `x`.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        self.strided(x, 1, self.weight.size()[2] / 2)
    }

    fn strided(&self, x: &Tensor, stride: i64, padding: i64) -> Tensor {
        x.conv2d(&self.weight, Some(&self.bias), [stride, stride], [padding, padding], [1, 1], 1)
    }
}

/// Group normalization.
#[derive(Debug, Clone, Copy)]
pub struct Norm {
    /// The number of groups.
    pub groups: i64,
    /// Added to variances.
    pub eps: f64,
}

struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    norm: Norm,
}

impl GroupNorm {
    fn take(store: &mut Store, name: &str, channels: i64, norm: Norm) -> Result<Self> {
        Ok(Self {
            weight: store.take(&format!("{name}.weight"), &[channels], Init::Ones)?,
            bias: store.take(&format!("{name}.bias"), &[channels], Init::Zeros)?,
            norm,
        })
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        x.group_norm(self.norm.groups, Some(&self.weight), Some(&self.bias), self.norm.eps, true)
    }
}

struct Residual {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
    shortcut: Option<Conv>,
}

impl Residual {
    fn take(store: &mut Store, name: &str, inputs: i64, outputs: i64, norm: Norm) -> Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        Ok(Self {
            norm1: GroupNorm::take(store, &part("norm1"), inputs, norm)?,
            conv1: Conv::take(store, &part("conv1"), inputs, outputs, 3)?,
            norm2: GroupNorm::take(store, &part("norm2"), outputs, norm)?,
            conv2: Conv::take_zero_init(store, &part("conv2"), outputs, 3)?,
            shortcut: (inputs != outputs)
                .then(|| Conv::take(store, &part("nin_shortcut"), inputs, outputs, 1))
                .transpose()?,
        })
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        let h = self.conv1.apply(&self.norm1.apply(x).silu());
        let h = self.conv2.apply(&self.norm2.apply(&h).silu());
        match &self.shortcut {
            Some(shortcut) => shortcut.apply(x) + h,
            None => x + h,
        }
    }
}

/// Single-head self-attention over all positions.
struct Attention {
    norm: GroupNorm,
    query: Conv,
    key: Conv,
    value: Conv,
    out: Conv,
}

impl Attention {
    fn take(store: &mut Store, name: &str, channels: i64, norm: Norm) -> Result<Self> {
        let conv = |store: &mut Store, part: &str| {
            Conv::take(store, &format!("{name}.{part}"), channels, channels, 1)
        };
        Ok(Self {
            norm: GroupNorm::take(store, &format!("{name}.norm"), channels, norm)?,
            query: conv(store, "q")?,
            key: conv(store, "k")?,
            value: conv(store, "v")?,
            out: Conv::take_zero_init(store, &format!("{name}.proj_out"), channels, 1)?,
        })
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        let size = x.size(); // [B,C,h,w]
        let h = self.norm.apply(x);
        let rows = |conv: &Conv| conv.apply(&h).flatten(2, 3).transpose(1, 2); // [B,h·w,C]
        let scores = rows(&self.query).matmul(&rows(&self.key).transpose(1, 2)) / (size[1] as f64).sqrt();
        let attended =
            scores.softmax(-1, Kind::Float).matmul(&rows(&self.value)).transpose(1, 2).reshape(&size);
        x + self.out.apply(&attended)
    }
}

/// Residual block, attention, residual block.
struct Middle {
    block_1: Residual,
    attention: Attention,
    block_2: Residual,
}

impl Middle {
    fn take(store: &mut Store, name: &dyn Fn(&str) -> String, channels: i64, norm: Norm) -> Result<Self> {
        Ok(Self {
            block_1: Residual::take(store, &name("mid.block_1"), channels, channels, norm)?,
            attention: Attention::take(store, &name("mid.attn_1"), channels, norm)?,
            block_2: Residual::take(store, &name("mid.block_2"), channels, channels, norm)?,
        })
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        self.block_2.apply(&self.attention.apply(&self.block_1.apply(x)))
    }
}

/// The sizes of the blocks at one resolution.
#[derive(Debug, Clone, Copy)]
pub struct LevelSize {
    /// The index in the names of the weights.
    pub index: usize,
    /// Channels after the first block.
    pub channels: i64,
    /// The number of residual blocks.
    pub blocks: i64,
    /// Whether attention follows each block.
    pub attention: bool,
}

struct Level {
    blocks: Vec<(Residual, Option<Attention>)>,
    /// Halves (encoder) or doubles (decoder) the resolution.
    resize: Option<Conv>,
}

impl Level {
    fn apply(&self, x: Tensor) -> Tensor {
        self.blocks.iter().fold(x, |x, (block, attention)| {
            let x = block.apply(&x);
            match attention {
                Some(attention) => attention.apply(&x),
                None => x,
            }
        })
    }
}

/// Takes all levels; each but the last ends with a change of resolution. Also returns the channels after them.
fn take_levels(
    store: &mut Store,
    name: &dyn Fn(&str) -> String,
    (path, resize): (&str, &str),
    mut channels: i64,
    sizes: &[LevelSize],
    norm: Norm,
) -> Result<(Vec<Level>, i64)> {
    let mut levels = Vec::new();
    for (at, size) in sizes.iter().enumerate() {
        let part = |part: &str| name(&format!("{path}.{}.{part}", size.index));
        let mut blocks = Vec::new();
        for block in 0..size.blocks {
            let residual =
                Residual::take(store, &part(&format!("block.{block}")), channels, size.channels, norm)?;
            channels = size.channels;
            let attention = size
                .attention
                .then(|| Attention::take(store, &part(&format!("attn.{block}")), channels, norm))
                .transpose()?;
            blocks.push((residual, attention));
        }
        let resize = (at + 1 < sizes.len())
            .then(|| Conv::take(store, &part(&format!("{resize}.conv")), channels, channels, 3))
            .transpose()?;
        levels.push(Level { blocks, resize });
    }
    Ok((levels, channels))
}

/// Pixels to latents.
pub struct Encoder {
    conv_in: Conv,
    levels: Vec<Level>,
    middle: Middle,
    norm_out: GroupNorm,
    conv_out: Conv,
}

impl Encoder {
    /// Takes its weights from `store`: `channels` after `conv_in`, then `levels` from the finest on, `latents` output channels.
    pub fn take(
        store: &mut Store,
        name: &dyn Fn(&str) -> String,
        channels: i64,
        levels: &[LevelSize],
        latents: i64,
        norm: Norm,
    ) -> Result<Self> {
        let conv_in = Conv::take(store, &name("conv_in"), 3, channels, 3)?;
        let (levels, channels) = take_levels(store, name, ("down", "downsample"), channels, levels, norm)?;
        Ok(Self {
            conv_in,
            levels,
            middle: Middle::take(store, name, channels, norm)?,
            norm_out: GroupNorm::take(store, &name("norm_out"), channels, norm)?,
            conv_out: Conv::take(store, &name("conv_out"), channels, latents, 3)?,
        })
    }

    /// Pixels `[B,3,H,W]` to latents `[B,latents,h,w]`.
    pub fn apply(&self, pixels: &Tensor) -> Tensor {
        let mut x = self.conv_in.apply(pixels);
        for level in &self.levels {
            x = level.apply(x);
            if let Some(conv) = &level.resize {
                x = conv.strided(&x.constant_pad_nd([0, 1, 0, 1]), 2, 0); // right and bottom only
            }
        }
        self.conv_out.apply(&self.norm_out.apply(&self.middle.apply(&x)).silu())
    }
}

/// Latents to pixels.
pub struct Decoder {
    conv_in: Conv,
    middle: Middle,
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv,
}

impl Decoder {
    /// Takes its weights from `store`: `latents` input channels, then `levels` from the coarsest on.
    pub fn take(
        store: &mut Store,
        name: &dyn Fn(&str) -> String,
        latents: i64,
        levels: &[LevelSize],
        norm: Norm,
    ) -> Result<Self> {
        let channels = levels[0].channels;
        let conv_in = Conv::take(store, &name("conv_in"), latents, channels, 3)?;
        let middle = Middle::take(store, name, channels, norm)?;
        let (levels, channels) = take_levels(store, name, ("up", "upsample"), channels, levels, norm)?;
        Ok(Self {
            conv_in,
            middle,
            levels,
            norm_out: GroupNorm::take(store, &name("norm_out"), channels, norm)?,
            conv_out: Conv::take(store, &name("conv_out"), channels, 3, 3)?,
        })
    }

    /// Latents `[B,latents,h,w]` to pixels `[B,3,H,W]`, not clamped.
    pub fn apply(&self, latents: &Tensor) -> Tensor {
        let mut x = self.middle.apply(&self.conv_in.apply(latents));
        for level in &self.levels {
            x = level.apply(x);
            if let Some(conv) = &level.resize {
                let (_, _, height, width) = x.size4().unwrap_or_default();
                x = conv.apply(&x.upsample_nearest2d([height * 2, width * 2], None, None));
            }
        }
        self.conv_out.apply(&self.norm_out.apply(&x).silu())
    }
}

/// Maps pixels from `0..=1` to `−1..=1`.
pub fn from_unit(pixels: &Tensor) -> Tensor {
    pixels * 2.0 - 1.0
}

/// Maps decoded pixels from about `−1..=1` to `0..=1`.
pub fn to_unit(pixels: &Tensor) -> Tensor {
    ((pixels + 1.0) / 2.0).clamp(0.0, 1.0)
}

/// The shares of pretraining between which a quantizer hardens.
#[derive(Debug, Clone, Copy)]
pub struct Hardening {
    /// Up to here, no image is quantized.
    pub soft_until: f64,
    /// From here on, every image is quantized.
    pub hard_from: f64,
}

impl Hardening {
    /// Quantizes a random share of the images, given `progress` in `0..=1`: `hard` latents `[B,C,h,w]` for them, `soft` ones for the
    /// others. The caller seeds libtorch.
    pub fn mix(self, hard: &Tensor, soft: &Tensor, progress: f64) -> Tensor {
        let share = ((progress - self.soft_until) / (self.hard_from - self.soft_until)).clamp(0.0, 1.0);
        let hardened = Tensor::rand([hard.size()[0], 1, 1, 1], (Kind::Float, hard.device())).lt(share);
        hard.where_self(&hardened, soft)
    }
}

/// Mean squared plus mean absolute error of decoded pixels.
pub fn reconstruction_loss(decoded: &Tensor, pixels: &Tensor) -> Tensor {
    let error = decoded - pixels;
    error.square().mean(Kind::Float) + error.abs().mean(Kind::Float)
}
