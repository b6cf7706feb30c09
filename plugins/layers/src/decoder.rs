//! A stack of decoder layers with rotary positions and a cache of keys and values, up to what a family's layer does.

use tch::{Kind, Tensor};
use unirl::autograd::{checkpoint, gradient_enabled};
use unirl::{Error, Result};

/// What is added to the score of a hidden key. Kept from the original of Show-o: not −∞, so that a row that sees nothing
/// is uniform.
const HIDDEN: f64 = -9_223_372_036_854_775_808.0;

/// The additive mask `[B,1,query,key]` of visibility `[B,query,key]`.
pub fn additive(visible: &Tensor) -> Tensor {
    visible.logical_not().to_kind(Kind::Float).unsqueeze(1) * HIDDEN
}

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

/// Cosines and sines of rotary positions, each `[B or 1,1,L,dim]`.
pub struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// Of `dim` dimensions for `positions [B or 1,L]`; computed in f32, then of type `kind`.
    fn new(positions: &Tensor, (dim, theta): (i64, f64), kind: Kind) -> Self {
        let steps = Tensor::arange(dim / 2, (Kind::Float, positions.device())) * (2.0 / dim as f64);
        let frequencies = (steps * -theta.ln()).exp(); // θ^(−2i/dim)
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * frequencies; // [B,L,dim/2]
        let angles = Tensor::cat(&[&angles, &angles], -1).unsqueeze(1);
        Self { cos: angles.cos().to_kind(kind), sin: angles.sin().to_kind(kind) }
    }

    fn handle(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }

    /// Rotates the first `dim` dimensions of `x [B,heads,L,head_dim]`, pairing `i` with `i + dim/2`.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        let (dim, whole) = (self.cos.size()[3], x.size()[3]);
        let rotated = x.narrow(3, 0, dim);
        let swapped =
            Tensor::cat(&[&-rotated.narrow(3, dim / 2, dim / 2), &rotated.narrow(3, 0, dim / 2)], 3);
        let rotated = rotated * &self.cos + swapped * &self.sin;
        if dim == whole { rotated } else { Tensor::cat(&[&rotated, &x.narrow(3, dim, whole - dim)], 3) }
    }
}

/// A layer of the stack.
pub trait Layer: Send + Sized + 'static {
    /// Runs rows `x [B,L,D]` behind the keys and values in `past`: the rows after the layer, and the keys and values of
    /// all.
    fn run(&self, x: &Tensor, past: Option<[&Tensor; 2]>, rotary: &Rotary, mask: &Tensor) -> [Tensor; 3];

    /// Another handle of the same tensors.
    #[must_use]
    fn handle(&self) -> Self;
}

/// Keys and values of rows behind those in `past`.
pub fn behind(past: Option<[&Tensor; 2]>, keys: Tensor, values: Tensor) -> (Tensor, Tensor) {
    match past {
        Some([k, v]) => (Tensor::cat(&[k, &keys], 2), Tensor::cat(&[v, &values], 2)),
        None => (keys, values),
    }
}

/// Layers one after the other.
pub struct Stack<L> {
    /// The layers.
    pub layers: Vec<L>,
    /// Dimensions that are rotated, and the base of their frequencies.
    rotary: (i64, f64),
    /// Whether layers keep their inputs alone for the gradient, and compute the rest again.
    pub checkpointing: bool,
}

impl<L: Layer> Stack<L> {
    /// A stack of `layers` that rotate `dim` dimensions with frequencies of base `theta`.
    pub fn new(layers: Vec<L>, dim: i64, theta: f64) -> Self {
        Self { layers, rotary: (dim, theta), checkpointing: false }
    }

    /// Runs rows `x [B,L,D]` at `positions [B or 1,L]` behind those in `past`. `mask [B or 1,1,L,past + L]`
    /// is added to the attention scores. Answers the rows `[B,L,D]` behind the last layer, and the cache of all rows.
    pub fn forward(
        &self,
        x: Tensor,
        positions: &Tensor,
        mask: &Tensor,
        past: Option<&Cache>,
    ) -> Result<(Tensor, Cache)> {
        let mut cache = Vec::with_capacity(self.layers.len());
        let x = self.run(x, positions, mask, past, |keys, values| cache.push((keys, values)))?;
        Ok((x, Cache(cache)))
    }

    /// [`Stack::forward`] for rows that nothing follows: their cache is let go layer by layer.
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
        let rotary = Rotary::new(positions, self.rotary, x.kind());
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
        Ok(x)
    }
}

/// A layer that is run again for its gradient.
fn recomputed<L: Layer>(
    layer: &L,
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
