//! A causal language model: embedding, decoder stack, final norm and untied head. It also scores answers, for every family.

use std::sync::{Arc, Mutex, PoisonError};

use tch::{Kind, Tensor};
use unirl::Result;
use unirl::model::{Answers, TokenLogp};
use unirl_torch::autograd::checkpoint;

use crate::decoder::{Layer, Stack, StackInput};
use crate::kv_cache::KvCache;
use crate::{LayerNorm, Linear};

/// The most logits that the head computes at once when tokens are scored: 64 MiB in f32.
const MAX_HEAD_LOGITS: i64 = 1 << 24;

/// The norm after the last layer.
pub trait Norm {
    /// Normalizes `x […,D]`.
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
    /// The norm after the last layer.
    pub norm: N,
    /// Hidden states to logits.
    pub head: Linear,
}

impl<L: Layer, N: Norm> LanguageModel<L, N> {
    /// The data type of the weights.
    pub fn kind(&self) -> Kind {
        self.embedding.kind()
    }

    /// Embeds `ids [B,L]`: `[B,L,D]`. The padding token has a trainable row.
    pub fn embed(&self, ids: &Tensor) -> Tensor {
        Tensor::embedding(&self.embedding, ids, -1, false, false)
    }

    /// Returns the normalized output rows of the last layer, `[B,m,D]`, and the cache of all rows.
    pub fn forward(&self, input: StackInput<'_>) -> Result<(Tensor, KvCache)> {
        let (x, cache) = self.stack.forward(input)?;
        Ok((self.norm.apply(&x), cache))
    }

    /// [`LanguageModel::forward`] without a cache: each layer's keys and values are freed after it.
    pub fn hidden_states(&self, input: StackInput<'_>) -> Result<Tensor> {
        Ok(self.norm.apply(&self.stack.hidden_states(input)?))
    }

    /// Logits of hidden states `[..,D]`: `[..,V]` f32.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        self.head.apply(hidden).to_kind(Kind::Float)
    }

    /// Log-probabilities `[R]` f32 of the tokens `targets [R]` under hidden states `[R,D]`.
    pub fn logp(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let head = self.head.shallow_clone();
        let classes = head.weight.size()[0];
        let logits = move |rows: &[Tensor]| head.apply(&rows[0]).to_kind(Kind::Float);
        logp(std::slice::from_ref(hidden), targets, classes, logits)
    }

    /// Log-probabilities of `answers`; row `ends[i]` of `input` predicts the first token of answer `i`.
    pub fn score(&self, input: StackInput<'_>, ends: &[i64], answers: &Answers) -> Result<TokenLogp> {
        let device = input.x.device();
        let length = answers.tokens.size()[1];
        let steps = Tensor::arange(length, (Kind::Int64, device)).unsqueeze(0);
        let outputs = Tensor::from_slice(ends).to_device(device).unsqueeze(1) + steps; // [B,T]
        let outputs = outputs.clamp_max(input.x.size()[1] - 1); // after the end of a short answer: not scored
        let hidden = self.hidden_states(StackInput { outputs: Some(&outputs), ..input })?.flatten(0, 1); // [B·T,D]
        let present = answers.mask.view([-1]).nonzero().squeeze_dim(1);
        let targets = answers.tokens.view([-1]).index_select(0, &present);
        let logp = self.logp(&hidden.index_select(0, &present), &targets)?;
        let zeros = Tensor::zeros([answers.mask.numel() as i64], (Kind::Float, device));
        Ok(TokenLogp {
            logp: zeros.index_copy(0, &present, &logp).view_as(&answers.mask),
            mask: answers.mask.shallow_clone(),
        })
    }
}

/// Log-probabilities `[R]` f32 of `targets [R]` among `classes`. `logits` turns `r` rows of each tensor of `rows`, `[r,D]`, into
/// `[r,classes]` f32. It is called for a few rows at once, because heads are wide, and again in the backward pass.
pub fn logp(
    rows: &[Tensor],
    targets: &Tensor,
    classes: i64,
    logits: impl Fn(&[Tensor]) -> Tensor + Send + 'static,
) -> Result<Tensor> {
    let score = |logits: &Tensor, targets: &Tensor| {
        -logits.cross_entropy_loss::<Tensor>(targets, None, tch::Reduction::None, -100, 0.0)
    };
    let (all, size) = (targets.size()[0], (MAX_HEAD_LOGITS / classes).max(1));
    if all <= size {
        return Ok(score(&logits(rows), targets));
    }
    let logits = Arc::new(Mutex::new(logits)); // tensors are not `Sync`
    let mut chunks = Vec::new();
    for start in (0..all).step_by(size as usize) {
        let chunk = |tensor: &Tensor| tensor.narrow(0, start, size.min(all - start));
        let (logits, targets) = (logits.clone(), chunk(targets));
        let rows: Vec<Tensor> = rows.iter().map(chunk).collect();
        chunks.extend(checkpoint(&rows, move |rows| {
            vec![score(&logits.lock().unwrap_or_else(PoisonError::into_inner)(rows), &targets)]
        })?);
    }
    Ok(Tensor::cat(&chunks, 0))
}
