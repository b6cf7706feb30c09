//! The syntax of plugin specs: a plugin and optionally one of its entries.

use std::path::Path;

use super::search;

/// Splits `PATH#ENTRY` or `NAME/ENTRY`. The path of an existing file is never split at `/`.
pub(super) fn split(value: &str) -> (&str, Option<&str>) {
    if let Some((path, entry)) = value.rsplit_once('#') {
        return (path, Some(entry));
    }
    match value.split_once('/') {
        Some((name, entry))
            if !name.is_empty()
                && !name.starts_with('.')
                && !entry.contains('/')
                && !search::is_library(value)
                && !Path::new(value).exists() =>
        {
            (name, Some(entry))
        }
        _ => (value, None),
    }
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn split_separates_plugin_and_entry() {
        assert_eq!(split("showo"), ("showo", None));
        assert_eq!(split("showo/small"), ("showo", Some("small")));
        assert_eq!(split("./libx.so"), ("./libx.so", None));
        assert_eq!(split("a/libx.so"), ("a/libx.so", None));
        assert_eq!(split("a/libx.so#rule"), ("a/libx.so", Some("rule")));
    }
}
