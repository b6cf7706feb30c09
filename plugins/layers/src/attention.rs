//! Attention masks and scaled dot-product attention with grouped keys and values.

use tch::{Kind, Tensor};

/// Added to the score of a masked key. Show-o's value, kept instead of −∞ so that a query with no visible key attends
/// uniformly.
pub(crate) const MASKED: f64 = -9_223_372_036_854_775_808.0;

/// On a GPU, libtorch's attention copies a mask whose row stride is not a multiple of this.
pub(crate) const MASK_ALIGNMENT: i64 = 8;

/// The additive mask `[B,1,query,key]` of visibility `[B,query,key]`; a query dimension of 1 is broadcast.
pub fn additive_mask(visible: &Tensor) -> Tensor {
    visible.logical_not().to_kind(Kind::Float).unsqueeze(1) * MASKED
}

/// Which keys a query attends to.
#[derive(Debug, Clone, Copy)]
pub enum AttnMask<'a> {
    /// A mask `[B or 1,1,L or 1,past + L]` that is added to the scores.
    Additive(&'a Tensor),
    /// Every key from a column on, one column per batch row. Needs no mask, so libtorch's fastest kernel applies.
    FromColumn(&'a [i64]),
}

/// [`AttnMask`] in the form that the layers use.
#[derive(Debug)]
pub(crate) enum PreparedMask {
    /// In the type of the scores.
    Additive(Tensor),
    /// Consecutive batch rows with the same first column: their number and the column.
    Runs(Vec<(i64, i64)>),
}

impl PreparedMask {
    pub(crate) fn new(mask: AttnMask<'_>, kind: Kind) -> Self {
        match mask {
            AttnMask::Additive(mask) => Self::Additive(align(mask, kind)),
            AttnMask::FromColumn(columns) => {
                let runs = columns.chunk_by(|one, next| one == next);
                Self::Runs(runs.map(|run| (run.len() as i64, run[0])).collect())
            }
        }
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        match self {
            Self::Additive(mask) => Self::Additive(mask.shallow_clone()),
            Self::Runs(runs) => Self::Runs(runs.clone()),
        }
    }

    /// The mask of the queries `flat [B·m]` only.
    pub(crate) fn select_queries(&self, flat: &Tensor, batch: i64) -> Self {
        match self {
            Self::Additive(mask) if mask.size()[2] > 1 => {
                let each = mask.expand([batch, -1, -1, -1], false).flatten(0, 2);
                Self::Additive(each.index_select(0, flat).view([batch, 1, -1, mask.size()[3]]))
            }
            same_for_all_queries => same_for_all_queries.shallow_clone(),
        }
    }

    /// Attention of queries `[B,heads,m,head_dim]` over keys and values `[B,kv heads,S,head_dim]`: `[B,m,heads,head_dim]`.
    pub(crate) fn attend(&self, q: &Tensor, [keys, values]: &[Tensor; 2]) -> Tensor {
        match self {
            Self::Additive(mask) => attention(q, keys, values, Some(mask)),
            Self::Runs(runs) if runs.len() == 1 => {
                let column = runs[0].1;
                attention(q, &from_column(keys, column), &from_column(values, column), None)
            }
            Self::Runs(runs) => {
                // `split`, not `narrow`: the backward pass of each `narrow` would allocate the whole tensor.
                let sizes: Vec<i64> = runs.iter().map(|(rows, _)| *rows).collect();
                let [q, keys, values] = [q, keys, values].map(|all| all.split_with_sizes(&sizes, 0));
                let runs = runs.iter().zip(q).zip(keys).zip(values);
                let attended = runs.map(|((((_, column), q), k), v)| {
                    attention(&q, &from_column(&k, *column), &from_column(&v, *column), None)
                });
                Tensor::cat(&attended.collect::<Vec<_>>(), 0)
            }
        }
    }
}

/// Keys or values `[B,heads,S,head_dim]` from a column on.
fn from_column(all: &Tensor, column: i64) -> Tensor {
    if column == 0 { all.shallow_clone() } else { all.narrow(2, column, all.size()[2] - column) }
}

/// An additive mask in the type of the scores, with aligned rows on a GPU.
fn align(mask: &Tensor, kind: Kind) -> Tensor {
    let mask = mask.to_kind(kind); // −2⁶³ is exact in bf16
    let keys = mask.size()[3];
    if !mask.device().is_cuda() || keys % MASK_ALIGNMENT == 0 {
        return mask;
    }
    mask.constant_pad_nd([0, MASK_ALIGNMENT - keys % MASK_ALIGNMENT]).narrow(3, 0, keys)
}

/// Scaled dot-product attention: `[B,m,heads,head_dim]`, a view of libtorch's output.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, mask: Option<&Tensor>) -> Tensor {
    let sdpa = |q: &Tensor, k: &Tensor, v: &Tensor| {
        Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, false, None::<f64>, false)
    };
    let (batch, heads, rows, dim) = q.size4().unwrap_or_default();
    let groups = heads / k.size()[1];
    let attended = match groups {
        1 => sdpa(q, k, v),
        // With one query per head, the queries of a group act as rows of one head: no copies of keys and values.
        _ if rows == 1 => {
            let q = q.reshape([batch, heads / groups, groups, dim]);
            sdpa(&q, k, v).reshape([batch, heads, rows, dim])
        }
        _ => sdpa(q, &repeat_kv(k, groups), &repeat_kv(v, groups)),
    };
    attended.transpose(1, 2)
}

/// Repeats each head of `x [B,kv heads,S,head_dim]` for the `groups` query heads that share it. Not every fast kernel of
/// libtorch supports grouped heads.
fn repeat_kv(x: &Tensor, groups: i64) -> Tensor {
    x.unsqueeze(2).expand([-1, -1, groups, -1, -1], false).flatten(1, 2)
}
