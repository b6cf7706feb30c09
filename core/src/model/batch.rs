//! Batches of images and answers.

use tch::{Kind, Tensor};

use super::ModelCard;
use crate::error::{Error, Result};

/// A batch of images as tokens.
#[derive(Debug)]
pub struct Images {
    /// `[B,N]` i64 in `0..K`.
    pub tokens: Tensor,
    /// `[B,N,K]` f32: (relaxed) one-hot rows that carry gradient; their argmax is `tokens`.
    pub relaxed: Option<Tensor>,
    /// `[B,N]` i64: the decoding step at which a masked model revealed the token.
    pub revealed_at: Option<Tensor>,
    /// `[B,3,H,W]` f32 in `0..=1`: the input of a model that understands pixels.
    pub pixels: Option<Tensor>,
    /// `[B,N]` f32: the log-probability of each token when it was sampled, with guidance and at temperature 1. Scoring the
    /// image with the guided distribution must reproduce it.
    pub logp: Option<Tensor>,
}

impl Images {
    /// Returns images that consist of their tokens `[B,N]` only.
    pub fn from_tokens(tokens: Tensor) -> Self {
        Self { tokens, relaxed: None, revealed_at: None, pixels: None, logp: None }
    }

    /// Errors unless there is one valid image per text, and at least one. `what` names the texts in the error.
    pub fn check(&self, card: &ModelCard, what: &str, texts: usize) -> Result<()> {
        let (size, tokens) = (self.tokens.size(), card.image_tokens);
        let wrong = |what: String| Err(Error::usage(what));
        if texts == 0 {
            return wrong(format!("{what}: expected at least 1, got 0"));
        }
        if size != [texts as i64, tokens] || self.tokens.kind() != Kind::Int64 {
            let kind = self.tokens.kind();
            return wrong(format!(
                "expected images of shape [{texts},{tokens}], Int64, for {texts} {what}, got {size:?}, {kind:?}"
            ));
        }
        // On a GPU, an index outside the codebook aborts the process.
        let [min, max] = [self.tokens.min(), self.tokens.max()].map(|token| token.int64_value(&[]));
        if min < 0 || max >= card.codebook_size {
            return wrong(format!("image tokens: expected 0..{}, got {min}..={max}", card.codebook_size));
        }
        Ok(())
    }

    /// Returns `B`.
    pub fn len(&self) -> i64 {
        self.tokens.size()[0]
    }

    /// Whether the batch is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Concatenates batches in order. A tensor that one of them lacks is dropped.
    #[doc(hidden)] // for the host
    pub fn cat(mut batches: Vec<Self>) -> Self {
        if batches.len() == 1 {
            return batches.remove(0);
        }
        let cat = |field: fn(&Self) -> Option<&Tensor>| {
            let tensors: Option<Vec<&Tensor>> = batches.iter().map(field).collect();
            tensors.filter(|tensors| !tensors.is_empty()).map(|tensors| Tensor::cat(&tensors, 0))
        };
        Self {
            tokens: cat(|batch| Some(&batch.tokens)).unwrap_or_default(),
            relaxed: cat(|batch| batch.relaxed.as_ref()),
            revealed_at: cat(|batch| batch.revealed_at.as_ref()),
            pixels: cat(|batch| batch.pixels.as_ref()),
            logp: cat(|batch| batch.logp.as_ref()),
        }
    }

    /// Returns rows `start..start + len` of every tensor.
    #[must_use]
    pub fn narrow(&self, start: i64, len: i64) -> Self {
        self.map(|tensor| tensor.narrow(0, start, len))
    }

    /// Returns the rows `index [R]`, i64, of every tensor.
    #[must_use]
    #[doc(hidden)] // for the host
    pub fn index_select(&self, index: &Tensor) -> Self {
        self.map(|tensor| tensor.index_select(0, index))
    }

    fn map(&self, rows: impl Fn(&Tensor) -> Tensor) -> Self {
        Self {
            tokens: rows(&self.tokens),
            relaxed: self.relaxed.as_ref().map(&rows),
            revealed_at: self.revealed_at.as_ref().map(&rows),
            pixels: self.pixels.as_ref().map(&rows),
            logp: self.logp.as_ref().map(&rows),
        }
    }
}

/// A batch of answers, right-padded.
#[derive(Debug)]
pub struct Answers {
    /// The decoded texts, without special tokens and surrounding whitespace.
    pub text: Vec<String>,
    /// `[B,T]` i64, the end token included.
    pub tokens: Tensor,
    /// `[B,T]` bool, false for padding.
    pub mask: Tensor,
    /// `[B,T]` f32, 0 for padding: the log-probability of each token when it was sampled, at temperature 1 and without top-k.
    /// [`UnifiedModel::answer_logp`](super::UnifiedModel::answer_logp) must reproduce it.
    pub logp: Option<Tensor>,
}

impl Answers {
    /// Returns answers without log-probabilities.
    pub fn new(text: Vec<String>, tokens: Tensor, mask: Tensor) -> Self {
        Self { text, tokens, mask, logp: None }
    }

    /// Concatenates batches in order, padded to the longest answer.
    #[doc(hidden)] // for the host
    pub fn cat(mut batches: Vec<Self>) -> Self {
        if batches.len() == 1 {
            return batches.remove(0);
        }
        let lengths = batches.iter().filter_map(|batch| batch.tokens.size().get(1).copied());
        let length = lengths.max().unwrap_or(0);
        let cat = |tensors: Vec<&Tensor>| {
            let padded = tensors.iter().map(|tensor| tensor.constant_pad_nd([0, length - tensor.size()[1]]));
            Tensor::cat(&padded.collect::<Vec<_>>(), 0)
        };
        let tokens = cat(batches.iter().map(|batch| &batch.tokens).collect());
        let mask = cat(batches.iter().map(|batch| &batch.mask).collect());
        let logp = batches.iter().map(|batch| batch.logp.as_ref()).collect::<Option<Vec<_>>>().map(cat);
        Self { text: batches.into_iter().flat_map(|batch| batch.text).collect(), tokens, mask, logp }
    }

    /// Returns rows `start..start + len`.
    #[must_use]
    pub fn narrow(&self, start: i64, len: i64) -> Self {
        Self {
            text: self.text[start as usize..(start + len) as usize].to_vec(),
            tokens: self.tokens.narrow(0, start, len),
            mask: self.mask.narrow(0, start, len),
            logp: self.logp.as_ref().map(|logp| logp.narrow(0, start, len)),
        }
    }
}
