//! A stack of decoder layers with rotary positions and a cache of keys and values, up to what a family's layer does.

use tch::{Kind, Tensor};
use unirl::autograd::{checkpoint, gradient_enabled};
use unirl::{Error, Result};

use crate::FusedLinear;
use crate::attention::{AttnMask, PreparedMask};
use crate::kv_cache::{KvCache, KvPast, StaticKvCache, WriteAt};
use crate::rotary::Rotary;

/// The rows of the last layer that are read: what comes of the others is never computed.
#[derive(Debug)]
struct OutputRows {
    /// `[B·m]`, counted over the whole batch.
    flat: Tensor,
    /// `m`.
    rows: i64,
    rotary: Rotary,
    sees: PreparedMask,
}

impl OutputRows {
    fn handle(&self) -> Self {
        Self {
            flat: self.flat.shallow_clone(),
            rows: self.rows,
            rotary: self.rotary.handle(),
            sees: self.sees.handle(),
        }
    }
}

/// What a layer knows of its rows.
#[derive(Debug)]
pub struct LayerContext {
    rotary: Rotary,
    sees: PreparedMask,
    read: Option<OutputRows>,
}

impl LayerContext {
    fn handle(&self) -> Self {
        Self {
            rotary: self.rotary.handle(),
            sees: self.sees.handle(),
            read: self.read.as_ref().map(OutputRows::handle),
        }
    }

    /// Of rows `[B,L,D]` those that go on behind the attention, `[B,m,D]`: all of them, or in the last layer those that are
    /// read.
    pub fn read(&self, rows: &Tensor) -> Tensor {
        match &self.read {
            None => rows.shallow_clone(),
            Some(read) => rows.flatten(0, 1).index_select(0, &read.flat).unflatten(0, [-1, read.rows]),
        }
    }

    /// Queries `[B,m,…]` of the rows that are [read](Self::read), keys and values `[B,L,…]` of all, of rows `h [B,L,D]`.
    pub fn project(&self, query_key_value: &FusedLinear, h: &Tensor) -> [Tensor; 3] {
        if self.read.is_none() {
            return query_key_value.apply(h);
        }
        let [q] = query_key_value.apply_some(&self.read(h), 0..1);
        let [k, v] = query_key_value.apply_some(h, 1..3);
        [q, k, v]
    }

    /// What queries `[B,m,heads,head_dim]` see of `past` and of keys and values `[B,L,kv heads,head_dim]`, all before their
    /// rotation: `[B,m,heads·head_dim]`, with the keys and values of all rows, `[B,kv heads,past + L,head_dim]`.
    pub fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, past: KvPast<'_>) -> (Tensor, [Tensor; 2]) {
        let (rotary, sees) = match &self.read {
            None => (&self.rotary, &self.sees),
            Some(read) => (&read.rotary, &read.sees),
        };
        let q = rotary.apply(q).transpose(1, 2);
        let cache = past.with([self.rotary.apply(k).transpose(1, 2), v.transpose(1, 2)]);
        let attended = sees.attend(&q, &cache);
        (attended.flatten(2, 3), cache)
    }
}

/// A layer of the stack.
pub trait Layer: Send + Sized + 'static {
    /// Runs rows `x [B,L,D]` behind `past`: of the rows that are read those after the layer, and the keys and values of all.
    fn run(&self, x: &Tensor, past: KvPast<'_>, context: &LayerContext) -> (Tensor, [Tensor; 2]);

    /// Another handle of the same tensors.
    #[must_use]
    fn handle(&self) -> Self;
}

/// Rows `[B,L,D]` for a stack.
pub struct StackInput<'a> {
    /// `[B,L,D]`.
    pub x: Tensor,
    /// `[B or 1,L]`.
    pub positions: &'a Tensor,
    /// What they see.
    pub sees: AttnMask<'a>,
    /// What they come behind.
    pub past: Option<&'a KvCache>,
    /// `[B,m]`: which of them are read behind the last layer; all without it.
    pub read: Option<&'a Tensor>,
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

    /// Answers the rows that are read, `[B,m,D]`, behind the last layer, and the cache of all rows.
    pub fn forward(&self, rows: StackInput<'_>) -> Result<(Tensor, KvCache)> {
        let mut cache = Vec::with_capacity(self.layers.len());
        let x = self.run(rows, |pair| cache.push(pair))?;
        Ok((x, KvCache(cache)))
    }

    /// [`Stack::forward`] for rows that nothing follows: their cache is let go layer by layer.
    pub fn hidden(&self, rows: StackInput<'_>) -> Result<Tensor> {
        self.run(rows, drop)
    }

    fn run(&self, rows: StackInput<'_>, mut keep: impl FnMut([Tensor; 2])) -> Result<Tensor> {
        let StackInput { mut x, positions, sees, past, read } = rows;
        let context = self.context(positions, sees, x.kind());
        let last = read.map(|read| self.reading(&context, positions, &x, read));
        for (index, layer) in self.layers.iter().enumerate() {
            let past = past.map_or(KvPast::Nothing, |KvCache(past)| KvPast::Before(&past[index]));
            let context = last.as_ref().filter(|_| index + 1 == self.layers.len()).unwrap_or(&context);
            let (after, pair) = if self.checkpointing && gradient_enabled() {
                recomputed(layer, &x, past, context)?
            } else {
                layer.run(&x, past, context)
            };
            x = after;
            keep(pair);
        }
        Ok(x)
    }

    fn context(&self, positions: &Tensor, sees: AttnMask<'_>, kind: Kind) -> LayerContext {
        LayerContext {
            rotary: Rotary::new(positions, self.rotary, kind),
            sees: PreparedMask::new(sees, kind),
            read: None,
        }
    }

    /// The context of a last layer of which rows `index [B,m]` of `x [B,L,D]` are read.
    fn reading(&self, all: &LayerContext, positions: &Tensor, x: &Tensor, index: &Tensor) -> LayerContext {
        let (batch, rows) = (index.size()[0], index.size()[1]);
        let starts = Tensor::arange(batch, (Kind::Int64, index.device())).unsqueeze(1) * x.size()[1];
        let flat = (index + starts).view([-1]);
        let positions = positions.expand([batch, -1], false).gather(1, index, false);
        let rotary = Rotary::new(&positions, self.rotary, x.kind());
        let sees = all.sees.of_rows(&flat, batch);
        LayerContext { read: Some(OutputRows { flat, rows, rotary, sees }), ..all.handle() }
    }

    /// What stays the same for rows that are written again and again from `start` on into a room, at `positions [1,L]`.
    pub fn canvas(
        &self,
        room: StaticKvCache,
        positions: &Tensor,
        sees: AttnMask<'_>,
        start: i64,
        kind: Kind,
    ) -> ParallelDecodeState {
        let context = self.context(positions, sees, kind);
        ParallelDecodeState { room, context, positions: positions.shallow_clone(), start }
    }

    /// Runs rows `x [B,L,D]` on a canvas: those of `read [B,m]` behind the last layer, `[B,m,D]`.
    pub fn run_on(&self, canvas: &ParallelDecodeState, mut x: Tensor, read: &Tensor) -> Tensor {
        let last = self.reading(&canvas.context, &canvas.positions, &x, read);
        let seen = canvas.start + x.size()[1];
        for (index, (layer, pair)) in self.layers.iter().zip(&canvas.room.0).enumerate() {
            let context = if index + 1 == self.layers.len() { &last } else { &canvas.context };
            let past = KvPast::StaticKvCache(pair, WriteAt::From(canvas.start), seen);
            x = layer.run(&x, past, context).0;
        }
        x
    }

    /// Cosines and sines of the positions `0..count`, for [`Stack::step`].
    pub fn rotary_table(&self, count: i64, like: &Tensor) -> Rotary {
        let positions = Tensor::arange(count, (Kind::Int64, like.device())).unsqueeze(0);
        Rotary::new(&positions, self.rotary, like.kind())
    }

    /// Runs single rows `x [B,1,D]` at positions `[B]`, written at `place [1]` into `room`, of which the first `seen` rows are seen
    /// by `mask [B,1,1,seen]`, in the type of the rows: the rows behind the last layer.
    pub fn step(
        &self,
        x: &Tensor,
        (table, positions): (&Rotary, &Tensor),
        mask: Tensor,
        (room, place, seen): (&StaticKvCache, &Tensor, i64),
    ) -> Tensor {
        let context =
            LayerContext { rotary: table.at(positions), sees: PreparedMask::Mask(mask), read: None };
        let mut x = x.shallow_clone();
        for (layer, pair) in self.layers.iter().zip(&room.0) {
            x = layer.run(&x, KvPast::StaticKvCache(pair, WriteAt::At(place), seen), &context).0;
        }
        x
    }
}

/// See [`Stack::canvas`].
#[derive(Debug)]
pub struct ParallelDecodeState {
    room: StaticKvCache,
    context: LayerContext,
    positions: Tensor,
    start: i64,
}

/// A layer that is run again for its gradient.
fn recomputed<L: Layer>(
    layer: &L,
    x: &Tensor,
    past: KvPast<'_>,
    context: &LayerContext,
) -> Result<(Tensor, [Tensor; 2])> {
    let (layer, context) = (layer.handle(), context.handle());
    let mut inputs = vec![x.shallow_clone()];
    if let KvPast::Before(pair) = past {
        inputs.extend(pair.each_ref().map(Tensor::shallow_clone));
    }
    let run = move |inputs: &[Tensor]| {
        let (x, [keys, values]) = match inputs {
            [x, keys, values] => {
                layer.run(x, KvPast::Before(&[keys.shallow_clone(), values.shallow_clone()]), &context)
            }
            inputs => layer.run(&inputs[0], KvPast::Nothing, &context),
        };
        vec![x, keys, values]
    };
    let outputs = <[Tensor; 3]>::try_from(checkpoint(&inputs, run)?);
    let [x, keys, values] = outputs.map_err(|_| Error::failure("a layer has three outputs"))?;
    Ok((x, [keys, values]))
}
