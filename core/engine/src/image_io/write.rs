//! Writes images as PNG.

use std::io::{BufWriter, Write};
use std::path::Path;

use image::imageops::replace;
use image::{Rgb, RgbImage};
use tch::{Device, Kind, Tensor};
use unirl::error::{Context, Error, Result};

use crate::atomic_fs;

/// Writes `[B,3,H,W]` pixels in `0..=1` as one PNG. A single image keeps its size, so that [`super::read()`] returns it; several
/// form a grid with `columns` columns, in which small images are enlarged without smoothing. `texts`, keys and values, become
/// metadata of the file.
pub fn write_grid(pixels: &Tensor, columns: i64, path: &Path, texts: &[(&str, String)]) -> Result<()> {
    let (batch, _, height, _) = pixels.size4().context(|| "images to save")?;
    let scale = if batch == 1 { 1 } else { (96 / height.max(1)).max(1) };
    let images = enlarged(pixels, scale)?;
    if let [one] = &images[..] {
        return write_png(path, one, texts);
    }
    let (width, height) = images.first().map_or((0, 0), RgbImage::dimensions);
    let (columns, gap) = (columns.clamp(1, batch.max(1)) as u32, scale as u32);
    let rows = (images.len() as u32).div_ceil(columns);
    let size = (columns * (width + gap) + gap, rows * (height + gap) + gap);
    let mut canvas = RgbImage::from_pixel(size.0, size.1, Rgb([160; 3]));
    for (index, image) in (0..).zip(&images) {
        let (row, column) = (index / columns, index % columns);
        let (left, top) = (gap + column * (width + gap), gap + row * (height + gap));
        replace(&mut canvas, image, left.into(), top.into());
    }
    write_png(path, &canvas, texts)
}

/// Converts `[B,3,H,W]` pixels in `0..=1` to images, enlarged `scale` times without smoothing.
pub(crate) fn enlarged(pixels: &Tensor, scale: i64) -> Result<Vec<RgbImage>> {
    let (batch, _, height, width) = pixels.size4().context(|| "images to save")?;
    let pixels = pixels.to_device(Device::Cpu).to_kind(Kind::Float).clamp(0.0, 1.0) * 255.0;
    let pixels = pixels.repeat_interleave_self_int(scale, 2, None).repeat_interleave_self_int(scale, 3, None);
    let bytes = pixels.permute([0, 2, 3, 1]).to_kind(Kind::Uint8); // [B,H,W,3]
    (0..batch)
        .map(|index| {
            let bytes = Vec::<u8>::try_from(bytes.get(index).contiguous().view([-1]))?;
            RgbImage::from_raw((width * scale) as u32, (height * scale) as u32, bytes)
                .ok_or_else(|| Error::failure("the image has the wrong size"))
        })
        .collect()
}

/// Writes an image atomically, with `texts` as metadata.
pub(crate) fn write_png(path: &Path, image: &RgbImage, texts: &[(&str, String)]) -> Result<()> {
    atomic_fs::write_with(path, |file| {
        let place = || "cannot encode the image";
        let encoding = |error: png::EncodingError| Error::failure(place()).cause(error);
        let mut file = BufWriter::new(file);
        let mut encoder = png::Encoder::new(&mut file, image.width(), image.height());
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        for (key, value) in texts {
            // Of the text chunks only iTXt is UTF-8.
            encoder.add_itxt_chunk((*key).to_string(), value.clone()).map_err(encoding)?;
        }
        let mut writer = encoder.write_header().map_err(encoding)?;
        writer.write_image_data(image.as_raw()).map_err(encoding)?;
        writer.finish().map_err(encoding)?;
        file.flush().context(place)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_grid_enlarges_small_images() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grid.png");
        let pixels = Tensor::zeros([3, 3, 32, 32], (Kind::Float, Device::Cpu));
        let _ = pixels.get(2).fill_(1.0);
        write_grid(&pixels, 2, &path, &[]).unwrap();
        let image = image::open(&path).unwrap().to_rgb8();
        assert_eq!(image.dimensions(), (2 * 99 + 3, 2 * 99 + 3));
        assert_eq!((image.get_pixel(50, 50).0, image.get_pixel(50, 150).0), ([0; 3], [255; 3]));
    }

    #[test]
    fn write_grid_stores_metadata_and_replaces_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("texts.png");
        let texts = [("prompt", "ein größeres Bild\n猫と🐈".to_string()), ("seed", "7".to_string())];
        let pixels = Tensor::zeros([1, 3, 8, 8], (Kind::Float, Device::Cpu));
        write_grid(&pixels, 1, &path, &texts).unwrap();
        write_grid(&pixels, 1, &path, &texts).unwrap(); // replaces the first
        let file = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
        let reader = png::Decoder::new(file).read_info().unwrap();
        let found =
            reader.info().utf8_text.iter().map(|chunk| (chunk.keyword.as_str(), chunk.get_text().unwrap()));
        assert_eq!(found.collect::<Vec<_>>(), texts);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1); // no temporary file
    }
}
