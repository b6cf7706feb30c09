//! Resizes images as Pillow 13 does, to within one of 255: `fast_image_resize` computes each of the two passes in f32, and the
//! result is rounded to bytes as in Pillow.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::F32x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::imageops::{crop_imm, replace};
use image::{GenericImageView as _, RgbImage};
use unirl::error::{Error, Result};

/// The number of pixels that are resized at once, as f32.
const BAND: u32 = 1 << 22;

/// Resizes the shorter edge to `side`, the longer one in proportion, rounded down, and crops the centre square. Pixels outside of
/// the square are not computed, because a thin image would become very long.
pub(super) fn centre_crop(image: &RgbImage, side: u32) -> Result<RgbImage> {
    let (width, height) = image.dimensions();
    let short = u64::from(width.min(height));
    let window = |length: u32| {
        let resized = u64::from(length) * u64::from(side) / short;
        Window::new(length, resized, margin(resized - u64::from(side)), side)
    };
    resize(image, [window(width), window(height)])
}

/// The crop of a resized image along one axis, and the source pixels that it depends on.
pub(super) struct Window {
    /// Source pixels.
    length: u32,
    /// Pixels of the resized image.
    resized: u64,
    /// The first pixel of the crop.
    first: u64,
    /// The number of pixels of the crop.
    size: u32,
    /// The first source pixel that the crop depends on.
    start: u32,
    /// The number of source pixels that the crop depends on.
    needed: u32,
}

impl Window {
    pub(super) fn new(length: u32, resized: u64, first: u64, size: u32) -> Self {
        let scale = f64::from(length) / resized as f64;
        // The cubic kernel reaches two pixels, of the coarser image.
        let reach = 2.0 * scale.max(1.0) + 1.0;
        let start = (first as f64 * scale - reach).max(0.0) as u32;
        let end = ((first as f64 + f64::from(size)) * scale + reach).ceil().min(f64::from(length)) as u32;
        Self { length, resized, first, size, start, needed: end - start }
    }

    /// Returns start and length of the crop within the needed source pixels.
    fn source_range(&self) -> (f64, f64) {
        if u64::from(self.size) == self.resized {
            return (0.0, self.needed.into());
        }
        let scale = f64::from(self.length) / self.resized as f64;
        let left = (self.first as f64 * scale - f64::from(self.start)).max(0.0);
        (left, (f64::from(self.size) * scale).min(f64::from(self.needed) - left))
    }

    /// The number of pixels that resizing removes.
    fn removed(&self) -> i128 {
        i128::from(self.length) - i128::from(self.resized)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Axis {
    Horizontal,
    Vertical,
}

/// Resizes in two passes, to the windows of both axes.
pub(super) fn resize(image: &RgbImage, [horizontal, vertical]: [Window; 2]) -> Result<RgbImage> {
    let image =
        crop_imm(image, horizontal.start, vertical.start, horizontal.needed, vertical.needed).to_image();
    // Pillow 13 starts with the height if that removes more than twice as many rows as the width removes columns; earlier
    // versions never do, and round such images differently.
    if vertical.removed() > 0 && vertical.removed() > 2 * horizontal.removed() {
        resize_axis(&resize_axis(&image, Axis::Vertical, &vertical)?, Axis::Horizontal, &horizontal)
    } else {
        resize_axis(&resize_axis(&image, Axis::Horizontal, &horizontal)?, Axis::Vertical, &vertical)
    }
}

/// Resizes one axis and rounds to bytes, as Pillow does after each pass. On bytes instead of f32 the weights of the crate are
/// too coarse: errors of 2 occur.
fn resize_axis(image: &RgbImage, axis: Axis, window: &Window) -> Result<RgbImage> {
    let (left, length) = window.source_range();
    if u64::from(window.length) == window.resized {
        let (left, size) = (left as u32, window.size);
        return Ok(match axis {
            Axis::Horizontal => crop_imm(image, left, 0, size, image.height()).to_image(),
            Axis::Vertical => crop_imm(image, 0, left, image.width(), size).to_image(),
        });
    }
    let failed = |error: &dyn std::fmt::Display| Error::failure("cannot resize the image").cause(error);
    // Pillow's cubic, with a = -0.5.
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    let (width, height) = image.dimensions();
    let (lines, size) = match axis {
        Axis::Horizontal => (height, (window.size, height)),
        Axis::Vertical => (width, (width, window.size)),
    };
    let mut resized = RgbImage::new(size.0, size.1);
    let at_once = (BAND / window.needed.max(window.size)).max(1);
    for first in (0..lines).step_by(at_once as usize) {
        let count = at_once.min(lines - first);
        let (band, size, place, options) = match axis {
            Axis::Horizontal => (
                crop_imm(image, 0, first, width, count),
                (window.size, count),
                (0, first),
                options.crop(left, 0.0, length, count.into()),
            ),
            Axis::Vertical => (
                crop_imm(image, first, 0, count, height),
                (count, window.size),
                (first, 0),
                options.crop(0.0, left, count.into(), length),
            ),
        };
        let pixels: Vec<F32x3> =
            band.pixels().map(|(_, _, pixel)| F32x3::new(pixel.0.map(f32::from))).collect();
        let source = TypedImageRef::new(band.width(), band.height(), &pixels).map_err(|e| failed(&e))?;
        let mut target = TypedImage::new(size.0, size.1);
        Resizer::new().resize_typed(&source, &mut target, &options).map_err(|e| failed(&e))?;
        let rounded = |value: f32| (value + 0.5).floor() as u8; // `as` saturates at 0 and 255
        let bytes = target.pixels().iter().flat_map(|pixel| pixel.0.map(rounded)).collect();
        let band = RgbImage::from_raw(size.0, size.1, bytes)
            .ok_or_else(|| Error::failure("the image has the wrong size"))?;
        replace(&mut resized, &band, place.0.into(), place.1.into());
    }
    Ok(resized)
}

/// Returns half of the pixels that a centre crop removes, rounded half to even as in Python.
fn margin(rest: u64) -> u64 {
    (rest as f64 / 2.0).round_ties_even() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image_io::noise;

    #[test]
    fn centre_crop_equals_crop_of_the_resized_image() {
        let mut rng = unirl_prompts::rng::Rng::new(5);
        let sizes =
            [(64, 48), (48, 64), (33, 32), (32, 35), (97, 71), (16, 200), (300, 7), (500, 31), (256, 256)];
        let random =
            (0..120).map(|_| (1 + rng.below(200) as u32, 1 + rng.below(200) as u32)).collect::<Vec<_>>();
        for (width, height) in sizes.into_iter().chain(random) {
            for side in [32, 48] {
                let image = noise(width, height, u64::from(width * height));
                let short = width.min(height);
                let [new_width, new_height] = [width, height].map(|length| length * side / short);
                let whole = |length, resized: u32| Window::new(length, resized.into(), 0, resized);
                let whole = resize(&image, [whole(width, new_width), whole(height, new_height)]).unwrap();
                let [left, top] = [new_width, new_height].map(|length| margin((length - side).into()) as u32);
                let expected = crop_imm(&whole, left, top, side, side).to_image();
                let got = centre_crop(&image, side).unwrap();
                assert!(got == expected, "{width}×{height} to {side}");
            }
        }
    }
}
