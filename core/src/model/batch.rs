//! Batches of images and answers, and slices of them.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::ModelCard;
use crate::error::{Error, Result};

/// The place of some rows in a larger batch. Random numbers are drawn for the whole batch, so that a batch in parts is
/// the batch in one, whatever the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSlice {
    /// The first of the rows.
    pub first: i64,
    /// `B` of the whole batch.
    pub of: i64,
}

impl BatchSlice {
    /// Of `all`, which answers for a whole batch of the given size, the rows of a part of `rows` rows.
    pub fn rows(part: Option<Self>, rows: i64, all: impl FnOnce(i64) -> Tensor) -> Tensor {
        match part {
            None => all(rows),
            Some(Self { first, of }) => all(of).narrow(0, first, rows),
        }
    }
}

/// A batch of images as tokens.
#[derive(Debug)]
pub struct Images {
    /// `[B,N]` i64 in `0..K`.
    pub tokens: Tensor,
    /// `[B,N,K]` f32, one row a (relaxed) one-hot that carries gradient; its argmax is `tokens`.
    pub relaxed: Option<Tensor>,
    /// `[B,N]` i64: the decoding step at which a masked model settled the token.
    pub revealed_at: Option<Tensor>,
    /// `[B,3,H,W]` f32 in `0..=1`: the pictures as a model sees them that understands pixels.
    pub pixels: Option<Tensor>,
    /// `[B,N]` f32: what the drawing itself took for the log-probability of each token when it chose it, with guidance and at
    /// a temperature of 1. Scoring the image by the guided distribution has to find the same again.
    pub logp: Option<Tensor>,
}

impl Images {
    /// Images known by their tokens `[B,N]` alone.
    pub fn from_tokens(tokens: Tensor) -> Self {
        Self { tokens, relaxed: None, revealed_at: None, pixels: None, logp: None }
    }

    /// Refuses images that are not one each of the model's for so many `texts`, which are `what`, and none.
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
        // A token beyond the table ends a process on a GPU.
        let [least, most] = [self.tokens.min(), self.tokens.max()].map(|token| token.int64_value(&[]));
        if least < 0 || most >= card.codebook_size {
            return wrong(format!("image tokens: expected 0..{}, got {least}..={most}", card.codebook_size));
        }
        Ok(())
    }

    /// `B`.
    pub fn len(&self) -> i64 {
        self.tokens.size()[0]
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All rows of `parts`, which have the same tensors, in order.
    pub fn cat(mut parts: Vec<Self>) -> Self {
        if parts.len() == 1 {
            return parts.remove(0);
        }
        let all = |of: fn(&Self) -> Option<&Tensor>| {
            let tensors: Option<Vec<&Tensor>> = parts.iter().map(of).collect();
            tensors.filter(|tensors| !tensors.is_empty()).map(|tensors| Tensor::cat(&tensors, 0))
        };
        Self {
            tokens: all(|part| Some(&part.tokens)).unwrap_or_default(),
            relaxed: all(|part| part.relaxed.as_ref()),
            revealed_at: all(|part| part.revealed_at.as_ref()),
            pixels: all(|part| part.pixels.as_ref()),
            logp: all(|part| part.logp.as_ref()),
        }
    }

    /// Rows `start..start + len` of every tensor.
    #[must_use]
    pub fn narrow(&self, start: i64, len: i64) -> Self {
        let rows = |tensor: &Tensor| tensor.narrow(0, start, len);
        Self {
            tokens: rows(&self.tokens),
            relaxed: self.relaxed.as_ref().map(rows),
            revealed_at: self.revealed_at.as_ref().map(rows),
            pixels: self.pixels.as_ref().map(rows),
            logp: self.logp.as_ref().map(rows),
        }
    }
}

/// A batch of answers, right-padded.
#[derive(Debug)]
pub struct Answers {
    /// The decoded texts, without special tokens and surrounding blanks.
    pub text: Vec<String>,
    /// `[B,T]` i64, the end token included.
    pub tokens: Tensor,
    /// `[B,T]` bool, true where there is a token.
    pub mask: Tensor,
    /// `[B,T]` f32, 0 where there is no token: what answering itself took for the log-probability of each token when it chose
    /// it, at a temperature of 1 and among all. [`UnifiedModel::answer_logp`] has to find the same again.
    pub logp: Option<Tensor>,
}

impl Answers {
    /// Answers that nobody has a log-probability of.
    pub fn new(text: Vec<String>, tokens: Tensor, mask: Tensor) -> Self {
        Self { text, tokens, mask, logp: None }
    }

    /// All rows of `parts` in order, as long as the longest.
    pub fn cat(mut parts: Vec<Self>) -> Self {
        if parts.len() == 1 {
            return parts.remove(0);
        }
        let length = parts.iter().filter_map(|part| part.tokens.size().get(1).copied()).max().unwrap_or(0);
        let all = |tensors: Vec<&Tensor>| {
            let padded = tensors.iter().map(|part| part.constant_pad_nd([0, length - part.size()[1]]));
            Tensor::cat(&padded.collect::<Vec<_>>(), 0)
        };
        let tokens = all(parts.iter().map(|part| &part.tokens).collect());
        let mask = all(parts.iter().map(|part| &part.mask).collect());
        let logp = parts.iter().map(|part| part.logp.as_ref()).collect::<Option<Vec<_>>>().map(all);
        Self { text: parts.into_iter().flat_map(|part| part.text).collect(), tokens, mask, logp }
    }

    /// Rows `start..start + len`.
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
