//! The recorded numbers and the tolerances of comparisons.

#[path = "../../../layers/tests/compare/mod.rs"]
mod compare;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

pub(crate) use compare::{
    GUIDED, LOSSES, PROBABILITIES, RELATIVE, VALUES, close, gradient, norm, norm_of, same,
};
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unirl::weights::{Store, Weights};
use unirl_layers::decoding::{SampledTokens, SamplingChoice};
use unirl_plugin_janus::config::JanusConfig;
use unirl_plugin_janus::layout::Layout;
use unirl_plugin_janus::network::{self, Network};

/// The target of a row without a loss.
pub(crate) const IGNORE: i64 = -100;

/// The folders of the two layouts; both hold the same weights.
pub(crate) const LAYOUTS: [(&str, Layout); 2] =
    [("hf", Layout::Transformers), ("original", Layout::Original)];

/// The name prefixes of the image tokenizer's weights, which are not part of the network.
pub(crate) const TOKENIZER: [&str; 2] = ["model.vqmodel.", "gen_vision_model."];

/// A folder of recorded numbers: `UNIRL_JANUS_FIXTURE`, or the repository's.
pub(crate) struct Fixture {
    pub(crate) folder: PathBuf,
    pub(crate) meta: Value,
    tensors: BTreeMap<String, Tensor>,
}

/// The network with the weights of one layout.
pub(crate) struct Model {
    /// The prefix of failure messages.
    pub(crate) label: &'static str,
    pub(crate) layout: Layout,
    pub(crate) config: JanusConfig,
    pub(crate) network: Network,
    /// By the names of the network.
    pub(crate) weights: Vec<(String, Tensor)>,
    /// Unused weights of the checkpoint.
    pub(crate) unused: Vec<(String, Tensor)>,
}

pub(crate) fn read_json(path: &std::path::Path) -> Value {
    let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&text).unwrap()
}

impl Fixture {
    pub(crate) fn open() -> Self {
        tch::set_num_threads(1); // the work is small
        let folder = std::env::var_os("UNIRL_JANUS_FIXTURE").map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/janus_dev")),
            PathBuf::from,
        );
        let tensors = Tensor::read_safetensors(folder.join("fixture.safetensors")).unwrap();
        Self { meta: read_json(&folder.join("meta.json")), tensors: tensors.into_iter().collect(), folder }
    }

    /// The weights of a layout, without the image tokenizer's.
    pub(crate) fn checkpoint(&self, folder: &str) -> Weights {
        let mut weights = Weights::find(&self.folder.join(folder)).unwrap();
        weights.retain(|name| !TOKENIZER.iter().any(|prefix| name.starts_with(prefix)));
        weights
    }

    pub(crate) fn model(&self, folder: &'static str) -> Model {
        let full = Weights::find(&self.folder.join(folder)).unwrap();
        let layout = Layout::of(&full).unwrap();
        let json = read_json(&self.folder.join(folder).join("config.json"));
        let config = JanusConfig::read(&json, "config.json", &|name| layout.shape(&full, name)).unwrap();
        let mut weights = self.checkpoint(folder);
        let unused = layout.open(&mut weights, &Network::expected(&config).unwrap()).unwrap();
        let mut store = Store::open(weights, Device::Cpu, Kind::Float);
        let network = Network::take(&mut store, &config).unwrap();
        Model { label: folder, layout, config, network, weights: store.finish(), unused }
    }

    pub(crate) fn models(&self) -> impl Iterator<Item = Model> {
        LAYOUTS.into_iter().map(|(folder, layout)| {
            let model = self.model(folder);
            assert_eq!(model.layout, layout);
            model
        })
    }

    pub(crate) fn find(&self, name: &str) -> Option<Tensor> {
        self.tensors.get(name).map(Tensor::shallow_clone)
    }

    pub(crate) fn tensor(&self, name: &str) -> Tensor {
        self.find(name).unwrap_or_else(|| panic!("the fixture has no tensor `{name}`"))
    }

    /// A number of `meta.json` by its path of keys.
    pub(crate) fn number(&self, path: &str) -> f64 {
        let found = path.split('.').fold(&self.meta, |json, key| &json[key]);
        found.as_f64().unwrap_or_else(|| panic!("no number `{path}` in meta.json"))
    }

    pub(crate) fn id(&self, name: &str) -> i64 {
        self.number(&format!("ids.{name}")) as i64
    }

    /// The rest of the tensor names that begin with `prefix`.
    pub(crate) fn names_after(&self, prefix: &str) -> Vec<String> {
        let found: Vec<String> =
            self.tensors.keys().filter_map(|name| name.strip_prefix(prefix)).map(String::from).collect();
        assert!(!found.is_empty(), "the fixture has no tensor `{prefix}…`");
        found
    }

    /// Compares gradients with those stored under `prefix`.
    pub(crate) fn gradients(&self, what: &str, prefix: &str, got: &[(String, Tensor)]) {
        for name in self.names_after(prefix) {
            let (_, found) = got.iter().find(|(got, _)| *got == name).unwrap();
            gradient(&format!("{what}: gradient of {name}"), found, &self.tensor(&format!("{prefix}{name}")));
        }
    }
}

impl Model {
    pub(crate) fn named(&self, what: &str) -> String {
        format!("{}: {what}", self.label)
    }

    /// The gradient of `loss` with respect to each weight.
    pub(crate) fn gradients(&self, loss: &Tensor) -> Vec<(String, Tensor)> {
        let inputs: Vec<&Tensor> = self.weights.iter().map(|(_, tensor)| tensor).collect();
        let found = Tensor::run_backward(&[loss], &inputs, true, false);
        self.weights.iter().map(|(name, _)| name.clone()).zip(found).collect()
    }

    /// The embedded rows of the recorded understanding batch, with its images.
    pub(crate) fn question_rows(&self, fixture: &Fixture) -> Tensor {
        let aligned = self.network.align(&fixture.tensor("vision.pixel_values")).unwrap();
        let ids = fixture.tensor("und.input_ids");
        self.network.embed_images_at(&ids, &ids.eq(fixture.id("image")), &aligned).unwrap()
    }

    /// Teacher-forced hidden states of `codes` after the recorded prompts, and after the unconditional ones.
    pub(crate) fn code_hidden(&self, fixture: &Fixture, codes: &Tensor) -> [Tensor; 2] {
        ["t2i.prompt_ids", "t2i.uncond_ids"]
            .map(|prompts| self.network.generation_hidden(&fixture.tensor(prompts), None, codes).unwrap())
    }

    /// Generates with a cache and returns the code logits `[2B,n,K]`, of the recorded prompts and then the unconditional ones.
    /// `choose` picks the codes, which both branches share.
    pub(crate) fn generate_logits(
        &self,
        fixture: &Fixture,
        n: i64,
        choose: impl Fn(i64, &Tensor) -> Tensor,
    ) -> Tensor {
        let prompts = Tensor::cat(&[fixture.tensor("t2i.prompt_ids"), fixture.tensor("t2i.uncond_ids")], 0);
        let (batch, length) = (prompts.size()[0], prompts.size()[1]);
        let present = network::present(batch, length, Device::Cpu);
        let index = Tensor::arange(batch, (Kind::Int64, Device::Cpu));
        let greedy = SamplingChoice { temperature: 0.0, top_k: 0, part: None };
        let mut sampled = SampledTokens::new(batch / 2, n, greedy, Device::Cpu);
        let mut logits = Vec::new();
        let guide = |step: &Tensor| {
            let codes = choose(logits.len() as i64, step);
            logits.push(step.shallow_clone());
            codes.one_hot(step.size()[1]).to_kind(Kind::Float) // greedy sampling picks `codes`
        };
        tch::no_grad(|| self.network.generate_tokens(&prompts, &present, &index, &mut sampled, guide))
            .unwrap();
        Tensor::stack(&logits, 1)
    }
}

/// The two halves of a batch: recorded and unconditional prompts.
pub(crate) fn halves(logits: &Tensor) -> (Tensor, Tensor) {
    let mut halves = logits.chunk(2, 0).into_iter();
    (halves.next().unwrap(), halves.next().unwrap())
}

#[track_caller]
pub(crate) fn number(what: &str, got: &Tensor, expected: f64, tolerance: f64) {
    let got = got.double_value(&[]);
    assert!((got - expected).abs() <= tolerance, "{what}: got {got}, expected {expected}");
}
