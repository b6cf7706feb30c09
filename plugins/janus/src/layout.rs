//! The two layouts of checkpoints. The network knows its weights by transformers' names; the original's differ, hold
//! query, key and value of the vision tower in one, and carry some that nothing reads.

use tch::Tensor;
use unirl::weights::{Expected, Weights};
use unirl::{Error, Result};

/// How the weights of a checkpoint are named and cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// That of deepseek-ai's checkpoints.
    Original,
    /// That of transformers.
    Transformers,
}

/// What the names of weights begin with, in transformers and in the original, and what differs behind it.
type Renamed = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const RENAMED: [Renamed; 8] = [
    ("model.language_model.", "language_model.model.", &[]),
    ("lm_head.", "language_model.lm_head.", &[]),
    (
        "model.vision_model.",
        "vision_model.vision_tower.",
        &[
            ("embeddings.position_embedding.weight", "pos_embed"),
            ("embeddings.patch_embedding.", "patch_embed.proj."),
            ("encoder.layers.", "blocks."),
            (".layer_norm1.", ".norm1."),
            (".layer_norm2.", ".norm2."),
            (".self_attn.q_proj.", ".attn.qkv."),
            (".self_attn.k_proj.", ".attn.qkv."),
            (".self_attn.v_proj.", ".attn.qkv."),
            (".self_attn.projection_layer.", ".attn.proj."),
            ("post_layernorm.", "norm."),
        ],
    ),
    ("model.aligner.", "aligner.", &[]),
    ("model.generation_aligner.", "gen_aligner.", &[]),
    ("model.generation_head.", "gen_head.", &[("proj_out.", "output_mlp_projector.")]),
    ("model.generation_embeddings.", "gen_embed.", &[]),
    (
        "model.vqmodel.",
        "gen_vision_model.",
        &[
            ("encoder.down.", "encoder.conv_blocks."),
            ("decoder.up.", "decoder.conv_blocks."),
            (".block.", ".res."),
            (".mid.block_1.", ".mid.0."),
            (".mid.attn_1.", ".mid.1."),
            (".mid.block_2.", ".mid.2."),
        ],
    ),
];

/// Positions of patches, which the original keeps as a batch of one.
const POSITIONS: &str = "model.vision_model.embeddings.position_embedding.weight";

/// A weight of a checkpoint, and the weights of the network that follow one another in it.
struct Stored {
    name: String,
    shape: Vec<i64>,
    required: bool,
    parts: Vec<(String, Vec<i64>)>,
}

impl Layout {
    /// The layout of a checkpoint; refuses those of other models that share its `model_type`.
    pub fn of(weights: &Weights) -> Result<Self> {
        let there = |prefix: &str| weights.names().any(|name| name.starts_with(prefix));
        let refuse = |message: &str| {
            Err(Error::failure(format!("`{}`: {message}", weights.label()))
                .hint("Janus-1.3B, Janus-Pro-1B and Janus-Pro-7B are the published models of this family"))
        };
        if there("vision_gen_enc_model.") {
            refuse("these are the weights of JanusFlow, which has no image codes")
        } else if there("gen_head.") || there("gen_vision_model.") {
            Ok(Self::Original)
        } else if there("model.generation_head.") || there("model.vqmodel.") {
            Ok(Self::Transformers)
        } else if there("vision_model.") && there("language_model.") {
            refuse("these are the weights of DeepSeek-VL, which does not draw")
        } else {
            refuse("expected weights `gen_head.…` or `model.generation_head.…`, got none")
        }
    }

    /// What the weight that transformers call `name` is called here.
    pub fn name(self, name: &str) -> String {
        let found = RENAMED.iter().find_map(|(from, to, inner)| Some((name.strip_prefix(from)?, to, inner)));
        let (Self::Original, Some((rest, prefix, inner))) = (self, found) else { return name.into() };
        let rest = inner.iter().fold(rest.to_string(), |rest, (from, to)| rest.replace(from, to));
        // Linear layers of a projector, counted with the activations between them.
        let rest = match rest.split_once('.') {
            Some(("fc1", leaf)) => format!("layers.0.{leaf}"),
            Some(("hidden_layers", rest)) => match rest.split_once('.') {
                Some((index, leaf)) => {
                    format!("layers.{}.{leaf}", index.parse().map_or(0, |i: u64| 2 * i + 2))
                }
                None => rest.into(),
            },
            _ => rest,
        };
        format!("{prefix}{rest}")
    }

    /// The weights of a checkpoint that holds those that a network expects.
    pub fn expected(self, network: &[Expected]) -> Vec<Expected> {
        let expected = |Stored { name, shape, required, .. }| Expected { name, shape, required };
        self.stored(network).into_iter().map(expected).collect()
    }

    /// Whether a weight of a checkpoint is one that nothing reads: the tower's pooling, and how often codes were used.
    pub fn unused(self, name: &str) -> bool {
        self == Self::Original
            && (name.starts_with("vision_model.vision_tower.attn_pool.")
                || name == "gen_vision_model.quantize.codebook_used")
    }

    /// The shape of the weight that transformers call `name`, if it is there.
    pub fn shape(self, weights: &Weights, name: &str) -> Option<Vec<i64>> {
        let stored = self.name(name);
        let mut shape = weights.shape(&stored)?.to_vec();
        if self == Self::Original && name == POSITIONS {
            shape.remove(0);
        }
        if stored.contains(".attn.qkv.") {
            shape[0] /= 3;
        }
        Some(shape)
    }

    /// Refuses weights that are not exactly those that a network expects, and gives them its names. Answers the ones that
    /// nothing reads, which belong into a checkpoint that is saved.
    pub fn open(self, weights: &mut Weights, network: &[Expected]) -> Result<Vec<(String, Tensor)>> {
        let names: Vec<String> = weights.names().filter(|name| self.unused(name)).map(String::from).collect();
        let unused = names
            .into_iter()
            .map(|name| weights.read(&name).map(|tensor| (name, tensor)))
            .collect::<Result<Vec<_>>>()?;
        weights.retain(|name| !self.unused(name));
        weights.check(&self.expected(network))?;
        for stored in self.stored(network) {
            if weights.shape(&stored.name).is_some() {
                weights.split(&stored.name, &stored.parts)?;
            }
        }
        Ok(unused)
    }

    /// The weights of a checkpoint that holds those of a network, `taken` in its order.
    pub fn save(self, taken: &[(String, Tensor)], unused: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
        let network: Vec<Expected> = taken
            .iter()
            .map(|(name, tensor)| Expected { name: name.clone(), shape: tensor.size(), required: true })
            .collect();
        let tensor = |name: &str| taken.iter().find(|(taken, _)| taken == name).map(|(_, tensor)| tensor);
        let save = |Stored { name, shape, parts, .. }| {
            let parts: Vec<&Tensor> = parts.iter().filter_map(|(part, _)| tensor(part)).collect();
            let whole = match parts.as_slice() {
                [one] => one.detach(),
                parts => tch::no_grad(|| Tensor::cat(parts, 0)),
            };
            (name, whole.reshape(shape.as_slice()))
        };
        let kept = unused.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
        self.stored(&network).into_iter().map(save).chain(kept).collect()
    }

    /// How weights of a network are stored, in its order: query, key and value are, too.
    fn stored(self, network: &[Expected]) -> Vec<Stored> {
        let mut stored: Vec<Stored> = Vec::with_capacity(network.len());
        let mut places = std::collections::HashMap::new();
        for Expected { name: part, shape, required } in network {
            let name = self.name(part);
            let place = *places.entry(name.clone()).or_insert(stored.len());
            let mut whole = shape.clone();
            if self == Self::Original && part == POSITIONS {
                whole.insert(0, 1);
            }
            match stored.get_mut(place) {
                Some(before) => before.shape[0] += whole[0],
                None => stored.push(Stored { name, shape: whole, required: *required, parts: Vec::new() }),
            }
            stored[place].parts.push((part.clone(), shape.clone()));
        }
        stored
    }
}
