//! The transformer: Phi with `LayerNorm` of queries and keys always on, one `LayerNorm` before parallel
//! attention and feed-forward, partial rotary positions, an untied head with bias. Names are those of the
//! checkpoint.

use tch::{IndexOp, Kind, Tensor};
use unirl::Result;

use crate::config::{CheckpointConfig, PhiConfig};
use crate::store::{Init, Store};

/// Keys and values of the rows seen so far, a pair a layer, each `[B,heads,rows,head_dim]`.
#[derive(Debug)]
pub struct Cache(Vec<(Tensor, Tensor)>);

impl Cache {
    /// The cache of rows `index` of the batch.
    #[must_use]
    pub fn select(&self, index: &Tensor) -> Self {
        Self(self.0.iter().map(|(k, v)| (k.index_select(0, index), v.index_select(0, index))).collect())
    }
}

struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    fn take(store: &mut Store, name: &str, inputs: i64, outputs: i64) -> Result<Self> {
        Ok(Self {
            weight: store.take(&format!("{name}.weight"), &[outputs, inputs], Init::Normal)?,
            bias: store.take(&format!("{name}.bias"), &[outputs], Init::Zeros)?,
        })
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        x.linear(&self.weight, Some(&self.bias))
    }
}

struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    fn take(store: &mut Store, name: &str, width: i64, eps: f64) -> Result<Self> {
        Ok(Self {
            weight: store.take(&format!("{name}.weight"), &[width], Init::Ones)?,
            bias: store.take(&format!("{name}.bias"), &[width], Init::Zeros)?,
            eps,
        })
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        x.layer_norm(self.weight.size(), Some(&self.weight), Some(&self.bias), self.eps, true)
    }
}

struct Layer {
    norm: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    query_norm: LayerNorm,
    key_norm: LayerNorm,
    fc1: Linear,
    fc2: Linear,
}

impl Layer {
    fn take(store: &mut Store, index: i64, config: &PhiConfig) -> Result<Self> {
        let (width, eps) = (config.hidden_size, config.layer_norm_eps);
        let name = |part: &str| format!("showo.model.layers.{index}.{part}");
        Ok(Self {
            query: Linear::take(store, &name("self_attn.q_proj"), width, width)?,
            key: Linear::take(store, &name("self_attn.k_proj"), width, width)?,
            value: Linear::take(store, &name("self_attn.v_proj"), width, width)?,
            dense: Linear::take(store, &name("self_attn.dense"), width, width)?,
            query_norm: LayerNorm::take(store, &name("self_attn.q_layernorm"), config.head_dim(), eps)?,
            key_norm: LayerNorm::take(store, &name("self_attn.k_layernorm"), config.head_dim(), eps)?,
            fc1: Linear::take(store, &name("mlp.fc1"), width, config.intermediate_size)?,
            fc2: Linear::take(store, &name("mlp.fc2"), config.intermediate_size, width)?,
            norm: LayerNorm::take(store, &name("input_layernorm"), width, eps)?,
        })
    }
}

/// Cosines and sines of rotary positions, each `[B or 1,1,L,rotary_dim]`.
struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// For `positions [B or 1,L]`.
    fn new(positions: &Tensor, config: &PhiConfig) -> Self {
        let dim = config.rotary_dim();
        let steps = Tensor::arange(dim / 2, (Kind::Float, positions.device())) * (2.0 / dim as f64);
        let frequencies = (steps * -config.rope_theta.ln()).exp(); // θ^(−2i/dim)
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * frequencies; // [B,L,dim/2]
        let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1);
        Self { cos: angles.cos(), sin: angles.sin() }
    }

    /// Rotates the first `rotary_dim` dimensions of `x [B,heads,L,head_dim]`, pairing `i` with `i +
    /// rotary_dim/2`.
    fn apply(&self, x: &Tensor) -> Tensor {
        let dim = self.cos.size()[3];
        let rotated = x.narrow(3, 0, dim);
        let swapped =
            Tensor::cat(&[&-rotated.narrow(3, dim / 2, dim / 2), &rotated.narrow(3, 0, dim / 2)], 3);
        let rotated = rotated * &self.cos + swapped * &self.sin;
        Tensor::cat(&[&rotated, &x.narrow(3, dim, x.size()[3] - dim)], 3)
    }
}

/// The transformer.
pub struct Phi {
    config: PhiConfig,
    embed: Tensor,
    layers: Vec<Layer>,
    norm: LayerNorm,
    head: Linear,
    image: i64,
    codes: i64,
}

impl Phi {
    /// Takes its weights from `store`.
    pub fn take(store: &mut Store, config: &CheckpointConfig) -> Result<Self> {
        let phi = config.phi.clone();
        let embed = store.take(
            "showo.model.embed_tokens.weight",
            &[config.vocab_size, phi.hidden_size],
            Init::Normal,
        )?;
        let layers =
            (0..phi.num_hidden_layers).map(|i| Layer::take(store, i, &phi)).collect::<Result<_>>()?;
        let norm =
            LayerNorm::take(store, "showo.model.final_layernorm", phi.hidden_size, phi.layer_norm_eps)?;
        let head = Linear::take(store, "showo.lm_head", phi.hidden_size, config.vocab_size)?;
        Ok(Self {
            embed,
            layers,
            norm,
            head,
            image: config.special().image,
            codes: config.codebook_size,
            config: phi,
        })
    }

    /// Embeds `ids [B,L]`: `[B,L,D]`.
    pub fn embed(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.embed, ids, -1, false, false)
    }

    /// Embeds relaxed image codes `[B,N,K]`, each row a mixture of codes: `[B,N,D]`.
    pub fn embed_codes(&self, relaxed: &Tensor) -> Tensor {
        relaxed.matmul(&self.embed.narrow(0, self.image, self.codes))
    }

    /// Runs rows `x [B,L,D]` at `positions [B or 1,L]` behind those in `past`. `mask [B or 1,1,L,past + L]`
    /// is added to the attention scores. Answers the final hidden rows `[B,L,D]`, normalised, and the cache
    /// of all rows.
    pub fn forward(
        &self,
        x: Tensor,
        positions: &Tensor,
        mask: &Tensor,
        past: Option<&Cache>,
    ) -> (Tensor, Cache) {
        let (batch, rows, width) = (x.size()[0], x.size()[1], x.size()[2]);
        let rotary = Rotary::new(positions, &self.config);
        let heads = |t: Tensor| t.view([batch, rows, self.config.num_attention_heads, -1]).transpose(1, 2);
        let mut x = x;
        let mut cache = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            let h = layer.norm.apply(&x);
            let q = rotary.apply(&layer.query_norm.apply(&heads(layer.query.apply(&h))));
            let mut k = rotary.apply(&layer.key_norm.apply(&heads(layer.key.apply(&h))));
            let mut v = heads(layer.value.apply(&h));
            if let Some(Cache(past)) = past {
                k = Tensor::cat(&[&past[index].0, &k], 2);
                v = Tensor::cat(&[&past[index].1, &v], 2);
            }
            let attended =
                Tensor::scaled_dot_product_attention(&q, &k, &v, Some(mask), 0.0, false, None::<f64>, false);
            let attended = attended.transpose(1, 2).reshape([batch, rows, width]);
            let fed = layer.fc2.apply(&layer.fc1.apply(&h).gelu("tanh"));
            x = x + layer.dense.apply(&attended) + fed;
            cache.push((k, v));
        }
        (self.norm.apply(&x), Cache(cache))
    }

    /// Logits over all tokens of hidden rows `[..,D]`: `[..,V]`.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        self.head.apply(hidden)
    }

    /// Logits over the image codes of hidden rows `[..,D]`: `[..,K]`.
    pub fn code_logits(&self, hidden: &Tensor) -> Tensor {
        let rows = self.image..self.image + self.codes;
        hidden.linear(&self.head.weight.i(rows.clone()), Some(&self.head.bias.i(rows)))
    }
}
