//! Keys and values of earlier rows: a cache that grows by concatenation, and one of fixed size that is written in place.

use tch::Tensor;

/// Keys and values of the rows seen so far, a pair a layer, each `[B,heads,rows,head_dim]`.
#[derive(Debug)]
pub struct KvCache(pub(crate) Vec<[Tensor; 2]>);

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
pub struct StaticKvCache(pub(crate) Vec<[Tensor; 2]>);

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
    pub(crate) fn with(self, [keys, values]: [Tensor; 2]) -> [Tensor; 2] {
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
