//! KV caches: one that grows by concatenation, and one of fixed size that is written in place.

use tch::Tensor;

/// Keys and values of earlier rows, one pair per layer, each `[B,heads,rows,head_dim]`.
#[derive(Debug)]
pub struct KvCache(pub(crate) Vec<[Tensor; 2]>);

impl KvCache {
    /// The cache of the batch rows `index`.
    #[must_use]
    pub fn select(&self, index: &Tensor) -> Self {
        Self(self.0.iter().map(|pair| pair.each_ref().map(|all| all.index_select(0, index))).collect())
    }

    /// A copy of the batch rows `index` with space for `extra` more rows.
    pub fn to_static(&self, index: &Tensor, extra: i64) -> StaticKvCache {
        let extended = |all: &Tensor| {
            let rows = all.index_select(0, index).transpose(1, 2); // [B,rows,heads,head_dim]
            let (batch, filled, heads, dim) = rows.size4().unwrap_or_default();
            // Zeros: masked rows still enter the sum with weight 0.
            let cache = Tensor::zeros([batch, filled + extra, heads, dim], (rows.kind(), rows.device()));
            cache.narrow(1, 0, filled).copy_(&rows);
            cache
        };
        StaticKvCache(self.0.iter().map(|pair| pair.each_ref().map(extended)).collect())
    }
}

/// Preallocated keys and values, written in place so that no step copies earlier rows: one pair per layer, each
/// `[B,rows,heads,head_dim]`.
#[derive(Debug)]
pub struct StaticKvCache(pub(crate) Vec<[Tensor; 2]>);

/// Where rows are written in a [`StaticKvCache`].
#[derive(Debug, Clone, Copy)]
pub enum WriteAt<'a> {
    /// From this row on.
    From(i64),
    /// At a row index in device memory, `[1]` i64: a CUDA graph cannot take a number from the host.
    At(&'a Tensor),
}

/// Keys and values before the rows of a layer.
#[derive(Debug, Clone, Copy)]
pub enum KvPast<'a> {
    /// No earlier rows.
    Empty,
    /// Earlier keys and values, each `[B,heads,rows,head_dim]`, left unchanged.
    Cached(&'a [Tensor; 2]),
    /// Preallocated keys and values that the new ones are written into, where, and the number of rows to attend to.
    Static(&'a [Tensor; 2], WriteAt<'a>, i64),
}

impl KvPast<'_> {
    /// Appends the keys and values of new rows: earlier and new ones, `[B,heads,rows,head_dim]`.
    pub(crate) fn update(self, [keys, values]: [Tensor; 2]) -> [Tensor; 2] {
        match self {
            Self::Empty => [keys, values],
            Self::Cached([k, v]) => [Tensor::cat(&[k, &keys], 2), Tensor::cat(&[v, &values], 2)],
            Self::Static(cache, at, length) => {
                for (cache, rows) in cache.iter().zip([keys, values]) {
                    let rows = rows.transpose(1, 2);
                    match at {
                        WriteAt::From(start) => cache.narrow(1, start, rows.size()[1]).copy_(&rows),
                        WriteAt::At(index) => drop(cache.shallow_clone().index_copy_(1, index, &rows)),
                    }
                }
                cache.each_ref().map(|cache| cache.narrow(1, 0, length).transpose(1, 2))
            }
        }
    }
}
