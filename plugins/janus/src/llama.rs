//! The language model: Llama, with an untied head without bias. Names are transformers'.

use tch::{Kind, Tensor};
use unirl::autograd::{checkpoint, gradient_enabled};
use unirl::weights::{Init, Store};
use unirl::{Error, Result};

use crate::config::LlamaConfig;
use crate::layers::Linear;

/// Logits that a head makes at once when tokens are scored: 64 MiB in f32.
pub const HEAD_LOGITS: i64 = 1 << 24;

/// Keys and values of the rows seen so far, a pair a layer, each `[B,kv heads,rows,head_dim]`.
#[derive(Debug)]
pub struct Cache(Vec<(Tensor, Tensor)>);

impl Cache {
    /// The cache of rows `index` of the batch.
    #[must_use]
    pub fn select(&self, index: &Tensor) -> Self {
        Self(self.0.iter().map(|(k, v)| (k.index_select(0, index), v.index_select(0, index))).collect())
    }
}

struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    fn take(store: &mut Store, name: &str, config: &LlamaConfig) -> Result<Self> {
        let weight = store.take(&format!("{name}.weight"), &[config.hidden_size], Init::Ones)?;
        Ok(Self { weight, eps: config.rms_norm_eps })
    }

    /// In f32 up to the weight, whatever the type of `x`.
    fn apply(&self, x: &Tensor) -> Tensor {
        let wide = x.to_kind(Kind::Float);
        let scale = (wide.square().mean_dim(-1, true, Kind::Float) + self.eps).rsqrt();
        (wide * scale).to_kind(x.kind()) * &self.weight
    }

    fn handle(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), eps: self.eps }
    }
}

struct Layer {
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

    /// Runs rows `x [B,L,D]` behind the keys and values in `past`: the rows after the layer, and the keys and values of
    /// all.
    fn run(&self, x: &Tensor, past: Option<[&Tensor; 2]>, rotary: &Rotary, mask: &Tensor) -> [Tensor; 3] {
        let heads = |t: Tensor| t.unflatten(2, [-1, self.head_dim]).transpose(1, 2);
        let h = self.norm1.apply(x);
        let q = rotary.apply(&heads(self.query.apply(&h)));
        let mut k = rotary.apply(&heads(self.key.apply(&h)));
        let mut v = heads(self.value.apply(&h));
        if let Some([keys, values]) = past {
            k = Tensor::cat(&[keys, &k], 2);
            v = Tensor::cat(&[values, &v], 2);
        }
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

/// Cosines and sines of rotary positions, each `[B or 1,1,L,head_dim]`.
struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// For `positions [B or 1,L]`; computed in f32, then of type `kind`.
    fn new(positions: &Tensor, config: &LlamaConfig, kind: Kind) -> Self {
        let dim = config.head_dim;
        let steps = Tensor::arange(dim / 2, (Kind::Float, positions.device())) * (2.0 / dim as f64);
        let frequencies = (steps * -config.rope_theta.ln()).exp(); // θ^(−2i/dim)
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * frequencies; // [B,L,dim/2]
        let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1);
        Self { cos: angles.cos().to_kind(kind), sin: angles.sin().to_kind(kind) }
    }

    fn handle(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }

    /// Rotates `x [B,heads,L,head_dim]`, pairing dimension `i` with `i + head_dim/2`.
    fn apply(&self, x: &Tensor) -> Tensor {
        let half = self.cos.size()[3] / 2;
        let swapped = Tensor::cat(&[&-x.narrow(3, half, half), &x.narrow(3, 0, half)], 3);
        x * &self.cos + swapped * &self.sin
    }
}

/// The language model.
pub struct Llama {
    config: LlamaConfig,
    embed: Tensor,
    layers: Vec<Layer>,
    norm: RmsNorm,
    head: Linear,
    /// Whether layers keep their inputs alone for the gradient.
    checkpointing: bool,
}

impl Llama {
    /// Takes its weights from `store`. The head is never the embedding: published files hold both, whatever their
    /// configuration says of tying.
    pub fn take(store: &mut Store, config: &LlamaConfig) -> Result<Self> {
        let (vocabulary, width) = (config.vocab_size, config.hidden_size);
        Ok(Self {
            embed: store.take(
                "model.language_model.embed_tokens.weight",
                &[vocabulary, width],
                Init::Normal,
            )?,
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::take(store, index, config))
                .collect::<Result<_>>()?,
            norm: RmsNorm::take(store, "model.language_model.norm", config)?,
            head: Linear::unbiased(store, "lm_head", width, vocabulary)?,
            config: config.clone(),
            checkpointing: false,
        })
    }

    /// Keeps only the inputs of layers for the gradient, and computes the rest again.
    pub fn set_checkpointing(&mut self, checkpointing: bool) {
        self.checkpointing = checkpointing;
    }

    /// Whether layers keep their inputs alone for the gradient.
    pub fn checkpointing(&self) -> bool {
        self.checkpointing
    }

    /// The type of its weights.
    pub fn kind(&self) -> Kind {
        self.embed.kind()
    }

    /// Embeds `ids [B,L]`: `[B,L,D]`. The row of the padding token learns as any other.
    pub fn embed(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.embed, ids, -1, false, false)
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
    ) -> Result<(Tensor, Cache)> {
        let mut cache = Vec::with_capacity(self.layers.len());
        let hidden = self.run(x, positions, mask, past, |keys, values| cache.push((keys, values)))?;
        Ok((hidden, Cache(cache)))
    }

    /// [`Llama::forward`] for rows that nothing follows: their cache is let go layer by layer.
    pub fn hidden(
        &self,
        x: Tensor,
        positions: &Tensor,
        mask: &Tensor,
        past: Option<&Cache>,
    ) -> Result<Tensor> {
        self.run(x, positions, mask, past, |_, _| ())
    }

    fn run(
        &self,
        x: Tensor,
        positions: &Tensor,
        mask: &Tensor,
        past: Option<&Cache>,
        mut keep: impl FnMut(Tensor, Tensor),
    ) -> Result<Tensor> {
        let rotary = Rotary::new(positions, &self.config, x.kind());
        let mask = mask.to_kind(x.kind()); // −2⁶³ is exact in bf16, too
        let mut x = x;
        for (index, layer) in self.layers.iter().enumerate() {
            let past = past.map(|Cache(past)| [&past[index].0, &past[index].1]);
            let [after, keys, values] = if self.checkpointing && gradient_enabled() {
                recomputed(layer, &x, past, &rotary, &mask)?
            } else {
                layer.run(&x, past, &rotary, &mask)
            };
            x = after;
            keep(keys, values);
        }
        Ok(self.norm.apply(&x))
    }

    /// Logits over all tokens of hidden rows `[..,D]`: `[..,V]` f32.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        self.head.apply(hidden).to_kind(Kind::Float)
    }

    /// Log-probabilities of the tokens `targets [R]` that hidden rows `[R,D]` predict: `[R]` f32.
    pub fn logp(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
        logp(&[hidden], targets, self.config.vocab_size, || {
            let head = self.head.handle();
            move |hidden| head.apply(&hidden[0]).to_kind(Kind::Float)
        })
    }
}

/// Log-probabilities of the classes `targets [R]`, of `classes` many, under the logits that a head makes of each row of
/// `rows`, one or more `[R,D]`: `[R]` f32. Heads are wide, so that a few rows at a time go through one, and with a
/// gradient once more on the way back; `head` gives a handle of it.
pub(crate) fn logp<H: Fn(&[Tensor]) -> Tensor + Send + 'static>(
    rows: &[&Tensor],
    targets: &Tensor,
    classes: i64,
    head: impl Fn() -> H,
) -> Result<Tensor> {
    let size = (HEAD_LOGITS / classes / rows.len() as i64).max(1);
    let score = |head: &H, rows: &[Tensor], targets: &Tensor| {
        let logp = head(rows).log_softmax(-1, Kind::Float);
        logp.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1)
    };
    let all = targets.size()[0];
    if all <= size {
        let rows: Vec<Tensor> = rows.iter().map(|rows| rows.shallow_clone()).collect();
        return Ok(score(&head(), &rows, targets));
    }
    let mut parts = Vec::new();
    for start in (0..all).step_by(size as usize) {
        let size = size.min(all - start);
        let rows: Vec<Tensor> = rows.iter().map(|rows| rows.narrow(0, start, size)).collect();
        let (head, targets) = (head(), targets.narrow(0, start, size));
        parts.extend(checkpoint(&rows, move |rows| vec![score(&head, rows, &targets)])?);
    }
    Ok(Tensor::cat(&parts, 0))
}

/// A layer that is run again for its gradient.
fn recomputed(
    layer: &Layer,
    x: &Tensor,
    past: Option<[&Tensor; 2]>,
    rotary: &Rotary,
    mask: &Tensor,
) -> Result<[Tensor; 3]> {
    let (layer, rotary, mask) = (layer.handle(), rotary.handle(), mask.shallow_clone());
    let inputs: Vec<Tensor> =
        std::iter::once(x).chain(past.into_iter().flatten()).map(Tensor::shallow_clone).collect();
    let run = move |inputs: &[Tensor]| match inputs {
        [x, keys, values] => layer.run(x, Some([keys, values]), &rotary, &mask).into(),
        inputs => layer.run(&inputs[0], None, &rotary, &mask).into(),
    };
    let outputs = checkpoint(&inputs, run)?;
    outputs.try_into().map_err(|_| Error::failure("a layer has three outputs"))
}
