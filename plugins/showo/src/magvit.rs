//! MAGVIT-v2, the image tokenizer: a convolutional encoder and decoder around look-up-free quantisation,
//! where the signs of the latent channels are the bits of a code, the first channel the most significant.

use tch::{Kind, Tensor};
use unirl::Result;
use unirl::weights::{Expected, Init, Store};

use crate::config::MagvitConfig;

/// Until when no picture goes through hard bits, and from when all do, as shares of the training.
const SOFT: f64 = 0.4;
const HARD: f64 = 0.55;
/// Standard deviation of the noise on soft latents.
const NOISE: f64 = 0.1;

struct Conv {
    weight: Tensor,
    bias: Tensor,
}

impl Conv {
    fn take(store: &mut Store, name: &str, inputs: i64, outputs: i64, size: i64) -> Result<Self> {
        Self::take_with(store, name, [outputs, inputs, size], Init::Fan(inputs * size * size))
    }

    /// The last convolution of a branch beside an identity: a fresh one adds nothing, so that depth costs no stability.
    fn take_last(store: &mut Store, name: &str, channels: i64, size: i64) -> Result<Self> {
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

    fn apply(&self, x: &Tensor) -> Tensor {
        self.strided(x, 1, self.weight.size()[2] / 2)
    }

    fn strided(&self, x: &Tensor, stride: i64, padding: i64) -> Tensor {
        x.conv2d(&self.weight, Some(&self.bias), [stride, stride], [padding, padding], [1, 1], 1)
    }
}

struct GroupNorm {
    weight: Tensor,
    bias: Tensor,
    groups: i64,
    eps: f64,
}

impl GroupNorm {
    fn take(store: &mut Store, name: &str, channels: i64, config: &MagvitConfig) -> Result<Self> {
        Ok(Self {
            weight: store.take(&format!("{name}.weight"), &[channels], Init::Ones)?,
            bias: store.take(&format!("{name}.bias"), &[channels], Init::Zeros)?,
            groups: config.norm_groups,
            eps: config.norm_eps,
        })
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        x.group_norm(self.groups, Some(&self.weight), Some(&self.bias), self.eps, true)
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
    fn take(store: &mut Store, name: &str, inputs: i64, outputs: i64, config: &MagvitConfig) -> Result<Self> {
        let part = |part: &str| format!("{name}.{part}");
        Ok(Self {
            norm1: GroupNorm::take(store, &part("norm1"), inputs, config)?,
            conv1: Conv::take(store, &part("conv1"), inputs, outputs, 3)?,
            norm2: GroupNorm::take(store, &part("norm2"), outputs, config)?,
            conv2: Conv::take_last(store, &part("conv2"), outputs, 3)?,
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

/// Two residual blocks around one attention over all places.
struct Middle {
    block_1: Residual,
    norm: GroupNorm,
    query: Conv,
    key: Conv,
    value: Conv,
    out: Conv,
    block_2: Residual,
}

impl Middle {
    fn take(store: &mut Store, name: &str, channels: i64, config: &MagvitConfig) -> Result<Self> {
        let conv = |store: &mut Store, part: &str| {
            Conv::take(store, &format!("{name}.attn_1.{part}"), channels, channels, 1)
        };
        Ok(Self {
            block_1: Residual::take(store, &format!("{name}.block_1"), channels, channels, config)?,
            norm: GroupNorm::take(store, &format!("{name}.attn_1.norm"), channels, config)?,
            query: conv(store, "q")?,
            key: conv(store, "k")?,
            value: conv(store, "v")?,
            out: Conv::take_last(store, &format!("{name}.attn_1.proj_out"), channels, 1)?,
            block_2: Residual::take(store, &format!("{name}.block_2"), channels, channels, config)?,
        })
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        let x = self.block_1.apply(x);
        let size = x.size(); // [B,C,h,w]
        let h = self.norm.apply(&x);
        let rows = |conv: &Conv| conv.apply(&h).flatten(2, 3).transpose(1, 2); // [B,h·w,C]
        let scores = rows(&self.query).matmul(&rows(&self.key).transpose(1, 2)) / (size[1] as f64).sqrt();
        let mixed = scores.softmax(-1, Kind::Float).matmul(&rows(&self.value)).transpose(1, 2).reshape(&size);
        self.block_2.apply(&(x + self.out.apply(&mixed)))
    }
}

struct Level {
    blocks: Vec<Residual>,
    /// Halves (encoder) or doubles (decoder) the resolution.
    resize: Option<Conv>,
}

struct Encoder {
    conv_in: Conv,
    levels: Vec<Level>,
    middle: Middle,
    norm_out: GroupNorm,
    conv_out: Conv,
    quant_conv: Conv,
}

impl Encoder {
    fn take(store: &mut Store, config: &MagvitConfig) -> Result<Self> {
        let sizes = &config.encoder;
        let bits = config.z_channels;
        let conv_in = Conv::take(store, "encoder.conv_in", 3, sizes.ch, 3)?;
        let mut channels = sizes.ch;
        let mut levels = Vec::new();
        for (level, mult) in sizes.ch_mult.iter().enumerate() {
            let mut blocks = Vec::new();
            for block in 0..sizes.num_res_blocks[level] {
                let name = format!("encoder.down.{level}.block.{block}");
                blocks.push(Residual::take(store, &name, channels, sizes.ch * mult, config)?);
                channels = sizes.ch * mult;
            }
            let name = format!("encoder.down.{level}.downsample.conv");
            let resize = (level + 1 < sizes.ch_mult.len())
                .then(|| Conv::take(store, &name, channels, channels, 3))
                .transpose()?;
            levels.push(Level { blocks, resize });
        }
        Ok(Self {
            conv_in,
            levels,
            middle: Middle::take(store, "encoder.mid", channels, config)?,
            norm_out: GroupNorm::take(store, "encoder.norm_out", channels, config)?,
            conv_out: Conv::take(store, "encoder.conv_out", channels, bits, 3)?,
            quant_conv: Conv::take(store, "encoder.quant_conv", bits, bits, 1)?,
        })
    }

    fn apply(&self, pixels: &Tensor) -> Tensor {
        let mut x = self.conv_in.apply(pixels);
        for level in &self.levels {
            x = level.blocks.iter().fold(x, |x, block| block.apply(&x));
            if let Some(conv) = &level.resize {
                x = conv.strided(&x.constant_pad_nd([0, 1, 0, 1]), 2, 0); // right and bottom only
            }
        }
        let x = self.norm_out.apply(&self.middle.apply(&x)).silu();
        self.quant_conv.apply(&self.conv_out.apply(&x))
    }
}

struct Decoder {
    post_quant_conv: Conv,
    conv_in: Conv,
    middle: Middle,
    /// The coarsest first.
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv,
}

impl Decoder {
    fn take(store: &mut Store, config: &MagvitConfig) -> Result<Self> {
        let sizes = &config.decoder;
        let bits = config.z_channels;
        let mut channels = sizes.ch * sizes.ch_mult[sizes.ch_mult.len() - 1];
        let post_quant_conv = Conv::take(store, "decoder.post_quant_conv", bits, bits, 1)?;
        let conv_in = Conv::take(store, "decoder.conv_in", bits, channels, 3)?;
        let middle = Middle::take(store, "decoder.mid", channels, config)?;
        let mut levels = Vec::new();
        for level in (0..sizes.ch_mult.len()).rev() {
            let mut blocks = Vec::new();
            for block in 0..sizes.num_res_blocks[level] {
                let outputs = sizes.ch * sizes.ch_mult[level];
                let name = format!("decoder.up.{level}.block.{block}");
                blocks.push(Residual::take(store, &name, channels, outputs, config)?);
                channels = outputs;
            }
            let name = format!("decoder.up.{level}.upsample.conv");
            let resize = (level > 0).then(|| Conv::take(store, &name, channels, channels, 3)).transpose()?;
            levels.push(Level { blocks, resize });
        }
        Ok(Self {
            post_quant_conv,
            conv_in,
            middle,
            levels,
            norm_out: GroupNorm::take(store, "decoder.norm_out", channels, config)?,
            conv_out: Conv::take(store, "decoder.conv_out", channels, 3, 3)?,
        })
    }

    fn apply(&self, latents: &Tensor) -> Tensor {
        let mut x = self.middle.apply(&self.conv_in.apply(&self.post_quant_conv.apply(latents)));
        for level in &self.levels {
            x = level.blocks.iter().fold(x, |x, block| block.apply(&x));
            if let Some(conv) = &level.resize {
                let (_, _, height, width) = x.size4().unwrap_or_default();
                x = conv.apply(&x.upsample_nearest2d([height * 2, width * 2], None, None));
            }
        }
        self.conv_out.apply(&self.norm_out.apply(&x).silu())
    }
}

/// The image tokenizer. Pixels are in `−1..=1` here.
pub struct Magvit {
    encoder: Encoder,
    decoder: Decoder,
    /// `[K,bits]`, rows of ±1.
    codebook: Tensor,
    /// `[bits]` i64, the value of each bit.
    powers: Tensor,
}

impl Magvit {
    /// Takes its weights from `store`. The codebook follows from the number of bits.
    pub fn take(store: &mut Store, config: &MagvitConfig, device: tch::Device) -> Result<Self> {
        let bits = config.z_channels;
        store.computed("quantize.embedding", &[config.codebook_size(), bits]);
        store.computed("quantize.power_vals", &[bits]);
        let powers: Vec<i64> = (0..bits).map(|bit| 1 << (bits - 1 - bit)).collect();
        let powers = Tensor::from_slice(&powers).to_device(device);
        let codes = Tensor::arange(config.codebook_size(), (Kind::Int64, device)).unsqueeze(-1);
        let codebook = codes.bitwise_and_tensor(&powers).ne(0).to_kind(Kind::Float) * 2.0 - 1.0;
        Ok(Self {
            encoder: Encoder::take(store, config)?,
            decoder: Decoder::take(store, config)?,
            codebook,
            powers,
        })
    }

    /// The weights of a checkpoint of these sizes.
    pub fn expected(config: &MagvitConfig) -> Result<Vec<Expected>> {
        let mut plan = Store::plan();
        Self::take(&mut plan, config, tch::Device::Cpu)?;
        Ok(plan.expected())
    }

    /// `quantize.*`, which published files carry beside the weights.
    pub fn buffers(&self) -> [(String, Tensor); 2] {
        [
            ("quantize.embedding".into(), self.codebook.shallow_clone()),
            ("quantize.power_vals".into(), self.powers.shallow_clone()),
        ]
    }

    /// `[K,bits]`, rows of ±1.
    pub fn codebook(&self) -> &Tensor {
        &self.codebook
    }

    /// Pixels `[B,3,H,W]` to latents `[B,bits,h,w]`.
    pub fn latents(&self, pixels: &Tensor) -> Tensor {
        self.encoder.apply(pixels)
    }

    /// Latents to codes `[B,h·w]`, row by row.
    pub fn codes(&self, latents: &Tensor) -> Tensor {
        let bits = latents.gt(0.0).to_kind(Kind::Int64) * self.powers.view([1, -1, 1, 1]);
        bits.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64).flatten(1, 2)
    }

    /// Codes `[B,N]` of a `grid` to pixels, not clamped.
    pub fn decode(&self, codes: &Tensor, grid: (i64, i64)) -> Tensor {
        self.decode_vectors(&Tensor::embedding(&self.codebook, codes, -1, false, false), grid)
    }

    /// Relaxed codes `[B,N,K]` of a `grid` to pixels, with gradient.
    pub fn decode_relaxed(&self, relaxed: &Tensor, grid: (i64, i64)) -> Tensor {
        self.decode_vectors(&relaxed.matmul(&self.codebook), grid)
    }

    /// Latents `[B,bits,h,w]` to pixels.
    pub fn decode_latents(&self, latents: &Tensor) -> Tensor {
        self.decoder.apply(latents)
    }

    fn decode_vectors(&self, vectors: &Tensor, (rows, columns): (i64, i64)) -> Tensor {
        let size = vectors.size(); // [B,N,bits]
        self.decoder.apply(&vectors.transpose(1, 2).reshape([size[0], size[2], rows, columns]))
    }

    /// Reconstruction, mean squared plus mean absolute error, through a bottleneck that hardens with `progress` in
    /// `0..=1`: `tanh` with a little noise up to `SOFT`, then a growing share of the pictures goes through a
    /// straight-through sign, from `HARD` on all of them. Behind a hard sign from the start, colours are learned
    /// quickly and shapes hardly at all.
    pub fn loss(&self, pixels: &Tensor, progress: f64) -> Tensor {
        let soft = self.latents(pixels).tanh(); // [B,bits,h,w]
        let bits = soft.detach().gt(0.0).to_kind(Kind::Float) * 2.0 - 1.0;
        let hard = &soft + (bits - soft.detach());
        let noisy = &soft + soft.randn_like() * NOISE;
        let share = ((progress - SOFT) / (HARD - SOFT)).clamp(0.0, 1.0);
        let hardened = Tensor::rand([pixels.size()[0], 1, 1, 1], (Kind::Float, pixels.device())).lt(share);
        let wrong = self.decoder.apply(&hard.where_self(&hardened, &noisy)) - pixels;
        wrong.square().mean(Kind::Float) + wrong.abs().mean(Kind::Float)
    }
}
