//! The tiles benchmark: images of 4×4 tiles with 8×8 pixels each. A tile is empty or shows one of eight shapes in one of eight
//! colours.
//!
//! `codec` is an exact image tokenizer, `palette` defines shapes and colours, `sampling` samples correct and incorrect images
//! of a spec, and `describe` writes the reference answer about an image.

pub mod codec;
mod describe;
pub mod judge;
mod palette;
mod sampling;

use tch::Tensor;
use unirl::error::{Error, Result};
use unirl::prompt::{Category, PromptSpec, Relation};
use unirl_prompts::rng::Rng;
use unirl_prompts::{ObjectList, PromptTemplates, Split, Task};

pub use describe::{reference_answer, vocabulary};
pub use judge::TilesJudge;
pub use palette::{BACKGROUND, COLORS, SHAPES, partner};
pub use sampling::caption_noise;

/// The name of the benchmark, in [`ModelCard::benchmark`](unirl::model::ModelCard::benchmark) and in receipts.
pub const NAME: &str = "tiles";
/// The number of tiles along an edge.
pub const GRID: usize = 4;
/// The number of tiles of an image.
pub const TILES: usize = GRID * GRID;
/// The edge of a tile in pixels.
pub const TILE: usize = 8;
/// The edge of an image in pixels.
pub const SIDE: usize = GRID * TILE;

/// A coloured shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Index into [`SHAPES`].
    pub shape: usize,
    /// Index into [`COLORS`].
    pub color: usize,
}

impl Tile {
    /// Returns all 64, ordered by shape, then colour.
    pub fn all() -> impl Iterator<Item = Tile> {
        (0..SHAPES.len()).flat_map(|shape| (0..COLORS.len()).map(move |color| Tile { shape, color }))
    }

    /// Returns the name of the shape.
    pub fn noun(self) -> &'static str {
        SHAPES[self.shape].0
    }

    /// Returns the name of the colour.
    pub fn color_name(self) -> &'static str {
        COLORS[self.color].0
    }
}

/// The content of an image, tile by tile in row-major order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TileGrid {
    /// The tile at `row * GRID + column`; `None` if empty.
    pub tiles: [Option<Tile>; TILES],
}

/// Returns the shapes and colours as an object list.
pub fn object_list() -> ObjectList {
    ObjectList {
        nouns: SHAPES.iter().map(|(name, _)| (*name).into()).collect(),
        colors: COLORS.iter().map(|(name, _)| (*name).into()).collect(),
    }
}

pub(crate) fn index_of<T>(kind: &str, name: &str, known: &[(&str, T)]) -> Result<usize> {
    known.iter().position(|(word, _)| *word == name).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        unirl::error::unknown_name(kind, name, &names)
    })
}

/// Returns the value of a pixel of a tile.
pub(crate) fn pixel(tile: Option<Tile>, row: usize, column: usize, channel: usize) -> f32 {
    match tile {
        Some(tile) if SHAPES[tile.shape].1[row].as_bytes()[column] == b'#' => COLORS[tile.color].1[channel],
        _ => BACKGROUND[channel],
    }
}

/// Renders images to a tensor `[B,3,32,32]`, f32 in `0..=1`.
pub fn render(grids: &[TileGrid]) -> Tensor {
    let pixels: Vec<f32> = grids.iter().flat_map(TileGrid::pixels).collect();
    Tensor::from_slice(&pixels).view([grids.len() as i64, 3, SIDE as i64, SIDE as i64])
}

impl TileGrid {
    /// Renders the image to a flat `[3,32,32]`, in `0..=1`.
    pub fn pixels(&self) -> Vec<f32> {
        let mut pixels = Vec::with_capacity(3 * SIDE * SIDE);
        for channel in 0..3 {
            for row in 0..SIDE {
                for column in 0..SIDE {
                    let tile = self.tiles[row / TILE * GRID + column / TILE];
                    pixels.push(pixel(tile, row % TILE, column % TILE, channel));
                }
            }
        }
        pixels
    }

    /// Renders the image to a tensor `[3,32,32]`.
    pub fn render(&self) -> Tensor {
        Tensor::from_slice(&self.pixels()).view([3, SIDE as i64, SIDE as i64])
    }

    /// Returns the objects with their positions, in row-major order.
    pub fn objects(&self) -> impl Iterator<Item = (usize, Tile)> + '_ {
        self.tiles.iter().enumerate().filter_map(|(place, tile)| tile.map(|tile| (place, tile)))
    }

    /// Errors unless the image shows exactly the objects of the spec; the message names the difference.
    pub fn check(&self, spec: &PromptSpec) -> Result<()> {
        let mut remaining: Vec<(usize, Tile)> = self.objects().collect();
        let mut places = Vec::new();
        for object in &spec.objects {
            for found in 0..object.count {
                let fits = |(_, tile): &(usize, Tile)| {
                    tile.noun() == object.noun
                        && object.color.as_deref().is_none_or(|c| c == tile.color_name())
                };
                let Some(index) = remaining.iter().position(fits) else {
                    let color = object.color.as_ref().map(|color| format!("{color} ")).unwrap_or_default();
                    let what = format!("{color}{}", object.noun);
                    return Err(Error::failure(format!("{found} of {} `{what}`", object.count)));
                };
                places.push(remaining.remove(index).0);
            }
        }
        if let Some((_, tile)) = remaining.first() {
            return Err(Error::failure(format!("an extra `{} {}`", tile.color_name(), tile.noun())));
        }
        if let (Some(expected), [first, second]) = (spec.relation, places.as_slice())
            && relation(*first, *second) != Some(expected)
        {
            let noun = |at: usize| spec.objects.get(at).map_or("", |object| &object.noun);
            let (first, second) = (noun(0), noun(1));
            return Err(Error::failure(format!("`{first}` is not {} `{second}`", expected.words())));
        }
        Ok(())
    }
}

/// Returns the relation of the first position to the second; `None` unless they share a row or a column.
pub fn relation(first: usize, second: usize) -> Option<Relation> {
    let (row, column) = (first / GRID, first % GRID);
    let (other_row, other_column) = (second / GRID, second % GRID);
    match (row.cmp(&other_row), column.cmp(&other_column)) {
        (std::cmp::Ordering::Equal, std::cmp::Ordering::Less) => Some(Relation::LeftOf),
        (std::cmp::Ordering::Equal, std::cmp::Ordering::Greater) => Some(Relation::RightOf),
        (std::cmp::Ordering::Less, std::cmp::Ordering::Equal) => Some(Relation::Above),
        (std::cmp::Ordering::Greater, std::cmp::Ordering::Equal) => Some(Relation::Below),
        _ => None,
    }
}

/// Samples a task of the tiles benchmark.
pub fn sample(category: Category, split: Split, rng: &mut Rng) -> Result<Task> {
    unirl_prompts::sample(&object_list(), category, split, rng).map(task)
}

/// Returns the task of a spec, in the prompt templates of the embedded models.
pub fn task(spec: PromptSpec) -> Task {
    PromptTemplates::tiles().task(spec)
}
