//! The two checkpoint layouts. The network uses transformers' weight names. The original layout has different names, fuses
//! query, key and value of the vision encoder, and contains unused weights.

use tch::Tensor;
use unirl::weights::{Expected, Weights};
use unirl::{Error, Result};

/// How a checkpoint names and splits its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// deepseek-ai's checkpoints.
    Original,
    /// Hugging Face transformers.
    Transformers,
}

/// A name prefix in transformers and in the original layout, and the replacements in the rest of the name.
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

/// Patch positions, which the original stores as a batch of one.
const POSITIONS: &str = "model.vision_model.embeddings.position_embedding.weight";

/// A weight of a checkpoint and the weights of the network that it concatenates.
struct Stored {
    name: String,
    shape: Vec<i64>,
    required: bool,
    parts: Vec<(String, Vec<i64>)>,
}

impl Layout {
    /// Detects the layout. Errors on other models with the same `model_type`.
    pub fn of(weights: &Weights) -> Result<Self> {
        let has = |prefix: &str| weights.names().any(|name| name.starts_with(prefix));
        let refuse = |message: &str| {
            Err(Error::failure(format!("`{}`: {message}", weights.label()))
                .hint("supported models are Janus-1.3B, Janus-Pro-1B and Janus-Pro-7B"))
        };
        if has("vision_gen_enc_model.") {
            refuse("these are the weights of JanusFlow, which has no image tokens")
        } else if has("gen_head.") || has("gen_vision_model.") {
            Ok(Self::Original)
        } else if has("model.generation_head.") || has("model.vqmodel.") {
            Ok(Self::Transformers)
        } else if has("vision_model.") && has("language_model.") {
            refuse("these are the weights of DeepSeek-VL, which does not generate images")
        } else {
            refuse("expected weights `gen_head.…` or `model.generation_head.…`, got none")
        }
    }

    /// Translates a transformers name into this layout.
    pub fn name(self, name: &str) -> String {
        let found = RENAMED.iter().find_map(|(from, to, inner)| Some((name.strip_prefix(from)?, to, inner)));
        let (Self::Original, Some((rest, prefix, inner))) = (self, found) else { return name.into() };
        let rest = inner.iter().fold(rest.to_string(), |rest, (from, to)| rest.replace(from, to));
        // A projector's linear layers are numbered together with the activations between them.
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

    /// The weights that a checkpoint of `network` contains.
    pub fn expected(self, network: &[Expected]) -> Vec<Expected> {
        let expected = |Stored { name, shape, required, .. }| Expected { name, shape, required };
        self.stored(network).into_iter().map(expected).collect()
    }

    /// Whether a weight is unused: the vision encoder's pooling and the usage counts of codes.
    pub fn unused(self, name: &str) -> bool {
        self == Self::Original
            && (name.starts_with("vision_model.vision_tower.attn_pool.")
                || name == "gen_vision_model.quantize.codebook_used")
    }

    /// The shape of a weight, by its transformers name.
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

    /// Checks that the weights are exactly those of `network` and renames them. Returns the unused ones, which a saved
    /// checkpoint must contain.
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

    /// The weights of a checkpoint, from those of a network in its order.
    pub fn save(self, weights: &[(String, Tensor)], unused: &[(String, Tensor)]) -> Vec<(String, Tensor)> {
        let network: Vec<Expected> = weights
            .iter()
            .map(|(name, tensor)| Expected { name: name.clone(), shape: tensor.size(), required: true })
            .collect();
        let tensor = |name: &str| weights.iter().find(|(known, _)| known == name).map(|(_, tensor)| tensor);
        let save = |Stored { name, shape, parts, .. }| {
            let parts: Vec<&Tensor> = parts.iter().filter_map(|(part, _)| tensor(part)).collect();
            let stored = match parts.as_slice() {
                [one] => one.detach(),
                parts => tch::no_grad(|| Tensor::cat(parts, 0)),
            };
            (name, stored.reshape(shape.as_slice()))
        };
        let unused = unused.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()));
        self.stored(&network).into_iter().map(save).chain(unused).collect()
    }

    /// How the weights of a network are stored, in its order, in which query, key and value are adjacent.
    fn stored(self, network: &[Expected]) -> Vec<Stored> {
        let mut stored: Vec<Stored> = Vec::with_capacity(network.len());
        let mut indices = std::collections::HashMap::new();
        for Expected { name: part, shape, required } in network {
            let name = self.name(part);
            let index = *indices.entry(name.clone()).or_insert(stored.len());
            let mut full = shape.clone();
            if self == Self::Original && part == POSITIONS {
                full.insert(0, 1);
            }
            match stored.get_mut(index) {
                Some(before) => before.shape[0] += full[0],
                None => stored.push(Stored { name, shape: full, required: *required, parts: Vec::new() }),
            }
            stored[index].parts.push((part.clone(), shape.clone()));
        }
        stored
    }
}
