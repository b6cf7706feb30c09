//! Grids of generated images with captions.

use std::borrow::Cow;
use std::convert::Infallible;
use std::path::Path;

use embedded_graphics::mono_font::iso_8859_1::FONT_6X10;
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::{DrawTarget, Drawable, OriginDimensions, Pixel, Point, RgbColor, Size};
use embedded_graphics::text::{Baseline, Text};
use image::imageops::replace;
use image::{Rgb, RgbImage};
use tch::Tensor;
use unirl::error::{Context, Result};

use crate::image_io::{enlarged, write_png};

/// The caption of an image.
#[derive(Debug, Clone, Default)]
pub(crate) struct Caption {
    /// Shown above the row, for its first image only.
    pub(crate) above: String,
    /// Shown below the image.
    pub(crate) below: String,
}

/// Writes `[B,3,H,W]` pixels in `0..=1` as a PNG grid with `columns` columns and a caption for each image.
pub(crate) fn write(pixels: &Tensor, columns: i64, captions: &[Caption], path: &Path) -> Result<()> {
    const GAP: u32 = 6;
    let (batch, _, height, _) = pixels.size4().context(|| "images to save")?;
    let images = enlarged(pixels, (128 / height.max(1)).max(1))?;
    let columns = columns.clamp(1, batch.max(1)) as usize;
    let (width, height) = images.first().map_or((0, 0), RgbImage::dimensions);
    let grid_width = columns as u32 * (width + GAP) + GAP;

    let rows: Vec<(WrappedText, Vec<WrappedText>)> = captions
        .chunks(columns)
        .map(|row| {
            let below = row.iter().map(|caption| WrappedText::new(&caption.below, width)).collect();
            (WrappedText::new(&row[0].above, grid_width - 2 * GAP), below)
        })
        .collect();
    let row_height = |(above, below): &(WrappedText, Vec<WrappedText>)| {
        above.height() + height + below.iter().map(WrappedText::height).max().unwrap_or(0) + 3 * GAP
    };
    let mut canvas =
        Canvas(RgbImage::from_pixel(grid_width, rows.iter().map(row_height).sum(), Rgb([255; 3])));
    let mut top = 0;
    for (row, images) in rows.iter().zip(images.chunks(columns)) {
        let (above, below) = row;
        above.draw(&mut canvas, GAP, top + GAP);
        let middle = top + GAP + above.height();
        for (index, (image, below)) in images.iter().zip(below).enumerate() {
            let left = GAP + index as u32 * (width + GAP);
            replace(&mut canvas.0, image, left.into(), middle.into());
            below.draw(&mut canvas, left, middle + height + 2);
        }
        top += row_height(row);
    }
    write_png(path, &canvas.0, &[])
}

const FONT: MonoFont<'_> = FONT_6X10;

/// A text, wrapped to a width in pixels.
struct WrappedText(Vec<String>);

impl WrappedText {
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

/// An image as a target of `embedded_graphics`.
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
