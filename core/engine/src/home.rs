//! Expands a leading `~` of a path to the home directory. Shells do not expand it in configuration files, in `--model=~/…`
//! and within quotes.

use std::borrow::Cow;

/// Expands `~` or a leading `~/` to the home directory. `~user` is unchanged, as is every path if there is no home directory.
pub fn expand(text: &str) -> Cow<'_, str> {
    let rest = text.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
    match (rest, home.as_ref().and_then(|home| home.to_str())) {
        (Some(rest), Some(home)) => format!("{}{rest}", home.trim_end_matches('/')).into(),
        _ => text.into(),
    }
}

/// Applies [`expand`] to every string of a configuration.
pub fn expand_table(table: &mut toml::Table) {
    table.iter_mut().for_each(|(_, value)| expand_value(value));
}

fn expand_value(value: &mut toml::Value) {
    match value {
        toml::Value::String(text) => {
            if let Cow::Owned(expanded) = expand(text) {
                *text = expanded;
            }
        }
        toml::Value::Array(values) => values.iter_mut().for_each(expand_value),
        toml::Value::Table(table) => expand_table(table),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_leading_tilde_is_expanded() {
        let home = std::env::home_dir().unwrap();
        let home = home.to_str().unwrap().trim_end_matches('/');
        assert_eq!(expand("~"), home);
        assert_eq!(expand("~/"), format!("{home}/"));
        assert_eq!(expand("~/a/~/b"), format!("{home}/a/~/b"));
        for same in ["", "~user/a", "a/~", "~~", "./~/a", "a~"] {
            assert_eq!(expand(same), same);
        }
    }

    #[test]
    fn nested_strings_of_a_table_are_expanded() {
        let mut table: toml::Table = "a = \"~/a\"\n[b]\nc = [{ d = \"~\" }, 3]\ne = \"~me\"".parse().unwrap();
        expand_table(&mut table);
        let home = expand("~").into_owned();
        assert_eq!(table["a"].as_str().unwrap(), format!("{home}/a"));
        assert_eq!(table["b"]["c"][0]["d"].as_str().unwrap(), home);
        assert_eq!(table["b"]["e"].as_str().unwrap(), "~me");
    }
}
