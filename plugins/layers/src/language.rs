//! A language model: an embedding, a stack of decoder layers, a norm and a head that is not the embedding. Answers are
//! written and scored here, whatever the family.

use tch::{IndexOp, Kind, Tensor};
use unirl::Result;
use unirl::autograd::checkpoint;
use unirl::model::{Answers, TextSampling, TokenLogp};
use unirl::sampling::{choose, chosen_logp};

use crate::decoder::{self, Cache, Layer, Stack};
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

    /// Runs rows `x [B,L,D]` at `positions [B or 1,L]` behind those in `past`. `mask [B or 1,1,L,past + L]`
    /// is added to the attention scores. Answers the final hidden rows `[B,L,D]`, normalised, and the cache
    /// of all rows.
    pub fn forward(
        &self,
        x: Tensor,
        positions: &Tensor,
        mask: &Tensor,
        past: Option<&Cache>,
    ) -> Result<(Tensor, Cache)> {
        let (x, cache) = self.stack.forward(x, positions, mask, past)?;
        Ok((self.norm.apply(&x), cache))
    }

    /// [`LanguageModel::forward`] for rows that nothing follows: their cache is let go layer by layer.
    pub fn hidden(
        &self,
        x: Tensor,
        positions: &Tensor,
        mask: &Tensor,
        past: Option<&Cache>,
    ) -> Result<Tensor> {
        Ok(self.norm.apply(&self.stack.hidden(x, positions, mask, past)?))
    }

    /// Logits over all tokens of hidden rows `[..,D]`: `[..,V]` f32.
    pub fn logits(&self, hidden: &Tensor) -> Tensor {
        self.head.apply(hidden).to_kind(Kind::Float)
    }

    /// Log-probabilities of the tokens `targets [R]` that hidden rows `[R,D]` predict: `[R]` f32. The head is wide, so that
    /// a few rows at a time go through it, and with a gradient once more on the way back.
    pub fn logp(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let score = |head: &Linear, rows: &Tensor, targets: &Tensor| {
            let logp = head.apply(rows).log_softmax(-1, Kind::Float);
            logp.gather(1, &targets.unsqueeze(1), false).squeeze_dim(1)
        };
        let (all, size) = (targets.size()[0], (HEAD_LOGITS / self.head.weight.size()[0]).max(1));
        if all <= size {
            return Ok(score(&self.head, hidden, targets));
        }
        let mut parts = Vec::new();
        for start in (0..all).step_by(size as usize) {
            let size = size.min(all - start);
            let (head, targets) = (self.head.handle(), targets.narrow(0, start, size));
            let rows = [hidden.narrow(0, start, size)];
            parts.extend(checkpoint(&rows, move |rows| vec![score(&head, &rows[0], &targets)])?);
        }
        Ok(Tensor::cat(&parts, 0))
    }

    /// Log-probabilities of answers, of which that of row `i` begins behind row `ends[i]` of `hidden [B,L,D]`.
    pub fn score(&self, hidden: &Tensor, ends: &[i64], answers: &Answers) -> Result<TokenLogp> {
        let (length, width) = (hidden.size()[1], hidden.size()[2]);
        // The head is wide: only the rows that predict an answer token go through it.
        let rows = ends.iter().zip(lengths(answers)?).zip(0..);
        let flat: Vec<i64> = rows
            .flat_map(|((end, answer), row)| (*end..end + answer).map(move |at| row * length + at))
            .collect();
        let flat = Tensor::from_slice(&flat).to_device(hidden.device());
        let targets = answers.tokens.masked_select(&answers.mask);
        let picked = self.logp(&hidden.reshape([-1, width]).index_select(0, &flat), &targets)?;
        let blank = Tensor::zeros(answers.mask.size(), (Kind::Float, hidden.device()));
        Ok(TokenLogp {
            logp: blank.masked_scatter(&answers.mask, &picked),
            mask: answers.mask.shallow_clone(),
        })
    }
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

/// Answers as tokens, each `[B,T]`.
#[derive(Debug)]
pub struct Written {
    /// Ids, padding behind the last of an answer.
    pub tokens: Tensor,
    /// True where there is a token.
    pub mask: Tensor,
    /// The log-probability of each when it was chosen, 0 behind the last.
    pub logp: Tensor,
}

/// Answers under way: what stands before them and what is written so far are cached.
pub struct Answering<'a, L, N> {
    model: &'a LanguageModel<L, N>,
    cache: Cache,
    /// `[B,columns]` bool: what the next rows may see.
    visible: Tensor,
    /// `[B,1]`: where the next token stands.
    position: Tensor,
    /// `[B,D]`: the rows that predict the next token.
    hidden: Tensor,
}

impl<'a, L: Layer, N: Norm> Answering<'a, L, N> {
    /// Reads rows `x [B,L,D]`, padded on their right and counted from 0, in one pass. `there [B,L]` is false at padding.
    pub fn read(
        model: &'a LanguageModel<L, N>,
        x: Tensor,
        positions: &Tensor,
        mask: &Tensor,
        there: Tensor,
    ) -> Result<Self> {
        let (hidden, cache) = model.forward(x, positions, mask, None)?;
        let lengths = there.sum_dim_intlist([1i64].as_slice(), true, Kind::Int64); // [B,1]
        let last = (&lengths - 1).unsqueeze(-1).expand([-1, -1, hidden.size()[2]], false);
        let hidden = hidden.gather(1, &last, false).squeeze_dim(1);
        Ok(Self { model, cache, visible: there, position: lengths, hidden })
    }

    /// Logits of the next token over the whole vocabulary, `[B,V]`.
    pub fn logits(&self) -> Tensor {
        self.model.logits(&self.hidden)
    }

    /// Appends a token `[B]` to the answers.
    pub fn push(&mut self, tokens: &Tensor) -> Result<()> {
        let there = self.visible.narrow(1, 0, 1).ones_like();
        self.visible = Tensor::cat(&[&self.visible, &there], 1);
        let added = decoder::additive(&self.visible.unsqueeze(1));
        let row = self.model.embed(&tokens.unsqueeze(1));
        let (hidden, cache) = self.model.forward(row, &self.position, &added, Some(&self.cache))?;
        (self.hidden, self.cache) = (hidden.squeeze_dim(1), cache);
        self.position = &self.position + 1;
        Ok(())
    }

    /// Writes until each answer has emitted `stop`.
    pub fn write(mut self, sampling: &TextSampling, stop: i64, pad: i64) -> Result<Written> {
        let mut open = self.visible.select(1, 0).ones_like();
        let (mut tokens, mut masks, mut logps) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            let logits = self.logits();
            let next = choose(&logits, sampling.temperature, sampling.top_k, sampling.part);
            tokens.push(next.where_self(&open, &next.full_like(pad)));
            logps.push(chosen_logp(&logits, &next) * &open);
            masks.push(open.shallow_clone());
            open = open.logical_and(&next.ne(stop));
            if tokens.len() as i64 >= sampling.max_tokens || !bool::try_from(open.any())? {
                let [tokens, mask, logp] = [tokens, masks, logps].map(|all| Tensor::stack(&all, 1));
                return Ok(Written { tokens, mask, logp });
            }
            self.push(&next)?;
        }
    }
}
