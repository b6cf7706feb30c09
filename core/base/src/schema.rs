//! Checks a value against the JSON Schema of its type. Unknown keys and values out of range are errors that name the full path.

use schemars::{JsonSchema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result, nearest};
use crate::explain::{Format, explain, join, path, wrong};

/// The keyword of a schema under which a property lists its former names: `#[schemars(extend("x-former-names" = ["old"]))]`.
pub const FORMER: &str = "x-former-names";

/// The depth to which a schema is searched for keys; a schema may refer to itself.
const DEEPEST: usize = 8;

/// Reads settings that were converted to JSON for a plugin.
pub fn read_json<T: DeserializeOwned + JsonSchema>(place: &str, json: &Value) -> Result<T> {
    check(&schema::<T>(), json, place)?;
    serde_path_to_error::deserialize(json)
        .map_err(|error| explain(Format::Toml, &join(place, &path(&error)), &error.inner().to_string()))
}

/// The schema of a type.
pub fn schema<T: JsonSchema>() -> Value {
    SchemaGenerator::default().into_root_schema_for::<T>().to_value()
}

/// Checks keys and ranges; serde checks the types.
pub(crate) fn check(schema: &Value, value: &Value, place: &str) -> Result<()> {
    Checker { root: schema, place }.check(schema, value, place)
}

pub(crate) struct Checker<'s> {
    pub(crate) root: &'s Value,
    pub(crate) place: &'s str,
}

impl<'s> Checker<'s> {
    pub(crate) fn resolve(&self, schema: &'s Value) -> &'s Value {
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|target| target.strip_prefix('#'));
        target.and_then(|target| self.root.pointer(target)).unwrap_or(schema)
    }

    fn check(&self, schema: &'s Value, value: &Value, path: &str) -> Result<()> {
        check_range(schema, value, path)?;
        let schema = self.resolve(schema);
        check_range(schema, value, path)?;
        if let Some(branches) = branches(schema) {
            // If several branches of a union fit, serde decides.
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
        let names: Vec<(&str, &str)> = known.iter().flat_map(|(key, schema)| names(key, schema)).collect();
        let sibling = nearest(key, names.iter().map(|(name, _)| *name)).map(|near| {
            let near = names.iter().find(|(name, _)| *name == near).map_or(near, |(_, current)| *current);
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

    /// Collects the full paths of all keys below a schema, except those inside lists.
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

pub(crate) fn branches(schema: &Value) -> Option<&Vec<Value>> {
    ["oneOf", "anyOf"].iter().find_map(|key| schema.get(key)).and_then(Value::as_array)
}

/// The names under which a property may be written, each with its current name.
fn names<'s>(key: &'s str, schema: &'s Value) -> impl Iterator<Item = (&'s str, &'s str)> {
    let former = schema.get(FORMER).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    std::iter::once(key).chain(former).map(move |name| (name, key))
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

/// Finds the key elsewhere whose name is nearest to that of `wrong`. Prefers siblings, then tables that a sibling names (as `name`
/// names an algorithm), then shallow keys.
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

/// Checks the range of a number and the length of a list.
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
