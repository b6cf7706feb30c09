//! Object lists: the nouns and colours of prompts.

use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unirl::error::{Error, Result};
use unirl_base::{input, layers, settings};

use super::lexicon::{COLORS, EVERYDAY, joint};

/// The nouns and colours of prompts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ObjectList {
    /// Nouns in the singular.
    pub nouns: Vec<String>,
    /// Colours; the ten of `GenEval` by default.
    #[serde(default = "colors")]
    pub colors: Vec<String>,
}

fn colors() -> Vec<String> {
    COLORS.map(String::from).to_vec()
}

impl ObjectList {
    /// Creates a list. Errors if there are fewer than two nouns or colours, duplicates, or words that a prompt cannot contain.
    pub fn new(nouns: Vec<String>, colors: Vec<String>) -> Result<Self> {
        let list = Self { nouns, colors };
        list.check()?;
        Ok(list)
    }

    /// Returns the 160 everyday objects and the ten colours of `GenEval`.
    pub fn everyday() -> Self {
        Self { nouns: EVERYDAY.map(|(noun, _)| noun.into()).to_vec(), colors: colors() }
    }

    /// Reads a list: TOML with `nouns` and optionally `colors` if the name ends in `.toml`, else one noun per line with `#`
    /// comments.
    pub fn read(path: &Path) -> Result<Self> {
        let place = || format!("object list `{}`", path.display());
        if path.extension().is_some_and(|end| end == "toml") {
            let list: Self =
                settings::read("", layers::read(path)?).map_err(|error| error.context(place()))?;
            return Self::new(list.nouns, list.colors).map_err(|error| error.context(place()));
        }
        let mut nouns = Vec::new();
        for (index, line) in input::read_text(path)?.lines().enumerate() {
            let noun = noun_of(line);
            if noun.is_empty() {
                continue;
            }
            check_word(&noun).map_err(|error| {
                error.context(format!("line {}", index + 1)).context(place()).hint("write one noun per line")
            })?;
            nouns.push(noun);
        }
        Self::new(nouns, colors()).map_err(|error| error.context(place()))
    }

    pub(super) fn check(&self) -> Result<()> {
        for (what, words) in [("nouns", &self.nouns), ("colors", &self.colors)] {
            if words.len() < 2 {
                return Err(Error::usage(format!("expected at least 2 {what}, got {}", words.len())));
            }
            let mut seen = std::collections::HashSet::new();
            for (index, word) in words.iter().enumerate() {
                check_word(word).map_err(|error| error.context(format!("`{what}[{index}]`")))?;
                if !seen.insert(word) {
                    return Err(Error::usage(format!("duplicate `{word}` in the {what}")));
                }
            }
        }
        Ok(())
    }
}

/// Returns the noun of a line without a comment, bullet, list number, quotes and trailing comma.
fn noun_of(line: &str) -> String {
    let line = line.split('#').next().unwrap_or_default().trim();
    let line = ["- ", "* ", "• "].iter().find_map(|bullet| line.strip_prefix(bullet)).unwrap_or(line);
    let digits = line.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let numbered = digits.len() < line.len();
    let line = [". ", ") ", ".\t", ")\t"]
        .iter()
        .find_map(|separator| digits.strip_prefix(separator).filter(|_| numbered))
        .unwrap_or(line);
    let line = line.trim().trim_end_matches([',', ';']).trim_end();
    let quotes = [('"', '"'), ('\'', '\''), ('`', '`'), ('“', '”'), ('‘', '’')];
    let quoted = quotes.iter().find_map(|(open, close)| line.strip_prefix(*open)?.strip_suffix(*close));
    quoted.unwrap_or(line).trim().to_string()
}

/// Words that a noun cannot contain, because they separate nouns in a prompt.
const NOT_IN_NOUNS: [&str; 38] = [
    "a", "an", "the", "and", "or", "but", "with", "without", "on", "in", "at", "by", "near", "next",
    "beside", "behind", "under", "over", "inside", "outside", "between", "from", "to", "above", "below",
    "left", "right", "is", "are", "that", "which", "who", "while", "some", "many", "several", "hundred",
    "dozen",
];

/// Errors if a word cannot be a noun or a colour in a prompt.
pub(super) fn check_word(word: &str) -> Result<()> {
    let shown = word.escape_debug();
    if word.trim().is_empty() {
        return Err(Error::usage("expected a word, got an empty string"));
    }
    let fits = |letter: &char| letter.is_alphanumeric() || matches!(letter, ' ' | '-' | '\'' | '’' | '.');
    if let Some(odd) = word.chars().find(|letter| !fits(letter)) {
        return Err(Error::usage(format!("`{shown}` contains `{}`", odd.escape_debug()))
            .hint("nouns and colors consist of letters, digits, spaces, `-`, `.` and `'`"));
    }
    if word.trim() != word || word.contains("  ") {
        return Err(Error::usage(format!("`{shown}` has leading, trailing or repeated spaces")));
    }
    if let Some(joint) = joint(word) {
        return Err(Error::usage(format!(
            "`{word}` contains `{joint}`, which separates objects in a prompt"
        )));
    }
    let lower = word.to_lowercase();
    if let Some(other) = lower.split(' ').find(|word| NOT_IN_NOUNS.contains(word)) {
        return Err(Error::usage(format!(
            "`{word}` contains `{other}`, which is not part of a noun or color"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_lists_are_refused() {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(ObjectList::new(words(&["cat"]), words(&["red", "blue"])).is_err());
        let error = ObjectList::new(words(&["cat", "dog", "cat"]), words(&["red", "blue"])).unwrap_err();
        assert_eq!(error.message(), "duplicate `cat` in the nouns");
        let error = ObjectList::new(words(&["fish and chips", "dog"]), words(&["red", "blue"])).unwrap_err();
        assert!(error.causes()[0].contains("`and`"), "{error}");
    }

    fn read(name: &str, text: &str) -> Result<ObjectList> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        ObjectList::read(&path)
    }

    #[test]
    fn list_markup_is_removed() {
        let list = read(
            "objects.txt",
            "\u{feff}anvil,\r\n2. bell\n3) \"candle holder\"\n- drum;\n* 'easel'\n  • fan  \n# none\n“gate”,\n12.\thoop\n",
        );
        let nouns = ["anvil", "bell", "candle holder", "drum", "easel", "fan", "gate", "hoop"];
        assert_eq!(list.unwrap().nouns, nouns);
        assert_eq!(
            read("objects.txt", "7-up bottle\nt-shirt\nrubik's cube").unwrap().nouns[0],
            "7-up bottle"
        );
    }

    #[test]
    fn invalid_noun_error_names_the_line() {
        for (text, words) in [
            ("bell\ncat, dog", "`cat, dog` contains `,`"),
            ("bell\ncat\tdog", "`cat\\tdog` contains `\\t`"),
            ("bell\n[\"cat\"]", "contains `[`"),
            ("bell\na cat", "`a cat` contains `a`"),
            ("bell\ncat on a mat", "`cat on a mat` contains `on`"),
            ("bell\nsalt and pepper", "`salt and pepper` contains `and`"),
            ("bell\ncat (pet)", "contains `(`"),
            ("bell\nwine  glass", "repeated spaces"),
        ] {
            let error = read("objects.txt", text).unwrap_err();
            assert_eq!(error.causes()[0], "line 2", "{error}");
            assert!(error.causes()[1].contains(words), "{error}");
        }
        let error = read("objects.toml", "nouns = [\"cat\", \"dog;\"]").unwrap_err();
        assert_eq!(error.causes()[0], "`nouns[1]`", "{error}");
    }

    #[test]
    fn lists_are_read_from_lines_or_toml() {
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
