//! The transformer: Phi with `LayerNorm` of queries and keys always on, one `LayerNorm` before parallel
//! attention and feed-forward, partial rotary positions, an untied head with bias. Names are those of the
//! checkpoint.

use tch::{IndexOp, Kind, Tensor};
use unirl::weights::{Expected, Init, Store};
use unirl::{Error, Result};
use unirl_layers::decoder::{self, Rotary, Stack, behind};
use unirl_layers::language::LanguageModel;
use unirl_layers::lora::{Adapter, LoraConfig};
use unirl_layers::{LayerNorm, Linear};

use crate::clip::Projector;
use crate::config::{CheckpointConfig, PhiConfig};

/// The products that adapters can stand beside.
pub const TARGETS: [&str; 6] = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"];

/// A layer.
pub struct Layer {
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
    /// Text and image tokens.
    pub language: LanguageModel<Layer, LayerNorm>,
    /// Where understanding reads features of pictures.
    projector: Option<Projector>,
    image: i64,
    codes: i64,
}

impl Phi {
    /// Takes its weights from `store`.
    pub fn take(store: &mut Store, config: &CheckpointConfig) -> Result<Self> {
        let phi = config.phi.clone();
        let embedding = store.take(
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
            language: LanguageModel {
                embedding,
                stack: Stack::new(layers, phi.rotary_dim(), phi.rope_theta),
                norm,
                head,
            },
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
        for linear in self.language.stack.layers.iter_mut().flat_map(Layer::products) {
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
        let products = self
            .language
            .stack
            .layers
            .iter()
            .flat_map(|l| [&l.query, &l.key, &l.value, &l.dense, &l.fc1, &l.fc2]);
        products
            .filter_map(|linear| Some((format!("{}.weight", linear.name), linear.adapter.as_ref()?.weight())))
            .collect()
    }

    /// Embeds relaxed image codes `[B,N,K]`, each row a mixture of codes: `[B,N,D]`.
    pub fn embed_codes(&self, relaxed: &Tensor) -> Tensor {
        relaxed
            .to_kind(self.language.kind())
            .matmul(&self.language.embedding.narrow(0, self.image, self.codes))
    }

    /// Features of pictures `[B,n,D of the tower]` as rows `[B,n,D]`.
    pub fn embed_features(&self, features: &Tensor) -> Result<Tensor> {
        let projector =
            self.projector.as_ref().ok_or_else(|| Error::failure("the model has no projector"))?;
        Ok(projector.apply(&features.to_kind(self.language.kind())))
    }

    /// Logits over the image codes of hidden rows `[..,D]`: `[..,K]` f32.
    pub fn code_logits(&self, hidden: &Tensor) -> Tensor {
        let (head, rows) = (&self.language.head, self.image..self.image + self.codes);
        let logits = hidden.linear(&head.weight.i(rows.clone()), head.bias.as_ref().map(|bias| bias.i(rows)));
        logits.to_kind(Kind::Float)
    }
}
