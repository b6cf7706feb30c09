//! Layers of settings as TOML tables: reading, merging and comparing them.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::{input, settings};

/// Reads a TOML file.
pub fn read(path: &Path) -> Result<toml::Table> {
    input::read_text(path)?.parse::<toml::Table>().map_err(|error| {
        Error::usage(format!("`{}` is not valid TOML", path.display())).cause(error.to_string().trim_end())
    })
}

/// Merges `top` into `base`, table by table; values of `top` win.
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

/// Applies one `--set path.to.key=value`. A value that is not TOML is taken as a string; former names that `schema` lists are
/// replaced by the current ones.
pub fn set(table: &mut toml::Table, assignment: &str, schema: &Value) -> Result<()> {
    let (path, value) = assignment
        .split_once('=')
        .filter(|(path, _)| !path.trim().is_empty())
        .ok_or_else(|| Error::usage(format!("`--set {assignment}`: expected `key=value`")))?;
    let value = format!("v = {value}")
        .parse::<toml::Table>()
        .ok()
        .and_then(|mut parsed| parsed.remove("v"))
        .unwrap_or_else(|| toml::Value::String(value.into()));
    let mut one = toml::Table::new();
    let not_a_section = |key: &str| Error::usage(format!("`--set {assignment}`: `{key}` is not a section"));
    put(&mut one, path.trim(), value).map_err(not_a_section)?;
    settings::rename_former(schema, &mut one)?;

    // Renaming keeps the depth: follow the only key of each level.
    let (mut path, mut value) = (Vec::new(), toml::Value::Table(one));
    for _ in assignment.split('=').next().unwrap_or_default().split('.') {
        if let toml::Value::Table(level) = value {
            let (key, inner) = level.into_iter().next().ok_or_else(|| not_a_section(""))?;
            path.push(key);
            value = inner;
        } else {
            break;
        }
    }
    put(table, &path.join("."), value).map_err(not_a_section)
}

/// Sets the value at a dotted path and creates the tables on it. The error is the key of the path that is not a table.
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

/// The differences between two tables, `path: before -> after`, sorted by path.
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

/// Every value that is not a table, by dotted path.
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
    use schemars::JsonSchema;

    use super::*;
    use crate::schema::schema;

    #[test]
    fn differences_name_the_paths() {
        let before = "a = 1\n[b]\nc = 2.0\nd = \"x\"\n[b.e]\nf = true".parse().unwrap();
        let after = "a = 1\n[b]\nc = 3.0\ng = [1, 2]\nd = \"x\"".parse().unwrap();
        let expected = ["b.c: 2.0 -> 3.0", "b.e.f: true -> nothing", "b.g: nothing -> [1, 2]"];
        assert_eq!(differences(&before, &after), expected);
        assert!(differences(&before, &before).is_empty());
    }

    #[test]
    fn set_reaches_nested_keys_under_former_names_and_merge_overrides() {
        #[derive(JsonSchema)]
        struct Config {
            #[expect(dead_code, reason = "only the schema counts")]
            rollout: Rollout,
        }
        #[derive(JsonSchema)]
        struct Rollout {
            #[schemars(extend("x-former-names" = ["group"]))]
            #[expect(dead_code, reason = "only the schema counts")]
            group_size: u64,
        }
        let schema = schema::<Config>();
        let mut table: toml::Table =
            "[update]\nlearning_rate = 0.1\n[rollout]\ngroup_size = 2".parse().unwrap();
        set(&mut table, "update.learning_rate=0.5", &schema).unwrap();
        set(&mut table, "rollout.group = 3", &schema).unwrap();
        let mut top = toml::Table::new();
        set(&mut top, "optimizer.name=sft", &schema).unwrap();
        merge(&mut table, top);
        let expected: toml::Table =
            "[update]\nlearning_rate = 0.5\n[rollout]\ngroup_size = 3\n[optimizer]\nname = \"sft\""
                .parse()
                .unwrap();
        assert_eq!(table, expected);
    }
}
