//! What identifies weights, pictures and texts: SHA-256, in lower-case hexadecimal.

use std::fs::File;
use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::error::{Context, Error, Result};
use crate::model::UnifiedModel;

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text += &format!("{byte:02x}");
    }
    text
}

/// Of a text.
pub fn text(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

/// Of a file.
pub fn file(path: &Path) -> Result<String> {
    let place = || format!("cannot read `{}`", path.display());
    let mut hash = Sha256::new();
    std::io::copy(&mut File::open(path).context(place)?, &mut hash).context(place)?;
    Ok(hex(&hash.finalize()))
}

/// Adds a field `seal` to an object: the hash of all the others.
pub(crate) fn seal(mut json: Value) -> Value {
    let seal = text(&json.to_string());
    if let Value::Object(fields) = &mut json {
        fields.insert("seal".into(), seal.into());
    }
    json
}

/// Takes the seal off the text of a `what`; refuses one of another `form`, or that was altered since.
pub(crate) fn unseal(what: &str, form: u32, sealed: &str) -> Result<Value> {
    let mut json: Value = serde_json::from_str(sealed).context(|| "not JSON")?;
    let seal = json.as_object_mut().and_then(|fields| fields.remove("seal"));
    let seal = seal.ok_or_else(|| Error::failure(format!("not a {what}: it has no `seal`")))?;
    if json["form"] != form {
        return Err(Error::failure(format!("form {}: expected {form}", json["form"])));
    }
    if seal != text(&json.to_string()) {
        return Err(Error::failure(format!("the {what} was altered: its seal does not fit")));
    }
    Ok(json)
}

/// Of each of some pictures `[B,3,H,W]` in `0..=1`: of its values in 8 bits, in the order `[3,H,W]`.
pub fn pictures(pixels: &Tensor) -> Result<Vec<String>> {
    let bytes =
        (pixels.detach() * 255.0).round().clamp(0.0, 255.0).to_kind(Kind::Uint8).to_device(Device::Cpu);
    let batch = bytes.size().first().copied().unwrap_or(0);
    (0..batch)
        .map(|row| {
            let one = Vec::<u8>::try_from(bytes.get(row).contiguous().view([-1]))?;
            Ok(hex(&Sha256::digest(&one)))
        })
        .collect()
}

/// Of all weights of a model, by name: name, type, shape and bytes of each. It says what the model computes with, whatever
/// the layout of its files.
pub fn weights(model: &dyn UnifiedModel) -> Result<String> {
    let mut parameters = model.parameters()?;
    parameters.sort_by(|one, other| one.name.cmp(&other.name));
    let mut hash = Sha256::new();
    for parameter in &parameters {
        let tensor = parameter.tensor.detach().to_device(Device::Cpu).contiguous();
        hash.update(format!("{} {:?} {:?}\n", parameter.name, tensor.kind(), tensor.size()));
        let (count, width) = (tensor.numel(), tensor.kind().elt_size_in_bytes());
        let mut bytes = vec![0u8; count * width];
        tensor.f_copy_data_u8(&mut bytes, count)?;
        hash.update(&bytes);
    }
    Ok(hex(&hash.finalize()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_answers() {
        assert_eq!(text("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let white = Tensor::ones([1, 3, 1, 1], (Kind::Float, Device::Cpu));
        assert_eq!(pictures(&white).unwrap(), [hex(&Sha256::digest([255u8; 3]))]);
    }
}
