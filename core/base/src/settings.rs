//! Reads a user's settings from TOML by the JSON Schema of their type. Unknown keys, values out of range and values of a wrong
//! type are errors that name the full path.
//!
//! Ranges and former names are stated only in the schema (`#[schemars(range(min = 0.0))]`), which `unirl schema` prints.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Number, Value};

use crate::error::{Error, Result};
use crate::explain::{Format, explain, join, path, wrong};
use crate::schema::{Checker, FORMER, branches, check, schema};

/// Reads settings from TOML. `place` is the path of the table, empty for a whole file.
pub fn read<T: DeserializeOwned + JsonSchema>(place: &str, mut table: toml::Table) -> Result<T> {
    let schema = schema::<T>();
    rename_former(&schema, &mut table)?;
    let table = toml::Value::Table(table);
    check(&schema, &finite(&table, place)?, place)?;
    serde_path_to_error::deserialize(table)
        .map_err(|error| explain(Format::Toml, &join(place, &path(&error)), error.inner().message()))
}

/// Replaces former names of settings by their current ones. A property of `schema` lists its former names under [`FORMER`].
///
/// Errors if `table` has a setting under two names.
pub fn rename_former(schema: &Value, table: &mut toml::Table) -> Result<()> {
    Checker { root: schema, place: "" }.rename(schema, table, "")
}

/// Adds to `table` every default of `schema` that it leaves out, at every depth. An option without a default stays absent.
pub fn fill_defaults(schema: &Value, table: &mut toml::Table) {
    Checker { root: schema, place: "" }.fill(schema, table);
}

/// A JSON value as TOML, without its nulls, which TOML cannot express.
fn to_toml(value: &Value) -> Option<toml::Value> {
    Some(match value {
        Value::Null => return None,
        Value::Array(list) => toml::Value::Array(list.iter().filter_map(to_toml).collect()),
        Value::Object(table) => {
            let entries = table.iter().filter_map(|(key, value)| Some((key.clone(), to_toml(value)?)));
            toml::Value::Table(entries.collect())
        }
        scalar => toml::Value::try_from(scalar).ok()?,
    })
}

/// Converts settings to JSON. NaN and infinity, which JSON lacks, are errors.
fn finite(value: &toml::Value, path: &str) -> Result<Value> {
    Ok(match value {
        toml::Value::Float(number) => Value::Number(
            Number::from_f64(*number)
                .ok_or_else(|| wrong(path, &format!("expected a finite number, got `{number}`")))?,
        ),
        toml::Value::Integer(number) => (*number).into(),
        toml::Value::Boolean(flag) => (*flag).into(),
        toml::Value::String(text) => text.as_str().into(),
        toml::Value::Datetime(date) => date.to_string().into(),
        toml::Value::Array(list) => {
            let entries = list.iter().enumerate();
            entries
                .map(|(index, entry)| finite(entry, &join(path, &format!("[{index}]"))))
                .collect::<Result<_>>()?
        }
        toml::Value::Table(table) => {
            let entries = table.iter();
            let entries = entries.map(|(key, entry)| Ok((key.clone(), finite(entry, &join(path, key))?)));
            Value::Object(entries.collect::<Result<_>>()?)
        }
    })
}

impl<'s> Checker<'s> {
    /// See [`rename_former`].
    fn rename(&self, schema: &'s Value, table: &mut toml::Table, path: &str) -> Result<()> {
        let schema = self.resolve(schema);
        for branch in branches(schema).into_iter().flatten() {
            self.rename(branch, table, path)?;
        }
        for (key, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            for former in inner.get(FORMER).and_then(Value::as_array).into_iter().flatten() {
                let Some((former, value)) = former.as_str().and_then(|name| table.remove_entry(name)) else {
                    continue;
                };
                if table.insert(key.clone(), value).is_some() {
                    let (new, old) = (join(path, key), join(path, &former));
                    return Err(Error::usage(format!("`{new}` is set twice: `{old}` is its former name"))
                        .hint(format!("keep `{new}`")));
                }
            }
            if let Some(toml::Value::Table(given)) = table.get_mut(key) {
                self.rename(inner, given, &join(path, key))?;
            }
        }
        Ok(())
    }

    /// See [`fill_defaults`].
    fn fill(&self, schema: &'s Value, table: &mut toml::Table) {
        let schema = self.resolve(schema);
        if let Some(branches) = branches(schema) {
            // An optional table: `{ "anyOf": [TABLE, null] }`.
            let mut tables =
                branches.iter().map(|branch| self.resolve(branch)).filter(|branch| is_table(branch));
            if let (Some(only), None) = (tables.next(), tables.next()) {
                self.fill(only, table);
            }
            return;
        }
        for (key, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            if !table.contains_key(key)
                && let Some(default) = inner.get("default").and_then(to_toml)
            {
                table.insert(key.clone(), default);
            }
            if let Some(toml::Value::Table(given)) = table.get_mut(key) {
                self.fill(inner, given);
            }
        }
    }
}

fn is_table(schema: &Value) -> bool {
    schema.get("type").is_some_and(|kind| kind == "object")
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;

    #[derive(Debug, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Outer {
        #[schemars(range(min = 0.0), extend("exclusiveMaximum" = 1.0))]
        decay: f64,
        #[schemars(extend("exclusiveMinimum" = 0.0))]
        rate: Option<f64>,
        #[schemars(range(min = 1))]
        steps: u64,
        inner: Option<Inner>,
        #[schemars(length(min = 1))]
        list: Vec<Inner>,
        weights: std::collections::BTreeMap<String, f64>,
    }

    impl Default for Outer {
        fn default() -> Self {
            Self {
                decay: 0.5,
                rate: None,
                steps: 1,
                inner: None,
                list: Vec::new(),
                weights: std::collections::BTreeMap::default(),
            }
        }
    }

    #[derive(Debug, Default, Deserialize, Serialize, JsonSchema)]
    #[serde(default)]
    struct Inner {
        #[schemars(range(min = 1, max = 9))]
        size: i64,
        temperature: f64,
    }

    #[test]
    fn fill_defaults_reaches_optional_tables_and_keeps_given_values() {
        #[derive(JsonSchema)]
        #[serde(default)]
        struct Options {
            precision: String,
            folder: Option<String>,
            lora: Option<Inner>,
            inner: Inner,
        }
        impl Default for Options {
            fn default() -> Self {
                let inner = Inner { size: 7, temperature: 0.5 };
                Self { precision: "auto".into(), folder: None, lora: None, inner }
            }
        }
        let fill = |text: &str| {
            let mut table: toml::Table = text.parse().unwrap();
            fill_defaults(&schema::<Options>(), &mut table);
            table
        };
        let expected = |text: &str| text.parse::<toml::Table>().unwrap();
        assert_eq!(fill(""), expected("precision = 'auto'\ninner = { size = 7, temperature = 0.5 }"));
        assert_eq!(
            fill("lora = { size = 3 }\ninner = { size = 2 }"),
            // A table that is given takes what it leaves out from its own type, as serde does.
            expected(
                "precision = 'auto'\nlora = { size = 3, temperature = 0.0 }\ninner = { size = 2, temperature = 0.0 }"
            )
        );
    }

    #[test]
    fn former_names_are_replaced_and_conflict_with_the_current_one() {
        #[derive(Debug, PartialEq, Default, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        struct Update {
            #[schemars(extend("x-former-names" = ["clip"]))]
            max_grad_norm: f64,
        }
        #[derive(Debug, PartialEq, Default, Deserialize, JsonSchema)]
        #[serde(default, deny_unknown_fields)]
        struct Config {
            update: Update,
        }
        let read = |text: &str| read::<Config>("", text.parse().unwrap());
        assert_eq!(read("update.clip = 2.0").unwrap(), Config { update: Update { max_grad_norm: 2.0 } });
        let error = read("update = { clip = 2.0, max_grad_norm = 1.0 }").unwrap_err();
        assert_eq!(error.message(), "`update.max_grad_norm` is set twice: `update.clip` is its former name");
        assert_eq!(error.hints(), ["keep `update.max_grad_norm`"]);
    }

    fn outcome(text: &str) -> String {
        read::<Outer>("", text.parse().unwrap())
            .map_or_else(|error| error.to_string(), |outer| format!("{outer:?}"))
    }

    #[test]
    fn ranges_hold_at_every_depth() {
        for (text, expected) in [
            ("decay = 1", "`decay`: expected a number of at least 0 and below 1, got 1"),
            ("decay = -0.5", "`decay`: expected a number of at least 0 and below 1, got -0.5"),
            ("decay = nan", "`decay`: expected a finite number, got `NaN`"),
            ("rate = inf", "`rate`: expected a finite number, got `inf`"),
            ("rate = 0.0", "`rate`: expected a number above 0, got 0.0"),
            ("steps = 0", "`steps`: expected a whole number of at least 1, got 0"),
            (
                "inner = { size = 10 }",
                "`inner.size`: expected a whole number of at least 1 and at most 9, got 10",
            ),
            (
                "list = [{}, { size = 0 }]",
                "`list[1].size`: expected a whole number of at least 1 and at most 9, got 0",
            ),
            ("list = []", "`list`: expected a list of at least 1, got 0"),
        ] {
            assert_eq!(outcome(text), expected, "{text}");
        }
        assert!(
            outcome("decay = 0\nrate = 1\nlist = [{ size = 9 }]\nweights = { a = 1.5 }").starts_with("Outer")
        );
    }

    #[test]
    fn wrong_types_name_their_path() {
        for (text, expected) in [
            ("steps = \"many\"", "`steps`: expected a whole number of at least 0, got the string \"many\""),
            ("inner = 3", "`inner`: expected a table, got `3`"),
            ("list = [{ size = \"x\" }]", "`list[0].size`: expected a whole number, got the string \"x\""),
            ("weights = { a = [] }", "`weights.a`: expected a number, got a list"),
        ] {
            assert_eq!(outcome(text), expected, "{text}");
        }
    }

    #[test]
    fn unknown_keys_name_the_nearest_full_key() {
        let near = |text: &str| outcome(text).lines().map(String::from).collect::<Vec<_>>();
        assert_eq!(near("decya = 1")[0], "unknown key `decya`");
        assert_eq!(near("decya = 1")[2], "hint: did you mean `decay`?");
        // Not denied by the type itself.
        assert_eq!(near("inner = { sise = 1 }")[2], "hint: did you mean `inner.size`?");
        assert_eq!(near("temperature = 1")[2], "hint: did you mean `inner.temperature`?");
        let moved = near("innr = { size = 1 }");
        assert_eq!([&*moved[0], &*moved[2]], ["unknown key `innr.size`", "hint: did you mean `inner.size`?"]);
        assert_eq!(near("list = [{ sizee = 1 }]")[2], "hint: did you mean `list[0].size`?");
        assert_eq!(near("zzz = 1")[2], "hint: known: decay, rate, steps, inner, list, weights");
    }
}
