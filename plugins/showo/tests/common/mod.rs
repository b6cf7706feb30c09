//! A small random model, for tests of properties that hold for any weights.
#![allow(dead_code, reason = "no test uses every item")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tch::{Device, Kind, Tensor};
use unirl::Result;
use unirl::model::{Checkpoint, Images, ModelSource, ParameterGroup, TextSampling, UnifiedModel};
use unirl_plugin_showo::checkpoint::{self, LoadedCheckpoint};
use unirl_plugin_showo::config::{Architecture, MagvitConfig, Pyramid, ShowoConfig};
use unirl_plugin_showo::model::Showo;

/// The f32 error between two ways to the same value: with or without cache, alone or in a batch.
pub(crate) const SAME: f64 = 1e-4;

pub(crate) const GREEDY: TextSampling =
    TextSampling { temperature: 0.0, top_k: 0, max_tokens: 6, seed: 0, part: None };

/// Runs one test at a time: libtorch has one random number generator for all threads.
pub(crate) fn serialize_tests() -> MutexGuard<'static, ()> {
    static RANDOM: Mutex<()> = Mutex::new(());
    tch::set_num_threads(1); // the work is small
    RANDOM.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn source(checkpoint: Checkpoint, seed: u64) -> ModelSource {
    ModelSource { checkpoint, device: Device::Cpu, seed, dry: false }
}

pub(crate) fn folder(path: &Path) -> ModelSource {
    source(Checkpoint::Folder(path.into()), 0)
}

pub(crate) fn architecture() -> Architecture {
    let half = || Pyramid { ch: 8, ch_mult: vec![1, 2], num_res_blocks: vec![1, 1] };
    Architecture {
        hidden_size: 32,
        intermediate_size: 64,
        layers: 2,
        heads: 2,
        max_text_len: 9,
        grid: 4,
        words: "a red blue car how many what is the".split(' ').map(String::from).collect(),
        magvit: MagvitConfig {
            z_channels: 4,
            norm_groups: 4,
            encoder: half(),
            decoder: half(),
            ..MagvitConfig::default()
        },
        ..Architecture::default()
    }
}

/// A fresh model of the small sizes.
pub(crate) fn fresh(options: ShowoConfig, seed: u64) -> LoadedCheckpoint {
    let options = ShowoConfig { architecture: Some(architecture()), ..options };
    checkpoint::load(&options, &source(Checkpoint::Fresh, seed)).unwrap()
}

/// Scales the weights up, so that the distributions are peaked and differences show.
pub(crate) fn confident(parts: LoadedCheckpoint) -> Showo {
    let showo = Showo::from_parts(parts, Device::Cpu).unwrap();
    for mut parameter in showo.parameters().unwrap() {
        if parameter.group == ParameterGroup::Shared && parameter.tensor.dim() == 2 {
            tch::no_grad(|| parameter.tensor *= 8.0);
        }
    }
    showo
}

pub(crate) fn open(path: &Path) -> Result<Showo> {
    open_with(path, &ShowoConfig::default())
}

pub(crate) fn open_with(path: &Path, options: &ShowoConfig) -> Result<Showo> {
    Showo::from_parts(checkpoint::load(options, &folder(path))?, Device::Cpu)
}

/// Random image tokens.
pub(crate) fn images(showo: &Showo, batch: i64) -> Images {
    tch::manual_seed(5);
    let card = showo.card();
    let shape = [batch, card.image_tokens];
    Images::from_tokens(Tensor::randint(card.codebook_size, shape, (Kind::Int64, Device::Cpu)))
}

pub(crate) fn strings<const N: usize>(texts: [&str; N]) -> Vec<String> {
    texts.map(String::from).to_vec()
}

#[track_caller]
pub(crate) fn close(got: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(got.size(), expected.size());
    let off = (got - expected).abs().max().double_value(&[]);
    assert!(off <= tolerance, "differs by {off}, more than {tolerance}");
}
