//! Settings of a user, read by the JSON Schema of their type: unknown keys, values out of range and values of a wrong type are
//! refused with their full path.
//!
//! The schema is the one place where ranges stand (`#[schemars(range(min = 0.0))]`); `unirl schema` prints the same.

use schemars::{JsonSchema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde_json::{Map, Number, Value};

use crate::error::{Error, Result, nearest};
use crate::explain::{Format, explain, join, path, wrong};

/// The nesting of a schema that is searched for keys: a schema may refer to itself.
const DEEPEST: usize = 8;

/// Reads settings from TOML; `place` is their path in the whole, empty for the whole itself.
pub fn read<T: DeserializeOwned + JsonSchema>(place: &str, table: toml::Table) -> Result<T> {
    let table = toml::Value::Table(table);
    check(&schema::<T>(), &finite(&table, place)?, place)?;
    serde_path_to_error::deserialize(table)
        .map_err(|error| explain(Format::Toml, &join(place, &path(&error)), error.inner().message()))
}

/// Reads settings that have become JSON on their way to a plugin.
pub(crate) fn read_json<T: DeserializeOwned + JsonSchema>(place: &str, json: &Value) -> Result<T> {
    check(&schema::<T>(), json, place)?;
    serde_path_to_error::deserialize(json)
        .map_err(|error| explain(Format::Toml, &join(place, &path(&error)), &error.inner().to_string()))
}

/// The schema of a type.
pub(crate) fn schema<T: JsonSchema>() -> Value {
    SchemaGenerator::default().into_root_schema_for::<T>().to_value()
}

/// The settings as JSON, which has no NaN and no infinity.
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

/// Refuses keys that `schema` does not have, and numbers out of its ranges. Types are serde's to check.
fn check(schema: &Value, value: &Value, place: &str) -> Result<()> {
    Checker { root: schema, place }.check(schema, value, place)
}

struct Checker<'s> {
    root: &'s Value,
    place: &'s str,
}

impl<'s> Checker<'s> {
    fn resolve(&self, schema: &'s Value) -> &'s Value {
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|target| target.strip_prefix('#'));
        target.and_then(|target| self.root.pointer(target)).unwrap_or(schema)
    }

    fn check(&self, schema: &'s Value, value: &Value, path: &str) -> Result<()> {
        check_range(schema, value, path)?;
        let schema = self.resolve(schema);
        check_range(schema, value, path)?;
        if let Some(branches) = branches(schema) {
            // Of a union, the branch that is meant; where several may be, serde decides.
            let mut fitting =
                branches.iter().map(|branch| self.resolve(branch)).filter(|branch| fits(branch, value));
            return match (fitting.next(), fitting.next()) {
                (Some(only), None) => self.check(only, value, path),
                _ => Ok(()),
            };
        }
        match value {
            Value::Array(list) => match schema.get("items") {
                Some(items) => list.iter().enumerate().try_for_each(|(index, entry)| {
                    self.check(items, entry, &join(path, &format!("[{index}]")))
                }),
                None => Ok(()),
            },
            Value::Object(table) => self.check_table(schema, table, path),
            _ => Ok(()),
        }
    }

    fn check_table(&self, schema: &'s Value, table: &Map<String, Value>, path: &str) -> Result<()> {
        let nothing = Map::new();
        let known = schema.get("properties").and_then(Value::as_object);
        let others = schema.get("additionalProperties");
        let open = others.is_some_and(|others| *others != Value::Bool(false));
        if known.is_none() && !open {
            return Ok(());
        }
        for (key, value) in table {
            match (known.unwrap_or(&nothing).get(key), others) {
                (Some(schema), _) => self.check(schema, value, &join(path, key))?,
                (None, Some(others)) if open => self.check(others, value, &join(path, key))?,
                _ => return Err(self.unknown(known.unwrap_or(&nothing), path, key, table)),
            }
        }
        Ok(())
    }

    fn unknown(
        &self,
        known: &Map<String, Value>,
        path: &str,
        key: &str,
        table: &Map<String, Value>,
    ) -> Error {
        // `optimizer.gpro = { beta = 1 }` was most likely written as `optimizer.gpro.beta`.
        let mut inner = String::new();
        let mut value = &table[key];
        while let Value::Object(table) = value
            && let [(key, only)] = table.iter().collect::<Vec<_>>()[..]
        {
            inner = join(&inner, key);
            value = only;
        }
        let mut keys = Vec::new();
        self.keys(self.root, self.place, DEEPEST, &mut keys);
        let wrong = join(&join(path, key), &inner);
        let sibling = nearest(key, known.keys().map(String::as_str)).map(|near| {
            let whole = join(&join(path, near), &inner);
            if keys.contains(&whole) { whole } else { join(path, near) }
        });
        let error = Error::usage(format!("unknown key `{wrong}`"));
        let error = match sibling.or_else(|| elsewhere(&wrong, &keys, table)) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error,
        };
        let names: Vec<&str> = known.keys().map(String::as_str).collect();
        let place = if path.is_empty() { String::new() } else { format!(" in `{path}`") };
        error.hint(format!("known{place}: {}", names.join(", ")))
    }

    /// The full paths of all keys below a schema, in its order; those of lists are left out.
    fn keys(&self, schema: &'s Value, path: &str, depth: usize, keys: &mut Vec<String>) {
        let schema = self.resolve(schema);
        if depth == 0 {
            return;
        }
        for branch in branches(schema).into_iter().flatten() {
            self.keys(branch, path, depth - 1, keys);
        }
        for (key, inner) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            let path = join(path, key);
            self.keys(inner, &path, depth - 1, keys);
            keys.push(path);
        }
    }
}

fn branches(schema: &Value) -> Option<&Vec<Value>> {
    ["oneOf", "anyOf"].iter().find_map(|key| schema.get(key)).and_then(Value::as_array)
}

/// Whether a value is of a schema's type, or is its constant.
fn fits(schema: &Value, value: &Value) -> bool {
    if let Some(constant) = schema.get("const") {
        return constant == value;
    }
    let is = |name: &str| match value {
        Value::Null => name == "null",
        Value::Bool(_) => name == "boolean",
        Value::Number(_) => name == "number" || name == "integer",
        Value::String(_) => name == "string",
        Value::Array(_) => name == "array",
        Value::Object(_) => name == "object",
    };
    match schema.get("type") {
        Some(Value::String(name)) => is(name),
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).any(is),
        _ => true,
    }
}

/// The key, somewhere else, whose name is nearest to that of `wrong`: rather beside it, rather in what a neighbour names (as
/// `name` does an algorithm), rather not deep.
fn elsewhere(wrong: &str, keys: &[String], neighbours: &Map<String, Value>) -> Option<String> {
    let name = |path: &str| path.rsplit('.').next().unwrap_or_default().to_string();
    let depth = |path: &str| path.split('.').count();
    let shared =
        |path: &str| wrong.split('.').zip(path.split('.')).take_while(|(one, other)| one == other).count();
    let unnamed = |path: &str| !neighbours.values().any(|value| path.split('.').any(|part| value == part));
    let names: Vec<String> = keys.iter().map(|key| name(key)).collect();
    let near = nearest(&name(wrong), names.iter().map(String::as_str))?;
    keys.iter()
        .filter(|key| name(key) == near)
        .min_by_key(|key| (std::cmp::Reverse(shared(key)), unnamed(key), depth(key)))
        .cloned()
}

/// Refuses a number out of the range of a schema, and a list that is too short.
fn check_range(schema: &Value, value: &Value, path: &str) -> Result<()> {
    let bound = |key: &str| schema.get(key).and_then(Value::as_f64);
    if let (Value::Array(list), Some(least)) = (value, bound("minItems"))
        && (list.len() as f64) < least
    {
        return Err(wrong(path, &format!("expected a list of at least {least}, got {}", list.len())));
    }
    let Some(number) = value.as_f64().filter(|_| value.is_number()) else { return Ok(()) };
    let (least, above) = (bound("minimum"), bound("exclusiveMinimum"));
    let (most, below) = (bound("maximum"), bound("exclusiveMaximum"));
    let inside = least.is_none_or(|bound| number >= bound)
        && above.is_none_or(|bound| number > bound)
        && most.is_none_or(|bound| number <= bound)
        && below.is_none_or(|bound| number < bound);
    if inside {
        return Ok(());
    }
    let whole = schema.get("type").is_some_and(|kind| kind.to_string().contains("integer"));
    let what = if whole { "a whole number" } else { "a number" };
    let lower =
        least.map(|bound| format!("of at least {bound}")).or(above.map(|bound| format!("above {bound}")));
    let upper = most.map(|bound| format!("at most {bound}")).or(below.map(|bound| format!("below {bound}")));
    let range = [lower, upper].into_iter().flatten().collect::<Vec<_>>().join(" and ");
    Err(wrong(path, &format!("expected {what} {range}, got {value}")))
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

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

    #[derive(Debug, Default, Deserialize, JsonSchema)]
    #[serde(default)]
    struct Inner {
        #[schemars(range(min = 1, max = 9))]
        size: i64,
        temperature: f64,
    }

    fn said(text: &str) -> String {
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
            assert_eq!(said(text), expected, "{text}");
        }
        assert!(
            said("decay = 0\nrate = 1\nlist = [{ size = 9 }]\nweights = { a = 1.5 }").starts_with("Outer")
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
            assert_eq!(said(text), expected, "{text}");
        }
    }

    #[test]
    fn unknown_keys_name_the_nearest_full_key() {
        let near = |text: &str| said(text).lines().map(String::from).collect::<Vec<_>>();
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
