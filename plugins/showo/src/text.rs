//! The text tokenizer: a `tokenizer.json` as checkpoints bring it, or one of whole words for a fresh model.

use std::path::Path;

use serde_json::json;
use tokenizers::Tokenizer;
use unirl::{Error, Result};

const UNKNOWN: &str = "<unk>";
/// The one token that is begin, end and separator of text.
pub const END: &str = "<|endoftext|>";

/// Text to ids and back.
#[derive(Clone)]
pub struct Text {
    tokenizer: Tokenizer,
    json: Vec<u8>,
    eos: i64,
}

impl Text {
    /// Reads `tokenizer.json`.
    pub fn open(path: &Path, eos: i64) -> Result<Self> {
        let json = std::fs::read(path)
            .map_err(|error| Error::failure(format!("cannot read `{}`", path.display())).cause(error))?;
        Self::from_json(json, eos, &path.display().to_string())
    }

    /// Whether `folder` holds a tokenizer.
    pub fn is_in(folder: &Path) -> bool {
        folder.join("tokenizer.json").is_file() || folder.join("vocab.json").is_file()
    }

    /// TEMPORARY
    pub fn open_folder(folder: &Path, eos: i64) -> Result<Self> {
        Self::open(&folder.join("tokenizer.json"), eos)
    }

    /// Parses the contents of a `tokenizer.json`; `file` is what errors call it.
    pub fn from_json(json: Vec<u8>, eos: i64, file: &str) -> Result<Self> {
        let tokenizer = Tokenizer::from_bytes(&json)
            .map_err(|error| Error::failure(format!("`{file}` is not a tokenizer")).cause(error))?;
        Ok(Self { tokenizer, json, eos })
    }

    /// A tokenizer of whole words, unknown and end token behind them.
    pub fn of_words(words: &[String]) -> Result<Self> {
        let all = words.iter().map(String::as_str).chain([UNKNOWN, END]);
        let vocab: serde_json::Map<_, _> =
            all.enumerate().map(|(id, word)| (word.into(), id.into())).collect();
        let eos = vocab.len() as i64 - 1;
        if vocab.len() != words.len() + 2 {
            return Err(Error::usage("`words` of the architecture: a word stands there twice"));
        }
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": [],
            "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": null,
            "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": UNKNOWN},
        });
        Self::from_json(json.to_string().into_bytes(), eos, "tokenizer.json")
    }

    /// Text tokens, the end token included.
    pub fn vocabulary_size(&self) -> i64 {
        self.tokenizer.get_vocab_size(true) as i64
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<i64> {
        self.tokenizer.token_to_id(token).map(i64::from)
    }

    /// The contents of `tokenizer.json`.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// Ids of `text`, nothing added.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(|error| Error::failure(format!("cannot tokenize `{text}`")).cause(error))?;
        Ok(encoding.get_ids().iter().map(|id| i64::from(*id)).collect())
    }

    /// The text of `ids` up to the end token. Ids without a text, as of image codes, are left out.
    pub fn decode(&self, ids: &[i64]) -> Result<String> {
        let ids: Vec<u32> = ids
            .iter()
            .take_while(|id| **id != self.eos)
            .filter_map(|id| u32::try_from(*id).ok())
            .filter(|id| self.tokenizer.id_to_token(*id).is_some())
            .collect();
        let text = self
            .tokenizer
            .decode(&ids, true)
            .map_err(|error| Error::failure("cannot turn an answer into text").cause(error))?;
        Ok(text.trim().to_string())
    }
}
