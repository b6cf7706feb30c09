//! The text tokenizer: from the `tokenizer.json` or GPT-2 files of a checkpoint, or word-level for a fresh model.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use tch::Tensor;
use tokenizers::{AddedToken, Tokenizer};
use unirl::model::Answers;
use unirl::weights::read_json;
use unirl::{Error, Result};
use unirl_base::input;
use unirl_benchmarks::tiles;

use crate::warnings::warn_unknown;

const TOKENIZER: &str = "tokenizer.json";
const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
/// The first maps tokens to ids, the second lists special tokens, the third has both but exists only in some checkpoints.
const ADDED: [&str; 3] = ["added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"];

const UNKNOWN: &str = "<unk>";
/// A special token of GPT-2, although its files do not mark it as one.
const END: &str = "<|endoftext|>";

/// A text tokenizer.
#[derive(Clone)]
pub struct Text {
    tokenizer: Tokenizer,
    json: Vec<u8>,
    /// The id of the unknown token.
    unknown: Option<u32>,
}

impl Text {
    /// Whether `folder` contains tokenizer files.
    pub fn is_in(folder: &Path) -> bool {
        [TOKENIZER, VOCAB].iter().any(|name| folder.join(name).is_file())
    }

    /// Reads the tokenizer of a checkpoint folder: `tokenizer.json`, else the byte-level BPE of `vocab.json`, `merges.txt` and
    /// the added tokens, as of GPT-2 and Phi.
    pub fn open_folder(folder: &Path) -> Result<Self> {
        if folder.join(TOKENIZER).is_file() {
            return Self::open(&folder.join(TOKENIZER));
        }
        if let Some(missing) = [VOCAB, MERGES].into_iter().find(|name| !folder.join(name).is_file()) {
            return Err(Error::failure(format!("no text tokenizer in `{}`", folder.display()))
                .cause(format!("neither `{TOKENIZER}` nor `{missing}` exists"))
                .hint(format!("expected `{TOKENIZER}`, or `{VOCAB}` and `{MERGES}`")));
        }
        let vocab: BTreeMap<String, u32> = read_json(&folder.join(VOCAB))?;
        let path = folder.join(MERGES);
        let merges = input::read_text(&path)?;
        let merges: Vec<&str> = merges.lines().filter(|line| !line.starts_with("#version")).collect();
        let added = added_tokens(folder, &vocab)?;
        check_ids(folder, &vocab, &added)?;
        let added: Vec<Value> = added
            .iter()
            .map(|(id, token)| {
                let mut json = json!(token);
                json["id"] = json!(id);
                json
            })
            .collect();
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
            "post_processor": null,
            "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
            "model": {"type": "BPE", "vocab": vocab, "merges": merges},
        });
        Self::from_json(json.to_string().into_bytes(), &folder.display().to_string())
    }

    /// Reads `tokenizer.json`.
    pub fn open(path: &Path) -> Result<Self> {
        Self::from_json(input::read(path)?, &path.display().to_string())
    }

    /// Parses the contents of a `tokenizer.json`; `file` names it in errors.
    pub fn from_json(json: Vec<u8>, file: &str) -> Result<Self> {
        let broken = |error| Error::failure(format!("`{file}` is not a tokenizer")).cause(error);
        let mut tokenizer = Tokenizer::from_bytes(&json).map_err(broken)?;
        // Like transformers, ignore truncation and padding settings in the file.
        tokenizer.with_truncation(None).map_err(broken)?;
        tokenizer.with_padding(None);
        let unknown = tokenizer.token_to_id(UNKNOWN);
        Ok(Self { tokenizer, json, unknown })
    }

    /// A lower-case word-level tokenizer of `words`, the unknown token and `special` tokens, in this order.
    pub fn of_words(words: &[String], special: &[&str]) -> Result<Self> {
        let all = words.iter().map(String::as_str).chain([UNKNOWN]).chain(special.iter().copied());
        let vocab: serde_json::Map<_, _> =
            all.enumerate().map(|(id, word)| (word.into(), id.into())).collect();
        if vocab.len() != words.len() + 1 + special.len() {
            return Err(Error::usage(
                "`words` of the architecture: expected distinct words, got a duplicate",
            ));
        }
        let added = special.iter().map(|token| {
            let mut json = json!(AddedToken::from(*token, true).normalized(false));
            json["id"] = vocab[*token].clone();
            json
        });
        let json = json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added.collect::<Vec<_>>(),
            "normalizer": {"type": "Lowercase"},
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": null,
            "decoder": null,
            "model": {"type": "WordLevel", "vocab": vocab, "unk_token": UNKNOWN},
        });
        Self::from_json(json.to_string().into_bytes(), TOKENIZER)
    }

    /// The tokenizer of a fresh model: [`Self::of_words`] with the given `words`, or those of the tiles benchmark if there are
    /// none. Words of the family's `template` are added if they are missing.
    pub fn fresh(words: &[String], template: &[&str], special: &[&str]) -> Result<Self> {
        let mut words = if words.is_empty() { tiles::vocabulary() } else { words.to_vec() };
        for word in template {
            if !words.iter().any(|known| known == word) {
                words.push((*word).into());
            }
        }
        Self::of_words(&words, special)
    }

    /// The number of tokens, including special ones.
    pub fn vocabulary_size(&self) -> i64 {
        self.tokenizer.get_vocab_size(true) as i64
    }

    /// The benchmark of a model with this tokenizer: `tiles` if its vocabulary begins with the words of the tiles benchmark, as
    /// that of [`Self::of_words`] does, and its images have the `resolution` of the benchmark.
    pub fn benchmark(&self, resolution: i64) -> Option<String> {
        let is_tiles = resolution == tiles::SIDE as i64
            && tiles::vocabulary().iter().enumerate().all(|(id, word)| self.id(word) == Some(id as i64));
        is_tiles.then(|| tiles::NAME.into())
    }

    /// The id of a token.
    pub fn id(&self, token: &str) -> Option<i64> {
        self.tokenizer.token_to_id(token).map(i64::from)
    }

    /// The contents of `tokenizer.json`.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// Encodes `text` without adding special tokens. Warns about words that are not in the vocabulary.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(|error| Error::failure(format!("cannot tokenize `{text}`")).cause(error))?;
        let ids = encoding.get_ids();
        if let Some(unknown) = self.unknown {
            let words = ids.iter().zip(encoding.get_offsets()).filter(|(id, _)| **id == unknown);
            warn_unknown(words.filter_map(|(_, (start, end))| text.get(*start..*end)));
        }
        Ok(ids.iter().map(|id| i64::from(*id)).collect())
    }

    /// Decodes `ids` up to the token `end`. Ids outside the text vocabulary, such as image codes, are skipped.
    pub fn decode(&self, ids: &[i64], end: i64) -> Result<String> {
        let ids: Vec<u32> = ids
            .iter()
            .take_while(|id| **id != end)
            .filter_map(|id| u32::try_from(*id).ok())
            .filter(|id| self.tokenizer.id_to_token(*id).is_some())
            .collect();
        let text = self
            .tokenizer
            .decode(&ids, true)
            .map_err(|error| Error::failure("cannot decode an answer").cause(error))?;
        Ok(text.trim().to_string())
    }

    /// Decodes sampled answers: `tokens [B,T]`, which end at the token `end` and are valid where `mask [B,T]` is true, with their
    /// log-probabilities `[B,T]`.
    pub fn answers(&self, [tokens, mask, logp]: [Tensor; 3], end: i64) -> Result<Answers> {
        let text = (0..tokens.size()[0])
            .map(|row| {
                let ids = Vec::<i64>::try_from(tokens.get(row).masked_select(&mask.get(row)))?;
                self.decode(&ids, end)
            })
            .collect::<Result<_>>()?;
        Ok(Answers { logp: Some(logp), ..Answers::new(text, tokens, mask) })
    }
}

/// The added tokens of a folder with GPT-2's files by id, including special tokens that are in the vocabulary.
fn added_tokens(folder: &Path, vocab: &BTreeMap<String, u32>) -> Result<BTreeMap<u32, AddedToken>> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct TokenizerConfig {
        added_tokens_decoder: BTreeMap<u32, AddedToken>,
    }
    let [ids, special, config] = ADDED.map(|name| folder.join(name));
    let mut added = match config.is_file() {
        true => read_json::<TokenizerConfig>(&config)?.added_tokens_decoder,
        false => BTreeMap::new(),
    };
    // The value of a special token is its text, an object, or a list of either.
    let special: Value = if special.is_file() { read_json(&special)? } else { Value::Null };
    let mut special: Vec<&str> = special
        .as_object()
        .into_iter()
        .flat_map(|map| map.values())
        .flat_map(|value| value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice))
        .filter_map(|value| value.as_str().or_else(|| value["content"].as_str()))
        .collect();
    if vocab.contains_key(END) {
        special.push(END); // GPT-2's files do not list it
    }
    let listed: BTreeMap<String, u32> = if ids.is_file() { read_json(&ids)? } else { BTreeMap::new() };
    for (content, id) in listed {
        let token = AddedToken::from(content.as_str(), special.contains(&content.as_str()));
        let known = added.entry(id).or_insert(token);
        if known.content != content {
            return Err(inconsistent(
                folder,
                format!("added token `{content}`: id {id} is already used by `{}`", known.content),
            ));
        }
    }
    for content in special {
        if let Some(id) = vocab.get(content) {
            added.entry(*id).or_insert_with(|| AddedToken::from(content, true));
        } else if !added.values().any(|token| token.content == content) {
            return Err(inconsistent(folder, format!("special token `{content}` has no id")));
        }
    }
    Ok(added)
}

/// Errors unless added tokens continue the ids of the vocabulary: the crate `tokenizers` assigns the ids itself.
fn check_ids(folder: &Path, vocab: &BTreeMap<String, u32>, added: &BTreeMap<u32, AddedToken>) -> Result<()> {
    let by_id: HashMap<u32, &str> = vocab.iter().map(|(text, id)| (*id, text.as_str())).collect();
    let mut by_text: HashMap<&str, u32> = vocab.iter().map(|(text, id)| (text.as_str(), *id)).collect();
    let mut next = vocab.len() as u32;
    for (id, token) in added {
        let wrong = match (by_text.insert(&token.content, *id), by_id.get(id)) {
            (Some(other), _) if other == *id => continue,
            (Some(other), _) => format!("expected one id, got {id} and {other}"),
            (None, Some(other)) => format!("id {id} is already used by `{other}`"),
            (None, None) if *id != next => format!("expected id {next}, the next free one, got {id}"),
            (None, None) => {
                next += 1;
                continue;
            }
        };
        return Err(inconsistent(folder, format!("added token `{}`: {wrong}", token.content)));
    }
    Ok(())
}

fn inconsistent(folder: &Path, what: String) -> Error {
    Error::failure(what)
        .context(format!("cannot use the text tokenizer in `{}`", folder.display()))
        .hint("check that all files are present and belong to the same tokenizer")
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/tokenizer");

    #[derive(Deserialize)]
    struct Reference {
        eos: i64,
        vocabulary: i64,
        cases: Vec<Case>,
    }

    #[derive(Deserialize)]
    struct Case {
        text: String,
        ids: Vec<i64>,
        decoded: String,
    }

    fn reference() -> Reference {
        read_json(&Path::new(FIXTURE).join("cases.json")).unwrap()
    }

    /// A copy of the GPT-2 files, for tests to modify.
    fn files() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(Path::new(FIXTURE).join("files")).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
        dir
    }

    fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
        let mut json: Value = read_json(path).unwrap();
        change(&mut json);
        fs::write(path, json.to_string()).unwrap();
    }

    #[track_caller]
    fn assert_matches_reference(text: &Text) {
        let reference = reference();
        assert_eq!(text.vocabulary_size(), reference.vocabulary);
        for case in reference.cases {
            assert_eq!(text.encode(&case.text).unwrap(), case.ids, "{:?}", case.text);
            assert_eq!(text.decode(&case.ids, reference.eos).unwrap(), case.decoded, "{:?}", case.text);
        }
    }

    #[track_caller]
    fn refused(folder: &Path) -> Error {
        Text::open_folder(folder).err().expect("an error")
    }

    #[test]
    fn tokenizer_matches_transformers_from_json_and_gpt2_files() {
        assert_matches_reference(&Text::open_folder(&Path::new(FIXTURE).join("json")).unwrap());
        let text = Text::open_folder(&Path::new(FIXTURE).join("files")).unwrap();
        assert_matches_reference(&text);
        assert_matches_reference(&Text::from_json(text.json().to_vec(), "saved").unwrap());
    }

    #[test]
    fn tokenizer_truncation_and_padding_of_the_file_are_ignored() {
        let words = ["a", "photo", "of", "star"].map(String::from);
        let mut json: Value = serde_json::from_slice(Text::of_words(&words, &[]).unwrap().json()).unwrap();
        json["truncation"] =
            json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                                 "pad_id": 0, "pad_type_id": 0, "pad_token": "a"});
        let text = Text::from_json(json.to_string().into_bytes(), "with settings").unwrap();
        assert_eq!(text.encode("a photo of a star").unwrap(), [0, 1, 2, 0, 3]);
    }

    #[test]
    fn added_tokens_are_read_from_tokenizer_config() {
        let dir = files();
        let eos = reference().eos;
        // As in Phi, the vocabulary contains the end token.
        edit(&dir.path().join(VOCAB), |vocab| vocab[END] = eos.into());
        let added: BTreeMap<String, u32> = read_json(&dir.path().join(ADDED[0])).unwrap();
        let decoder: BTreeMap<u32, AddedToken> = added
            .into_iter()
            .map(|(content, id)| (id, AddedToken::from(content.as_str(), content == END)))
            .collect();
        let config = json!({"tokenizer_class": "CodeGenTokenizer", "added_tokens_decoder": decoder});
        fs::write(dir.path().join(ADDED[2]), config.to_string()).unwrap();
        assert_matches_reference(&Text::open_folder(dir.path()).unwrap()); // together with `added_tokens.json`, as in Phi
        fs::remove_file(dir.path().join(ADDED[0])).unwrap();
        assert_matches_reference(&Text::open_folder(dir.path()).unwrap());
    }

    #[test]
    fn special_tokens_are_found_in_the_vocabulary() {
        let dir = files();
        let eos = reference().eos;
        edit(&dir.path().join(VOCAB), |vocab| vocab[END] = eos.into());
        let listed = dir.path().join(ADDED[0]);
        edit(&listed, |added| drop(added.as_object_mut().unwrap().remove(END)));
        assert_matches_reference(&Text::open_folder(dir.path()).unwrap());
        fs::remove_file(dir.path().join(ADDED[1])).unwrap();
        assert_matches_reference(&Text::open_folder(dir.path()).unwrap());
        fs::write(dir.path().join(ADDED[1]), r#"{"pad_token": {"content": "<pad>"}}"#).unwrap();
        assert_eq!(refused(dir.path()).causes(), ["special token `<pad>` has no id"]);
    }

    #[test]
    fn missing_merges_txt_is_an_error() {
        let dir = files();
        fs::remove_file(dir.path().join(MERGES)).unwrap();
        let error = refused(dir.path());
        assert_eq!(error.message(), format!("no text tokenizer in `{}`", dir.path().display()));
        assert_eq!(error.causes(), ["neither `tokenizer.json` nor `merges.txt` exists"]);
        assert_eq!(error.hints(), ["expected `tokenizer.json`, or `vocab.json` and `merges.txt`"]);
    }

    #[test]
    fn malformed_vocab_json_is_an_error() {
        let dir = files();
        let path = dir.path().join(VOCAB);
        fs::write(&path, "{\"a\": 0,").unwrap();
        let error = refused(dir.path());
        assert_eq!(error.message(), format!("cannot read `{}`", path.display()));
        assert_eq!(error.causes(), ["column 8: not JSON: EOF while parsing a value"]);
    }

    #[test]
    fn merge_of_unknown_tokens_is_an_error() {
        let dir = files();
        fs::write(dir.path().join(MERGES), "#version: 0.2\nno such\n").unwrap();
        let error = refused(dir.path());
        assert_eq!(error.message(), format!("`{}` is not a tokenizer", dir.path().display()));
    }

    #[test]
    fn added_token_id_must_be_the_next_free_one() {
        let dir = files();
        let path = dir.path().join(ADDED[0]);
        edit(&path, |added| added["    "] = 64.into());
        let error = refused(dir.path());
        assert_eq!(error.message(), format!("cannot use the text tokenizer in `{}`", dir.path().display()));
        assert_eq!(error.causes(), ["added token `    `: id 64 is already used by `a`"]);
        assert_eq!(error.hints(), ["check that all files are present and belong to the same tokenizer"]);
        edit(&path, |added| added["    "] = 402.into());
        assert_eq!(refused(dir.path()).causes(), ["added token `    `: id 402 is already used by `   `"]);
        edit(&path, |added| added["    "] = 409.into());
        assert_eq!(
            refused(dir.path()).causes(),
            ["added token `   `: expected id 401, the next free one, got 402"]
        );
        edit(&path, |added| {
            added["    "] = 401.into();
            added["a"] = 407.into();
        });
        assert_eq!(refused(dir.path()).causes(), ["added token `a`: expected one id, got 407 and 64"]);
        edit(&path, |added| drop(added.as_object_mut().unwrap().remove("a")));
        let duplicate = json!({"added_tokens_decoder": {"407": AddedToken::from("    ", false)}});
        fs::write(dir.path().join(ADDED[2]), duplicate.to_string()).unwrap();
        assert_eq!(refused(dir.path()).causes(), ["added token `    `: expected one id, got 407 and 401"]);
    }
}
