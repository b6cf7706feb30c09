//! Reads image files as Pillow does.

use std::fs::File;
use std::io::{Cursor, Read as _};
use std::path::Path;

use image::imageops::replace;
use image::{DynamicImage, ImageDecoder as _, ImageError, ImageFormat, ImageReader, Limits, Rgb, RgbImage};
use tch::{Kind, Tensor};
use unirl::error::{Context, Error, Result};
use unirl::model::ModelCard;
use unirl_base::input;

use super::resize::{Window, centre_crop, resize};

/// The minimum length of the shorter edge in [`read_padded`].
const MIN_EDGE: u32 = 14;

/// The maximum number of pixels: Pillow's limit against decompression bombs.
const MAX_PIXELS: u64 = 2 * (1 << 30) / 4 / 3;

/// The maximum size of an image file.
const MAX_BYTES: u64 = 1 << 29;

/// Returns a function that reads an image file at the input resolution of a model: `[1,3,R,R]` f32 in `0..=1`.
pub fn reader(card: &ModelCard) -> impl Fn(&Path) -> Result<Tensor> + use<> {
    let (side, pad) = (card.input_resolution.unwrap_or(card.resolution), card.pad_value);
    move |path| match pad {
        Some(pad) => read_padded(path, side, pad),
        None => read(path, side),
    }
}

/// Reads an image as `[1,3,R,R]` f32 in `0..=1`: its shorter edge is resized to `resolution` (bicubic) and the centre cropped.
///
/// For a PNG the bytes differ by at most one from those of Pillow 13 with torchvision's `Resize` and `CenterCrop`. As with
/// Pillow's `convert("RGB")`, alpha is dropped and the EXIF orientation ignored. 16-bit channels are cut to the upper 8 bits,
/// in grey images as well, which Pillow makes white.
pub fn read(path: &Path, resolution: i64) -> Result<Tensor> {
    centre_crop(&open(path)?, resolution as u32).map(|image| to_tensor(&image)).context(|| cannot_read(path))
}

/// Reads an image as `[1,3,R,R]` f32 in `0..=1`: its longer edge is resized to `resolution`, the shorter one to at least 14
/// pixels, and it is padded to a centred square with the grey `fill`. As exact as [`read()`].
pub fn read_padded(path: &Path, resolution: i64, fill: u8) -> Result<Tensor> {
    let side = resolution as u32;
    let image = open(path)?;
    let (width, height) = image.dimensions();
    let longer = f64::from(width.max(height));
    // In the order of the Python code, so that it is rounded down in the same cases.
    let scaled = |edge: u32| ((f64::from(edge) / longer * f64::from(side)) as u32).max(MIN_EDGE).min(side);
    let (new_width, new_height) = (scaled(width), scaled(height));
    let uncropped = |length: u32, resized: u32| Window::new(length, resized.into(), 0, resized);
    let image = resize(&image, [uncropped(width, new_width), uncropped(height, new_height)])
        .context(|| cannot_read(path))?;
    let mut square = RgbImage::from_pixel(side, side, Rgb([fill; 3]));
    let (left, top) = ((side - new_width) / 2, (side - new_height) / 2);
    replace(&mut square, &image, left.into(), top.into());
    Ok(to_tensor(&square))
}

/// Reads an image as `[1,3,H,W]` f32 in `0..=1` without resizing it.
pub fn read_unscaled(path: &Path) -> Result<Tensor> {
    Ok(to_tensor(&open(path)?))
}

fn cannot_read(path: &Path) -> String {
    format!("cannot read image `{}`", path.display())
}

fn open(path: &Path) -> Result<RgbImage> {
    let failed = |cause: &dyn std::fmt::Display| Error::usage(cannot_read(path)).cause(cause);
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes))
        .map_err(|error| failed(&error))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(failed(&format!("the file has more than {MAX_BYTES} bytes")));
    }
    input::check_content(&path.display().to_string(), &bytes)?;
    if bytes.is_empty() {
        return Err(failed(&"the file is empty"));
    }
    let truncated = || failed(&"the file is truncated").hint("copy or download it again");
    let too_large =
        |what: &str| failed(&format!("{what}, expected at most {MAX_PIXELS} pixels")).hint("reduce its size");
    let decode_error = |error: ImageError| match &error {
        ImageError::Limits(_) => too_large("it does not fit into memory"),
        ImageError::IoError(cause) if cause.kind() == std::io::ErrorKind::UnexpectedEof => truncated(),
        _ => failed(&error),
    };
    let reader =
        ImageReader::new(Cursor::new(&bytes)).with_guessed_format().map_err(|error| failed(&error))?;
    // The decoder fills the missing part of a truncated JPEG with grey.
    if reader.format() == Some(ImageFormat::Jpeg) && !has_jpeg_end(&bytes) {
        return Err(truncated());
    }
    let mut decoder = reader.into_decoder().map_err(decode_error)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(too_large(&format!("it has {width}×{height} pixels")));
    }
    let mut limits = Limits::default();
    limits.reserve(decoder.total_bytes()).and_then(|()| decoder.set_limits(limits)).map_err(decode_error)?;
    DynamicImage::from_decoder(decoder).map(to_rgb8).map_err(decode_error)
}

/// Whether a JPEG has an end-of-image marker outside of segments, which may hold a thumbnail.
fn has_jpeg_end(bytes: &[u8]) -> bool {
    const SEGMENTS_WITHOUT_LENGTH: [u8; 10] = [0x01, 0xd0, 0xd1, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8];
    let mut rest = bytes;
    // Compressed data precede a marker; in them 0xff is followed by 0.
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

/// Converts an image to `[1,3,H,W]` in `0..=1`.
fn to_tensor(image: &RgbImage) -> Tensor {
    let (width, height) = image.dimensions();
    let bytes = Tensor::from_slice(image.as_raw()).view([1, height.into(), width.into(), 3]);
    bytes.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0
}

fn to_rgb8(image: DynamicImage) -> RgbImage {
    use DynamicImage::{ImageLuma16, ImageLumaA16, ImageRgb16, ImageRgba16};
    match image {
        ImageLuma16(_) | ImageLumaA16(_) | ImageRgb16(_) | ImageRgba16(_) => {
            let wide = image.into_rgb16();
            RgbImage::from_fn(wide.width(), wide.height(), |x, y| {
                Rgb(wide.get_pixel(x, y).0.map(|value| (value >> 8) as u8))
            })
        }
        _ => image.into_rgb8(),
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::image_io::{noise, write_grid};

    /// The tolerance for JPEGs, of 255: the decoders upsample subsampled colours differently, by up to 3.
    const JPEG_TOLERANCE: i64 = 3;

    #[test]
    fn read_returns_the_written_image() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("one.png");
        let pixels =
            Tensor::arange(3 * 32 * 32, (Kind::Int64, Device::Cpu)).remainder(256).view([1, 3, 32, 32]);
        let pixels = pixels.to_kind(Kind::Float) / 255.0;
        write_grid(&pixels, 1, &path, &[]).unwrap();
        let off = (read(&path, 32).unwrap() - pixels).abs().max().double_value(&[]);
        assert!(off <= 1.0 / 255.0 + 1e-6, "off by {off}"); // writing rounds down
    }

    #[test]
    fn wide_image_is_centre_cropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wide.png");
        let column = |x: u32, _| image::Rgb(if (32..64).contains(&x) { [255, 0, 0] } else { [0, 0, 255] });
        image::RgbImage::from_fn(96, 32, column).save(&path).unwrap();
        let pixels = read(&path, 32).unwrap();
        assert_eq!(pixels.size(), [1, 3, 32, 32]);
        assert!((pixels.select(1, 0).min().double_value(&[]) - 1.0).abs() < 1e-6); // exact up to f32 division
    }

    #[test]
    fn very_thin_images_are_read() {
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
            // The centre spans both halves.
            let value = |tensor: Tensor| (tensor * 255.0).round().int64_value(&[]);
            assert_eq!(
                (value(pixels.get(0).get(0).get(0).get(0)), value(pixels.get(0).get(0).get(335).get(335))),
                (0, 200)
            );
            assert_eq!(read_padded(&path, 384, 127).unwrap().size(), [1, 3, 384, 384]);
        }
    }

    #[test]
    fn decompression_bombs_are_refused() {
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
            let cause = format!("it has {width}×{height} pixels, expected at most 178956970 pixels");
            assert_eq!(error.causes(), [cause], "{error}");
        }
    }

    fn odd_jpegs() -> Vec<(String, Vec<u8>)> {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/jpeg"));
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut all: Vec<(String, Vec<u8>)> = paths
            .filter(|path| path.extension().is_some_and(|ending| ending == "jpg"))
            .map(|path| (path.display().to_string(), std::fs::read(path).unwrap()))
            .collect();
        assert_eq!(all.len(), 9);
        let plain = all[0].1.clone();
        // The thumbnail in a segment also has an end marker.
        let mut thumbnail = vec![0xff, 0xd8, 0xff, 0xe1];
        thumbnail.extend(((plain.len() + 2) as u16).to_be_bytes());
        thumbnail.extend_from_slice(&plain);
        thumbnail.extend_from_slice(&plain[2..]);
        all.push(("thumbnail".into(), thumbnail));
        all
    }

    #[test]
    fn intact_jpegs_are_read() {
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
    fn truncated_jpegs_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cut.jpg");
        for (name, bytes) in odd_jpegs() {
            for length in (4..bytes.len() - 1).step_by(41).chain([bytes.len() - 2, bytes.len() - 1]) {
                // The rest is missing, or zero as after an interrupted copy.
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
    fn truncated_pngs_are_refused() {
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
    fn read_matches_pillow() {
        let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/pictures"));
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
            let allowed = if name.contains(".jpg") { JPEG_TOLERANCE } else { 1 };
            assert!(off <= allowed, "{name} to {resolution}: off by {off} of 255");
            worst = worst.max(off);
        }
        println!("worst: {worst} of 255");
    }

    #[test]
    fn read_padded_matches_janus() {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/janus_dev"));
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
    fn read_padded_keeps_the_minimum_edge_of_thin_images() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("thin.png");
        RgbImage::from_pixel(400, 4, image::Rgb([255; 3])).save(&path).unwrap();
        let pixels = (read_padded(&path, 33, 127).unwrap() * 255.0).round().select(1, 0).squeeze(); // [33,33]
        let column = Vec::<f32>::try_from(pixels.select(1, 0)).unwrap();
        let expected = [vec![127.0; 9], vec![255.0; 14], vec![127.0; 10]].concat();
        assert_eq!(column, expected, "the extra row of padding is at the bottom");
    }
}
