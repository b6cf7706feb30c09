//! Reads and writes image files.

mod read;
mod resize;
mod write;

pub use read::{read, read_padded, read_unscaled, reader};
pub use write::write_grid;
pub(crate) use write::{enlarged, write_png};

#[cfg(test)]
fn noise(width: u32, height: u32, seed: u64) -> image::RgbImage {
    let mut rng = unirl_prompts::rng::Rng::new(seed);
    image::RgbImage::from_fn(width, height, |_, _| image::Rgb(std::array::from_fn(|_| rng.below(256) as u8)))
}
