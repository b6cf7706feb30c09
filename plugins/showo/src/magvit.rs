//! MAGVIT-v2, the image tokenizer: a convolutional encoder and decoder with lookup-free quantization. The signs of the
//! latent channels are the bits of a code, the first channel being the most significant.

use tch::{Kind, Tensor};
use unirl::Result;
use unirl::weights::{Expected, Store};
use unirl_layers::vqgan::{Conv, Decoder, Encoder, Hardening, LevelSize, reconstruction_loss};

use crate::config::MagvitConfig;

/// When the bottleneck hardens in pretraining.
const HARDENING: Hardening = Hardening { soft_until: 0.4, hard_from: 0.55 };
/// Standard deviation of the noise on soft latents.
const NOISE: f64 = 0.1;

/// The image tokenizer. Pixels are in `−1..=1` here.
pub struct Magvit {
    encoder: Encoder,
    quant_conv: Conv,
    post_quant_conv: Conv,
    decoder: Decoder,
    /// `[K,bits]`, rows of ±1.
    codebook: Tensor,
    /// `[bits]` i64, the value of each bit.
    powers: Tensor,
}

impl Magvit {
    /// Takes its weights from `store`. The codebook is computed from the number of bits.
    pub fn take(store: &mut Store, config: &MagvitConfig, device: tch::Device) -> Result<Self> {
        let bits = config.z_channels;
        store.computed("quantize.embedding", &[config.codebook_size(), bits]);
        store.computed("quantize.power_vals", &[bits]);
        let powers: Vec<i64> = (0..bits).map(|bit| 1 << (bits - 1 - bit)).collect();
        let powers = Tensor::from_slice(&powers).to_device(device);
        let codes = Tensor::arange(config.codebook_size(), (Kind::Int64, device)).unsqueeze(-1);
        let codebook = codes.bitwise_and_tensor(&powers).ne(0).to_kind(Kind::Float) * 2.0 - 1.0;
        let (ch, down, norm) = (config.encoder.ch, config.encoder.levels(), config.norm());
        let up: Vec<LevelSize> = config.decoder.levels().into_iter().rev().collect(); // the coarsest first
        Ok(Self {
            encoder: Encoder::take(store, &|part| format!("encoder.{part}"), ch, &down, bits, norm)?,
            quant_conv: Conv::take(store, "encoder.quant_conv", bits, bits, 1)?,
            post_quant_conv: Conv::take(store, "decoder.post_quant_conv", bits, bits, 1)?,
            decoder: Decoder::take(store, &|part| format!("decoder.{part}"), bits, &up, norm)?,
            codebook,
            powers,
        })
    }

    /// The weights of a checkpoint of these sizes.
    pub fn expected(config: &MagvitConfig) -> Result<Vec<Expected>> {
        Store::planned(|plan| Self::take(plan, config, tch::Device::Cpu))
    }

    /// The tensors `quantize.*`, which published files contain in addition to the weights.
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
        self.quant_conv.apply(&self.encoder.apply(pixels))
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
        self.decoder.apply(&self.post_quant_conv.apply(latents))
    }

    fn decode_vectors(&self, vectors: &Tensor, (rows, columns): (i64, i64)) -> Tensor {
        let size = vectors.size(); // [B,N,bits]
        self.decode_latents(&vectors.transpose(1, 2).reshape([size[0], size[2], rows, columns]))
    }

    /// Reconstruction loss, mean squared plus mean absolute error. The bottleneck hardens with `progress` in `0..=1`: `tanh`
    /// with a little noise at first, then a straight-through sign for a growing share of the images, in the end for all. With a hard sign from the start, the model learns colors quickly and shapes hardly at all.
    pub fn loss(&self, pixels: &Tensor, progress: f64) -> Tensor {
        let soft = self.latents(pixels).tanh(); // [B,bits,h,w]
        let bits = soft.detach().gt(0.0).to_kind(Kind::Float) * 2.0 - 1.0;
        let hard = &soft + (bits - soft.detach());
        let noisy = &soft + soft.randn_like() * NOISE;
        reconstruction_loss(&self.decode_latents(&HARDENING.mix(&hard, &noisy, progress)), pixels)
    }
}
