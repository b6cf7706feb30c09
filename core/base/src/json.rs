//! Parses JSON that the user provides: errors name line, column and field, and what to write instead.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Context as _, Error, Result};
use crate::explain::{Format, explain, path, wrong};
use crate::input;

/// Literals of Python and JavaScript that JSON does not have, and their replacements.
const FOREIGN: [(&str, &str); 9] = [
    ("NaN", "a number or `null`"),
    ("nan", "a number or `null`"),
    ("Infinity", "a number or `null`"),
    ("-Infinity", "a number or `null`"),
    ("inf", "a number or `null`"),
    ("None", "`null`"),
    ("undefined", "`null`"),
    ("True", "`true`"),
    ("False", "`false`"),
];

/// Reads a file that holds one JSON value.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let place = || format!("cannot read `{}`", path.display());
    let read = input::read_text(path).and_then(|text| parse(&text).context(place));
    read.map_err(Error::into_failure)
}

/// Parses a text that holds one JSON value.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T> {
    let mut json = serde_json::Deserializer::from_str(text);
    let value = serde_path_to_error::deserialize(&mut json)
        .map_err(|error| fault(text, &path(&error), error.inner()))?;
    json.end().map_err(|error| fault(text, "", &error))?;
    Ok(value)
}

/// Converts a parsed JSON value.
pub fn from_value<T: DeserializeOwned>(value: &serde_json::Value) -> Result<T> {
    serde_path_to_error::deserialize(value)
        .map_err(|error| explain(Format::Json, &path(&error), &error.inner().to_string()))
}

/// Parses one line of a JSONL file, which holds one JSON object.
pub fn parse_line<T: DeserializeOwned>(line: &str) -> Result<T> {
    let hint = |filter: &str| format!("`jq -c '{filter}' FILE.json > FILE.jsonl` writes one per line");
    let line = line.trim_end();
    let start = line.trim_start();
    if start.starts_with('[') {
        return Err(Error::usage("expected one JSON object per line, got an array").hint(hint(".[]")));
    }
    if !start.starts_with('{') {
        let shown: String = start.chars().take(40).collect();
        return Err(Error::usage(format!("expected one JSON object per line, got `{shown}`")));
    }
    if !line.ends_with('}') {
        let cut = serde_json::from_str::<serde::de::IgnoredAny>(line).is_err_and(|error| error.is_eof());
        if cut {
            return Err(Error::usage(
                "expected one JSON object per line, but the object does not end on its line",
            )
            .hint(hint(".")));
        }
    }
    parse(line)
}

/// Returns the non-blank lines of a text with their numbers, from 1.
pub fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .filter(|(_, line)| !line.trim().is_empty())
}

fn fault(text: &str, path: &str, error: &serde_json::Error) -> Error {
    let whole = error.to_string();
    let message = whole.rsplit_once(" at line ").map_or(whole.as_str(), |(message, _)| message);
    let line = text.lines().nth(error.line().saturating_sub(1)).unwrap_or_default();
    let explained = if error.is_data() {
        match alias_of_duplicate(line, error.column(), message) {
            Some((name, field)) => wrong(name, &format!("alias of `{field}`, which is also given"))
                .hint(format!("keep one of `{name}` and `{field}`")),
            None => explain(Format::Json, path, message),
        }
    } else {
        syntax(line, error.column(), path, message)
    };
    let column = format!("column {}", error.column().max(1));
    let place =
        if text.trim_end().contains('\n') { format!("line {}, {column}", error.line()) } else { column };
    let located = Error::usage(format!("{place}: {}", explained.message()));
    explained.hints().iter().fold(located, Error::hint)
}

/// If a field is given a second time under an alias: the alias and the field.
fn alias_of_duplicate<'t>(line: &'t str, column: usize, message: &'t str) -> Option<(&'t str, &'t str)> {
    let field = message.strip_prefix("duplicate field `")?.trim_end_matches('`');
    let before = line.get(..column.min(line.len()))?.trim_end_matches(['"', ':', ' ']);
    let name = before.rsplit('"').next()?;
    (name != field && !name.is_empty()).then_some((name, field))
}

fn syntax(line: &str, column: usize, path: &str, message: &str) -> Error {
    let at = column.saturating_sub(1).min(line.len());
    let is_word = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'-';
    let bytes = line.as_bytes();
    let start = at - bytes[..at].iter().rev().take_while(|byte| is_word(byte)).count();
    let end = at + bytes[at..].iter().take_while(|byte| is_word(byte)).count();
    let word = line.get(start..end).unwrap_or_default();
    if let Some((_, instead)) = FOREIGN.iter().find(|(foreign, _)| *foreign == word) {
        return wrong(path, &format!("`{word}` is not JSON")).hint(format!("write {instead} instead"));
    }
    let error = wrong(path, &format!("not JSON: {message}"));
    if bytes.get(at) == Some(&b'\'') {
        return error.hint("write keys and strings in double quotes");
    }
    error
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code, reason = "only its form counts")]
    struct Line {
        #[serde(alias = "tag")]
        category: String,
        count: Option<u32>,
    }

    fn outcome(text: &str) -> String {
        parse_line::<Line>(text).map_or_else(|error| error.to_string(), |line| format!("{line:?}"))
    }

    #[test]
    fn errors_name_column_field_and_replacement() {
        for (line, expected) in [
            (
                r#"{"category": "a", "count": "3"}"#,
                "column 30: `count`: expected a whole number of at least 0, got the string \"3\"",
            ),
            (
                r#"{"category": "a", "logp": NaN}"#,
                "column 27: `logp`: `NaN` is not JSON\n\nhint: write a number or `null` instead",
            ),
            (r#"{"category": "a", "x": [1, -Infinity]}"#, "`-Infinity` is not JSON"),
            (r#"{"category": "a", "count": None}"#, "`None` is not JSON\n\nhint: write `null` instead"),
            (r#"{"category": "a", "x": False}"#, "`False` is not JSON\n\nhint: write `false` instead"),
            (
                r#"{"category": "a", "tag": "a"}"#,
                "`tag`: alias of `category`, which is also given\n\nhint: keep one of `tag` and `category`",
            ),
            (r#"{"category": "a", "category": "a"}"#, "`category`: given twice"),
            (
                "{'category': 'a'}",
                "column 2: not JSON: key must be a string\n\nhint: write keys and strings in double quotes",
            ),
            (r#"{"count": 3}"#, "column 12: `category`: missing"),
            (r#"{"category": "a"} x"#, "column 19: not JSON: trailing characters"),
            ("[{", "expected one JSON object per line, got an array"),
            ("a photo of a dog", "expected one JSON object per line, got `a photo of a dog`"),
            ("{", "expected one JSON object per line, but the object does not end on its line"),
            (r#"  {"category": "#, "the object does not end on its line"),
        ] {
            assert!(outcome(line).contains(expected), "{line}: {}", outcome(line));
        }
    }

    #[test]
    fn errors_in_multi_line_json_name_the_line() {
        let error = parse::<Line>("{\n  \"category\": \"a\",\n  \"count\": 1.5\n}").unwrap_err();
        assert_eq!(
            error.message(),
            "line 3, column 14: `count`: expected a whole number of at least 0, got `1.5`"
        );
    }
}
