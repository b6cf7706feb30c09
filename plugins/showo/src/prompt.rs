//! Token sequences. `E` is the end token, `M` the maximum number of text tokens of a prompt, `N` the number of image tokens.

use crate::config::{CheckpointConfig, Special};

/// The label of a position without a loss.
pub const IGNORE: i64 = -100;

/// The system prompt before the image if understanding uses CLIP features.
pub(crate) const SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, \
                      detailed, and polite answers to the user's questions.";

/// Builds sequences of token ids.
#[derive(Debug, Clone)]
pub struct Prompting {
    special: Special,
    max_text_len: usize,
}

impl Prompting {
    /// Uses the special tokens and `M` of a checkpoint.
    pub fn new(config: &CheckpointConfig) -> Self {
        Self { special: config.special(), max_text_len: config.max_text_len as usize }
    }

    /// `E text`, without a second `E` if the text begins with one.
    fn with_leading_eos(&self, text: &[i64]) -> Vec<i64> {
        let eos = self.special.eos;
        let mut ids = if text.first() == Some(&eos) { vec![] } else { vec![eos] };
        ids.extend(text);
        ids
    }

    /// `[PAD]* <t2i> E text E`, left-padded to `M + 1`; a longer sequence is cut to `M` tokens and `E`.
    pub fn t2i_text(&self, text: &[i64]) -> Vec<i64> {
        let Special { eos, pad, t2i, .. } = self.special;
        let mut ids = vec![t2i];
        ids.extend(self.with_leading_eos(text));
        ids.truncate(self.max_text_len);
        ids.push(eos);
        let mut padded = vec![pad; self.max_text_len + 1 - ids.len()];
        padded.extend(ids);
        padded
    }

    /// The most text tokens that [`Prompting::t2i_text`] keeps after `<t2i> E`.
    pub fn max_prompt_tokens(&self) -> usize {
        self.max_text_len.saturating_sub(2)
    }

    /// The generation sequence: the text block, then `<soi> image <eoi>`; `image` are vocabulary ids.
    pub fn t2i(&self, text: &[i64], image: &[i64]) -> Vec<i64> {
        let mut ids = self.t2i_text(text);
        ids.push(self.special.soi);
        ids.extend(image);
        ids.push(self.special.eoi);
        ids
    }

    /// Labels of [`Prompting::t2i`]: everything except padding, with `labels` for the image.
    pub fn t2i_labels(&self, text: &[i64], labels: &[i64]) -> Vec<i64> {
        self.t2i(text, labels)
            .into_iter()
            .map(|id| if id == self.special.pad { IGNORE } else { id })
            .collect()
    }

    /// `<mmu> <soi> image <eoi>`.
    pub fn mmu_prefix(&self, image: &[i64]) -> Vec<i64> {
        let mut ids = vec![self.special.mmu, self.special.soi];
        ids.extend(image);
        ids.push(self.special.eoi);
        ids
    }

    /// The training sequence of understanding: the prefix, then `E text E`, right-padded to `M`; a longer text is cut to
    /// `M − 1` tokens and `E`.
    pub fn mmu(&self, image: &[i64], text: &[i64]) -> Vec<i64> {
        let mut block = self.with_leading_eos(text);
        block.truncate(self.max_text_len - 1);
        block.push(self.special.eos);
        block.resize(self.max_text_len, self.special.pad);
        let mut ids = self.mmu_prefix(image);
        ids.extend(block);
        ids
    }

    /// Labels of [`Prompting::mmu`]: the text without the prefix.
    pub fn mmu_labels(&self, image: &[i64], text: &[i64]) -> Vec<i64> {
        let prefix = image.len() + 3;
        let label = |(at, id): (usize, i64)| if at < prefix || id == self.special.pad { IGNORE } else { id };
        self.mmu(image, text).into_iter().enumerate().map(label).collect()
    }

    /// A text-only sequence: `E text E`, right-padded or cut to `length`.
    pub fn lm(&self, text: &[i64], length: usize) -> Vec<i64> {
        let mut ids = self.with_leading_eos(text);
        ids.push(self.special.eos);
        ids.resize(length, self.special.pad);
        ids
    }

    /// Labels of [`Prompting::lm`].
    pub fn lm_labels(&self, text: &[i64], length: usize) -> Vec<i64> {
        self.lm(text, length).into_iter().map(|id| if id == self.special.pad { IGNORE } else { id }).collect()
    }

    /// The part after the prefix of a question: `E question`.
    pub fn question(&self, text: &[i64]) -> Vec<i64> {
        self.with_leading_eos(text)
    }
}
