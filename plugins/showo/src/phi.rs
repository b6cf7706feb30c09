//! The transformer: Phi with `LayerNorm` of queries and keys always on, one `LayerNorm` before parallel
//! attention and feed-forward, partial rotary positions, an untied head with bias. Names are those of the
//! checkpoint.

use tch::{IndexOp, Kind, Tensor};
use unirl::weights::{Expected, Init, Store};
use unirl::{Error, Result};
use unirl_layers::decoder::{self, Cache, Rotary, Stack, behind};
use unirl_layers::lora::{Adapter, LoraConfig};
use unirl_layers::{LayerNorm, Linear};

use crate::clip::Projector;
use crate::config::{CheckpointConfig, PhiConfig};

/// The products that adapters can stand beside.
pub const TARGETS: [&str; 6] = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"];

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
    heads: i64,
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
            heads: config.num_attention_heads,
        })
    }

    fn products(&mut self) -> [&mut Linear; 6] {
        [&mut self.query, &mut self.key, &mut self.value, &mut self.dense, &mut self.fc1, &mut self.fc2]
    }
}

impl decoder::Layer for Layer {
    fn run(&self, x: &Tensor, past: Option<[&Tensor; 2]>, rotary: &Rotary, mask: &Tensor) -> [Tensor; 3] {
        let size = x.size();
        let heads = |t: Tensor| t.view([size[0], size[1], self.heads, -1]).transpose(1, 2);
        let h = self.norm.apply(x);
        let q = rotary.apply(&self.query_norm.apply(&heads(self.query.apply(&h))));
        let k = rotary.apply(&self.key_norm.apply(&heads(self.key.apply(&h))));
        let (k, v) = behind(past, k, heads(self.value.apply(&h)));
        let attended =
            Tensor::scaled_dot_product_attention(&q, &k, &v, Some(mask), 0.0, false, None::<f64>, false);
        let attended = attended.transpose(1, 2).reshape(&size);
        let fed = self.fc2.apply(&self.fc1.apply(&h).gelu("tanh"));
        [x + self.dense.apply(&attended) + fed, k, v]
    }

    fn handle(&self) -> Self {
        Self {
            norm: self.norm.handle(),
            query: self.query.handle(),
            key: self.key.handle(),
            value: self.value.handle(),
            dense: self.dense.handle(),
            query_norm: self.query_norm.handle(),
            key_norm: self.key_norm.handle(),
            fc1: self.fc1.handle(),
            fc2: self.fc2.handle(),
            heads: self.heads,
        }
    }
}

/// The transformer.
pub struct Phi {
    config: PhiConfig,
    embed: Tensor,
    stack: Stack<Layer>,
    norm: LayerNorm,
    head: Linear,
    /// Where understanding reads features of pictures.
    projector: Option<Projector>,
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
        let projector = config
            .w_clip_vit
            .then(|| Projector::take(store, config.clip_width, phi.hidden_size))
            .transpose()?;
        Ok(Self {
            embed,
            stack: Stack::new(layers, phi.rotary_dim(), phi.rope_theta),
            norm,
            head,
            projector,
            image: config.special().image,
            codes: config.codebook_size,
            config: phi,
        })
    }

    /// The weights of a checkpoint of these sizes.
    pub fn expected(config: &CheckpointConfig) -> Result<Vec<Expected>> {
        Store::planned(|plan| Self::take(plan, config))
    }

    /// The adapters of a transformer of these sizes.
    pub fn expected_adapters(config: &CheckpointConfig, lora: &LoraConfig) -> Result<Vec<Expected>> {
        let mut phi = Self::take(&mut Store::plan(), config)?;
        Store::planned(|plan| phi.attach(plan, lora))
    }

    /// Puts adapters from `store` beside the products that `lora` targets.
    pub fn attach(&mut self, store: &mut Store, lora: &LoraConfig) -> Result<()> {
        let (width, inner) = (self.config.hidden_size, self.config.intermediate_size);
        for linear in self.stack.layers.iter_mut().flat_map(Layer::products) {
            let target = linear.name.rsplit('.').next().unwrap_or_default();
            let size = match target {
                "fc1" => (inner, width),
                "fc2" => (width, inner),
                _ => (width, width),
            };
            if lora.targets.iter().any(|wanted| wanted == target) {
                // PEFT wraps the transformer, which is `showo` in the checkpoint.
                let module = linear.name.strip_prefix("showo.").unwrap_or(&linear.name);
                linear.adapter = Some(Adapter::take(store, module, size, lora)?);
            }
        }
        Ok(())
    }

    /// What the adapters add, by the name of the weight.
    pub fn adapted(&self) -> Vec<(String, Tensor)> {
        let products =
            self.stack.layers.iter().flat_map(|l| [&l.query, &l.key, &l.value, &l.dense, &l.fc1, &l.fc2]);
        products
            .filter_map(|linear| Some((format!("{}.weight", linear.name), linear.adapter.as_ref()?.weight())))
            .collect()
    }

    /// Keeps only the inputs of layers for the gradient, and computes the rest again.
    pub fn set_checkpointing(&mut self, checkpointing: bool) {
        self.stack.checkpointing = checkpointing;
    }

    /// Whether layers keep their inputs alone for the gradient.
    pub fn checkpointing(&self) -> bool {
        self.stack.checkpointing
    }

    /// The type of its weights.
    pub fn kind(&self) -> Kind {
        self.embed.kind()
    }

    /// Embeds `ids [B,L]`: `[B,L,D]`.
    pub fn embed(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.embed, ids, -1, false, false)
    }

    /// Embeds relaxed image codes `[B,N,K]`, each row a mixture of codes: `[B,N,D]`.
    pub fn embed_codes(&self, relaxed: &Tensor) -> Tensor {
        relaxed.to_kind(self.kind()).matmul(&self.embed.narrow(0, self.image, self.codes))
    }

    /// Features of pictures `[B,n,D of the tower]` as rows `[B,n,D]`.
    pub fn embed_features(&self, features: &Tensor) -> Result<Tensor> {
        let projector =
            self.projector.as_ref().ok_or_else(|| Error::failure("the model has no projector"))?;
        Ok(projector.apply(&features.to_kind(self.kind())))
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
        let (x, cache) = self.stack.forward(x, positions, mask, past)?;
        Ok((self.norm.apply(&x), cache))
    }

    /// [`Phi::forward`] for rows that nothing follows: their cache is let go layer by layer.
    pub fn hidden(
        &self,
        x: Tensor,
        positions: &Tensor,
        mask: &Tensor,
        past: Option<&Cache>,
    ) -> Result<Tensor> {
        Ok(self.norm.apply(&self.stack.hidden(x, positions, mask, past)?))
    }

    /// Logits over all tokens of hidden rows `[..,D]`: `[..,V]` f32.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        self.head.apply(hidden).to_kind(Kind::Float)
    }

    /// Log-probabilities of the tokens `targets [R]` that hidden rows `[R,D]` predict: `[R]` f32.
    pub fn logp(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
        decoder::logp(&[hidden], targets, self.head.weight.size()[0], || {
            let head = self.head.handle();
            move |hidden| head.apply(&hidden[0]).to_kind(Kind::Float)
        })
    }

    /// Logits over the image codes of hidden rows `[..,D]`: `[..,K]` f32.
    pub fn code_logits(&self, hidden: &Tensor) -> Tensor {
        let rows = self.image..self.image + self.codes;
        let logits = hidden
            .linear(&self.head.weight.i(rows.clone()), self.head.bias.as_ref().map(|bias| bias.i(rows)));
        logits.to_kind(Kind::Float)
    }
}
