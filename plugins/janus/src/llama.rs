//! The language model: Llama, with an untied head without bias. Names are transformers'.

use tch::{Kind, Tensor};
use unirl::Result;
use unirl::weights::{Init, Store};
use unirl_layers::Linear;
use unirl_layers::decoder::{self, Rotary, Stack, behind};
use unirl_layers::language::{LanguageModel, Norm};

use crate::config::LlamaConfig;

/// Root-mean-square normalisation over the last dimension.
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    fn take(store: &mut Store, name: &str, config: &LlamaConfig) -> Result<Self> {
        let weight = store.take(&format!("{name}.weight"), &[config.hidden_size], Init::Ones)?;
        Ok(Self { weight, eps: config.rms_norm_eps })
    }

    fn handle(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), eps: self.eps }
    }
}

impl Norm for RmsNorm {
    /// In f32 up to the weight, whatever the type of `x`.
    fn apply(&self, x: &Tensor) -> Tensor {
        let wide = x.to_kind(Kind::Float);
        let scale = (wide.square().mean_dim(-1, true, Kind::Float) + self.eps).rsqrt();
        (wide * scale).to_kind(x.kind()) * &self.weight
    }
}

/// A layer.
pub struct Layer {
    norm1: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    out: Linear,
    norm2: RmsNorm,
    gate: Linear,
    up: Linear,
    down: Linear,
    head_dim: i64,
}

impl Layer {
    fn take(store: &mut Store, index: i64, config: &LlamaConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        let name = |part: &str| format!("model.language_model.layers.{index}.{part}");
        Ok(Self {
            query: Linear::unbiased(store, &name("self_attn.q_proj"), width, queries)?,
            key: Linear::unbiased(store, &name("self_attn.k_proj"), width, keys)?,
            value: Linear::unbiased(store, &name("self_attn.v_proj"), width, keys)?,
            out: Linear::unbiased(store, &name("self_attn.o_proj"), queries, width)?,
            gate: Linear::unbiased(store, &name("mlp.gate_proj"), width, inner)?,
            up: Linear::unbiased(store, &name("mlp.up_proj"), width, inner)?,
            down: Linear::unbiased(store, &name("mlp.down_proj"), inner, width)?,
            norm1: RmsNorm::take(store, &name("input_layernorm"), config)?,
            norm2: RmsNorm::take(store, &name("post_attention_layernorm"), config)?,
            head_dim: config.head_dim,
        })
    }
}

impl decoder::Layer for Layer {
    fn run(&self, x: &Tensor, past: Option<[&Tensor; 2]>, rotary: &Rotary, mask: &Tensor) -> [Tensor; 3] {
        let heads = |t: Tensor| t.unflatten(2, [-1, self.head_dim]).transpose(1, 2);
        let h = self.norm1.apply(x);
        let q = rotary.apply(&heads(self.query.apply(&h)));
        let k = rotary.apply(&heads(self.key.apply(&h)));
        let (k, v) = behind(past, k, heads(self.value.apply(&h)));
        let group = q.size()[1] / k.size()[1];
        let (keys, values) = (repeated(&k, group), repeated(&v, group));
        let attended = Tensor::scaled_dot_product_attention(
            &q,
            &keys,
            &values,
            Some(mask),
            0.0,
            false,
            None::<f64>,
            false,
        );
        let x = x + self.out.apply(&attended.transpose(1, 2).flatten(2, 3));
        let h = self.norm2.apply(&x);
        let fed = self.down.apply(&(self.gate.apply(&h).silu() * self.up.apply(&h)));
        [x + fed, k, v]
    }

    fn handle(&self) -> Self {
        Self {
            norm1: self.norm1.handle(),
            query: self.query.handle(),
            key: self.key.handle(),
            value: self.value.handle(),
            out: self.out.handle(),
            norm2: self.norm2.handle(),
            gate: self.gate.handle(),
            up: self.up.handle(),
            down: self.down.handle(),
            head_dim: self.head_dim,
        }
    }
}

/// Each head of `x [B,kv heads,S,head_dim]` as often as `group` query heads read it. Not all of libtorch's fast paths
/// know groups themselves.
fn repeated(x: &Tensor, group: i64) -> Tensor {
    if group == 1 {
        return x.shallow_clone();
    }
    x.unsqueeze(2).expand([-1, -1, group, -1, -1], false).flatten(1, 2)
}

/// The language model.
pub type Llama = LanguageModel<Layer, RmsNorm>;

/// Takes its weights from `store`. The head is never the embedding: published files hold both, whatever their
/// configuration says of tying.
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
        head: Linear::unbiased(store, "lm_head", width, vocabulary)?,
    })
}
