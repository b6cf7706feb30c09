//! The Phi transformer, with `LayerNorm` on queries and keys, one `LayerNorm` before parallel attention and feed-forward,
//! partial rotary positions and an untied head with bias. Weight names are those of the checkpoint.

use tch::{IndexOp, Kind, Tensor};
use unirl::weights::{Expected, Init, Store};
use unirl::{Error, Result};
use unirl_layers::decoder::{self, LayerContext, Stack};
use unirl_layers::kv_cache::KvPast;
use unirl_layers::language::LanguageModel;
use unirl_layers::lora::{Adapter, LoraConfig};
use unirl_layers::{FusedLinear, LayerNorm, Linear};

use crate::clip::Projector;
use crate::config::{CheckpointConfig, PhiConfig};

/// The linear layers that LoRA can adapt.
pub const TARGETS: [&str; 6] = ["q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2"];

/// A decoder layer.
pub struct Layer {
    norm: LayerNorm,
    query_key_value: FusedLinear,
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
        let mut linear = |part: &str, inputs, outputs| Linear::take(store, &name(part), inputs, outputs);
        let query_key_value = ["q_proj", "k_proj", "v_proj"]
            .into_iter()
            .map(|part| linear(&format!("self_attn.{part}"), width, width))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            query_key_value: FusedLinear::new(query_key_value),
            dense: linear("self_attn.dense", width, width)?,
            query_norm: LayerNorm::take(store, &name("self_attn.q_layernorm"), config.head_dim(), eps)?,
            key_norm: LayerNorm::take(store, &name("self_attn.k_layernorm"), config.head_dim(), eps)?,
            fc1: Linear::take(store, &name("mlp.fc1"), width, config.intermediate_size)?,
            fc2: Linear::take(store, &name("mlp.fc2"), config.intermediate_size, width)?,
            norm: LayerNorm::take(store, &name("input_layernorm"), width, eps)?,
            heads: config.num_attention_heads,
        })
    }

    /// The layers that LoRA can adapt.
    fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.query_key_value.layers.iter().chain([&self.dense, &self.fc1, &self.fc2])
    }

    fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.query_key_value.layers.iter_mut().chain([&mut self.dense, &mut self.fc1, &mut self.fc2])
    }
}

impl decoder::Layer for Layer {
    fn forward(&self, x: &Tensor, past: KvPast<'_>, context: &LayerContext) -> (Tensor, [Tensor; 2]) {
        let heads = |t: &Tensor| t.unflatten(2, [self.heads, -1]);
        let h = self.norm.apply(x);
        let [q, k, v] = context.project(&self.query_key_value, &h);
        let q = self.query_norm.apply(&heads(&q));
        let k = self.key_norm.apply(&heads(&k));
        let (attended, cache) = context.attend(&q, &k, &heads(&v), past);
        let (x, h) = (context.output_rows(x), context.output_rows(&h));
        let fed = self.fc2.apply(&self.fc1.apply_gelu(&h));
        (x + self.dense.apply(&attended) + fed, cache)
    }

    fn shallow_clone(&self) -> Self {
        Self {
            norm: self.norm.shallow_clone(),
            query_key_value: self.query_key_value.shallow_clone(),
            dense: self.dense.shallow_clone(),
            query_norm: self.query_norm.shallow_clone(),
            key_norm: self.key_norm.shallow_clone(),
            fc1: self.fc1.shallow_clone(),
            fc2: self.fc2.shallow_clone(),
            heads: self.heads,
        }
    }
}

/// The transformer.
pub struct Phi {
    config: PhiConfig,
    /// Text and image tokens.
    pub language: LanguageModel<Layer, LayerNorm>,
    /// CLIP features to rows, in `w_clip_vit` checkpoints.
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

    /// The weights that a checkpoint of these sizes contains.
    pub fn expected(config: &CheckpointConfig) -> Result<Vec<Expected>> {
        Store::planned(|plan| Self::take(plan, config))
    }

    /// The adapters of a transformer of these sizes.
    pub fn expected_adapters(config: &CheckpointConfig, lora: &LoraConfig) -> Result<Vec<Expected>> {
        let mut phi = Self::take(&mut Store::plan(), config)?;
        Store::planned(|plan| phi.attach(plan, lora))
    }

    /// The names of the layers that LoRA can adapt, without the prefix `showo.`: PEFT wraps the inner transformer.
    pub fn modules(&self) -> Vec<String> {
        let linears = self.language.stack.layers.iter().flat_map(Layer::linears);
        linears.map(|linear| linear.name.strip_prefix("showo.").unwrap_or(&linear.name).into()).collect()
    }

    /// Attaches adapters from `store` to the layers that `lora` targets.
    pub fn attach(&mut self, store: &mut Store, lora: &LoraConfig) -> Result<()> {
        let (width, inner) = (self.config.hidden_size, self.config.intermediate_size);
        let modules = self.modules();
        let plan = lora.adapters_for(&modules)?;
        let linears = self.language.stack.layers.iter_mut().flat_map(Layer::linears_mut);
        for ((linear, module), scaled) in linears.zip(&modules).zip(plan) {
            let size = match module.rsplit('.').next() {
                Some("fc1") => (inner, width),
                Some("fc2") => (width, inner),
                _ => (width, width),
            };
            if let Some(scaled) = scaled {
                linear.adapter = Some(Adapter::take(store, module, size, scaled)?);
            }
        }
        Ok(())
    }

    /// The contribution of each adapter to its weight, by the weight's name.
    pub fn adapter_deltas(&self) -> Vec<(String, Tensor)> {
        let linears = self.language.stack.layers.iter().flat_map(Layer::linears);
        linears
            .filter_map(|linear| {
                Some((format!("{}.weight", linear.name), linear.adapter.as_ref()?.delta_weight()))
            })
            .collect()
    }

    /// Embeds relaxed image codes `[B,N,K]`, each row a mixture of codes: `[B,N,D]`.
    pub fn embed_relaxed_codes(&self, relaxed: &Tensor) -> Tensor {
        relaxed
            .to_kind(self.language.kind())
            .matmul(&self.language.embedding.narrow(0, self.image, self.codes))
    }

    /// Projects CLIP features `[B,n,width of the encoder]` to rows `[B,n,D]`.
    pub fn embed_features(&self, features: &Tensor) -> Result<Tensor> {
        let projector = self
            .projector
            .as_ref()
            .ok_or_else(|| Error::failure("the checkpoint has no projector for CLIP features"))?;
        Ok(projector.apply(&features.to_kind(self.language.kind())))
    }

    /// The rows of the head for image codes.
    pub fn code_head(&self) -> Linear {
        let (head, rows) = (&self.language.head, self.image..self.image + self.codes);
        Linear {
            name: head.name.clone(),
            weight: head.weight.i(rows.clone()),
            bias: head.bias.as_ref().map(|bias| bias.i(rows)),
            adapter: None,
        }
    }

    /// Logits over the image codes, of hidden states `[..,D]`: `[..,K]` f32.
    pub fn code_logits(&self, hidden: &Tensor) -> Tensor {
        self.code_head().apply(hidden).to_kind(Kind::Float)
    }
}
