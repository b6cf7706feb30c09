//! What there is to draw: lists of nouns and colours.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::lexicon::{COLORS, EVERYDAY};
use super::parse;
use crate::error::{Error, Result};
use crate::table::{self, section};

/// The nouns and colours that tasks are made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ObjectList {
    /// Nouns in the singular.
    pub nouns: Vec<String>,
    /// Colours; `GenEval`'s ten where a file names none.
    #[serde(default = "colors")]
    pub colors: Vec<String>,
}

fn colors() -> Vec<String> {
    COLORS.map(String::from).to_vec()
}

impl ObjectList {
    /// Refuses lists of fewer than two nouns or colours, repeated ones, and those that a prompt could not tell apart.
    pub fn new(nouns: Vec<String>, colors: Vec<String>) -> Result<Self> {
        let list = Self { nouns, colors };
        list.check()?;
        Ok(list)
    }

    /// The 160 everyday objects and `GenEval`'s ten colours.
    pub fn everyday() -> Self {
        Self { nouns: EVERYDAY.map(|(noun, _)| noun.into()).to_vec(), colors: colors() }
    }

    /// Reads a list: TOML with `nouns` and perhaps `colors` if the name ends in `.toml`, else a noun a line, where `#` begins
    /// a remark.
    pub fn read(path: &Path) -> Result<Self> {
        let place = || format!("object list `{}`", path.display());
        if path.extension().is_some_and(|end| end == "toml") {
            let list: Self = section("objects", toml::Value::Table(table::read(path)?))
                .map_err(|error| error.context(place()))?;
            return Self::new(list.nouns, list.colors).map_err(|error| error.context(place()));
        }
        let text = std::fs::read_to_string(path)
            .map_err(|error| Error::usage(format!("cannot read `{}`", path.display())).cause(error))?;
        let nouns = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
        let nouns = nouns.filter(|noun| !noun.is_empty()).map(String::from).collect();
        Self::new(nouns, colors()).map_err(|error| error.context(place()))
    }

    pub(super) fn check(&self) -> Result<()> {
        for (what, words) in [("nouns", &self.nouns), ("colors", &self.colors)] {
            if words.len() < 2 {
                return Err(Error::usage(format!(
                    "object list: expected at least 2 {what}, got {}",
                    words.len()
                )));
            }
            let mut seen = std::collections::HashSet::new();
            for word in words {
                if word.trim().is_empty() {
                    return Err(Error::usage(format!("object list: one of the {what} is empty")));
                }
                if let Some(joint) = parse::joint(word) {
                    return Err(Error::usage(format!(
                        "object list: `{word}` has `{joint}` in it, which stands between objects in a prompt"
                    )));
                }
                if !seen.insert(word) {
                    return Err(Error::usage(format!("object list: `{word}` is twice among the {what}")));
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfit_lists_are_refused() {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(ObjectList::new(words(&["cat"]), words(&["red", "blue"])).is_err());
        let error = ObjectList::new(words(&["cat", "dog", "cat"]), words(&["red", "blue"])).unwrap_err();
        assert_eq!(error.message(), "object list: `cat` is twice among the nouns");
        let error = ObjectList::new(words(&["fish and chips", "dog"]), words(&["red", "blue"])).unwrap_err();
        assert!(error.message().contains("`and`"), "{error}");
    }

    #[test]
    fn files_are_lines_or_toml() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            ObjectList::read(&path)
        };
        let lines = file("objects.txt", "# mine\nanvil\n\ncandle holder # brass\n").unwrap();
        assert_eq!(lines.nouns, ["anvil", "candle holder"]);
        assert_eq!(lines.colors.len(), 10);
        let toml =
            file("objects.toml", "nouns = [\"anvil\", \"bell\"]\ncolors = [\"teal\", \"gold\"]").unwrap();
        assert_eq!(toml.colors, ["teal", "gold"]);
        let error = file("wrong.toml", "noun = []").unwrap_err();
        assert!(error.to_string().contains("did you mean `nouns`?"), "{error}");
    }
}
