//! The text tokenizer: a `tokenizer.json` or GPT-2's files as checkpoints bring them, or one of whole words for a fresh
//! model.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};
use tch::Tensor;
use tokenizers::{AddedToken, Tokenizer};
use unirl::model::Answers;
use unirl::weights::read_json;
use unirl::{Error, Result, input};

use crate::warnings::warn_unknown;

const TOKENIZER: &str = "tokenizer.json";
const VOCAB: &str = "vocab.json";
const MERGES: &str = "merges.txt";
/// The first has ids alone, the second the texts of special tokens, the third everything, in some checkpoints only.
const ADDED: [&str; 3] = ["added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"];

const UNKNOWN: &str = "<unk>";
/// Special in GPT-2's vocabulary, whose files do not say so.
const END: &str = "<|endoftext|>";

/// Text to ids and back.
#[derive(Clone)]
pub struct Text {
    tokenizer: Tokenizer,
    json: Vec<u8>,
    /// The id that stands for every word that the vocabulary does not have.
    unknown: Option<u32>,
}

impl Text {
    /// Whether `folder` holds files of a tokenizer.
    pub fn is_in(folder: &Path) -> bool {
        [TOKENIZER, VOCAB].iter().any(|name| folder.join(name).is_file())
    }

    /// Reads the tokenizer of a checkpoint folder: `tokenizer.json`, or else `vocab.json` and `merges.txt` with what is
    /// there of added tokens, a byte-level BPE as of GPT-2 and Phi.
    pub fn open_folder(folder: &Path) -> Result<Self> {
        if folder.join(TOKENIZER).is_file() {
            return Self::open(&folder.join(TOKENIZER));
        }
        if let Some(missing) = [VOCAB, MERGES].into_iter().find(|name| !folder.join(name).is_file()) {
            return Err(Error::failure(format!("no text tokenizer in `{}`", folder.display()))
                .cause(format!("there is no `{TOKENIZER}`, and no `{missing}`"))
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

    /// Parses the contents of a `tokenizer.json`; `file` is what errors call it.
    pub fn from_json(json: Vec<u8>, file: &str) -> Result<Self> {
        let broken = |error| Error::failure(format!("`{file}` is not a tokenizer")).cause(error);
        let mut tokenizer = Tokenizer::from_bytes(&json).map_err(broken)?;
        // A file may keep the length that its last user cut and padded to; transformers ignores that, too.
        tokenizer.with_truncation(None).map_err(broken)?;
        tokenizer.with_padding(None);
        let unknown = tokenizer.token_to_id(UNKNOWN);
        Ok(Self { tokenizer, json, unknown })
    }

    /// A tokenizer of whole words in lower case; behind them the unknown word and `special` tokens.
    pub fn of_words(words: &[String], special: &[&str]) -> Result<Self> {
        let all = words.iter().map(String::as_str).chain([UNKNOWN]).chain(special.iter().copied());
        let vocab: serde_json::Map<_, _> =
            all.enumerate().map(|(id, word)| (word.into(), id.into())).collect();
        if vocab.len() != words.len() + 1 + special.len() {
            return Err(Error::usage("`words` of the architecture: a word stands there twice"));
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

    /// Tokens, special ones included.
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

    /// Ids of `text`, nothing added. Warns of words that the vocabulary does not have.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(|error| Error::failure(format!("cannot tokenize `{text}`")).cause(error))?;
        let ids = encoding.get_ids();
        if let Some(unknown) = self.unknown {
            let places = ids.iter().zip(encoding.get_offsets()).filter(|(id, _)| **id == unknown);
            warn_unknown(places.filter_map(|(_, (start, end))| text.get(*start..*end)));
        }
        Ok(ids.iter().map(|id| i64::from(*id)).collect())
    }

    /// The text of `ids` up to the token `end`. Ids without a text, as of image codes, are left out.
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
            .map_err(|error| Error::failure("cannot turn an answer into text").cause(error))?;
        Ok(text.trim().to_string())
    }

    /// Answers `tokens [B,T]`, which end at the token `end`, where `mask [B,T]` is true.
    pub fn answers(&self, tokens: Tensor, mask: Tensor, end: i64) -> Result<Answers> {
        let text = (0..tokens.size()[0])
            .map(|row| {
                let ids = Vec::<i64>::try_from(tokens.get(row).masked_select(&mask.get(row)))?;
                self.decode(&ids, end)
            })
            .collect::<Result<_>>()?;
        Ok(Answers::new(text, tokens, mask))
    }
}

/// The added tokens of a folder with GPT-2's files, by id; among them the special ones that the vocabulary holds.
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
    // A special token stands there as its text, or as an object, or as a list of either.
    let special: Value = if special.is_file() { read_json(&special)? } else { Value::Null };
    let mut special: Vec<&str> = special
        .as_object()
        .into_iter()
        .flat_map(|map| map.values())
        .flat_map(|value| value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice))
        .filter_map(|value| value.as_str().or_else(|| value["content"].as_str()))
        .collect();
    if vocab.contains_key(END) {
        special.push(END); // GPT-2's own files say so nowhere
    }
    let listed: BTreeMap<String, u32> = if ids.is_file() { read_json(&ids)? } else { BTreeMap::new() };
    for (content, id) in listed {
        let token = AddedToken::from(content.as_str(), special.contains(&content.as_str()));
        let known = added.entry(id).or_insert(token);
        if known.content != content {
            return Err(mixed(
                folder,
                format!("added token `{content}`: its id {id} is that of `{}`", known.content),
            ));
        }
    }
    for content in special {
        if let Some(id) = vocab.get(content) {
            added.entry(*id).or_insert_with(|| AddedToken::from(content, true));
        } else if !added.values().any(|token| token.content == content) {
            return Err(mixed(folder, format!("special token `{content}` has no id")));
        }
    }
    Ok(added)
}

/// The crate gives the ids itself, one after the other behind the vocabulary: refuses files that say otherwise.
fn check_ids(folder: &Path, vocab: &BTreeMap<String, u32>, added: &BTreeMap<u32, AddedToken>) -> Result<()> {
    let by_id: HashMap<u32, &str> = vocab.iter().map(|(text, id)| (*id, text.as_str())).collect();
    let mut by_text: HashMap<&str, u32> = vocab.iter().map(|(text, id)| (text.as_str(), *id)).collect();
    let mut next = vocab.len() as u32;
    for (id, token) in added {
        let wrong = match (by_text.insert(&token.content, *id), by_id.get(id)) {
            (Some(other), _) if other == *id => continue,
            (Some(other), _) => format!("its id is {id}, and also {other}"),
            (None, Some(other)) => format!("its id {id} is that of `{other}`"),
            (None, None) if *id != next => format!("expected id {next}, the next one, got {id}"),
            (None, None) => {
                next += 1;
                continue;
            }
        };
        return Err(mixed(folder, format!("added token `{}`: {wrong}", token.content)));
    }
    Ok(())
}

fn mixed(folder: &Path, what: String) -> Error {
    Error::failure(what)
        .context(format!("cannot use the text tokenizer in `{}`", folder.display()))
        .hint("see that all its files are there and of one tokenizer")
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

    /// A copy of GPT-2's files, to be spoilt.
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
    fn agrees(text: &Text) {
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
    fn both_forms_give_what_transformers_gives() {
        agrees(&Text::open_folder(&Path::new(FIXTURE).join("json")).unwrap());
        let text = Text::open_folder(&Path::new(FIXTURE).join("files")).unwrap();
        agrees(&text);
        agrees(&Text::from_json(text.json().to_vec(), "saved").unwrap());
    }

    #[test]
    fn a_length_that_the_file_keeps_is_ignored() {
        let words = ["a", "photo", "of", "star"].map(String::from);
        let mut json: Value = serde_json::from_slice(Text::of_words(&words, &[]).unwrap().json()).unwrap();
        json["truncation"] =
            json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
                                 "pad_id": 0, "pad_type_id": 0, "pad_token": "a"});
        let text = Text::from_json(json.to_string().into_bytes(), "kept").unwrap();
        assert_eq!(text.encode("a photo of a star").unwrap(), [0, 1, 2, 0, 3]);
    }

    #[test]
    fn added_tokens_may_stand_in_the_configuration() {
        let dir = files();
        let eos = reference().eos;
        // As with Phi: the end token is in the vocabulary, too.
        edit(&dir.path().join(VOCAB), |vocab| vocab[END] = eos.into());
        let added: BTreeMap<String, u32> = read_json(&dir.path().join(ADDED[0])).unwrap();
        let decoder: BTreeMap<u32, AddedToken> = added
            .into_iter()
            .map(|(content, id)| (id, AddedToken::from(content.as_str(), content == END)))
            .collect();
        let config = json!({"tokenizer_class": "CodeGenTokenizer", "added_tokens_decoder": decoder});
        fs::write(dir.path().join(ADDED[2]), config.to_string()).unwrap();
        agrees(&Text::open_folder(dir.path()).unwrap()); // beside `added_tokens.json`, as with Phi
        fs::remove_file(dir.path().join(ADDED[0])).unwrap();
        agrees(&Text::open_folder(dir.path()).unwrap());
    }

    #[test]
    fn special_tokens_may_stand_in_the_vocabulary_alone() {
        let dir = files();
        let eos = reference().eos;
        edit(&dir.path().join(VOCAB), |vocab| vocab[END] = eos.into());
        let listed = dir.path().join(ADDED[0]);
        edit(&listed, |added| drop(added.as_object_mut().unwrap().remove(END)));
        agrees(&Text::open_folder(dir.path()).unwrap());
        fs::remove_file(dir.path().join(ADDED[1])).unwrap();
        agrees(&Text::open_folder(dir.path()).unwrap());
        fs::write(dir.path().join(ADDED[1]), r#"{"pad_token": {"content": "<pad>"}}"#).unwrap();
        assert_eq!(refused(dir.path()).causes(), ["special token `<pad>` has no id"]);
    }

    #[test]
    fn missing_merges_are_named() {
        let dir = files();
        fs::remove_file(dir.path().join(MERGES)).unwrap();
        let error = refused(dir.path());
        assert_eq!(error.message(), format!("no text tokenizer in `{}`", dir.path().display()));
        assert_eq!(error.causes(), ["there is no `tokenizer.json`, and no `merges.txt`"]);
        assert_eq!(error.hints(), ["expected `tokenizer.json`, or `vocab.json` and `merges.txt`"]);
    }

    #[test]
    fn a_broken_vocabulary_is_named() {
        let dir = files();
        let path = dir.path().join(VOCAB);
        fs::write(&path, "{\"a\": 0,").unwrap();
        let error = refused(dir.path());
        assert_eq!(error.message(), format!("cannot read `{}`", path.display()));
        assert_eq!(error.causes(), ["column 8: not JSON: EOF while parsing a value"]);
    }

    #[test]
    fn a_merge_of_unknown_parts_is_refused() {
        let dir = files();
        fs::write(dir.path().join(MERGES), "#version: 0.2\nno such\n").unwrap();
        let error = refused(dir.path());
        assert_eq!(error.message(), format!("`{}` is not a tokenizer", dir.path().display()));
    }

    #[test]
    fn an_id_must_be_free_and_the_next() {
        let dir = files();
        let path = dir.path().join(ADDED[0]);
        edit(&path, |added| added["    "] = 64.into());
        let error = refused(dir.path());
        assert_eq!(error.message(), format!("cannot use the text tokenizer in `{}`", dir.path().display()));
        assert_eq!(error.causes(), ["added token `    `: its id 64 is that of `a`"]);
        assert_eq!(error.hints(), ["see that all its files are there and of one tokenizer"]);
        edit(&path, |added| added["    "] = 402.into());
        assert_eq!(refused(dir.path()).causes(), ["added token `    `: its id 402 is that of `   `"]);
        edit(&path, |added| added["    "] = 409.into());
        assert_eq!(
            refused(dir.path()).causes(),
            ["added token `   `: expected id 401, the next one, got 402"]
        );
        edit(&path, |added| {
            added["    "] = 401.into();
            added["a"] = 407.into();
        });
        assert_eq!(refused(dir.path()).causes(), ["added token `a`: its id is 407, and also 64"]);
        edit(&path, |added| drop(added.as_object_mut().unwrap().remove("a")));
        let twice = json!({"added_tokens_decoder": {"407": AddedToken::from("    ", false)}});
        fs::write(dir.path().join(ADDED[2]), twice.to_string()).unwrap();
        assert_eq!(refused(dir.path()).causes(), ["added token `    `: its id is 407, and also 401"]);
    }
}
