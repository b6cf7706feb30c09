//! A language model: an embedding, a stack of decoder layers, a norm and a head that is not the embedding. Answers are
//! scored here, whatever the family.

use std::sync::{Arc, Mutex, PoisonError};

use tch::{IndexOp, Kind, Tensor};
use unirl::Result;
use unirl::autograd::checkpoint;
use unirl::model::{Answers, TokenLogp};

use crate::decoder::{Layer, Stack, StackInput};
use crate::kv_cache::KvCache;
use crate::{LayerNorm, Linear};

/// Logits that a head makes at once when tokens are scored: 64 MiB in f32.
const HEAD_LOGITS: i64 = 1 << 24;

/// The norm behind the last layer.
pub trait Norm {
    /// `[…,D]` to the same.
    fn apply(&self, x: &Tensor) -> Tensor;
}

impl Norm for LayerNorm {
    fn apply(&self, x: &Tensor) -> Tensor {
        Self::apply(self, x)
    }
}

/// A language model of width `D` with `V` tokens.
pub struct LanguageModel<L, N> {
    /// `[V,D]`.
    pub embedding: Tensor,
    /// The layers.
    pub stack: Stack<L>,
    /// Behind the last of them.
    pub norm: N,
    /// To the tokens.
    pub head: Linear,
}

impl<L: Layer, N: Norm> LanguageModel<L, N> {
    /// The type of its weights.
    pub fn kind(&self) -> Kind {
        self.embedding.kind()
    }

    /// Embeds `ids [B,L]`: `[B,L,D]`. The row of the padding token learns as any other.
    pub fn embed(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.embedding, ids, -1, false, false)
    }

    /// The final hidden rows that are read, `[B,m,D]`, normalised, and the cache of all rows.
    pub fn forward(&self, rows: StackInput<'_>) -> Result<(Tensor, KvCache)> {
        let (x, cache) = self.stack.forward(rows)?;
        Ok((self.norm.apply(&x), cache))
    }

    /// [`LanguageModel::forward`] for rows that nothing follows: their cache is let go layer by layer.
    pub fn hidden(&self, rows: StackInput<'_>) -> Result<Tensor> {
        Ok(self.norm.apply(&self.stack.hidden(rows)?))
    }

    /// Logits over all tokens of hidden rows `[..,D]`: `[..,V]` f32.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        self.head.apply(hidden).to_kind(Kind::Float)
    }

    /// Log-probabilities of the tokens `targets [R]` that hidden rows `[R,D]` predict: `[R]` f32.
    pub fn logp(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let head = self.head.handle();
        let classes = head.weight.size()[0];
        let logits = move |rows: &[Tensor]| head.apply(&rows[0]).to_kind(Kind::Float);
        logp(std::slice::from_ref(hidden), targets, classes, logits)
    }

    /// Log-probabilities of answers, of which that of row `i` begins behind row `ends[i]` of `rows`.
    pub fn score(&self, rows: StackInput<'_>, ends: &[i64], answers: &Answers) -> Result<TokenLogp> {
        let device = rows.x.device();
        let length = answers.tokens.size()[1];
        // Only the rows that predict an answer token are read.
        let steps = Tensor::arange(length, (Kind::Int64, device)).unsqueeze(0);
        let read = Tensor::from_slice(ends).to_device(device).unsqueeze(1) + steps; // [B,T]
        let read = read.clamp_max(rows.x.size()[1] - 1); // behind a short answer, where nothing is scored
        let hidden = self.hidden(StackInput { read: Some(&read), ..rows })?.flatten(0, 1); // [B·T,D]
        let there = answers.mask.view([-1]).nonzero().squeeze_dim(1);
        let targets = answers.tokens.view([-1]).index_select(0, &there);
        let logp = self.logp(&hidden.index_select(0, &there), &targets)?;
        let blank = Tensor::zeros([answers.mask.numel() as i64], (Kind::Float, device));
        Ok(TokenLogp {
            logp: blank.index_copy(0, &there, &logp).view_as(&answers.mask),
            mask: answers.mask.shallow_clone(),
        })
    }
}

/// Log-probabilities `[R]` f32 of `targets [R]` among `classes`, of which `logits` makes `[r,classes]` f32 out of `r` of each of
/// the `rows`, each `[R,D]`. Heads are wide, so that a few rows at a time go through it, and with a gradient once more on
/// the way back.
pub fn logp(
    rows: &[Tensor],
    targets: &Tensor,
    classes: i64,
    logits: impl Fn(&[Tensor]) -> Tensor + Send + 'static,
) -> Result<Tensor> {
    let score = |logits: &Tensor, targets: &Tensor| {
        -logits.cross_entropy_loss::<Tensor>(targets, None, tch::Reduction::None, -100, 0.0)
    };
    let (all, size) = (targets.size()[0], (HEAD_LOGITS / classes).max(1));
    if all <= size {
        return Ok(score(&logits(rows), targets));
    }
    let logits = Arc::new(Mutex::new(logits)); // tensors do not go to several threads at once
    let mut parts = Vec::new();
    for start in (0..all).step_by(size as usize) {
        let some = |tensor: &Tensor| tensor.narrow(0, start, size.min(all - start));
        let (logits, targets) = (logits.clone(), some(targets));
        let rows: Vec<Tensor> = rows.iter().map(some).collect();
        parts.extend(checkpoint(&rows, move |rows| {
            vec![score(&logits.lock().unwrap_or_else(PoisonError::into_inner)(rows), &targets)]
        })?);
    }
    Ok(Tensor::cat(&parts, 0))
}

fn lengths(answers: &Answers) -> Result<Vec<i64>> {
    Ok(Vec::try_from(answers.mask.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64))?)
}

/// `questions`, ids row by row, each with its answer behind it.
pub fn answered(questions: &[Vec<i64>], answers: &Answers) -> Result<Vec<Vec<i64>>> {
    let rows = questions.iter().zip(lengths(answers)?).zip(0..);
    rows.map(|((question, length), row)| {
        let answer = Vec::<i64>::try_from(answers.tokens.get(row).i(..length))?;
        Ok([question.as_slice(), &answer].concat())
    })
    .collect()
}
