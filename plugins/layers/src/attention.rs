//! Attention masks, and attention over keys and values with fewer heads than the queries.

use tch::{Kind, Tensor};

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
pub(crate) enum PreparedMask {
    /// In the type of the scores.
    Mask(Tensor),
    /// Rows of the batch that see from the same column on: how many, and the column.
    Runs(Vec<(i64, i64)>),
}

impl PreparedMask {
    pub(crate) fn new(sees: AttnMask<'_>, kind: Kind) -> Self {
        match sees {
            AttnMask::Mask(mask) => Self::Mask(fitting(mask, kind)),
            AttnMask::From(columns) => {
                let runs = columns.chunk_by(|one, next| one == next);
                Self::Runs(runs.map(|run| (run.len() as i64, run[0])).collect())
            }
        }
    }

    pub(crate) fn handle(&self) -> Self {
        match self {
            Self::Mask(mask) => Self::Mask(mask.shallow_clone()),
            Self::Runs(runs) => Self::Runs(runs.clone()),
        }
    }

    /// The same of the rows `flat [B·m]` alone.
    pub(crate) fn of_rows(&self, flat: &Tensor, batch: i64) -> Self {
        match self {
            Self::Mask(mask) if mask.size()[2] > 1 => {
                let each = mask.expand([batch, -1, -1, -1], false).flatten(0, 2);
                Self::Mask(each.index_select(0, flat).view([batch, 1, -1, mask.size()[3]]))
            }
            all_the_same => all_the_same.handle(),
        }
    }

    /// What queries `[B,heads,m,head_dim]` see of keys and values `[B,kv heads,S,head_dim]`: `[B,m,heads,head_dim]`.
    pub(crate) fn attend(&self, q: &Tensor, [keys, values]: &[Tensor; 2]) -> Tensor {
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
