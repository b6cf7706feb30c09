//! TOML tables of settings: reading them, laying one over another, and telling their differences.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::input;

/// Reads a TOML file.
pub fn read(path: &Path) -> Result<toml::Table> {
    input::read_text(path)?.parse::<toml::Table>().map_err(|error| {
        Error::usage(format!("`{}` is not valid TOML", path.display())).cause(error.to_string().trim_end())
    })
}

/// Lays `top` over `base`, table by table.
pub fn merge(base: &mut toml::Table, top: toml::Table) {
    for (key, value) in top {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(below)), toml::Value::Table(above)) => merge(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Applies one `--set path.to.key=value`; a value that is not TOML is taken as a string.
pub fn set(table: &mut toml::Table, assignment: &str) -> Result<()> {
    let (path, value) = assignment
        .split_once('=')
        .filter(|(path, _)| !path.trim().is_empty())
        .ok_or_else(|| Error::usage(format!("`--set {assignment}`: expected `key=value`")))?;
    let value = format!("v = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("v"))
        .unwrap_or_else(|| toml::Value::String(value.into()));
    put(table, path.trim(), value)
        .map_err(|key| Error::usage(format!("`--set {assignment}`: `{key}` is not a section")))
}

/// Sets the value at a dotted path, making the tables on the way; the error is the key that holds something else.
pub fn put<'p>(table: &mut toml::Table, path: &'p str, value: toml::Value) -> Result<(), &'p str> {
    let mut keys: Vec<&str> = path.split('.').collect();
    let last = keys.pop().unwrap_or_default();
    let mut place = table;
    for key in keys {
        let inner = place.entry(key).or_insert_with(|| toml::Value::Table(toml::Table::new()));
        place = inner.as_table_mut().ok_or(key)?;
    }
    place.insert(last.into(), value);
    Ok(())
}

/// Where two tables differ: `path: before -> after` for each setting, in order.
pub fn differences(before: &toml::Table, after: &toml::Table) -> Vec<String> {
    let (before, after) = (flat(before), flat(after));
    let mut paths: Vec<&String> = before.keys().chain(after.keys()).collect();
    paths.sort();
    paths.dedup();
    let shown = |value: Option<&toml::Value>| value.map_or_else(|| "nothing".into(), toml::Value::to_string);
    paths
        .into_iter()
        .map(|path| (path, before.get(path), after.get(path)))
        .filter(|(_, before, after)| before != after)
        .map(|(path, before, after)| format!("{path}: {} -> {}", shown(before), shown(after)))
        .collect()
}

/// Every value that is not a table, by its dotted path.
pub fn flat(table: &toml::Table) -> BTreeMap<String, toml::Value> {
    let mut values = BTreeMap::new();
    for (key, value) in table {
        match value {
            toml::Value::Table(inner) => {
                values.extend(flat(inner).into_iter().map(|(path, value)| (format!("{key}.{path}"), value)));
            }
            value => {
                values.insert(key.clone(), value.clone());
            }
        }
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named_by_their_paths() {
        let before = "a = 1\n[b]\nc = 2.0\nd = \"x\"\n[b.e]\nf = true".parse().unwrap();
        let after = "a = 1\n[b]\nc = 3.0\ng = [1, 2]\nd = \"x\"".parse().unwrap();
        let expected = ["b.c: 2.0 -> 3.0", "b.e.f: true -> nothing", "b.g: nothing -> [1, 2]"];
        assert_eq!(differences(&before, &after), expected);
        assert!(differences(&before, &before).is_empty());
    }

    #[test]
    fn set_reaches_nested_keys_and_merge_lays_over() {
        let mut table: toml::Table = "[update]\nlearning_rate = 0.1\nclip = 2.0".parse().unwrap();
        set(&mut table, "update.learning_rate=0.5").unwrap();
        let mut top = toml::Table::new();
        set(&mut top, "optimizer.name=sft").unwrap();
        merge(&mut table, top);
        let expected: toml::Table =
            "[update]\nlearning_rate = 0.5\nclip = 2.0\n[optimizer]\nname = \"sft\"".parse().unwrap();
        assert_eq!(table, expected);
    }
}
