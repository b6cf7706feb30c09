//! The recorded numbers and the tolerances of comparisons.

#[path = "../../../layers/tests/compare/mod.rs"]
mod compare;

use std::collections::BTreeMap;
use std::path::PathBuf;

pub(crate) use compare::{BYTES, GUIDED, LOSSES, PROBABILITIES, VALUES, close, gradient, norm, same};
use serde_json::Value;
use tch::{Device, Kind, Tensor};
use unirl::model::{Answers, Images, ParameterGroup, UnifiedModel};
use unirl::weights::{Store, Weights, read_json};
use unirl_layers::rows::padded;
use unirl_plugin_showo::checkpoint::{Files, LoadedCheckpoint};
use unirl_plugin_showo::config::{CheckpointConfig, MagvitConfig, Special};
use unirl_plugin_showo::maskgit::Schedule;
use unirl_plugin_showo::model::Showo;
use unirl_plugin_showo::prompt::Prompting;
use unirl_text::Text;

/// A folder of recorded cases: `UNIRL_SHOWO_FIXTURE`, or the repository's.
pub(crate) struct Fixture {
    folder: PathBuf,
    cases: Vec<Value>,
    tensors: BTreeMap<String, Tensor>,
    pub(crate) config: CheckpointConfig,
    pub(crate) magvit: MagvitConfig,
    pub(crate) special: Special,
    pub(crate) prompting: Prompting,
}

/// One case and its tensors.
pub(crate) struct Case<'a> {
    fixture: &'a Fixture,
    pub(crate) json: &'a Value,
    /// The prefix of its tensor names.
    pub(crate) prefix: String,
}

impl Fixture {
    pub(crate) fn open() -> Self {
        let folder = std::env::var_os("UNIRL_SHOWO_FIXTURE").map_or_else(
            || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/showo_dev")),
            PathBuf::from,
        );
        let cases: Value = read_json(&folder.join("cases.json")).unwrap();
        let config: CheckpointConfig = read_json(&folder.join("config.json")).unwrap();
        config.check("config.json").unwrap();
        Self {
            cases: cases["cases"].as_array().unwrap().clone(),
            tensors: Tensor::read_safetensors(folder.join("cases.safetensors"))
                .unwrap()
                .into_iter()
                .collect(),
            magvit: read_json(&folder.join("magvit_config.json")).unwrap(),
            special: config.special(),
            prompting: Prompting::new(&config),
            config,
            folder,
        }
    }

    /// The model with the weights of one file. The cases consist of ids, so that it needs no tokenizer.
    fn model(&self, weights: &str) -> Showo {
        let store = |name: &str| {
            Store::open(Weights::open(&self.folder.join(name)).unwrap(), Device::Cpu, Kind::Float)
        };
        let parts = LoadedCheckpoint {
            config: self.config.clone(),
            magvit_config: self.magvit.clone(),
            files: Files { config: Value::Null, magvit: Value::Null, origin: String::new() },
            adapters: None,
            gradient_checkpointing: false,
            clip: None,
            schedule: Schedule::Cosine,
            precision: Kind::Float,
            text: Text::of_words(&[], &[]).unwrap(),
            phi_store: store(weights),
            magvit_store: store("magvit.safetensors"),
        };
        Showo::from_parts(parts, Device::Cpu).unwrap()
    }

    pub(crate) fn policy(&self) -> Showo {
        self.model("weights.safetensors")
    }

    pub(crate) fn reference(&self) -> Showo {
        self.model("ref_weights.safetensors")
    }

    /// The cases whose name begins with `name`, at least one.
    pub(crate) fn cases(&self, name: &str) -> Vec<Case<'_>> {
        let named = |case: &&Value| case["name"].as_str().is_some_and(|got| got.starts_with(name));
        let case = |json| Case { fixture: self, json, prefix: prefix(json) };
        let found: Vec<_> = self.cases.iter().filter(named).map(case).collect();
        assert!(!found.is_empty(), "the fixture has no case `{name}`");
        found
    }

    pub(crate) fn case(&self, name: &str) -> Case<'_> {
        self.cases(name).remove(0)
    }

    /// `N`.
    pub(crate) fn tokens(&self) -> i64 {
        self.config.num_vq_tokens
    }

    /// `M + 1`: the position of `<soi>` in a generation sequence.
    pub(crate) fn start(&self) -> i64 {
        self.config.max_text_len + 1
    }

    /// Converts image ids to codes, [`UNKNOWN`](unirl_plugin_showo::maskgit::UNKNOWN) where masked.
    pub(crate) fn codes(&self, ids: &Tensor) -> Tensor {
        (ids - self.special.image)
            .masked_fill(&ids.eq(self.special.mask), unirl_plugin_showo::maskgit::UNKNOWN)
    }

    /// Converts codes to image ids, the mask token where `masked`.
    pub(crate) fn ids(&self, codes: &Tensor, masked: &Tensor) -> Tensor {
        (codes + self.special.image).masked_fill(masked, self.special.mask)
    }

    /// The image ids of generation sequences `[B,L]`.
    pub(crate) fn image_ids(&self, ids: &Tensor) -> Tensor {
        ids.narrow(1, self.start() + 1, self.tokens())
    }

    /// The codes of understanding sequences `[B,L]`.
    pub(crate) fn image_codes(&self, ids: &Tensor) -> Tensor {
        ids.narrow(1, 2, self.tokens()) - self.special.image
    }

    /// The tokenized prompts of generation sequences `[B,L]`.
    pub(crate) fn prompts(&self, ids: &Tensor) -> Vec<Vec<i64>> {
        let prompt = |row: Vec<i64>| {
            let block = &row[..self.start() as usize];
            let task = block.iter().position(|id| *id == self.special.t2i).unwrap();
            block[task + 1..block.len() - 1].to_vec()
        };
        rows(ids).into_iter().map(prompt).collect()
    }

    /// The questions and answers of understanding sequences `[B,L]`; `mask` is true at answers.
    pub(crate) fn dialogue(&self, ids: &Tensor, mask: &Tensor) -> (Vec<Vec<i64>>, Answers) {
        let prefix = self.tokens() as usize + 3;
        let (mut questions, mut answers) = (Vec::new(), Vec::new());
        for (ids, mask) in rows(ids).into_iter().zip(rows(mask)) {
            let end = mask.iter().position(|is_answer| *is_answer != 0).unwrap();
            questions.push(ids[prefix..end].to_vec());
            answers
                .push(ids.into_iter().zip(mask).filter(|(_, there)| *there != 0).map(|(id, _)| id).collect());
        }
        let (tokens, mask) = padded(&answers, self.special.pad, Device::Cpu);
        (questions, Answers::new(vec![String::new(); answers.len()], tokens, mask))
    }
}

fn prefix(case: &Value) -> String {
    let first = case["tensors"].as_object().and_then(|tensors| tensors.keys().next());
    first.map(|name| name.split('.').next().unwrap_or_default().into()).unwrap_or_default()
}

impl Case<'_> {
    pub(crate) fn find(&self, name: &str) -> Option<Tensor> {
        self.fixture.tensors.get(&format!("{}.{name}", self.prefix)).map(Tensor::shallow_clone)
    }

    pub(crate) fn tensor(&self, name: &str) -> Tensor {
        self.find(name).unwrap_or_else(|| panic!("the fixture has no tensor `{}.{name}`", self.prefix))
    }

    pub(crate) fn mask(&self, name: &str) -> Tensor {
        self.tensor(name).to_kind(Kind::Bool)
    }

    pub(crate) fn number(&self, name: &str) -> f64 {
        self.json["scalars"][name].as_f64().unwrap_or_else(|| panic!("no number `{name}` in {}", self.prefix))
    }

    pub(crate) fn ids(&self, name: &str) -> Vec<i64> {
        integers(&self.json["scalars"][name])
    }

    /// The parts between `start` and `end` in the names of the case's tensors.
    pub(crate) fn between(&self, start: &str, end: &str) -> Vec<String> {
        let start = format!("{}.{start}", self.prefix);
        let inner = |name: &String| Some(name.strip_prefix(&start)?.split_once(end)?.0.to_string());
        let mut found: Vec<String> =
            self.json["tensors"].as_object().unwrap().keys().filter_map(inner).collect();
        found.sort();
        found.dedup();
        assert!(!found.is_empty(), "the fixture has no tensor `{start}…{end}`");
        found
    }

    /// Compares gradients with those stored under `name.grad.`, and their norms with `norms`.
    pub(crate) fn gradients(&self, name: &str, norms: &Value, got: &[(String, Tensor)]) {
        let norms = norms.as_object().unwrap_or_else(|| panic!("no gradient norms of `{name}`"));
        assert_eq!(norms.len(), got.len(), "weights of `{name}`");
        for (weight, gradient) in got {
            let what = format!("{name}: gradient of {weight}");
            norm(&what, gradient, &norms[weight]);
            if let Some(expected) = self.find(&format!("{name}.grad.{weight}")) {
                self::gradient(&what, gradient, &expected);
            }
        }
    }
}

/// The gradients of `loss` with respect to `others` and to the trained weights of a model.
pub(crate) fn gradients(
    model: &Showo,
    loss: &Tensor,
    others: &[&Tensor],
) -> (Vec<Tensor>, Vec<(String, Tensor)>) {
    let mut parameters = model.parameters().unwrap();
    parameters.retain(|parameter| parameter.group == ParameterGroup::Shared);
    let inputs: Vec<&Tensor> = others.iter().copied().chain(parameters.iter().map(|p| &p.tensor)).collect();
    let mut found = Tensor::run_backward(&[loss], &inputs, true, false);
    let weights = found.split_off(others.len());
    (found, parameters.into_iter().map(|parameter| parameter.name).zip(weights).collect())
}

pub(crate) fn integers(json: &Value) -> Vec<i64> {
    let list = json.as_array().unwrap_or_else(|| panic!("expected a list, got {json}"));
    list.iter().map(|id| id.as_i64().unwrap()).collect()
}

/// The rows of `[B,L]` integers.
pub(crate) fn rows(ids: &Tensor) -> Vec<Vec<i64>> {
    Vec::try_from(ids.to_kind(Kind::Int64)).unwrap()
}

/// Hard images.
pub(crate) fn images(tokens: &Tensor) -> Images {
    Images::from_tokens(tokens.shallow_clone())
}

#[track_caller]
pub(crate) fn number(what: &str, got: &Tensor, expected: &Value, tolerance: f64) {
    let (got, expected) = (got.double_value(&[]), expected.as_f64().unwrap());
    assert!((got - expected).abs() <= tolerance, "{what}: got {got}, expected {expected}");
}
