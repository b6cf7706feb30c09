//! Answers about images: their sampling, their scores and their encoding for supervised training.

use tch::{Device, IndexOp, Kind, Tensor};
use unirl::Result;
use unirl::model::{Answers, TokenLogp};

use crate::decoder::{Layer, StackInput};
use crate::decoding::TextDecoding;
use crate::language::{LanguageModel, Norm};
use crate::rows::padded;

/// Embedded images and texts.
#[derive(Debug)]
pub struct EmbeddedRows {
    /// `[B,L,D]`.
    pub x: Tensor,
    /// `[1,L]`.
    pub positions: Tensor,
    /// The additive attention mask.
    pub mask: Tensor,
}

/// Tokenized questions about images, one row each, without padding.
#[derive(Debug, Clone, Copy)]
pub struct Questions<'a> {
    /// The ids of each question; they can include placeholders for the image.
    pub ids: &'a [Vec<i64>],
    /// The number of rows that the family embeds before the ids: those of an image without placeholders.
    pub before: i64,
    /// The id of padding.
    pub pad: i64,
}

impl Questions<'_> {
    /// Prefills the questions for answers of at most `max_tokens` tokens. `embed` embeds ids `[B,L]` and the images; padding
    /// follows the question and is masked.
    pub fn prefill<'a, L: Layer, N: Norm>(
        &self,
        language: &'a LanguageModel<L, N>,
        max_tokens: i64,
        embed: impl FnOnce(&Tensor) -> Result<EmbeddedRows>,
    ) -> Result<TextDecoding<'a, L, N>> {
        let device = language.embedding.device();
        let (ids, present) = padded(self.ids, self.pad, device);
        let before = Tensor::ones([present.size()[0], self.before], (Kind::Bool, device));
        let EmbeddedRows { x, positions, mask } = embed(&ids)?;
        let rows = StackInput::new(x, &positions, &mask);
        TextDecoding::prefill(language, rows, &Tensor::cat(&[before, present], 1), max_tokens)
    }

    /// Log-probabilities of `answers`. `embed` is that of [`Self::prefill`]; the ids end with those of the answer.
    pub fn score<L: Layer, N: Norm>(
        &self,
        language: &LanguageModel<L, N>,
        answers: &Answers,
        embed: impl FnOnce(&Tensor) -> Result<EmbeddedRows>,
    ) -> Result<TokenLogp> {
        let (ids, _) = padded(&self.with_answers(answers)?, self.pad, language.embedding.device());
        let last = |question: &Vec<i64>| self.before + question.len() as i64 - 1;
        let ends: Vec<i64> = self.ids.iter().map(last).collect();
        let EmbeddedRows { x, positions, mask } = embed(&ids)?;
        language.score(StackInput::new(x, &positions, &mask), &ends, answers)
    }

    /// The ids of each question followed by those of its answer.
    fn with_answers(&self, answers: &Answers) -> Result<Vec<Vec<i64>>> {
        let lengths = answers.mask.sum_dim_intlist([1i64].as_slice(), false, Kind::Int64);
        let rows = self.ids.iter().zip(Vec::<i64>::try_from(lengths)?).zip(0..);
        rows.map(|((question, length), row)| {
            let answer = Vec::<i64>::try_from(answers.tokens.get(row).i(..length))?;
            Ok([question.as_slice(), &answer].concat())
        })
        .collect()
    }
}

/// Tokenizes answers `texts` for supervised training: `ids` encodes one, without its end token.
pub fn encode_answers(
    texts: &[String],
    ids: impl Fn(&str) -> Result<Vec<i64>>,
    (end, pad): (i64, i64),
    device: Device,
) -> Result<Answers> {
    let row = |text: &String| {
        let mut row = ids(text)?;
        row.push(end);
        Ok(row)
    };
    let rows = texts.iter().map(row).collect::<Result<Vec<_>>>()?;
    let (tokens, mask) = padded(&rows, pad, device);
    Ok(Answers::new(texts.to_vec(), tokens, mask))
}
