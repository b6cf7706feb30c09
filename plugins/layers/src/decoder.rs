//! A stack of decoder layers with rotary positions and a KV cache. Each model family brings its own [`Layer`].

use tch::{Kind, Tensor};
use unirl::{Error, Result};
use unirl_torch::autograd::{checkpoint, gradient_enabled};

use crate::FusedLinear;
use crate::attention::{AttnMask, PreparedMask};
use crate::kv_cache::{KvCache, KvPast, StaticKvCache, WriteAt};
use crate::rotary::Rotary;

/// The rows that the last layer computes; the others only contribute keys and values.
#[derive(Debug)]
struct OutputRows {
    /// `[B·m]`, indices into the flattened batch.
    flat: Tensor,
    /// `m`.
    rows: i64,
    rotary: Rotary,
    mask: PreparedMask,
}

impl OutputRows {
    fn shallow_clone(&self) -> Self {
        Self {
            flat: self.flat.shallow_clone(),
            rows: self.rows,
            rotary: self.rotary.shallow_clone(),
            mask: self.mask.shallow_clone(),
        }
    }
}

/// Positions and mask of the rows of a layer.
#[derive(Debug)]
pub struct LayerContext {
    rotary: Rotary,
    mask: PreparedMask,
    outputs: Option<OutputRows>,
}

impl LayerContext {
    fn shallow_clone(&self) -> Self {
        Self {
            rotary: self.rotary.shallow_clone(),
            mask: self.mask.shallow_clone(),
            outputs: self.outputs.as_ref().map(OutputRows::shallow_clone),
        }
    }

    /// Selects the rows `[B,m,D]` of `[B,L,D]` that the layer returns: all of them, or the output rows in the last layer.
    pub fn output_rows(&self, rows: &Tensor) -> Tensor {
        match &self.outputs {
            None => rows.shallow_clone(),
            Some(outputs) => {
                rows.flatten(0, 1).index_select(0, &outputs.flat).unflatten(0, [-1, outputs.rows])
            }
        }
    }

    /// Projects rows `h [B,L,D]` to queries `[B,m,…]` of the [output rows](Self::output_rows) and keys and values `[B,L,…]`
    /// of all rows.
    pub fn project(&self, query_key_value: &FusedLinear, h: &Tensor) -> [Tensor; 3] {
        if self.outputs.is_none() {
            return query_key_value.apply(h);
        }
        let [q] = query_key_value.apply_range(&self.output_rows(h), 0..1);
        let [k, v] = query_key_value.apply_range(h, 1..3);
        [q, k, v]
    }

    /// Attention of queries `[B,m,heads,head_dim]` over `past` and keys and values `[B,L,kv heads,head_dim]`, all before
    /// rotation. Returns `[B,m,heads·head_dim]` and the keys and values of all rows, `[B,kv heads,past + L,head_dim]`.
    pub fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, past: KvPast<'_>) -> (Tensor, [Tensor; 2]) {
        let (rotary, mask) = match &self.outputs {
            None => (&self.rotary, &self.mask),
            Some(outputs) => (&outputs.rotary, &outputs.mask),
        };
        let q = rotary.apply(q).transpose(1, 2);
        let cache = past.update([self.rotary.apply(k).transpose(1, 2), v.transpose(1, 2)]);
        let attended = mask.attend(&q, &cache);
        (attended.flatten(2, 3), cache)
    }
}

/// A layer of a [`Stack`].
pub trait Layer: Send + Sized + 'static {
    /// Computes rows `x [B,L,D]` after `past`. Returns the [output rows](LayerContext::output_rows) `[B,m,D]`, and the keys
    /// and values of all rows.
    fn forward(&self, x: &Tensor, past: KvPast<'_>, context: &LayerContext) -> (Tensor, [Tensor; 2]);

    /// A layer that shares its tensors with this one.
    #[must_use]
    fn shallow_clone(&self) -> Self;
}

/// Input of a [`Stack`].
pub struct StackInput<'a> {
    /// `[B,L,D]`.
    pub x: Tensor,
    /// `[B or 1,L]`.
    pub positions: &'a Tensor,
    /// Which keys the rows attend to.
    pub mask: AttnMask<'a>,
    /// Keys and values of earlier rows.
    pub past: Option<&'a KvCache>,
    /// `[B,m]`: indices of the rows to return; all rows if absent.
    pub outputs: Option<&'a Tensor>,
}

impl<'a> StackInput<'a> {
    /// Rows `x [B,L,D]` without earlier ones, under an additive `mask`; all are returned.
    pub fn new(x: Tensor, positions: &'a Tensor, mask: &'a Tensor) -> Self {
        Self { x, positions, mask: AttnMask::Additive(mask), past: None, outputs: None }
    }
}

/// A sequence of layers.
pub struct Stack<L> {
    /// The layers.
    pub layers: Vec<L>,
    /// The number of rotated dimensions and the base of their frequencies.
    rotary: (i64, f64),
    /// Gradient checkpointing: keep only the input of each layer and recompute the rest in the backward pass.
    pub checkpointing: bool,
}

impl<L: Layer> Stack<L> {
    /// A stack of `layers` that rotate `dim` dimensions with frequencies of base `theta`.
    pub fn new(layers: Vec<L>, dim: i64, theta: f64) -> Self {
        Self { layers, rotary: (dim, theta), checkpointing: false }
    }

    /// Returns the output rows of the last layer, `[B,m,D]`, and the cache of all rows.
    pub fn forward(&self, input: StackInput<'_>) -> Result<(Tensor, KvCache)> {
        let mut cache = Vec::with_capacity(self.layers.len());
        let x = self.forward_layers(input, |pair| cache.push(pair))?;
        Ok((x, KvCache(cache)))
    }

    /// [`Stack::forward`] without a cache: each layer's keys and values are freed after it.
    pub fn hidden_states(&self, input: StackInput<'_>) -> Result<Tensor> {
        self.forward_layers(input, drop)
    }

    fn forward_layers(&self, input: StackInput<'_>, mut keep: impl FnMut([Tensor; 2])) -> Result<Tensor> {
        let StackInput { mut x, positions, mask, past, outputs } = input;
        let context = self.context(positions, mask, x.kind());
        let last = outputs.map(|outputs| self.last_context(&context, positions, &x, outputs));
        for (index, layer) in self.layers.iter().enumerate() {
            let past = past.map_or(KvPast::Empty, |KvCache(past)| KvPast::Cached(&past[index]));
            let context = last.as_ref().filter(|_| index + 1 == self.layers.len()).unwrap_or(&context);
            let (after, pair) = if self.checkpointing && gradient_enabled() {
                forward_checkpointed(layer, &x, past, context)?
            } else {
                layer.forward(&x, past, context)
            };
            x = after;
            keep(pair);
        }
        Ok(x)
    }

    fn context(&self, positions: &Tensor, mask: AttnMask<'_>, kind: Kind) -> LayerContext {
        LayerContext {
            rotary: Rotary::new(positions, self.rotary, kind),
            mask: PreparedMask::new(mask, kind),
            outputs: None,
        }
    }

    /// The context of the last layer if only the rows `index [B,m]` of `x [B,L,D]` are returned.
    fn last_context(
        &self,
        all: &LayerContext,
        positions: &Tensor,
        x: &Tensor,
        index: &Tensor,
    ) -> LayerContext {
        let (batch, rows) = (index.size()[0], index.size()[1]);
        let starts = Tensor::arange(batch, (Kind::Int64, index.device())).unsqueeze(1) * x.size()[1];
        let flat = (index + starts).view([-1]);
        let positions = positions.expand([batch, -1], false).gather(1, index, false);
        let rotary = Rotary::new(&positions, self.rotary, x.kind());
        let mask = all.mask.select_queries(&flat, batch);
        LayerContext { outputs: Some(OutputRows { flat, rows, rotary, mask }), ..all.shallow_clone() }
    }

    /// The constants of parallel decoding: rows at `positions [1,L]` that every step writes to `cache` again, from row
    /// `start` on.
    pub fn parallel_decode_state(
        &self,
        cache: StaticKvCache,
        positions: &Tensor,
        mask: AttnMask<'_>,
        start: i64,
        kind: Kind,
    ) -> ParallelDecodeState {
        let context = self.context(positions, mask, kind);
        ParallelDecodeState { cache, context, positions: positions.shallow_clone(), start }
    }

    /// One step of parallel decoding for rows `x [B,L,D]`: the rows `outputs [B,m]` of the last layer, `[B,m,D]`.
    pub fn parallel_decode(&self, state: &ParallelDecodeState, mut x: Tensor, outputs: &Tensor) -> Tensor {
        let last = self.last_context(&state.context, &state.positions, &x, outputs);
        let length = state.start + x.size()[1];
        for (index, (layer, pair)) in self.layers.iter().zip(&state.cache.0).enumerate() {
            let context = if index + 1 == self.layers.len() { &last } else { &state.context };
            let past = KvPast::Static(pair, WriteAt::From(state.start), length);
            x = layer.forward(&x, past, context).0;
        }
        x
    }

    /// Cosines and sines of the positions `0..count`, for [`Stack::decode_step`].
    pub fn rotary_table(&self, count: i64, like: &Tensor) -> Rotary {
        let positions = Tensor::arange(count, (Kind::Int64, like.device())).unsqueeze(0);
        Rotary::new(&positions, self.rotary, like.kind())
    }

    /// Decodes one row per sequence, `x [B,1,D]` at `positions [B]`. Writes it at `column [1]` of `cache` and attends to the
    /// first `length` rows under `mask [B,1,1,length]`, which has the type of `x`. Returns the last layer's rows, `[B,1,D]`.
    pub fn decode_step(
        &self,
        x: &Tensor,
        (table, positions): (&Rotary, &Tensor),
        mask: Tensor,
        (cache, column, length): (&StaticKvCache, &Tensor, i64),
    ) -> Tensor {
        let context =
            LayerContext { rotary: table.at(positions), mask: PreparedMask::Additive(mask), outputs: None };
        let mut x = x.shallow_clone();
        for (layer, pair) in self.layers.iter().zip(&cache.0) {
            x = layer.forward(&x, KvPast::Static(pair, WriteAt::At(column), length), &context).0;
        }
        x
    }
}

/// See [`Stack::parallel_decode_state`].
#[derive(Debug)]
pub struct ParallelDecodeState {
    cache: StaticKvCache,
    context: LayerContext,
    positions: Tensor,
    start: i64,
}

/// [`Layer::forward`] with gradient checkpointing.
fn forward_checkpointed<L: Layer>(
    layer: &L,
    x: &Tensor,
    past: KvPast<'_>,
    context: &LayerContext,
) -> Result<(Tensor, [Tensor; 2])> {
    let (layer, context) = (layer.shallow_clone(), context.shallow_clone());
    let mut inputs = vec![x.shallow_clone()];
    if let KvPast::Cached(pair) = past {
        inputs.extend(pair.each_ref().map(Tensor::shallow_clone));
    }
    let forward = move |inputs: &[Tensor]| {
        let (x, [keys, values]) = match inputs {
            [x, keys, values] => {
                layer.forward(x, KvPast::Cached(&[keys.shallow_clone(), values.shallow_clone()]), &context)
            }
            inputs => layer.forward(&inputs[0], KvPast::Empty, &context),
        };
        vec![x, keys, values]
    };
    let outputs = <[Tensor; 3]>::try_from(checkpoint(&inputs, forward)?);
    let [x, keys, values] =
        outputs.map_err(|_| Error::failure("gradient checkpointing: expected three outputs of a layer"))?;
    Ok((x, [keys, values]))
}
