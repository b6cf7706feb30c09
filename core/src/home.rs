//! `~` at the beginning of a path: the user's home folder. Shells replace it where it stands alone before a blank; a
//! configuration file, `--model=~/…` and quotes are left to us.

use std::borrow::Cow;

/// A leading `~/`, or `~` alone, as the home folder. `~user` stays as it is, as does everything where there is no home.
pub fn expand(text: &str) -> Cow<'_, str> {
    let rest = text.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
    match (rest, home.as_ref().and_then(|home| home.to_str())) {
        (Some(rest), Some(home)) => format!("{}{rest}", home.trim_end_matches('/')).into(),
        _ => text.into(),
    }
}

/// The same for every text of a configuration: one that begins with `~/` is a path.
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
    fn a_tilde_is_the_home_folder_only_at_the_beginning_and_alone() {
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
    fn every_text_of_a_table_is_expanded_at_any_depth() {
        let mut table: toml::Table = "a = \"~/a\"\n[b]\nc = [{ d = \"~\" }, 3]\ne = \"~me\"".parse().unwrap();
        expand_table(&mut table);
        let home = expand("~").into_owned();
        assert_eq!(table["a"].as_str().unwrap(), format!("{home}/a"));
        assert_eq!(table["b"]["c"][0]["d"].as_str().unwrap(), home);
        assert_eq!(table["b"]["e"].as_str().unwrap(), "~me");
    }
}
