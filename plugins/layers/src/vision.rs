//! The layer that vision transformers are made of.

use serde::{Deserialize, Serialize};
use tch::Tensor;
use unirl::Result;
use unirl::weights::Store;

use crate::{FusedLinear, LayerNorm, Linear};

/// An approximation of GELU, or GELU itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x·σ(1.702·x)`.
    QuickGelu,
    /// By the error function.
    Gelu,
}

/// Sizes of a layer.
#[derive(Debug, Clone, Copy)]
pub struct LayerSize {
    /// `W`, width.
    pub width: i64,
    /// Width between the feed-forward layers.
    pub inner: i64,
    /// Attention heads.
    pub heads: i64,
    /// Added to variances.
    pub eps: f64,
    /// Between the feed-forward layers.
    pub activation: Activation,
}

/// Attention of all rows to all, and two feed-forward layers, each behind a norm and beside an identity.
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
    /// Takes the weights behind `name` from `store`; `out` is what the family calls the projection of what was attended to.
    pub fn take(store: &mut Store, name: &str, out: &str, size: LayerSize) -> Result<Self> {
        let LayerSize { width, inner, eps, .. } = size;
        let part = |part: &str| format!("{name}.{part}");
        Ok(Self {
            norm1: LayerNorm::take(store, &part("layer_norm1"), width, eps)?,
            // In this order they are one weight in the original of Janus.
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

    /// Rows `x [B,n,W]` to as many.
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
