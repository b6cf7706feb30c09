//! Pictures from and to files.

use std::path::Path;

use image::imageops::{FilterType, crop_imm, resize};
use tch::{Device, Kind, Tensor};

use crate::error::{Context, Error, Result};

/// Reads a picture as `[1,3,R,R]` f32 in `0..=1`: its shorter edge becomes `resolution` (Catmull-Rom, unless it already
/// is), the middle is kept.
pub fn read(path: &Path, resolution: i64) -> Result<Tensor> {
    let picture = image::open(path)
        .map_err(|error| Error::usage(format!("cannot read the picture `{}`", path.display())).cause(error))?
        .to_rgb8();
    let side = resolution as u32;
    let (width, height) = picture.dimensions();
    let short = width.min(height).max(1);
    let scaled = |edge: u32| (u64::from(edge) * u64::from(side) / u64::from(short)) as u32;
    let picture = match short == side {
        true => picture,
        false => resize(&picture, scaled(width), scaled(height), FilterType::CatmullRom),
    };
    let (width, height) = picture.dimensions();
    let middle = crop_imm(&picture, (width - side) / 2, (height - side) / 2, side, side).to_image();
    let bytes = Tensor::from_slice(middle.as_raw()).view([1, resolution, resolution, 3]);
    Ok(bytes.permute([0, 3, 1, 2]).to_kind(Kind::Float) / 255.0)
}

/// Writes `[B,3,H,W]` pixels in `0..=1` as one PNG: a single image as it is, so that [`read`] gives it back; several
/// in a grid, `columns` a row, small ones enlarged without smoothing.
pub fn write_grid(pixels: &Tensor, columns: i64, path: &Path) -> Result<()> {
    let (batch, _, height, width) = pixels.size4().context(|| "pictures to save")?;
    let enlarged = (96 / height.max(1)).max(1);
    let (scale, gap) = if batch == 1 { (1, 0) } else { (enlarged, enlarged) };
    let (cell_h, cell_w) = (height * scale, width * scale);
    let columns = columns.clamp(1, batch.max(1));
    let rows = (batch + columns - 1) / columns;
    let pixels = pixels.to_device(Device::Cpu).to_kind(Kind::Float).clamp(0.0, 1.0) * 255.0;
    let pixels = pixels.repeat_interleave_self_int(scale, 2, None).repeat_interleave_self_int(scale, 3, None);
    let canvas = Tensor::full(
        [3, rows * (cell_h + gap) + gap, columns * (cell_w + gap) + gap],
        160.0,
        (Kind::Float, Device::Cpu),
    );
    for index in 0..batch {
        let (row, column) = (index / columns, index % columns);
        canvas
            .narrow(1, gap + row * (cell_h + gap), cell_h)
            .narrow(2, gap + column * (cell_w + gap), cell_w)
            .copy_(&pixels.get(index));
    }
    let size = canvas.size();
    let bytes = Vec::<u8>::try_from(canvas.permute([1, 2, 0]).contiguous().to_kind(Kind::Uint8).view([-1]))?;
    let picture = image::RgbImage::from_raw(size[2] as u32, size[1] as u32, bytes)
        .ok_or_else(|| Error::failure("a picture of the wrong size"))?;
    picture.save(path).context(|| format!("cannot write `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_shows_every_picture_enlarged() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("grid.png");
        let pixels = Tensor::zeros([3, 3, 32, 32], (Kind::Float, Device::Cpu));
        let _ = pixels.get(2).fill_(1.0);
        write_grid(&pixels, 2, &path).unwrap();
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
        write_grid(&pixels, 1, &path).unwrap();
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
}
