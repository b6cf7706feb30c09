//! Pictures from and to files.

use std::borrow::Cow;
use std::convert::Infallible;
use std::fs::File;
use std::io::{BufWriter, Cursor, Read as _, Write};
use std::path::Path;

use embedded_graphics::mono_font::iso_8859_1::FONT_6X10;
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::{DrawTarget, Drawable, OriginDimensions, Pixel, Point, RgbColor, Size};
use embedded_graphics::text::{Baseline, Text};
use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::F32x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::imageops::{crop_imm, replace};
use image::{
    DynamicImage, GenericImageView as _, ImageDecoder as _, ImageError, ImageFormat, ImageReader, Limits,
    Rgb, RgbImage,
};
use tch::{Device, Kind, Tensor};

use crate::error::{Context, Error, Result};
use crate::{atomic_fs, input};

/// Pixels that [`read_padded`] leaves of the shorter edge of a thin picture.
const SHORTEST: u32 = 14;

/// The most pixels of a picture that is read: Pillow's limit, above which it speaks of a decompression bomb.
const MOST_PIXELS: u64 = 2 * (1 << 30) / 4 / 3;

/// The most bytes of a picture file.
const MOST_BYTES: u64 = 1 << 29;

/// Pixels that are resized at once: they are held as f32.
const BAND: u32 = 1 << 22;

/// Reads a picture as `[1,3,R,R]` f32 in `0..=1`: its shorter edge becomes `resolution` (bicubic, unless it already
/// is), the middle is kept.
///
/// From a PNG the bytes are those of Pillow 13 with torchvision's `Resize` and `CenterCrop`, give or take one: the crate
/// `fast_image_resize` computes each pass in f32, and it is rounded as Pillow's is. Alpha is dropped and EXIF
/// orientation ignored, as by Pillow's `convert("RGB")`; 16 bits are cut to their upper 8, in grey pictures too, which
/// Pillow makes white.
pub fn read(path: &Path, resolution: i64) -> Result<Tensor> {
    middle(&open(path)?, resolution as u32).map(|picture| to_tensor(&picture)).context(|| wrong(path))
}

/// Reads a picture as `[1,3,R,R]` f32 in `0..=1`: its longer edge becomes `resolution`, the shorter one at least 14
/// pixels, and it lies in the middle of a square of the grey `fill`. Bytes are Pillow's as those of [`read`] are.
pub fn read_padded(path: &Path, resolution: i64, fill: u8) -> Result<Tensor> {
    let side = resolution as u32;
    let picture = open(path)?;
    let (width, height) = picture.dimensions();
    let longer = f64::from(width.max(height));
    // In this order, so that the cut to a whole number is that of Python's floats.
    let scaled = |edge: u32| ((f64::from(edge) / longer * f64::from(side)) as u32).max(SHORTEST).min(side);
    let (width, height) = (scaled(width), scaled(height));
    let whole = |length: u32, resized: u32| Window::new(length, resized.into(), 0, resized);
    let (old_width, old_height) = picture.dimensions();
    let picture =
        resize(&picture, [whole(old_width, width), whole(old_height, height)]).context(|| wrong(path))?;
    let mut square = RgbImage::from_pixel(side, side, Rgb([fill; 3]));
    let (left, top) = ((side - width) / 2, (side - height) / 2);
    replace(&mut square, &picture, left.into(), top.into());
    Ok(to_tensor(&square))
}

/// Reads a picture as `[1,3,H,W]` f32 in `0..=1`, in its own size.
pub fn read_as_it_is(path: &Path) -> Result<Tensor> {
    Ok(to_tensor(&open(path)?))
}

fn wrong(path: &Path) -> String {
    format!("cannot read the picture `{}`", path.display())
}

fn open(path: &Path) -> Result<RgbImage> {
    let failed = |cause: &dyn std::fmt::Display| Error::usage(wrong(path)).cause(cause);
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MOST_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| failed(&error))?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(failed(&format!("the file has more than {MOST_BYTES} bytes")));
    }
    input::check_content(&path.display().to_string(), &bytes)?;
    if bytes.is_empty() {
        return Err(failed(&"the file is empty"));
    }
    let truncated = || failed(&"the file is truncated").hint("copy or download it again");
    let too_large = |what: &str| {
        failed(&format!("{what}, at most {MOST_PIXELS} pixels are read")).hint("make it smaller first")
    };
    let undecoded = |error: ImageError| match &error {
        ImageError::Limits(_) => too_large("it does not fit into memory"),
        ImageError::IoError(cause) if cause.kind() == std::io::ErrorKind::UnexpectedEof => truncated(),
        _ => failed(&error),
    };
    let reader =
        ImageReader::new(Cursor::new(&bytes)).with_guessed_format().map_err(|error| failed(&error))?;
    // The decoder fills what is missing of a JPEG with grey.
    if reader.format() == Some(ImageFormat::Jpeg) && !jpeg_ends(&bytes) {
        return Err(truncated());
    }
    let mut decoder = reader.into_decoder().map_err(undecoded)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MOST_PIXELS {
        return Err(too_large(&format!("it has {width}×{height} pixels")));
    }
    let mut limits = Limits::default();
    limits.reserve(decoder.total_bytes()).and_then(|()| decoder.set_limits(limits)).map_err(undecoded)?;
    DynamicImage::from_decoder(decoder).map(to_bytes).map_err(undecoded)
}

/// Whether a JPEG has the marker of its end, outside of the segments that may hold another picture.
fn jpeg_ends(bytes: &[u8]) -> bool {
    const SEGMENTS_WITHOUT_LENGTH: [u8; 10] = [0x01, 0xd0, 0xd1, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8];
    let mut rest = bytes;
    // Anything up to a marker is compressed data, in which 0xff is followed by 0.
    while let Some(at) =
        rest.array_windows().position(|[first, second]| *first == 0xff && !matches!(second, 0 | 0xff))
    {
        let marker = rest[at + 1];
        rest = &rest[at + 2..];
        if marker == 0xd9 {
            return true;
        }
        if !SEGMENTS_WITHOUT_LENGTH.contains(&marker) {
            let length = rest.first_chunk().map_or(usize::MAX, |bytes| u16::from_be_bytes(*bytes).into());
            let Some(after) = rest.get(length..) else { return false };
            rest = after;
        }
    }
    false
}

/// Bytes to `[1,3,H,W]` in `0..=1`.
fn to_tensor(picture: &RgbImage) -> Tensor {
    let (width, height) = picture.dimensions();
    let bytes = Tensor::from_slice(picture.as_raw()).view([1, height.into(), width.into(), 3]);
    bytes.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0
}

fn to_bytes(picture: DynamicImage) -> RgbImage {
    use DynamicImage::{ImageLuma16, ImageLumaA16, ImageRgb16, ImageRgba16};
    match picture {
        ImageLuma16(_) | ImageLumaA16(_) | ImageRgb16(_) | ImageRgba16(_) => {
            let wide = picture.into_rgb16();
            RgbImage::from_fn(wide.width(), wide.height(), |x, y| {
                Rgb(wide.get_pixel(x, y).0.map(|value| (value >> 8) as u8))
            })
        }
        _ => picture.into_rgb8(),
    }
}

/// The middle square of the picture that is resized so that its shorter edge is `side`; the longer one is cut to a whole
/// number. What is not in the square is never computed, since the resized picture of a thin one is very long.
fn middle(picture: &RgbImage, side: u32) -> Result<RgbImage> {
    let (width, height) = picture.dimensions();
    let short = u64::from(width.min(height));
    let window = |length: u32| {
        let resized = u64::from(length) * u64::from(side) / short;
        Window::new(length, resized, margin(resized - u64::from(side)), side)
    };
    resize(picture, [window(width), window(height)])
}

/// One axis of a resized picture: what is kept of it, and what that is made of.
struct Window {
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
    fn new(length: u32, resized: u64, first: u64, kept: u32) -> Self {
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
fn resize(picture: &RgbImage, [across, down]: [Window; 2]) -> Result<RgbImage> {
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

/// Writes `[B,3,H,W]` pixels in `0..=1` as one PNG: a single image as it is, so that [`read`] gives it back; several
/// in a grid, `columns` a row, small ones enlarged without smoothing. `texts`, keys and values, go into its metadata.
pub fn write_grid(pixels: &Tensor, columns: i64, path: &Path, texts: &[(&str, String)]) -> Result<()> {
    let (batch, _, height, _) = pixels.size4().context(|| "pictures to save")?;
    let scale = if batch == 1 { 1 } else { (96 / height.max(1)).max(1) };
    let pictures = enlarged(pixels, scale)?;
    if let [one] = &pictures[..] {
        return write_png(path, one, texts);
    }
    let (width, height) = pictures.first().map_or((0, 0), RgbImage::dimensions);
    let (columns, gap) = (columns.clamp(1, batch.max(1)) as u32, scale as u32);
    let rows = (pictures.len() as u32).div_ceil(columns);
    let size = (columns * (width + gap) + gap, rows * (height + gap) + gap);
    let mut canvas = RgbImage::from_pixel(size.0, size.1, Rgb([160; 3]));
    for (index, picture) in (0..).zip(&pictures) {
        let (row, column) = (index / columns, index % columns);
        let (left, top) = (gap + column * (width + gap), gap + row * (height + gap));
        replace(&mut canvas, picture, left.into(), top.into());
    }
    write_png(path, &canvas, texts)
}

/// What stands beside a picture of a grid.
#[derive(Debug, Clone, Default)]
pub struct Caption {
    /// Above it: only that of the first picture of a row is shown.
    pub above: String,
    /// Below it.
    pub below: String,
}

/// Writes `[B,3,H,W]` pixels in `0..=1` as one PNG: a grid, `columns` a row, with a caption for each.
pub fn write_captioned(pixels: &Tensor, columns: i64, captions: &[Caption], path: &Path) -> Result<()> {
    const GAP: u32 = 6;
    let (batch, _, height, _) = pixels.size4().context(|| "pictures to save")?;
    let pictures = enlarged(pixels, (128 / height.max(1)).max(1))?;
    let columns = columns.clamp(1, batch.max(1)) as usize;
    let (width, height) = pictures.first().map_or((0, 0), RgbImage::dimensions);
    let across = columns as u32 * (width + GAP) + GAP;

    let rows: Vec<(Lines, Vec<Lines>)> = captions
        .chunks(columns)
        .map(|row| {
            let below = row.iter().map(|caption| Lines::new(&caption.below, width)).collect();
            (Lines::new(&row[0].above, across - 2 * GAP), below)
        })
        .collect();
    let row_height = |(above, below): &(Lines, Vec<Lines>)| {
        above.height() + height + below.iter().map(Lines::height).max().unwrap_or(0) + 3 * GAP
    };
    let mut canvas = Canvas(RgbImage::from_pixel(across, rows.iter().map(row_height).sum(), Rgb([255; 3])));
    let mut top = 0;
    for (row, pictures) in rows.iter().zip(pictures.chunks(columns)) {
        let (above, below) = row;
        above.draw(&mut canvas, GAP, top + GAP);
        let middle = top + GAP + above.height();
        for (index, (picture, below)) in pictures.iter().zip(below).enumerate() {
            let left = GAP + index as u32 * (width + GAP);
            replace(&mut canvas.0, picture, left.into(), middle.into());
            below.draw(&mut canvas, left, middle + height + 2);
        }
        top += row_height(row);
    }
    write_png(path, &canvas.0, &[])
}

const FONT: MonoFont<'_> = FONT_6X10;

/// A text in lines that fit a width.
struct Lines(Vec<String>);

impl Lines {
    fn new(text: &str, width: u32) -> Self {
        let most = (width / FONT.character_size.width).max(1) as usize;
        Self(textwrap::wrap(text, most).into_iter().map(Cow::into_owned).collect())
    }

    fn height(&self) -> u32 {
        self.0.len() as u32 * FONT.character_size.height
    }

    fn draw(&self, canvas: &mut Canvas, left: u32, top: u32) {
        let style = MonoTextStyle::new(&FONT, Rgb888::BLACK);
        for (index, line) in self.0.iter().enumerate() {
            let place = Point::new(left as i32, (top + index as u32 * FONT.character_size.height) as i32);
            let Ok(_) = Text::with_baseline(line, place, style, Baseline::Top).draw(canvas);
        }
    }
}

/// A picture to write text on.
struct Canvas(RgbImage);

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.0.width(), self.0.height())
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Infallible> {
        for Pixel(place, colour) in pixels {
            let (Ok(x), Ok(y)) = (u32::try_from(place.x), u32::try_from(place.y)) else { continue };
            if let Some(pixel) = self.0.get_pixel_mut_checked(x, y) {
                *pixel = Rgb([colour.r(), colour.g(), colour.b()]);
            }
        }
        Ok(())
    }
}

/// Each of `[B,3,H,W]` pixels in `0..=1`, `scale` times as large without smoothing.
fn enlarged(pixels: &Tensor, scale: i64) -> Result<Vec<RgbImage>> {
    let (batch, _, height, width) = pixels.size4().context(|| "pictures to save")?;
    let pixels = pixels.to_device(Device::Cpu).to_kind(Kind::Float).clamp(0.0, 1.0) * 255.0;
    let pixels = pixels.repeat_interleave_self_int(scale, 2, None).repeat_interleave_self_int(scale, 3, None);
    let bytes = pixels.permute([0, 2, 3, 1]).to_kind(Kind::Uint8); // [B,H,W,3]
    (0..batch)
        .map(|index| {
            let bytes = Vec::<u8>::try_from(bytes.get(index).contiguous().view([-1]))?;
            RgbImage::from_raw((width * scale) as u32, (height * scale) as u32, bytes)
                .ok_or_else(|| Error::failure("a picture of the wrong size"))
        })
        .collect()
}

/// Writes a picture. The file appears under its name only when it is complete.
fn write_png(path: &Path, picture: &RgbImage, texts: &[(&str, String)]) -> Result<()> {
    atomic_fs::file(path, |file| {
        let place = || "cannot encode the picture";
        let mut file = BufWriter::new(file);
        let mut encoder = png::Encoder::new(&mut file, picture.width(), picture.height());
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        for (key, value) in texts {
            // iTXt is the one kind of text chunk that is UTF-8.
            encoder.add_itxt_chunk((*key).to_string(), value.clone()).context(place)?;
        }
        let mut writer = encoder.write_header().context(place)?;
        writer.write_image_data(picture.as_raw()).context(place)?;
        writer.finish().context(place)?;
        file.flush().context(place)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 255: the two decoders enlarge subsampled colours differently, seen as 3; 1 in the pictures without such.
    const JPEG: i64 = 3;

    #[test]
    fn a_grid_shows_every_picture_enlarged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grid.png");
        let pixels = Tensor::zeros([3, 3, 32, 32], (Kind::Float, Device::Cpu));
        let _ = pixels.get(2).fill_(1.0);
        write_grid(&pixels, 2, &path, &[]).unwrap();
        let picture = image::open(&path).unwrap().to_rgb8();
        assert_eq!(picture.dimensions(), (2 * 99 + 3, 2 * 99 + 3));
        assert_eq!((picture.get_pixel(50, 50).0, picture.get_pixel(50, 150).0), ([0; 3], [255; 3]));
    }

    #[test]
    fn a_single_picture_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.png");
        let pixels =
            Tensor::arange(3 * 32 * 32, (Kind::Int64, Device::Cpu)).remainder(256).view([1, 3, 32, 32]);
        let pixels = pixels.to_kind(Kind::Float) / 255.0;
        write_grid(&pixels, 1, &path, &[]).unwrap();
        let off = (read(&path, 32).unwrap() - pixels).abs().max().double_value(&[]);
        assert!(off <= 1.0 / 255.0 + 1e-6, "off by {off}"); // bytes are cut, not rounded: at most one step
    }

    #[test]
    fn a_wide_picture_loses_its_sides() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wide.png");
        let column = |x: u32, _| image::Rgb(if (32..64).contains(&x) { [255, 0, 0] } else { [0, 0, 255] });
        image::RgbImage::from_fn(96, 32, column).save(&path).unwrap();
        let pixels = read(&path, 32).unwrap();
        assert_eq!(pixels.size(), [1, 3, 32, 32]);
        assert!((pixels.select(1, 0).min().double_value(&[]) - 1.0).abs() < 1e-6); // exact up to f32 division
    }

    fn noise(width: u32, height: u32, seed: u64) -> RgbImage {
        let mut rng = crate::prompts::rng::Rng::new(seed);
        RgbImage::from_fn(width, height, |_, _| Rgb(std::array::from_fn(|_| rng.below(256) as u8)))
    }

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

    #[test]
    fn a_very_thin_picture_is_read_in_little_memory() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("thin.png");
        for (width, height) in [(1, 500_000), (500_000, 1), (3, 2_000_000)] {
            RgbImage::from_fn(width, height, |x, y| {
                Rgb([if x.max(y) < width.max(height) / 2 { 0 } else { 200 }; 3])
            })
            .save(&path)
            .unwrap();
            let pixels = read(&path, 336).unwrap();
            assert_eq!(pixels.size(), [1, 3, 336, 336]);
            // The middle lies between the two halves.
            let value = |tensor: Tensor| (tensor * 255.0).round().int64_value(&[]);
            assert_eq!(
                (value(pixels.get(0).get(0).get(0).get(0)), value(pixels.get(0).get(0).get(335).get(335))),
                (0, 200)
            );
            assert_eq!(read_padded(&path, 384, 127).unwrap().size(), [1, 3, 384, 384]);
        }
    }

    #[test]
    fn a_picture_that_does_not_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bomb.png");
        RgbImage::new(8, 8).save(&path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        for (width, height) in [(60_000_u32, 60_000_u32), (20_000, 9_000), (1, 200_000_000)] {
            bytes[16..20].copy_from_slice(&width.to_be_bytes());
            bytes[20..24].copy_from_slice(&height.to_be_bytes());
            let sum = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC).checksum(&bytes[12..29]);
            bytes[29..33].copy_from_slice(&sum.to_be_bytes());
            std::fs::write(&path, &bytes).unwrap();
            let error = read(&path, 32).unwrap_err();
            let cause = format!("it has {width}×{height} pixels, at most 178956970 pixels are read");
            assert_eq!(error.causes(), [cause], "{error}");
        }
    }

    fn odd_jpegs() -> Vec<(String, Vec<u8>)> {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/jpeg"));
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut all: Vec<(String, Vec<u8>)> = paths
            .filter(|path| path.extension().is_some_and(|ending| ending == "jpg"))
            .map(|path| (path.display().to_string(), std::fs::read(path).unwrap()))
            .collect();
        assert_eq!(all.len(), 9);
        let plain = all[0].1.clone();
        // A thumbnail in a segment of its own has an end marker, too.
        let mut thumbnail = vec![0xff, 0xd8, 0xff, 0xe1];
        thumbnail.extend(((plain.len() + 2) as u16).to_be_bytes());
        thumbnail.extend_from_slice(&plain);
        thumbnail.extend_from_slice(&plain[2..]);
        all.push(("thumbnail".into(), thumbnail));
        all
    }

    #[test]
    fn intact_jpegs_of_every_kind_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("odd.jpg");
        for (name, bytes) in odd_jpegs() {
            for trailing in [&b""[..], b"\n", &[0; 300], b"\xff\xd8\xff\xe0 another"] {
                std::fs::write(&path, [&bytes, trailing].concat()).unwrap();
                assert_eq!(read(&path, 32).unwrap().size(), [1, 3, 32, 32], "{name}");
            }
        }
    }

    #[test]
    fn a_jpeg_that_is_cut_anywhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.jpg");
        for (name, bytes) in odd_jpegs() {
            for length in (4..bytes.len() - 1).step_by(41).chain([bytes.len() - 2, bytes.len() - 1]) {
                // Missing, or never written, as after an interrupted copy.
                for filling in [0, bytes.len() - length] {
                    std::fs::write(&path, [&bytes[..length], &vec![0; filling]].concat()).unwrap();
                    let error = read(&path, 32).expect_err(&format!("{name} cut at {length}"));
                    if filling == 0 {
                        assert_eq!(error.causes(), ["the file is truncated"], "{name} cut at {length}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_png_that_is_cut_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.png");
        noise(40, 30, 1).save(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for length in [20, 40, 100, bytes.len() / 2, bytes.len() - 30] {
            std::fs::write(&path, &bytes[..length]).unwrap();
            let error = read(&path, 32).expect_err(&length.to_string());
            assert_eq!(error.causes(), ["the file is truncated"], "cut at {length}");
        }
    }

    #[test]
    fn the_metadata_survives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("texts.png");
        let texts = [("prompt", "ein größeres Bild\n猫と🐈".to_string()), ("seed", "7".to_string())];
        let pixels = Tensor::zeros([1, 3, 8, 8], (Kind::Float, Device::Cpu));
        write_grid(&pixels, 1, &path, &texts).unwrap();
        write_grid(&pixels, 1, &path, &texts).unwrap(); // over the first
        let file = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
        let reader = png::Decoder::new(file).read_info().unwrap();
        let found =
            reader.info().utf8_text.iter().map(|chunk| (chunk.keyword.as_str(), chunk.get_text().unwrap()));
        assert_eq!(found.collect::<Vec<_>>(), texts);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1); // nothing half-written stays
    }

    #[test]
    fn pictures_are_read_as_pillow_reads_them() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/pictures"));
        let cases = std::fs::read_to_string(folder.join("cases.json")).unwrap();
        let cases: Vec<(String, i64)> = serde_json::from_str(&cases).unwrap();
        assert!(!cases.is_empty());
        let mut worst = 0;
        for (name, resolution) in cases {
            let expected = folder.join("expected").join(&name).with_extension("png");
            let expected = image::open(&expected).unwrap().into_rgb8();
            let expected = Tensor::from_slice(expected.as_raw()).view([resolution, resolution, 3]);
            let got = (read(&folder.join(&name), resolution).unwrap() * 255.0).round().squeeze_dim(0);
            let off = (got.permute([1, 2, 0]) - expected).abs().max().double_value(&[]) as i64;
            println!("{name} to {resolution}: off by {off}");
            let allowed = if name.contains(".jpg") { JPEG } else { 1 };
            assert!(off <= allowed, "{name} to {resolution}: off by {off} of 255");
            worst = worst.max(off);
        }
        println!("worst: {worst} of 255");
    }

    #[test]
    fn padded_pictures_are_those_of_janus() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures/janus_dev"));
        let recorded = Tensor::read_safetensors(path.join("fixture.safetensors")).unwrap();
        let get = |name: &str| recorded.iter().find(|(known, _)| known == name).unwrap().1.shallow_clone();
        let dir = tempfile::tempdir().unwrap();
        for (case, image, expected) in [
            ("portrait", "pre.image_u8_hwc", "pre.pixel_values_size48"),
            ("wide", "pre.wide_image_u8_hwc", "pre.wide_pixel_values_size48"),
        ] {
            let path = dir.path().join(case).with_extension("png");
            let bytes = get(image);
            let size = bytes.size(); // [H,W,3]
            let raw = Vec::<u8>::try_from(bytes.view([-1])).unwrap();
            RgbImage::from_raw(size[1] as u32, size[0] as u32, raw).unwrap().save(&path).unwrap();
            let pixels = read_padded(&path, 48, 127).unwrap();
            let expected = (get(expected) + 1.0) / 2.0 * 255.0; // recorded at mean and deviation 0.5
            let off = (pixels.squeeze_dim(0) * 255.0 - expected).abs().max().double_value(&[]);
            println!("{case}: off by {off} of 255");
            assert!(off.round() <= 1.0, "{case}: off by {off} of 255");
        }
    }

    #[test]
    fn a_thin_picture_keeps_a_few_pixels_between_the_margins() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("thin.png");
        RgbImage::from_pixel(400, 4, image::Rgb([255; 3])).save(&path).unwrap();
        let pixels = (read_padded(&path, 33, 127).unwrap() * 255.0).round().select(1, 0).squeeze(); // [33,33]
        let column = Vec::<f32>::try_from(pixels.select(1, 0)).unwrap();
        let expected = [vec![127.0; 9], vec![255.0; 14], vec![127.0; 10]].concat();
        assert_eq!(column, expected, "the odd row of the margin is below");
    }
}
