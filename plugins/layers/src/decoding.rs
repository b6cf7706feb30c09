//! Tokens one after the other: sequences that grow in place, so that on a GPU a whole step is one launch.

use tch::{Kind, Tensor};
use unirl::cuda_graph::GraphedCallable;
use unirl::model::{BatchSlice, TextSampling};
use unirl::sampling::{gather_logp, is_random, sample_tokens_with};
use unirl::{Error, Result};

use crate::attention::{ALIGNED, HIDDEN};
use crate::decoder::{Layer, StackInput};
use crate::kv_cache::{KvCache, StaticKvCache};
use crate::language::{LanguageModel, Norm};
use crate::rotary::Rotary;

/// On a GPU, attention goes over so many columns more each time: what is recorded holds for all steps in between.
const BUCKET: i64 = 384;
/// How often the host asks a GPU whether all answers have ended, in tokens: it waits for the answer.
const LOOK: i64 = 8;

/// Sequences that grow by a row at a time. Everything that changes from step to step lies in tensors of the device.
pub struct StepDecoding<'a, L, N> {
    model: &'a LanguageModel<L, N>,
    room: StaticKvCache,
    rotary: Rotary,
    /// `[R,1,1,S]`, for all of the room.
    mask: Tensor,
    /// `[1]`: the column of the next row.
    place: Tensor,
    /// `[R]`: its position.
    position: Tensor,
    /// `[R,D]`: what predicts the next token.
    hidden: Tensor,
    /// Columns that are written, as the host counts.
    filled: i64,
    graphed: GraphedCallable,
    /// Columns that the recorded step sees.
    seen: i64,
}

impl<'a, L: Layer, N: Norm> StepDecoding<'a, L, N> {
    /// Goes on behind the `cache` of what was read, of which `index [R]` names the row of each sequence: its next token is
    /// predicted by `hidden [R,D]` and stands at `position [R]`. `visible [R,P]` is false at padding. At most `room` rows follow.
    pub fn new(
        model: &'a LanguageModel<L, N>,
        (cache, index): (&KvCache, &Tensor),
        visible: &Tensor,
        position: Tensor,
        hidden: &Tensor,
        room: i64,
    ) -> Self {
        let (rows, filled) = (visible.size()[0], visible.size()[1]);
        let hidden = hidden.contiguous();
        let columns = filled + room;
        let aligned = (columns + ALIGNED - 1) / ALIGNED * ALIGNED;
        let mask = Tensor::full([rows, 1, 1, aligned], HIDDEN, (hidden.kind(), hidden.device()));
        let mask = mask.narrow(3, 0, columns);
        let read = visible.logical_not().to_kind(hidden.kind()) * HIDDEN;
        mask.narrow(3, 0, filled).copy_(&read.view([rows, 1, 1, filled]));
        Self {
            model,
            room: cache.with_room(index, room),
            rotary: model.stack.rotary_table(columns, &hidden),
            mask,
            place: Tensor::full([1], filled, (Kind::Int64, hidden.device())),
            position,
            graphed: GraphedCallable::new(hidden.device()),
            hidden,
            filled,
            seen: 0,
        }
    }

    /// `[R,D]`: what predicts the next token.
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// Takes as many steps as `times` says. In each, `step` is given what appends a row `[R,1,D]`, and answers what predicts the
    /// token behind it, `[R,D]`. On a GPU it is called for some of the steps alone and its operations are launched again for the
    /// others ([`GraphedCallable`] says what it must keep to).
    pub fn run(&mut self, times: i64, mut step: impl FnMut(&mut dyn FnMut(&Tensor) -> Tensor)) -> Result<()> {
        let columns = self.mask.size()[3];
        if self.filled + times > columns {
            let (room, filled) = (columns, self.filled);
            return Err(Error::failure(format!(
                "there is room for {room} rows: {times} do not fit behind {filled}"
            )));
        }
        for _ in 0..times {
            let bucket = if self.hidden.device().is_cuda() { BUCKET } else { 1 };
            let seen = ((self.filled / bucket + 1) * bucket).min(columns);
            if seen != self.seen {
                self.seen = seen;
                self.graphed = GraphedCallable::new(self.hidden.device());
            }
            let Self { model, room, rotary, mask, place, position, hidden, graphed, .. } = self;
            graphed.run(|| {
                step(&mut |row| {
                    let _ = mask.index_fill_(3, place, 0.0);
                    let at = (&*room, &*place, seen);
                    let x = model.stack.step(row, (rotary, position), mask.narrow(3, 0, seen), at);
                    hidden.copy_(&model.norm.apply(&x).squeeze_dim(1));
                    let _ = position.g_add_scalar_(1);
                    let _ = place.g_add_scalar_(1);
                    hidden.shallow_clone()
                });
                Ok(())
            })?;
            self.filled += 1;
        }
        Ok(())
    }
}

/// How tokens are chosen.
#[derive(Debug, Clone, Copy)]
pub struct SamplingChoice {
    /// 0 is the likeliest.
    pub temperature: f64,
    /// Among so many of the likeliest; 0 among all.
    pub top_k: i64,
    /// Which rows of a larger batch these are.
    pub part: Option<BatchSlice>,
}

/// Tokens that were chosen for each of `R` sequences, with their log-probabilities, written in place.
pub struct SampledTokens {
    /// `[R,T]`.
    pub tokens: Tensor,
    /// `[R,T]`: at a temperature of 1 and among all.
    pub logp: Tensor,
    /// `[T,R]`: random numbers in `0..1`, drawn before; none where nothing is left to chance.
    uniforms: Option<Tensor>,
    /// `[R]`: what was chosen last.
    pub last: Tensor,
    /// `[1]`: the column of the next token.
    at: Tensor,
    choice: SamplingChoice,
}

impl SampledTokens {
    /// Room for `length` tokens of each of `rows` sequences. The caller has seeded libtorch.
    pub fn new(rows: i64, length: i64, choice: SamplingChoice, device: tch::Device) -> Self {
        let random = is_random(choice.temperature, choice.top_k);
        let uniforms = |of| Tensor::rand([length, of], (Kind::Float, device)).transpose(0, 1);
        Self {
            tokens: Tensor::zeros([rows, length], (Kind::Int64, device)),
            logp: Tensor::zeros([rows, length], (Kind::Float, device)),
            uniforms: random
                .then(|| BatchSlice::rows(choice.part, rows, uniforms).transpose(0, 1).contiguous()),
            last: Tensor::zeros([rows], (Kind::Int64, device)),
            at: Tensor::zeros([1], (Kind::Int64, device)),
            choice,
        }
    }

    /// Chooses the next token of each sequence by `logits [R,V]`.
    pub fn choose(&mut self, logits: &Tensor) {
        let SamplingChoice { temperature, top_k, .. } = self.choice;
        let uniforms =
            self.uniforms.as_ref().map(|uniforms| uniforms.index_select(0, &self.at).transpose(0, 1)); // [R,1]
        let tokens = sample_tokens_with(logits, temperature, top_k, uniforms.as_ref());
        let _ = self.tokens.index_copy_(1, &self.at, &tokens.unsqueeze(1));
        let _ = self.logp.index_copy_(1, &self.at, &gather_logp(logits, &tokens).unsqueeze(1));
        let _ = self.at.g_add_scalar_(1);
        self.last.copy_(&tokens);
    }
}

/// Answers as tokens, each `[B,T]`.
#[derive(Debug)]
pub struct GeneratedText {
    /// Ids, padding behind the last of an answer.
    pub tokens: Tensor,
    /// True where there is a token.
    pub mask: Tensor,
    /// The log-probability of each when it was chosen, 0 behind the last.
    pub logp: Tensor,
}

/// Answers under way: what stands before them and what is written so far are cached.
pub struct TextDecoding<'a, L, N>(StepDecoding<'a, L, N>);

impl<'a, L: Layer, N: Norm> TextDecoding<'a, L, N> {
    /// Reads `rows [B,L,D]`, padded on their right and counted from 0, in one pass. `there [B,L]` is false at padding. At most
    /// `room` tokens follow.
    pub fn read(
        model: &'a LanguageModel<L, N>,
        rows: StackInput<'_>,
        there: &Tensor,
        room: i64,
    ) -> Result<Self> {
        let lengths = there.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64); // [B]
        let last = (&lengths - 1).unsqueeze(1);
        let (hidden, cache) = model.forward(StackInput { read: Some(&last), ..rows })?;
        let index = Tensor::arange(lengths.size()[0], (Kind::Int64, lengths.device()));
        Ok(Self(StepDecoding::new(model, (&cache, &index), there, lengths, &hidden.squeeze_dim(1), room)))
    }

    /// Logits of the next token over the whole vocabulary, `[B,V]`.
    pub fn logits(&self) -> Tensor {
        self.0.model.logits(self.0.hidden())
    }

    /// Appends a token `[B]` to the answers.
    pub fn push(&mut self, tokens: &Tensor) -> Result<()> {
        let row = self.0.model.embed(&tokens.unsqueeze(1));
        self.0.seen = 0; // another tensor each time: what is recorded is good for no other step
        self.0.run(1, |push| drop(push(&row)))
    }

    /// Writes until each answer has emitted `stop`, or has as many tokens as `sampling` allows.
    pub fn write(mut self, sampling: &TextSampling, stop: i64, pad: i64) -> Result<GeneratedText> {
        let TextSampling { temperature, top_k, part, max_tokens, .. } = *sampling;
        let (rows, device) = (self.0.hidden().size()[0], self.0.hidden().device());
        let choice = SamplingChoice { temperature, top_k, part };
        let mut chosen = SampledTokens::new(rows, max_tokens, choice, device);
        let (model, look) = (self.0.model, if device.is_cuda() { LOOK } else { 1 });
        chosen.choose(&self.logits());
        let mut written = 1;
        loop {
            let ended = chosen.tokens.narrow(1, 0, written).eq(stop).any_dim(1, false);
            if written >= max_tokens || bool::try_from(ended.all())? {
                return Ok(finished(&chosen, written, stop, pad));
            }
            let more = look.min(max_tokens - written);
            self.0.run(more, |push| {
                let hidden = push(&model.embed(&chosen.last.unsqueeze(1)));
                chosen.choose(&model.logits(&hidden));
            })?;
            written += more;
        }
    }
}

/// The first `length` tokens that were chosen, up to and with the first `stop` of each answer, as long as the longest.
fn finished(chosen: &SampledTokens, length: i64, stop: i64, pad: i64) -> GeneratedText {
    let tokens = chosen.tokens.narrow(1, 0, length);
    let stops = tokens.eq(stop).to_kind(Kind::Int64);
    let mask = (stops.cumsum(1, Kind::Int64) - stops).eq(0); // no stop before
    let longest = mask.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64).max().int64_value(&[]);
    let [tokens, mask, logp] =
        [&tokens, &mask, &chosen.logp].map(|all| all.narrow(1, 0, longest).contiguous());
    GeneratedText { tokens: tokens.where_self(&mask, &tokens.full_like(pad)), logp: logp * &mask, mask }
}
