//! Pictures from and to files.

use std::borrow::Cow;
use std::convert::Infallible;
use std::io::{BufWriter, Write};
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
use image::{DynamicImage, ImageReader, Rgb, RgbImage};
use tch::{Device, Kind, Tensor};

use crate::error::{Context, Error, Result};
use crate::{input, whole};

/// Pixels that [`read_padded`] leaves of the shorter edge of a thin picture.
const SHORTEST: u32 = 14;

/// Reads a picture as `[1,3,R,R]` f32 in `0..=1`: its shorter edge becomes `resolution` (bicubic, unless it already
/// is), the middle is kept.
///
/// From a PNG the bytes are those of Pillow 13 with torchvision's `Resize` and `CenterCrop`, give or take one: the crate
/// `fast_image_resize` computes each pass in f32, and it is rounded as Pillow's is. Alpha is dropped and EXIF
/// orientation ignored, as by Pillow's `convert("RGB")`; 16 bits are cut to their upper 8, in grey pictures too, which
/// Pillow makes white.
pub fn read(path: &Path, resolution: i64) -> Result<Tensor> {
    let side = resolution as u32;
    let picture = shorter_edge(open(path)?, side).context(|| wrong(path))?;
    let (width, height) = picture.dimensions();
    Ok(to_tensor(&crop_imm(&picture, margin(width - side), margin(height - side), side, side).to_image()))
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
    let picture = resize(&picture, (width, height)).context(|| wrong(path))?;
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
    input::check_file(path)?;
    ImageReader::open(path)
        .and_then(ImageReader::with_guessed_format)
        .map_err(|error| Error::usage(wrong(path)).cause(error))?
        .decode()
        .map(to_bytes)
        .map_err(|error| Error::usage(wrong(path)).cause(error))
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

/// Resizes so that the shorter edge is `side`; the longer one is cut to a whole number.
fn shorter_edge(picture: RgbImage, side: u32) -> Result<RgbImage> {
    let (width, height) = picture.dimensions();
    let short = width.min(height);
    if short == side {
        return Ok(picture);
    }
    let scaled = |edge: u32| (u64::from(edge) * u64::from(side) / u64::from(short)) as u32;
    resize(&picture, (scaled(width), scaled(height)))
}

/// Resizes in two passes.
fn resize(picture: &RgbImage, (new_width, new_height): (u32, u32)) -> Result<RgbImage> {
    let (width, height) = picture.dimensions();
    // Pillow 13 begins with the height when that removes more than twice as many rows as columns go afterwards;
    // earlier ones never do, which for such pictures gives other roundings.
    let rows = i64::from(height) - i64::from(new_height);
    let columns = i64::from(width) - i64::from(new_width);
    let first = if rows > 0 && rows > 2 * columns { (width, new_height) } else { (new_width, height) };
    one_pass(&one_pass(picture, first)?, (new_width, new_height))
}

/// Resizes one of the edges and rounds to bytes, as Pillow does after each of its two passes. With bytes in place of
/// f32 the crate's weights are too coarse: off by 2 at times.
fn one_pass(picture: &RgbImage, (width, height): (u32, u32)) -> Result<RgbImage> {
    if picture.dimensions() == (width, height) {
        return Ok(picture.clone());
    }
    let failed = |error: &dyn std::fmt::Display| Error::failure("cannot resize it").cause(error);
    let pixels: Vec<F32x3> = picture.pixels().map(|pixel| F32x3::new(pixel.0.map(f32::from))).collect();
    let source = TypedImageRef::new(picture.width(), picture.height(), &pixels).map_err(|e| failed(&e))?;
    let mut target = TypedImage::new(width, height);
    // Catmull-Rom is the cubic with a = -0.5, Pillow's.
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::CatmullRom));
    Resizer::new().resize_typed(&source, &mut target, &options).map_err(|e| failed(&e))?;
    let rounded = |value: f32| (value + 0.5).floor() as u8; // `as` cuts at 0 and 255
    let bytes = target.pixels().iter().flat_map(|pixel| pixel.0.map(rounded)).collect();
    RgbImage::from_raw(width, height, bytes).ok_or_else(|| Error::failure("a picture of the wrong size"))
}

/// What is cut off before the middle: half of the rest, and of two equally near the even one, as Python rounds.
fn margin(rest: u32) -> u32 {
    (f64::from(rest) / 2.0).round_ties_even() as u32
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
    whole::file(path, |file| {
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
