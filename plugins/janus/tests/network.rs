//! Properties that hold for any weights: grouped heads, data types, gradient checkpointing, masks.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};
use unirl::weights::Store;
use unirl_layers::attention::AttnMask;
use unirl_layers::decoder::StackInput;
use unirl_plugin_janus::config::{GenerationConfig, JanusConfig, LlamaConfig, SiglipConfig};
use unirl_plugin_janus::llama::Llama;
use unirl_plugin_janus::network::{self, Network};
use unirl_plugin_janus::vq::VqConfig;

/// The f32 error between two ways to the same value.
const SAME: f64 = 1e-4;

/// Runs one test at a time: libtorch has one random number generator for all threads.
fn serialize_tests() -> MutexGuard<'static, ()> {
    static RANDOM: Mutex<()> = Mutex::new(());
    tch::set_num_threads(1); // the work is small
    RANDOM.lock().unwrap_or_else(PoisonError::into_inner)
}

fn config(kv_heads: i64) -> JanusConfig {
    JanusConfig {
        language: LlamaConfig {
            vocab_size: 40,
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: kv_heads,
            head_dim: 8,
            ..LlamaConfig::default()
        },
        vision: SiglipConfig {
            hidden_size: 24,
            intermediate_size: 40,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            image_size: 8,
            patch_size: 4,
            ..SiglipConfig::default()
        },
        aligner_depth: 2,
        generation: GenerationConfig { codebook_size: 16, embed_dim: 4, aligner_depth: 2, head_size: 20 },
        vq: VqConfig::default(), // not part of the network
    }
}

/// Fresh weights, scaled up so that differences show.
fn weights(config: &JanusConfig) -> Vec<(String, Tensor)> {
    tch::manual_seed(3);
    let mut store = Store::fresh(Device::Cpu, Kind::Float);
    Network::take(&mut store, config).unwrap();
    let large = |(name, tensor): (String, Tensor)| {
        let tensor = if tensor.dim() == 2 { tensor.detach() * 8.0 } else { tensor.detach() };
        (name, tensor)
    };
    store.finish().into_iter().map(large).collect()
}

/// A network with these weights as leaves of type `kind`, and the leaves.
fn network(config: &JanusConfig, weights: &[(String, Tensor)], kind: Kind) -> (Network, Vec<Tensor>) {
    let leaves: Vec<_> = weights
        .iter()
        .map(|(name, tensor)| (name.clone(), tensor.to_kind(kind).copy().set_requires_grad(true)))
        .collect();
    let tensors = leaves.iter().map(|(_, tensor)| tensor.shallow_clone()).collect();
    (Network::take(&mut Store::of_tensors("test", leaves), config).unwrap(), tensors)
}

fn ids() -> (Tensor, Tensor) {
    tch::manual_seed(4);
    (Tensor::randint(40, [3, 5], tch::kind::INT64_CPU), Tensor::randint(16, [3, 4], tch::kind::INT64_CPU))
}

fn code_logits(network: &Network) -> Tensor {
    let (prompts, codes) = ids();
    network.codes.head.logits(&network.generation_hidden(&prompts, None, &codes).unwrap())
}

#[track_caller]
fn close(got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), expected.size());
    let off = (got - expected).abs().max().double_value(&[]);
    assert!(off <= tolerance, "differs by {off}, more than {tolerance}");
}

#[test]
fn grouped_heads_equal_separate_heads_with_repeated_weights() {
    let _guard = serialize_tests();
    let grouped = weights(&config(2));
    let full: Vec<_> = grouped
        .iter()
        .map(|(name, tensor)| {
            let shared = name.contains("language_model")
                && (name.ends_with("k_proj.weight") || name.ends_with("v_proj.weight"));
            let tensor = match shared {
                true => tensor.view([2, 1, 8, 32]).repeat([1, 2, 1, 1]).view([32, 32]),
                false => tensor.shallow_clone(),
            };
            (name.clone(), tensor)
        })
        .collect();
    let (grouped, _) = network(&config(2), &grouped, Kind::Float);
    let (full, _) = network(&config(4), &full, Kind::Float);
    close(&code_logits(&grouped), &code_logits(&full), SAME);
}

#[test]
fn kv_cache_of_grouped_heads_does_not_change_hidden_states() {
    let _guard = serialize_tests();
    let config = config(1);
    let (network, _) = network(&config, &weights(&config), Kind::Float);
    let (ids, _) = ids();
    let run = |llama: &Llama, rows: std::ops::Range<i64>, past| {
        let present = network::present(3, rows.end, Device::Cpu);
        let count = rows.end - rows.start;
        let positions = network::positions(&present).narrow(1, rows.start, count);
        let x = llama.embed(&ids.narrow(1, rows.start, count));
        let mask = network::causal(&present, count);
        llama
            .forward(StackInput {
                x,
                positions: &positions,
                mask: AttnMask::Additive(&mask),
                past,
                outputs: None,
            })
            .unwrap()
    };
    let (full, _) = run(&network.llama, 0..5, None);
    let (_, cache) = run(&network.llama, 0..3, None);
    let (last, _) = run(&network.llama, 3..5, Some(&cache));
    close(&last, &full.narrow(1, 3, 2), SAME);
}

#[test]
fn bf16_weights_give_nearly_the_same_f32_logits() {
    let _guard = serialize_tests();
    let config = config(2);
    let weights = weights(&config);
    let (wide, _) = network(&config, &weights, Kind::Float);
    let (short, _) = network(&config, &weights, Kind::BFloat16);
    assert_eq!(short.llama.kind(), Kind::BFloat16);
    let (expected, got) = (code_logits(&wide), code_logits(&short));
    assert_eq!(got.kind(), Kind::Float);
    // 8 bits of mantissa through two layers.
    close(&got, &expected, 0.05 * expected.abs().max().double_value(&[]));
    let pixels = Tensor::rand([2, 3, 8, 8], tch::kind::FLOAT_CPU) * 2.0 - 1.0;
    let (expected, got) = (wide.align(&pixels).unwrap(), short.align(&pixels).unwrap());
    let expected_size = expected.abs().max().double_value(&[]);
    close(&got.to_kind(Kind::Float), &expected, 0.05 * expected_size);
}

#[test]
fn gradient_checkpointing_does_not_change_gradients() {
    let _guard = serialize_tests();
    let config = config(2);
    let weights = weights(&config);
    let gradients = |checkpointing: bool| {
        let (mut network, leaves) = network(&config, &weights, Kind::Float);
        network.llama.stack.checkpointing = checkpointing;
        code_logits(&network).square().sum(Kind::Float).backward();
        leaves.iter().map(Tensor::grad).collect::<Vec<_>>()
    };
    let mut compared = 0;
    for (plain, recomputed) in gradients(false).iter().zip(gradients(true)) {
        assert_eq!(plain.defined(), recomputed.defined());
        if plain.defined() {
            close(&recomputed, plain, SAME * (1.0 + plain.abs().max().double_value(&[])));
            compared += 1;
        }
    }
    assert!(compared > 0);
}

#[test]
fn fully_masked_row_is_finite() {
    let present = Tensor::from_slice(&[false, false, true]).unsqueeze(0);
    let softmax = network::causal(&present, 3).softmax(-1, Kind::Float);
    assert!(bool::try_from(softmax.isfinite().all()).unwrap());
    let seen: Vec<bool> = Vec::try_from(network::causal(&present, 1).eq(0.0).view([-1])).unwrap();
    assert_eq!(seen, [false, false, true]);
    let positions: Vec<i64> = Vec::try_from(network::positions(&present).view([-1])).unwrap();
    assert_eq!(positions, [0, 0, 0]);
}

#[test]
fn pixels_of_another_size_are_refused_by_the_vision_encoder() {
    let _guard = serialize_tests();
    let config = config(2);
    let (network, _) = network(&config, &weights(&config), Kind::Float);
    let error = network.align(&Tensor::zeros([1, 3, 8, 12], tch::kind::FLOAT_CPU)).unwrap_err();
    assert_eq!(error.message(), "vision encoder: expected pixels of shape [B, 3, 8, 8], got [1, 3, 8, 12]");
}

#[test]
fn vision_encoder_normalizes_pixels_if_configured() {
    let _guard = serialize_tests();
    let plain = config(2);
    let mut own = plain.clone();
    own.vision.normalisation = Some([[0.1, 0.2, 0.3], [0.5, 0.6, 0.7]]);
    let weights = weights(&plain);
    let (plain, _) = network(&plain, &weights, Kind::Float);
    let (own, _) = network(&own, &weights, Kind::Float);
    let pixels = Tensor::rand([2, 3, 8, 8], tch::kind::FLOAT_CPU);
    let channels = |values: [f64; 3]| Tensor::from_slice(&values).to_kind(Kind::Float).view([3, 1, 1]);
    let normal = (&pixels - channels([0.1, 0.2, 0.3])) / channels([0.5, 0.6, 0.7]);
    close(&own.align(&pixels).unwrap(), &plain.align(&normal).unwrap(), SAME);
}
