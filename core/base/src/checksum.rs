//! SHA-256 checksums of texts, files and images, in lower-case hexadecimal.

use std::fs::File;
use std::path::Path;

use sha2::{Digest, Sha256};
use tch::{Device, Kind, Tensor};

use crate::error::{Context, Result};

/// Returns the checksum of a text.
pub fn text(text: &str) -> String {
    format!("{:x}", Sha256::digest(text))
}

/// Returns the checksum of a file.
pub fn file(path: &Path) -> Result<String> {
    let place = || format!("cannot read `{}`", path.display());
    let mut hash = Sha256::new();
    std::io::copy(&mut File::open(path).context(place)?, &mut hash).context(place)?;
    Ok(format!("{:x}", hash.finalize()))
}

/// Returns the checksum of each image of `[B,3,H,W]` in `0..=1`, taken over its 8-bit values in the order `[3,H,W]`.
pub fn images(pixels: &Tensor) -> Result<Vec<String>> {
    let bytes =
        (pixels.detach() * 255.0).round().clamp(0.0, 255.0).to_kind(Kind::Uint8).to_device(Device::Cpu);
    let batch = bytes.size().first().copied().unwrap_or(0);
    (0..batch)
        .map(|row| {
            let one = Vec::<u8>::try_from(bytes.get(row).contiguous().view([-1]))?;
            Ok(format!("{:x}", Sha256::digest(&one)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_match_known_sha256_digests() {
        assert_eq!(text("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        let white = Tensor::ones([1, 3, 1, 1], (Kind::Float, Device::Cpu));
        assert_eq!(images(&white).unwrap(), [format!("{:x}", Sha256::digest([255u8; 3]))]);
    }
}
