//! What stands before an image or an answer, as ids. Special tokens are found by their names: their ids differ from
//! checkpoint to checkpoint.

use std::ops::Range;

use unirl::{Error, Result};
use unirl_text::Text;

/// Begins every sequence.
const BOS: &str = "<｜begin▁of▁sentence｜>";
/// Ends an answer.
const EOS: &str = "<｜end▁of▁sentence｜>";
/// Stands for each token of a prompt that guidance leaves out.
const PAD: &str = "<｜▁pad▁｜>";
/// Begins an image.
const BOI: &str = "<begin_of_image>";
/// Ends an image.
const EOI: &str = "<end_of_image>";
/// Stands for a picture in a text. Janus-1.3B's file does not have it; its program adds it behind the last token.
const IMAGE: &str = "<image_placeholder>";
/// Who speaks: tokens of Janus-Pro, in whose place Janus-1.3B writes plain words.
const TAGS: [&str; 2] = ["<|User|>", "<|Assistant|>"];
const NAMES: [&str; 2] = ["User", "Assistant"];

/// The special tokens of a fresh model, in the order of Janus-Pro.
pub const SPECIAL: [&str; 8] = [BOS, EOS, PAD, BOI, EOI, IMAGE, TAGS[0], TAGS[1]];

/// What the original puts before a conversation about pictures.
pub const SYSTEM: &str = "You are a helpful language and vision assistant. You are able to understand the visual content \
                          that the user provides, and assist the user with a variety of tasks using natural language.";

/// The ids of special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Special {
    /// Begins every sequence.
    pub bos: i64,
    /// Ends an answer.
    pub eos: i64,
    /// Stands for each token of a prompt that guidance leaves out.
    pub pad: i64,
    /// Begins an image.
    pub boi: i64,
    /// Ends an image.
    pub eoi: i64,
    /// Stands for each row of a picture.
    pub image: i64,
}

/// Builds sequences of token ids.
pub struct Prompting {
    text: Text,
    /// The special tokens.
    pub special: Special,
    roles: [&'static str; 2],
    /// Before a picture: what the system says, and who speaks.
    before: String,
    /// Where a picture's rows stand, whatever the question: an answer may hold the token that stands for them.
    picture: Range<i64>,
}

impl Prompting {
    /// For a tokenizer, what stands before a question, and the rows that a picture has.
    pub fn new(text: Text, system: &str, rows: i64) -> Result<Self> {
        let id = |token: &str| {
            text.id(token).ok_or_else(|| {
                Error::failure(format!("the text tokenizer has no token `{token}`"))
                    .hint("`tokenizer.json` has to be that of a Janus checkpoint")
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
        let mut prompting = Self { special, roles, before, picture: 0..0, text };
        let start = prompting.with_bos(&prompting.before)?.len() as i64 + 1; // and the token that begins an image
        prompting.picture = start..start + rows;
        Ok(prompting)
    }

    /// The text tokenizer.
    pub fn text(&self) -> &Text {
        &self.text
    }

    /// Before an image: `BOS user: prompt assistant: BOI`.
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

    /// The same without what it asks for, by which guidance is told where not to go.
    pub fn unconditional(&self, drawing: &[i64]) -> Vec<i64> {
        let last = drawing.len() - 1;
        let empty = |(at, id): (usize, &i64)| if at == 0 || at == last { *id } else { self.special.pad };
        drawing.iter().enumerate().map(empty).collect()
    }

    /// Before an answer about a picture: `BOS system user: BOI picture EOI question assistant:`.
    pub fn question(&self, question: &str) -> Result<Vec<i64>> {
        if question.contains(IMAGE) {
            return Err(Error::usage(format!("a question about a picture cannot contain `{IMAGE}`")));
        }
        let [_, assistant] = self.roles;
        let mut ids = self.with_bos(&self.before)?;
        ids.push(self.special.boi);
        ids.extend(self.picture.clone().map(|_| self.special.image));
        ids.push(self.special.eoi);
        ids.extend(self.text.encode(&format!("\n{}\n\n{assistant}:", question.trim()))?);
        Ok(ids)
    }

    /// The rows of a picture among those of a question.
    pub fn image_rows(&self) -> Range<i64> {
        self.picture.clone()
    }

    /// An answer and its end.
    pub fn answer(&self, answer: &str) -> Result<Vec<i64>> {
        let mut ids = self.text.encode(&format!(" {}", answer.trim()))?;
        ids.push(self.special.eos);
        Ok(ids)
    }

    /// Whether a tokenizer begins sequences itself is a matter of its program, not of its file.
    fn with_bos(&self, text: &str) -> Result<Vec<i64>> {
        let mut ids = self.text.encode(text)?;
        if ids.first() != Some(&self.special.bos) {
            ids.insert(0, self.special.bos);
        }
        Ok(ids)
    }
}
