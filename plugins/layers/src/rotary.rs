//! Rotary position embeddings.

use tch::{Kind, Tensor};

/// Cosines and sines of rotary positions, each `[B or 1,L,1,dim]`.
#[derive(Debug)]
pub struct Rotary {
    cos: Tensor,
    /// Negated in the first half.
    sin: Tensor,
}

impl Rotary {
    /// Rotates `dim` dimensions with base `theta` at `positions [B or 1,L]`; computed in f32, stored as `kind`.
    pub(crate) fn new(positions: &Tensor, (dim, theta): (i64, f64), kind: Kind) -> Self {
        let steps = Tensor::arange(dim / 2, (Kind::Float, positions.device())) * (2.0 / dim as f64);
        let frequencies = (steps * -theta.ln()).exp(); // θ^(−2i/dim)
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * frequencies; // [B,L,dim/2]
        let (cos, sin) = (angles.cos(), angles.sin());
        let both =
            |first: &Tensor, second: &Tensor| Tensor::cat(&[first, second], -1).unsqueeze(2).to_kind(kind);
        Self { cos: both(&cos, &cos), sin: both(&-&sin, &sin) }
    }

    /// Looks up one position per batch row, `positions [B]`, in a table of the positions from 0 on.
    pub(crate) fn at(&self, positions: &Tensor) -> Self {
        let pick = |all: &Tensor| all.squeeze_dim(0).index_select(0, positions).unsqueeze(1);
        Self { cos: pick(&self.cos), sin: pick(&self.sin) }
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }

    /// Rotates the first `dim` dimensions of `x [B,L,heads,head_dim]`, pairing `i` with `i + dim/2`.
    pub(crate) fn apply(&self, x: &Tensor) -> Tensor {
        let (dim, head_dim) = (self.cos.size()[3], x.size()[3]);
        let part = if dim == head_dim { x.shallow_clone() } else { x.narrow(3, 0, dim) };
        let rotated = (&part * &self.cos).addcmul_(&part.roll([dim / 2], [3]), &self.sin);
        if dim == head_dim { rotated } else { Tensor::cat(&[&rotated, &x.narrow(3, dim, head_dim - dim)], 3) }
    }
}
