//! Sealed JSON documents: receipts and training states carry a checksum of themselves in the field `seal`.

use serde_json::Value;
use unirl::error::{Context, Error, Result};
use unirl_base::checksum;

/// Adds the field `seal` to an object: the checksum of all other fields.
pub(crate) fn seal(mut json: Value) -> Value {
    let seal = checksum::text(&json.to_string());
    if let Value::Object(fields) = &mut json {
        fields.insert("seal".into(), seal.into());
    }
    json
}

/// Parses a sealed document, a `what`, and removes the seal. Errors if the document has another `form` or was altered.
pub(crate) fn unseal(what: &str, form: u32, sealed: &str) -> Result<Value> {
    let mut json: Value = serde_json::from_str(sealed).context(|| "not JSON")?;
    let seal = json.as_object_mut().and_then(|fields| fields.remove("seal"));
    let seal = seal.ok_or_else(|| Error::failure(format!("not a {what}: it has no `seal`")))?;
    if json["form"] != form {
        return Err(Error::failure(format!("form {}: expected {form}", json["form"])));
    }
    if seal != checksum::text(&json.to_string()) {
        return Err(Error::failure(format!("the {what} was altered: its seal does not match")));
    }
    Ok(json)
}
