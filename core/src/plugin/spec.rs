//! How a plugin and one of its entries are named.

use std::path::Path;

use super::search;

/// `PATH#ENTRY` or `NAME/ENTRY`; a value that is the path of a file is that file.
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
    fn a_value_names_a_plugin_and_perhaps_an_entry() {
        assert_eq!(split("showo"), ("showo", None));
        assert_eq!(split("showo/small"), ("showo", Some("small")));
        assert_eq!(split("./libx.so"), ("./libx.so", None));
        assert_eq!(split("a/libx.so"), ("a/libx.so", None));
        assert_eq!(split("a/libx.so#rule"), ("a/libx.so", Some("rule")));
    }
}
