//! Translates serde's messages into the terms of the file's format, with the full path of the field.

use crate::error::{Error, nearest};

/// The format of a file; it determines the names of its types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Toml,
    Json,
}

/// Joins the paths `outer` and `inner` (`a.b`, `[2].c`, or empty for the value itself).
pub(crate) fn join(outer: &str, inner: &str) -> String {
    match (outer, inner) {
        (outer, "") => outer.into(),
        ("", inner) => inner.into(),
        (outer, inner) if inner.starts_with('[') => format!("{outer}{inner}"),
        (outer, inner) => format!("{outer}.{inner}"),
    }
}

/// Returns the path at which serde failed; empty for the value itself.
pub(crate) fn path<E>(error: &serde_path_to_error::Error<E>) -> String {
    let path = error.path().to_string();
    let known = path.trim_end_matches(['?', '.']); // `?` is a key that could not be read
    known.into()
}

/// Returns a usage error about the value at `path`.
pub(crate) fn wrong(path: &str, why: &str) -> Error {
    Error::usage(if path.is_empty() { why.into() } else { format!("`{path}`: {why}") })
}

/// Turns serde's message about the value at `path` into a usage error.
pub(crate) fn explain(format: Format, path: &str, message: &str) -> Error {
    let mut quoted = message.split('`').skip(1).step_by(2);
    let first = quoted.next().unwrap_or_default();
    let below = join(path, first);
    if message.starts_with("missing field") {
        return wrong(&below, "missing");
    }
    if message.starts_with("duplicate field") {
        return wrong(&below, "given twice").hint("keep one of them");
    }
    let known: Vec<&str> = quoted.collect();
    if message.starts_with("unknown field") {
        let error = Error::usage(format!("unknown key `{below}`"));
        let error = match nearest(first, known.iter().copied()) {
            Some(near) => error.hint(format!("did you mean `{}`?", join(path, near))),
            None => error,
        };
        return error.hint(format!("known: {}", known.join(", ")));
    }
    if message.starts_with("unknown variant") {
        let expected = match &known[..] {
            [only] => format!("`{only}`"),
            several => format!("one of `{}`", several.join("`, `")),
        };
        let error = wrong(path, &format!("expected {expected}, got `{first}`"));
        return match nearest(first, known.iter().copied()) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error,
        };
    }
    let found = ["invalid type: ", "invalid value: ", "invalid length "];
    let found = found.iter().find_map(|start| message.strip_prefix(start));
    match found.and_then(|rest| rest.rsplit_once(", expected ")) {
        Some((got, expected)) => {
            wrong(path, &format!("expected {}, got {}", format.expected(expected), format.got(got)))
        }
        None => wrong(path, message.trim_end()),
    }
}

impl Format {
    fn list(self) -> &'static str {
        match self {
            Self::Toml => "a list",
            Self::Json => "an array",
        }
    }

    fn table(self) -> &'static str {
        match self {
            Self::Toml => "a table",
            Self::Json => "an object",
        }
    }

    /// Translates serde's name of the expected type.
    fn expected(self, what: &str) -> String {
        let first = what.split(' ').next().unwrap_or_default();
        let count = || what.rsplit(' ').find(|word| word.bytes().all(|byte| byte.is_ascii_digit()));
        match first {
            "f32" | "f64" => "a number".into(),
            "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".into(),
            "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number of at least 0".into(),
            "struct" | "map" => self.table().into(),
            "tuple" => match count() {
                Some(count) => format!("{} of {count} values", self.list()),
                None => self.list().into(),
            },
            _ => match what {
                "a boolean" => "`true` or `false`".into(),
                "a sequence" | "sequence" => self.list().into(),
                "a map" => self.table().into(),
                "string or map" | "string only" | "a borrowed string" => "a string".into(),
                what if what.starts_with("a tuple of size") || what.starts_with("an array of length") => {
                    format!("{} of {} values", self.list(), count().unwrap_or("a different number of"))
                }
                what => what.into(),
            },
        }
    }

    /// Translates serde's name of the value that was found.
    fn got(self, what: &str) -> String {
        let literal = ["integer `", "floating point `", "boolean `", "character `"];
        if let Some(value) = literal.iter().find_map(|start| what.strip_prefix(start)) {
            return format!("`{}`", value.trim_end_matches('`'));
        }
        match what {
            "sequence" => self.list().into(),
            "map" => self.table().into(),
            "null" | "unit value" => "`null`".into(),
            "unit variant" => "a value of another type".into(),
            what if what.starts_with("string ") => format!("the {what}"),
            what => what.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde::de::DeserializeOwned;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[expect(dead_code, reason = "only its type counts")]
        number: f64,
    }

    #[derive(Debug, Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Kind {
        Soft,
        Hard,
    }

    fn explained<T: DeserializeOwned + std::fmt::Debug>(json: &str) -> String {
        let message = serde_json::from_str::<T>(json).unwrap_err().to_string();
        let message = message.split(" at line").next().unwrap_or_default().to_string();
        explain(Format::Json, "a.b", &message).to_string()
    }

    #[test]
    fn messages_name_types_of_the_format_not_of_rust() {
        assert_eq!(explained::<f64>("\"x\""), "`a.b`: expected a number, got the string \"x\"");
        assert_eq!(explained::<f64>("[1]"), "`a.b`: expected a number, got an array");
        assert_eq!(explained::<u32>("-1"), "`a.b`: expected a whole number of at least 0, got `-1`");
        assert_eq!(explained::<i64>("1.5"), "`a.b`: expected a whole number, got `1.5`");
        assert_eq!(explained::<bool>("1"), "`a.b`: expected `true` or `false`, got `1`");
        assert_eq!(explained::<String>("null"), "`a.b`: expected a string, got `null`");
        assert_eq!(explained::<Vec<i64>>("{}"), "`a.b`: expected an array, got an object");
        assert_eq!(explained::<BTreeMap<String, i64>>("true"), "`a.b`: expected an object, got `true`");
        assert_eq!(explained::<(String, usize)>("[\"x\"]"), "`a.b`: expected an array of 2 values, got 1");
        assert_eq!(explained::<[f64; 3]>("7"), "`a.b`: expected an array of 3 values, got `7`");
        assert_eq!(explained::<Outer>("7"), "`a.b`: expected an object, got `7`");
        assert_eq!(explained::<Outer>("{}"), "`a.b.number`: missing");
        assert_eq!(
            explained::<Outer>("{\"number\": 1, \"number\": 2}").lines().next(),
            Some("`a.b.number`: given twice")
        );
        assert!(explained::<Outer>("{\"nmber\": 1}").contains("did you mean `a.b.number`?"));
        assert!(
            explained::<Kind>("\"sfot\"").starts_with("`a.b`: expected one of `soft`, `hard`, got `sfot`")
        );
        assert!(explained::<Kind>("\"sfot\"").contains("did you mean `soft`?"));
        let number = toml::Value::Integer(3).try_into::<Kind>().unwrap_err();
        let number = explain(Format::Toml, "a.b", number.message());
        assert_eq!(number.to_string(), "`a.b`: expected a string, got a value of another type");
    }
}
