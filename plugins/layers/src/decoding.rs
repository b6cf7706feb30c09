//! Autoregressive decoding with a static KV cache, so that on a GPU each step is one launch of a CUDA graph.

use tch::{Kind, Tensor};
use unirl::model::{BatchSlice, TextSampling};
use unirl::sampling::{gather_logp, is_random, sample_tokens_with};
use unirl::{Error, Result};
use unirl_torch::cuda_graph::GraphedCallable;

use crate::attention::{MASK_ALIGNMENT, MASKED};
use crate::decoder::{Layer, StackInput};
use crate::kv_cache::{KvCache, StaticKvCache};
use crate::language::{LanguageModel, Norm};
use crate::rotary::Rotary;

/// On a GPU, the attended length grows in steps of this many columns: one CUDA graph serves all steps in between.
const BUCKET: i64 = 384;
/// Tokens between two checks on a GPU whether every answer has ended; each check synchronizes with the device.
const STOP_CHECK_INTERVAL: i64 = 8;

/// Sequences that grow by one row per step. All state that changes between steps is in tensors on the device.
pub struct StepDecoding<'a, L, N> {
    model: &'a LanguageModel<L, N>,
    cache: StaticKvCache,
    rotary: Rotary,
    /// `[R,1,1,S]`, for all columns of the cache.
    mask: Tensor,
    /// `[1]`: the column of the next row.
    column: Tensor,
    /// `[R]`: the position of the next row.
    position: Tensor,
    /// `[R,D]`: the hidden states that predict the next token.
    hidden: Tensor,
    /// Columns written so far, counted on the host.
    filled: i64,
    graphed: GraphedCallable,
    /// Columns that the captured step attends to.
    length: i64,
}

impl<'a, L: Layer, N: Norm> StepDecoding<'a, L, N> {
    /// Continues `cache`, whose batch rows `index [R]` the sequences start from. `hidden [R,D]` predicts the next token, which
    /// is at `position [R]`; `visible [R,P]` is false at padding. At most `max_rows` rows follow.
    pub fn new(
        model: &'a LanguageModel<L, N>,
        (cache, index): (&KvCache, &Tensor),
        visible: &Tensor,
        position: Tensor,
        hidden: &Tensor,
        max_rows: i64,
    ) -> Self {
        let (rows, filled) = (visible.size()[0], visible.size()[1]);
        let hidden = hidden.contiguous();
        let columns = filled + max_rows;
        let aligned = (columns + MASK_ALIGNMENT - 1) / MASK_ALIGNMENT * MASK_ALIGNMENT;
        let mask = Tensor::full([rows, 1, 1, aligned], MASKED, (hidden.kind(), hidden.device()));
        let mask = mask.narrow(3, 0, columns);
        let prefix = visible.logical_not().to_kind(hidden.kind()) * MASKED;
        mask.narrow(3, 0, filled).copy_(&prefix.view([rows, 1, 1, filled]));
        Self {
            model,
            cache: cache.to_static(index, max_rows),
            rotary: model.stack.rotary_table(columns, &hidden),
            mask,
            column: Tensor::full([1], filled, (Kind::Int64, hidden.device())),
            position,
            graphed: GraphedCallable::new(hidden.device()),
            hidden,
            filled,
            length: 0,
        }
    }

    /// `[R,D]`: the hidden states that predict the next token.
    pub fn hidden(&self) -> &Tensor {
        &self.hidden
    }

    /// Runs `count` steps. Each calls `step` with a function that appends a row `[R,1,D]` and returns the hidden states
    /// `[R,D]` that predict the token after it. On a GPU, `step` runs only until it is captured and is then replayed:
    /// [`GraphedCallable`] documents the restrictions.
    pub fn run(&mut self, count: i64, mut step: impl FnMut(&mut dyn FnMut(&Tensor) -> Tensor)) -> Result<()> {
        let columns = self.mask.size()[3];
        if self.filled + count > columns {
            let filled = self.filled;
            return Err(Error::failure(format!(
                "KV cache is full: it holds {filled} of {columns} rows, {count} more do not fit"
            )));
        }
        for _ in 0..count {
            let bucket = if self.hidden.device().is_cuda() { BUCKET } else { 1 };
            let length = ((self.filled / bucket + 1) * bucket).min(columns);
            if length != self.length {
                self.length = length;
                self.graphed = GraphedCallable::new(self.hidden.device());
            }
            let Self { model, cache, rotary, mask, column, position, hidden, graphed, .. } = self;
            graphed.run(|| {
                step(&mut |row| {
                    let _ = mask.index_fill_(3, column, 0.0);
                    let at = (&*cache, &*column, length);
                    let x = model.stack.decode_step(row, (rotary, position), mask.narrow(3, 0, length), at);
                    hidden.copy_(&model.norm.apply(&x).squeeze_dim(1));
                    let _ = position.g_add_scalar_(1);
                    let _ = column.g_add_scalar_(1);
                    hidden.shallow_clone()
                });
                Ok(())
            })?;
            self.filled += 1;
        }
        Ok(())
    }
}

/// How tokens are sampled.
#[derive(Debug, Clone, Copy)]
pub struct SamplingChoice {
    /// 0 is greedy.
    pub temperature: f64,
    /// Samples from the most likely `top_k` tokens; 0 is no limit.
    pub top_k: i64,
    /// The rows' place in a larger batch.
    pub part: Option<BatchSlice>,
}

/// Sampled tokens of `R` sequences and their log-probabilities, written in place.
pub struct SampledTokens {
    /// `[R,T]`.
    pub tokens: Tensor,
    /// `[R,T]`: under the full distribution at temperature 1.
    pub logp: Tensor,
    /// `[T,R]`: uniform numbers in `0..1`, generated in advance; absent for greedy decoding.
    uniforms: Option<Tensor>,
    /// `[R]`: the tokens of the last step.
    pub last: Tensor,
    /// `[1]`: the column of the next token.
    column: Tensor,
    choice: SamplingChoice,
}

impl SampledTokens {
    /// Allocates `length` tokens for each of `rows` sequences. The caller seeds libtorch's generator.
    pub fn new(rows: i64, length: i64, choice: SamplingChoice, device: tch::Device) -> Self {
        let random = is_random(choice.temperature, choice.top_k);
        let uniforms = |of| Tensor::rand([length, of], (Kind::Float, device)).transpose(0, 1);
        Self {
            tokens: Tensor::zeros([rows, length], (Kind::Int64, device)),
            logp: Tensor::zeros([rows, length], (Kind::Float, device)),
            uniforms: random
                .then(|| BatchSlice::rows(choice.part, rows, uniforms).transpose(0, 1).contiguous()),
            last: Tensor::zeros([rows], (Kind::Int64, device)),
            column: Tensor::zeros([1], (Kind::Int64, device)),
            choice,
        }
    }

    /// Samples the next token of each sequence from `logits [R,V]`.
    pub fn sample_next(&mut self, logits: &Tensor) {
        let SamplingChoice { temperature, top_k, .. } = self.choice;
        let uniforms =
            self.uniforms.as_ref().map(|uniforms| uniforms.index_select(0, &self.column).transpose(0, 1)); // [R,1]
        let tokens = sample_tokens_with(logits, temperature, top_k, uniforms.as_ref());
        let _ = self.tokens.index_copy_(1, &self.column, &tokens.unsqueeze(1));
        let _ = self.logp.index_copy_(1, &self.column, &gather_logp(logits, &tokens).unsqueeze(1));
        let _ = self.column.g_add_scalar_(1);
        self.last.copy_(&tokens);
    }
}

/// Generated answers, each tensor `[B,T]`.
#[derive(Debug)]
pub struct GeneratedText {
    /// Ids, padded on the right.
    pub tokens: Tensor,
    /// True at tokens, false at padding.
    pub mask: Tensor,
    /// The log-probability of each token when it was sampled, 0 at padding.
    pub logp: Tensor,
}

/// Answers during generation, with the KV cache of prompt and answer.
pub struct TextDecoding<'a, L, N>(StepDecoding<'a, L, N>);

impl<'a, L: Layer, N: Norm> TextDecoding<'a, L, N> {
    /// Prefills the cache with `input`, whose rows `[B,L,D]` are right-padded and have positions from 0; `present [B,L]` is
    /// false at padding. At most `max_tokens` tokens follow.
    pub fn prefill(
        model: &'a LanguageModel<L, N>,
        input: StackInput<'_>,
        present: &Tensor,
        max_tokens: i64,
    ) -> Result<Self> {
        let lengths = present.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64); // [B]
        let last = (&lengths - 1).unsqueeze(1);
        let (hidden, cache) = model.forward(StackInput { outputs: Some(&last), ..input })?;
        let index = Tensor::arange(lengths.size()[0], (Kind::Int64, lengths.device()));
        let hidden = hidden.squeeze_dim(1);
        Ok(Self(StepDecoding::new(model, (&cache, &index), present, lengths, &hidden, max_tokens)))
    }

    /// Logits of the next token over the whole vocabulary, `[B,V]`.
    pub fn logits(&self) -> Tensor {
        self.0.model.logits(self.0.hidden())
    }

    /// Appends a given token to each answer, `tokens [B]`.
    pub fn append(&mut self, tokens: &Tensor) -> Result<()> {
        let row = self.0.model.embed(&tokens.unsqueeze(1));
        self.0.length = 0; // a captured step would read the row of an earlier call
        self.0.run(1, |append| drop(append(&row)))
    }

    /// Generates until every answer has emitted `stop` or reached `sampling.max_tokens`.
    pub fn generate(mut self, sampling: &TextSampling, stop: i64, pad: i64) -> Result<GeneratedText> {
        let TextSampling { temperature, top_k, part, max_tokens, .. } = *sampling;
        let (rows, device) = (self.0.hidden().size()[0], self.0.hidden().device());
        let choice = SamplingChoice { temperature, top_k, part };
        let mut sampled = SampledTokens::new(rows, max_tokens, choice, device);
        let (model, interval) = (self.0.model, if device.is_cuda() { STOP_CHECK_INTERVAL } else { 1 });
        sampled.sample_next(&self.logits());
        let mut length = 1;
        loop {
            let ended = sampled.tokens.narrow(1, 0, length).eq(stop).any_dim(1, false);
            if length >= max_tokens || bool::try_from(ended.all())? {
                return Ok(trim_at_stop(&sampled, length, stop, pad));
            }
            let more = interval.min(max_tokens - length);
            self.0.run(more, |append| {
                let hidden = append(&model.embed(&sampled.last.unsqueeze(1)));
                sampled.sample_next(&model.logits(&hidden));
            })?;
            length += more;
        }
    }
}

/// The first `length` tokens, each answer cut after its first `stop`, padded to the longest answer.
fn trim_at_stop(sampled: &SampledTokens, length: i64, stop: i64, pad: i64) -> GeneratedText {
    let tokens = sampled.tokens.narrow(1, 0, length);
    let stops = tokens.eq(stop).to_kind(Kind::Int64);
    let mask = (stops.cumsum(1, Kind::Int64) - stops).eq(0); // no earlier stop
    let longest = mask.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64).max().int64_value(&[]);
    let [tokens, mask, logp] =
        [&tokens, &mask, &sampled.logp].map(|all| all.narrow(1, 0, longest).contiguous());
    GeneratedText { tokens: tokens.where_self(&mask, &tokens.full_like(pad)), logp: logp * &mask, mask }
}
