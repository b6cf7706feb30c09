//! The layer of vision transformers.

use serde::{Deserialize, Serialize};
use tch::Tensor;
use unirl::Result;
use unirl::weights::Store;

use crate::{FusedLinear, LayerNorm, Linear};

/// An activation function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x·σ(1.702·x)`.
    QuickGelu,
    /// Exact, by the error function.
    Gelu,
}

/// Sizes of a layer.
#[derive(Debug, Clone, Copy)]
pub struct LayerSize {
    /// `W`, the width.
    pub width: i64,
    /// The hidden width of the feed-forward network.
    pub inner: i64,
    /// The number of attention heads.
    pub heads: i64,
    /// Added to variances.
    pub eps: f64,
    /// The activation of the feed-forward network.
    pub activation: Activation,
}

/// A pre-norm transformer layer without a mask: self-attention and a feed-forward network, each with a residual connection.
pub struct Layer {
    norm1: LayerNorm,
    query_key_value: FusedLinear,
    out: Linear,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    size: LayerSize,
}

impl Layer {
    /// Takes the weights under `name` from `store`; `out` is the family's name of the attention output projection.
    pub fn take(store: &mut Store, name: &str, out: &str, size: LayerSize) -> Result<Self> {
        let LayerSize { width, inner, eps, .. } = size;
        let part = |part: &str| format!("{name}.{part}");
        Ok(Self {
            norm1: LayerNorm::take(store, &part("layer_norm1"), width, eps)?,
            // The order in which the original Janus layout fuses them.
            query_key_value: FusedLinear::new(vec![
                Linear::take(store, &part("self_attn.q_proj"), width, width)?,
                Linear::take(store, &part("self_attn.k_proj"), width, width)?,
                Linear::take(store, &part("self_attn.v_proj"), width, width)?,
            ]),
            out: Linear::take(store, &part(&format!("self_attn.{out}")), width, width)?,
            norm2: LayerNorm::take(store, &part("layer_norm2"), width, eps)?,
            fc1: Linear::take(store, &part("mlp.fc1"), width, inner)?,
            fc2: Linear::take(store, &part("mlp.fc2"), inner, width)?,
            size,
        })
    }

    /// `x [B,n,W]` to `[B,n,W]`.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        let heads = |t: Tensor| t.unflatten(2, [self.size.heads, -1]).transpose(1, 2);
        let [q, k, v] = self.query_key_value.apply(&self.norm1.apply(x)).map(heads);
        let attended =
            Tensor::scaled_dot_product_attention(&q, &k, &v, None::<&Tensor>, 0.0, false, None::<f64>, false);
        let x = x + self.out.apply(&attended.transpose(1, 2).flatten(2, 3));
        let h = self.fc1.apply(&self.norm2.apply(&x));
        let h = match self.size.activation {
            Activation::QuickGelu => (&h * 1.702).sigmoid() * h,
            Activation::Gelu => h.gelu("none"),
        };
        x + self.fc2.apply(&h)
    }
}
