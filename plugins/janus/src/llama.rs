//! The Llama language model, with an untied head without bias. Weight names are those of transformers.

use tch::Tensor;
use unirl::Result;
use unirl::weights::{Init, Store};
use unirl_layers::decoder::{self, LayerContext, Stack};
use unirl_layers::kv_cache::KvPast;
use unirl_layers::language::{LanguageModel, Norm};
use unirl_layers::{FusedLinear, Linear};

use crate::config::LlamaConfig;

/// Root mean square normalization over the last dimension.
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    fn take(store: &mut Store, name: &str, config: &LlamaConfig) -> Result<Self> {
        let weight = store.take(&format!("{name}.weight"), &[config.hidden_size], Init::Ones)?;
        Ok(Self { weight, eps: config.rms_norm_eps })
    }

    fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), eps: self.eps }
    }
}

impl Norm for RmsNorm {
    /// Computed in f32 for every type of `x`.
    fn apply(&self, x: &Tensor) -> Tensor {
        x.rms_norm(self.weight.size(), Some(&self.weight), self.eps)
    }
}

/// A decoder layer.
pub struct Layer {
    norm1: RmsNorm,
    query_key_value: FusedLinear,
    out: Linear,
    norm2: RmsNorm,
    gate_up: FusedLinear,
    down: Linear,
    head_dim: i64,
}

impl Layer {
    fn take(store: &mut Store, index: i64, config: &LlamaConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let name = |part: &str| format!("model.language_model.layers.{index}.{part}");
        let mut linear =
            |part: &str, inputs, outputs| Linear::without_bias(store, &name(part), inputs, outputs);
        Ok(Self {
            query_key_value: FusedLinear::new(vec![
                linear("self_attn.q_proj", width, queries)?,
                linear("self_attn.k_proj", width, keys)?,
                linear("self_attn.v_proj", width, keys)?,
            ]),
            out: linear("self_attn.o_proj", queries, width)?,
            gate_up: FusedLinear::new(vec![
                linear("mlp.gate_proj", width, inner)?,
                linear("mlp.up_proj", width, inner)?,
            ]),
            down: linear("mlp.down_proj", inner, width)?,
            norm1: RmsNorm::take(store, &name("input_layernorm"), config)?,
            norm2: RmsNorm::take(store, &name("post_attention_layernorm"), config)?,
            head_dim: config.head_dim,
        })
    }
}

impl decoder::Layer for Layer {
    fn forward(&self, x: &Tensor, past: KvPast<'_>, context: &LayerContext) -> (Tensor, [Tensor; 2]) {
        let heads = |t: Tensor| t.unflatten(2, [-1, self.head_dim]);
        let h = self.norm1.apply(x);
        let [q, k, v] = context.project(&self.query_key_value, &h).map(heads);
        let (attended, cache) = context.attend(&q, &k, &v, past);
        let x = context.output_rows(x) + self.out.apply(&attended);
        let [gate, up] = self.gate_up.apply(&self.norm2.apply(&x));
        (&x + self.down.apply(&(gate.silu() * up)), cache)
    }

    fn shallow_clone(&self) -> Self {
        Self {
            norm1: self.norm1.shallow_clone(),
            query_key_value: self.query_key_value.shallow_clone(),
            out: self.out.shallow_clone(),
            norm2: self.norm2.shallow_clone(),
            gate_up: self.gate_up.shallow_clone(),
            down: self.down.shallow_clone(),
            head_dim: self.head_dim,
        }
    }
}

/// The language model.
pub type Llama = LanguageModel<Layer, RmsNorm>;

/// Takes the weights from `store`. The head is never tied to the embedding: published files contain both, whatever
/// `tie_word_embeddings` says.
pub fn take(store: &mut Store, config: &LlamaConfig) -> Result<Llama> {
    let (vocabulary, width) = (config.vocab_size, config.hidden_size);
    Ok(Llama {
        embedding: store.take(
            "model.language_model.embed_tokens.weight",
            &[vocabulary, width],
            Init::Normal,
        )?,
        stack: Stack::new(
            (0..config.num_hidden_layers)
                .map(|index| Layer::take(store, index, config))
                .collect::<Result<_>>()?,
            config.head_dim,
            config.rope_theta,
        ),
        norm: RmsNorm::take(store, "model.language_model.norm", config)?,
        head: Linear::without_bias(store, "lm_head", width, vocabulary)?,
    })
}
