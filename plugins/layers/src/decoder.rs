//! A stack of decoder layers with rotary positions and a cache of keys and values, up to what a family's layer does.

use tch::{Kind, Tensor};
use unirl::autograd::{checkpoint, gradient_enabled};
use unirl::{Error, Result};

use crate::FusedLinear;

/// What is added to the score of a hidden key. Kept from the original of Show-o: not −∞, so that a row that sees nothing
/// is uniform.
pub(crate) const HIDDEN: f64 = -9_223_372_036_854_775_808.0;

/// libtorch's attention on a GPU copies a mask whose rows do not begin at multiples of so many values.
pub(crate) const ALIGNED: i64 = 8;

/// The additive mask `[B,1,query,key]` of visibility `[B,query,key]`. One query stands for all where they see the same.
pub fn additive(visible: &Tensor) -> Tensor {
    visible.logical_not().to_kind(Kind::Float).unsqueeze(1) * HIDDEN
}

/// What rows see of those before them and of themselves.
#[derive(Debug, Clone, Copy)]
pub enum AttnMask<'a> {
    /// By a mask `[B or 1,1,L or 1,past + L]`, which is added to the scores.
    Mask(&'a Tensor),
    /// All from a column on, which each row of the batch has its own of. libtorch's fastest attention knows no mask.
    From(&'a [i64]),
}

/// [`AttnMask`], as attention takes it.
#[derive(Debug)]
enum PreparedMask {
    /// In the type of the scores.
    Mask(Tensor),
    /// Rows of the batch that see from the same column on: how many, and the column.
    Runs(Vec<(i64, i64)>),
}

impl PreparedMask {
    fn new(sees: AttnMask<'_>, kind: Kind) -> Self {
        match sees {
            AttnMask::Mask(mask) => Self::Mask(fitting(mask, kind)),
            AttnMask::From(columns) => {
                let runs = columns.chunk_by(|one, next| one == next);
                Self::Runs(runs.map(|run| (run.len() as i64, run[0])).collect())
            }
        }
    }

    fn handle(&self) -> Self {
        match self {
            Self::Mask(mask) => Self::Mask(mask.shallow_clone()),
            Self::Runs(runs) => Self::Runs(runs.clone()),
        }
    }

    /// The same of the rows `flat [B·m]` alone.
    fn of_rows(&self, flat: &Tensor, batch: i64) -> Self {
        match self {
            Self::Mask(mask) if mask.size()[2] > 1 => {
                let each = mask.expand([batch, -1, -1, -1], false).flatten(0, 2);
                Self::Mask(each.index_select(0, flat).view([batch, 1, -1, mask.size()[3]]))
            }
            all_the_same => all_the_same.handle(),
        }
    }

    /// What queries `[B,heads,m,head_dim]` see of keys and values `[B,kv heads,S,head_dim]`: `[B,m,heads,head_dim]`.
    fn attend(&self, q: &Tensor, [keys, values]: &[Tensor; 2]) -> Tensor {
        match self {
            Self::Mask(mask) => attention(q, keys, values, Some(mask)),
            Self::Runs(runs) if runs.len() == 1 => {
                attention(q, &behind(keys, runs[0].1), &behind(values, runs[0].1), None)
            }
            Self::Runs(runs) => {
                // Split, and not cut out one by one: on the way back each piece would be as large as the whole.
                let sizes: Vec<i64> = runs.iter().map(|(rows, _)| *rows).collect();
                let [q, keys, values] = [q, keys, values].map(|all| all.split_with_sizes(&sizes, 0));
                let pieces = runs.iter().zip(q).zip(keys).zip(values);
                let parts = pieces.map(|((((_, column), q), k), v)| {
                    attention(&q, &behind(&k, *column), &behind(&v, *column), None)
                });
                Tensor::cat(&parts.collect::<Vec<_>>(), 0)
            }
        }
    }
}

/// Keys or values `[B,heads,S,head_dim]` from a column on.
fn behind(all: &Tensor, column: i64) -> Tensor {
    if column == 0 { all.shallow_clone() } else { all.narrow(2, column, all.size()[2] - column) }
}

/// An additive mask in the type of the scores.
fn fitting(mask: &Tensor, kind: Kind) -> Tensor {
    let mask = mask.to_kind(kind); // −2⁶³ is exact in bf16, too
    let keys = mask.size()[3];
    if !mask.device().is_cuda() || keys % ALIGNED == 0 {
        return mask;
    }
    mask.constant_pad_nd([0, ALIGNED - keys % ALIGNED]).narrow(3, 0, keys)
}

/// Keys and values of the rows seen so far, a pair a layer, each `[B,heads,rows,head_dim]`.
#[derive(Debug)]
pub struct KvCache(Vec<[Tensor; 2]>);

impl KvCache {
    /// The cache of rows `index` of the batch.
    #[must_use]
    pub fn select(&self, index: &Tensor) -> Self {
        Self(self.0.iter().map(|pair| pair.each_ref().map(|all| all.index_select(0, index))).collect())
    }

    /// The cache of rows `index` of the batch, with room for so many rows behind it.
    pub fn with_room(&self, index: &Tensor, room: i64) -> StaticKvCache {
        let longer = |all: &Tensor| {
            let rows = all.index_select(0, index).transpose(1, 2); // [B,rows,heads,head_dim]
            let (batch, before, heads, dim) = rows.size4().unwrap_or_default();
            // Zeros, as what is hidden still takes part with a weight of 0.
            let whole = Tensor::zeros([batch, before + room, heads, dim], (rows.kind(), rows.device()));
            whole.narrow(1, 0, before).copy_(&rows);
            whole
        };
        StaticKvCache(self.0.iter().map(|pair| pair.each_ref().map(longer)).collect())
    }
}

/// Keys and values of rows that are written in place, so that none are copied when there is another row: a pair a layer, each
/// `[B,rows,heads,head_dim]`.
#[derive(Debug)]
pub struct StaticKvCache(Vec<[Tensor; 2]>);

/// Where rows are written in a [`StaticKvCache`].
#[derive(Debug, Clone, Copy)]
pub enum WriteAt<'a> {
    /// From this one on.
    From(i64),
    /// The one that is named on the device, `[1]` i64: where no number may pass from the host.
    At(&'a Tensor),
}

/// What a layer's rows find before them.
#[derive(Debug, Clone, Copy)]
pub enum KvPast<'a> {
    /// Nothing.
    Nothing,
    /// Keys and values, each `[B,heads,rows,head_dim]`, which stay as they are.
    Before(&'a [Tensor; 2]),
    /// Keys and values among which theirs are written. The first so many rows are read.
    StaticKvCache(&'a [Tensor; 2], WriteAt<'a>, i64),
}

impl KvPast<'_> {
    /// Keys and values of what is before and of the rows themselves, `[B,heads,rows,head_dim]`.
    fn with(self, [keys, values]: [Tensor; 2]) -> [Tensor; 2] {
        match self {
            Self::Nothing => [keys, values],
            Self::Before([k, v]) => [Tensor::cat(&[k, &keys], 2), Tensor::cat(&[v, &values], 2)],
            Self::StaticKvCache(room, place, seen) => {
                for (room, rows) in room.iter().zip([keys, values]) {
                    let rows = rows.transpose(1, 2);
                    match place {
                        WriteAt::From(start) => room.narrow(1, start, rows.size()[1]).copy_(&rows),
                        WriteAt::At(index) => drop(room.shallow_clone().index_copy_(1, index, &rows)),
                    }
                }
                room.each_ref().map(|room| room.narrow(1, 0, seen).transpose(1, 2))
            }
        }
    }
}

/// Cosines and sines of rotary positions, each `[B or 1,L,1,dim]`.
#[derive(Debug)]
pub struct Rotary {
    cos: Tensor,
    /// Negative in the first half.
    sin: Tensor,
}

impl Rotary {
    /// Of `dim` dimensions for `positions [B or 1,L]`; computed in f32, then of type `kind`.
    fn new(positions: &Tensor, (dim, theta): (i64, f64), kind: Kind) -> Self {
        let steps = Tensor::arange(dim / 2, (Kind::Float, positions.device())) * (2.0 / dim as f64);
        let frequencies = (steps * -theta.ln()).exp(); // θ^(−2i/dim)
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * frequencies; // [B,L,dim/2]
        let (cos, sin) = (angles.cos(), angles.sin());
        let both =
            |first: &Tensor, second: &Tensor| Tensor::cat(&[first, second], -1).unsqueeze(2).to_kind(kind);
        Self { cos: both(&cos, &cos), sin: both(&-&sin, &sin) }
    }

    /// Of the single rows at `positions [B]`, out of the cosines and sines of all positions from 0 on.
    fn at(&self, positions: &Tensor) -> Self {
        let pick = |all: &Tensor| all.squeeze_dim(0).index_select(0, positions).unsqueeze(1);
        Self { cos: pick(&self.cos), sin: pick(&self.sin) }
    }

    fn handle(&self) -> Self {
        Self { cos: self.cos.shallow_clone(), sin: self.sin.shallow_clone() }
    }

    /// Rotates the first `dim` dimensions of `x [B,L,heads,head_dim]`, pairing `i` with `i + dim/2`.
    fn apply(&self, x: &Tensor) -> Tensor {
        let (dim, whole) = (self.cos.size()[3], x.size()[3]);
        let part = if dim == whole { x.shallow_clone() } else { x.narrow(3, 0, dim) };
        let rotated = (&part * &self.cos).addcmul_(&part.roll([dim / 2], [3]), &self.sin);
        if dim == whole { rotated } else { Tensor::cat(&[&rotated, &x.narrow(3, dim, whole - dim)], 3) }
    }
}

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

/// `[B,m,heads,head_dim]`, as which libtorch lays it out.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Tensor {
    let plain = |q: &Tensor, k: &Tensor, v: &Tensor| {
        Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, false, None::<f64>, false)
    };
    let (batch, heads, rows, dim) = q.size4().unwrap_or_default();
    let groups = heads / k.size()[1];
    let attended = match groups {
        1 => plain(q, k, v),
        // The queries of a head of keys are as good as rows of one.
        _ if rows == 1 => {
            let q = q.reshape([batch, heads / groups, groups, dim]);
            plain(&q, k, v).reshape([batch, heads, rows, dim])
        }
        _ => plain(q, &repeat_kv(k, groups), &repeat_kv(v, groups)),
    };
    attended.transpose(1, 2)
}

/// Each head of `x [B,kv heads,S,head_dim]` as often as `group` query heads read it. Not all of libtorch's fast paths
/// know groups themselves.
fn repeat_kv(x: &Tensor, group: i64) -> Tensor {
    x.unsqueeze(2).expand([-1, -1, group, -1, -1], false).flatten(1, 2)
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
