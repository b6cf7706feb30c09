//! Prompt layouts. `E` is the end token, `M` the text tokens of a prompt, `N` image tokens.

use crate::config::{CheckpointConfig, Special};

/// The label of a position that is not to be learned.
pub const IGNORE: i64 = -100;

/// Builds sequences of token ids.
#[derive(Debug, Clone)]
pub struct Prompting {
    special: Special,
    max_text_len: usize,
}

impl Prompting {
    /// For a checkpoint's special tokens and `M`.
    pub fn new(config: &CheckpointConfig) -> Self {
        Self { special: config.special(), max_text_len: config.max_text_len as usize }
    }

    /// `E text`, without a second `E` where the text begins with one.
    fn led(&self, text: &[i64]) -> Vec<i64> {
        let eos = self.special.eos;
        let mut ids = if text.first() == Some(&eos) { vec![] } else { vec![eos] };
        ids.extend(text);
        ids
    }

    /// `[PAD]* <t2i> E text E`, left-padded to `M + 1`; what is too long keeps its first `M` tokens, then
    /// `E`.
    pub fn t2i_text(&self, text: &[i64]) -> Vec<i64> {
        let Special { eos, pad, t2i, .. } = self.special;
        let mut ids = vec![t2i];
        ids.extend(self.led(text));
        ids.truncate(self.max_text_len);
        ids.push(eos);
        let mut padded = vec![pad; self.max_text_len + 1 - ids.len()];
        padded.extend(ids);
        padded
    }

    /// The most tokens of a prompt that [`Prompting::t2i_text`] keeps, behind `<t2i> E`.
    pub fn most(&self) -> usize {
        self.max_text_len.saturating_sub(2)
    }

    /// The whole drawing sequence: the text block, `<soi> image <eoi>`; `image` in ids of the vocabulary.
    pub fn t2i(&self, text: &[i64], image: &[i64]) -> Vec<i64> {
        let mut ids = self.t2i_text(text);
        ids.push(self.special.soi);
        ids.extend(image);
        ids.push(self.special.eoi);
        ids
    }

    /// Labels of [`Prompting::t2i`]: everything but padding, with the image's labels in its place.
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

    /// The training layout of understanding: the prefix, `E text E`, right-padded to `M`; what is too long
    /// keeps its first `M − 1` tokens, then `E`.
    pub fn mmu(&self, image: &[i64], text: &[i64]) -> Vec<i64> {
        let mut block = self.led(text);
        block.truncate(self.max_text_len - 1);
        block.push(self.special.eos);
        block.resize(self.max_text_len, self.special.pad);
        let mut ids = self.mmu_prefix(image);
        ids.extend(block);
        ids
    }

    /// Labels of [`Prompting::mmu`]: all of the text, nothing of the prefix.
    pub fn mmu_labels(&self, image: &[i64], text: &[i64]) -> Vec<i64> {
        let prefix = image.len() + 3;
        let label = |(at, id): (usize, i64)| if at < prefix || id == self.special.pad { IGNORE } else { id };
        self.mmu(image, text).into_iter().enumerate().map(label).collect()
    }

    /// Text alone: `E text E`, right-padded or cut to `length`.
    pub fn lm(&self, text: &[i64], length: usize) -> Vec<i64> {
        let mut ids = self.led(text);
        ids.push(self.special.eos);
        ids.resize(length, self.special.pad);
        ids
    }

    /// Labels of [`Prompting::lm`].
    pub fn lm_labels(&self, text: &[i64], length: usize) -> Vec<i64> {
        self.lm(text, length).into_iter().map(|id| if id == self.special.pad { IGNORE } else { id }).collect()
    }

    /// What follows the prefix when a question is asked: `E question`.
    pub fn question(&self, text: &[i64]) -> Vec<i64> {
        self.led(text)
    }
}
