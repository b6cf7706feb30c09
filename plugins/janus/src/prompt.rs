//! Token sequences of prompts and questions. Special tokens are looked up by name, because their ids differ between
//! checkpoints.

use std::ops::Range;

use unirl::{Error, Result};
use unirl_text::Text;

/// Begins every sequence.
const BOS: &str = "<｜begin▁of▁sentence｜>";
/// Ends an answer.
const EOS: &str = "<｜end▁of▁sentence｜>";
/// Padding; also replaces the tokens of an unconditional prompt.
const PAD: &str = "<｜▁pad▁｜>";
/// Begins an image.
const BOI: &str = "<begin_of_image>";
/// Ends an image.
const EOI: &str = "<end_of_image>";
/// The placeholder of an image in a text. Janus-1.3B's `tokenizer.json` lacks it; its code adds it after the last token.
const IMAGE: &str = "<image_placeholder>";
/// The roles: special tokens in Janus-Pro, plain words in Janus-1.3B.
const TAGS: [&str; 2] = ["<|User|>", "<|Assistant|>"];
const NAMES: [&str; 2] = ["User", "Assistant"];

/// The special tokens of a fresh model, in the order of Janus-Pro.
pub const SPECIAL: [&str; 8] = [BOS, EOS, PAD, BOI, EOI, IMAGE, TAGS[0], TAGS[1]];

/// The original's system prompt for understanding.
pub const SYSTEM: &str = "You are a helpful language and vision assistant. You are able to understand the visual content \
                          that the user provides, and assist the user with a variety of tasks using natural language.";

/// The ids of special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Special {
    /// Begins every sequence.
    pub bos: i64,
    /// Ends an answer.
    pub eos: i64,
    /// Padding; also replaces the tokens of an unconditional prompt.
    pub pad: i64,
    /// Begins an image.
    pub boi: i64,
    /// Ends an image.
    pub eoi: i64,
    /// The placeholder of each image row.
    pub image: i64,
}

/// Builds sequences of token ids.
pub struct Prompting {
    text: Text,
    /// The special tokens.
    pub special: Special,
    roles: [&'static str; 2],
    /// The text before an image: system prompt and role.
    before: String,
    /// The rows of the image, the same for every question. Not found by the placeholder, which an answer may contain.
    image_rows: Range<i64>,
}

impl Prompting {
    /// Uses the tokenizer `text` and the system prompt `system`; an image has `rows` rows.
    pub fn new(text: Text, system: &str, rows: i64) -> Result<Self> {
        let id = |token: &str| {
            text.id(token).ok_or_else(|| {
                Error::failure(format!("the text tokenizer has no token `{token}`"))
                    .hint("use the `tokenizer.json` of a Janus checkpoint")
            })
        };
        let special = Special {
            bos: id(BOS)?,
            eos: id(EOS)?,
            pad: id(PAD)?,
            boi: id(BOI)?,
            eoi: id(EOI)?,
            image: text.id(IMAGE).unwrap_or(text.vocabulary_size()),
        };
        let roles = if TAGS.iter().all(|tag| text.id(tag).is_some()) { TAGS } else { NAMES };
        let system = if system.is_empty() { String::new() } else { format!("{system}\n\n") };
        let before = format!("{system}{}: ", roles[0]);
        let mut prompting = Self { special, roles, before, image_rows: 0..0, text };
        let start = prompting.with_bos(&prompting.before)?.len() as i64 + 1; // and the begin-of-image token
        prompting.image_rows = start..start + rows;
        Ok(prompting)
    }

    /// The text tokenizer.
    pub fn text(&self) -> &Text {
        &self.text
    }

    /// The sequence before a generated image: `BOS user: prompt assistant: BOI`.
    pub fn generation_ids(&self, prompt: &str) -> Result<Vec<i64>> {
        let ([user, assistant], prompt) = (self.roles, prompt.trim());
        let turn = match prompt {
            "" => format!("{user}:{assistant}:"),
            prompt => format!("{user}: {prompt}\n\n{assistant}:"),
        };
        let mut ids = self.with_bos(&turn)?;
        ids.push(self.special.boi);
        Ok(ids)
    }

    /// The unconditional counterpart of a generation sequence, for guidance: padding in place of the prompt.
    pub fn unconditional(&self, ids: &[i64]) -> Vec<i64> {
        let last = ids.len() - 1;
        let pad = |(at, id): (usize, &i64)| if at == 0 || at == last { *id } else { self.special.pad };
        ids.iter().enumerate().map(pad).collect()
    }

    /// The sequence before an answer: `BOS system user: BOI image EOI question assistant:`.
    pub fn question(&self, question: &str) -> Result<Vec<i64>> {
        if question.contains(IMAGE) {
            return Err(Error::usage(format!("a question must not contain the image placeholder `{IMAGE}`")));
        }
        let [_, assistant] = self.roles;
        let mut ids = self.with_bos(&self.before)?;
        ids.push(self.special.boi);
        ids.extend(self.image_rows.clone().map(|_| self.special.image));
        ids.push(self.special.eoi);
        ids.extend(self.text.encode(&format!("\n{}\n\n{assistant}:", question.trim()))?);
        Ok(ids)
    }

    /// The rows of the image in the sequence of a question.
    pub fn image_rows(&self) -> Range<i64> {
        self.image_rows.clone()
    }

    /// An answer without its end token.
    pub fn answer(&self, answer: &str) -> Result<Vec<i64>> {
        self.text.encode(&format!(" {}", answer.trim()))
    }

    /// Encodes `text` with a leading `BOS`, which only some `tokenizer.json` files add.
    fn with_bos(&self, text: &str) -> Result<Vec<i64>> {
        let mut ids = self.text.encode(text)?;
        if ids.first() != Some(&self.special.bos) {
            ids.insert(0, self.special.bos);
        }
        Ok(ids)
    }
}
