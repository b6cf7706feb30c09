//! What identifies weights, pictures and texts: SHA-256, in lower-case hexadecimal.

use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::error::Result;
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
