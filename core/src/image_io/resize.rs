//! Resizes pictures as Pillow does.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::F32x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::imageops::{crop_imm, replace};
use image::{GenericImageView as _, RgbImage};

use crate::error::{Error, Result};

/// Pixels that are resized at once: they are held as f32.
const BAND: u32 = 1 << 22;

/// The middle square of the picture that is resized so that its shorter edge is `side`; the longer one is cut to a whole
/// number. What is not in the square is never computed, since the resized picture of a thin one is very long.
pub(super) fn middle(picture: &RgbImage, side: u32) -> Result<RgbImage> {
    let (width, height) = picture.dimensions();
    let short = u64::from(width.min(height));
    let window = |length: u32| {
        let resized = u64::from(length) * u64::from(side) / short;
        Window::new(length, resized, margin(resized - u64::from(side)), side)
    };
    resize(picture, [window(width), window(height)])
}

/// One axis of a resized picture: what is kept of it, and what that is made of.
pub(super) struct Window {
    /// The pixels of the original.
    length: u32,
    /// The pixels of the resized picture.
    resized: u64,
    /// The first one that is kept.
    first: u64,
    /// How many are kept.
    kept: u32,
    /// The first pixel of the original that is needed.
    start: u32,
    /// How many are needed.
    needed: u32,
}

impl Window {
    pub(super) fn new(length: u32, resized: u64, first: u64, kept: u32) -> Self {
        let scale = f64::from(length) / resized as f64;
        // A cubic reaches two pixels, of the resized picture where that is the coarser one.
        let reach = 2.0 * scale.max(1.0) + 1.0;
        let start = (first as f64 * scale - reach).max(0.0) as u32;
        let end = ((first as f64 + f64::from(kept)) * scale + reach).ceil().min(f64::from(length)) as u32;
        Self { length, resized, first, kept, start, needed: end - start }
    }

    /// Where the window lies among the pixels that are needed: beginning and length.
    fn place(&self) -> (f64, f64) {
        if u64::from(self.kept) == self.resized {
            return (0.0, self.needed.into());
        }
        let scale = f64::from(self.length) / self.resized as f64;
        let left = (self.first as f64 * scale - f64::from(self.start)).max(0.0);
        (left, (f64::from(self.kept) * scale).min(f64::from(self.needed) - left))
    }

    /// How many pixels resizing removes.
    fn removed(&self) -> i128 {
        i128::from(self.length) - i128::from(self.resized)
    }
}

/// An axis of a picture.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Axis {
    Across,
    Down,
}

/// Resizes in two passes, to the windows of both axes.
pub(super) fn resize(picture: &RgbImage, [across, down]: [Window; 2]) -> Result<RgbImage> {
    let picture = crop_imm(picture, across.start, down.start, across.needed, down.needed).to_image();
    // Pillow 13 begins with the height when that removes more than twice as many rows as columns go afterwards;
    // earlier ones never do, which for such pictures gives other roundings.
    if down.removed() > 0 && down.removed() > 2 * across.removed() {
        one_pass(&one_pass(&picture, Axis::Down, &down)?, Axis::Across, &across)
    } else {
        one_pass(&one_pass(&picture, Axis::Across, &across)?, Axis::Down, &down)
    }
}

/// Resizes one axis and rounds to bytes, as Pillow does after each of its two passes. With bytes in place of f32 the
/// crate's weights are too coarse: off by 2 at times.
fn one_pass(picture: &RgbImage, axis: Axis, window: &Window) -> Result<RgbImage> {
    let (left, length) = window.place();
    if u64::from(window.length) == window.resized {
        let (left, kept) = (left as u32, window.kept);
        return Ok(match axis {
            Axis::Across => crop_imm(picture, left, 0, kept, picture.height()).to_image(),
            Axis::Down => crop_imm(picture, 0, left, picture.width(), kept).to_image(),
        });
    }
    let failed = |error: &dyn std::fmt::Display| Error::failure("cannot resize it").cause(error);
    // Catmull-Rom is the cubic with a = -0.5, Pillow's.
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    let (width, height) = picture.dimensions();
    let (lines, size) = match axis {
        Axis::Across => (height, (window.kept, height)),
        Axis::Down => (width, (width, window.kept)),
    };
    let mut resized = RgbImage::new(size.0, size.1);
    let at_once = (BAND / window.needed.max(window.kept)).max(1);
    for first in (0..lines).step_by(at_once as usize) {
        let count = at_once.min(lines - first);
        let (band, size, place, options) = match axis {
            Axis::Across => (
                crop_imm(picture, 0, first, width, count),
                (window.kept, count),
                (0, first),
                options.crop(left, 0.0, length, count.into()),
            ),
            Axis::Down => (
                crop_imm(picture, first, 0, count, height),
                (count, window.kept),
                (first, 0),
                options.crop(0.0, left, count.into(), length),
            ),
        };
        let pixels: Vec<F32x3> =
            band.pixels().map(|(_, _, pixel)| F32x3::new(pixel.0.map(f32::from))).collect();
        let source = TypedImageRef::new(band.width(), band.height(), &pixels).map_err(|e| failed(&e))?;
        let mut target = TypedImage::new(size.0, size.1);
        Resizer::new().resize_typed(&source, &mut target, &options).map_err(|e| failed(&e))?;
        let rounded = |value: f32| (value + 0.5).floor() as u8; // `as` cuts at 0 and 255
        let bytes = target.pixels().iter().flat_map(|pixel| pixel.0.map(rounded)).collect();
        let band = RgbImage::from_raw(size.0, size.1, bytes)
            .ok_or_else(|| Error::failure("a picture of the wrong size"))?;
        replace(&mut resized, &band, place.0.into(), place.1.into());
    }
    Ok(resized)
}

/// What is cut off before the middle: half of the rest, and of two equally near the even one, as Python rounds.
fn margin(rest: u64) -> u64 {
    (rest as f64 / 2.0).round_ties_even() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image_io::noise;

    /// Cutting first gives what cutting last gives, to the byte.
    #[test]
    fn the_middle_is_that_of_the_whole_resized_picture() {
        let mut rng = crate::prompts::rng::Rng::new(5);
        let sizes =
            [(64, 48), (48, 64), (33, 32), (32, 35), (97, 71), (16, 200), (300, 7), (500, 31), (256, 256)];
        let random =
            (0..120).map(|_| (1 + rng.below(200) as u32, 1 + rng.below(200) as u32)).collect::<Vec<_>>();
        for (width, height) in sizes.into_iter().chain(random) {
            for side in [32, 48] {
                let picture = noise(width, height, u64::from(width * height));
                let short = width.min(height);
                let [across, down] = [width, height].map(|length| length * side / short);
                let whole = |length, resized: u32| Window::new(length, resized.into(), 0, resized);
                let whole = resize(&picture, [whole(width, across), whole(height, down)]).unwrap();
                let [left, top] = [across, down].map(|length| margin((length - side).into()) as u32);
                let expected = crop_imm(&whole, left, top, side, side).to_image();
                let got = middle(&picture, side).unwrap();
                assert!(got == expected, "{width}×{height} to {side}");
            }
        }
    }
}
