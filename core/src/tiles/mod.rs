//! The drawn world: 4x4 tiles of 8x8 pixels, each empty or one of eight shapes in one of eight colours.
//!
//! `codec` is an image tokenizer for it, `palette` holds what a tile looks like, `draw` makes right and wrong drawings of facts, `describe` says what is
//! there in the words of each question.

pub mod codec;
mod describe;
mod palette;
mod sampling;

use tch::Tensor;

use crate::error::{Error, Result};
use crate::prompts::rng::Rng;
use crate::prompts::{self, Category, ObjectList, PromptSpec, PromptTemplates, Relation, Split, Task};

pub use describe::{reference_answer, vocabulary};
pub use palette::{BACKGROUND, COLORS, SHAPES, partner};
pub use sampling::caption_noise;

/// Tiles along an edge.
pub const GRID: usize = 4;
/// Tiles of a scene.
pub const TILES: usize = GRID * GRID;
/// Pixels along the edge of a tile.
pub const TILE: usize = 8;
/// Pixels along the edge of an image.
pub const SIDE: usize = GRID * TILE;

/// What stands in a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Index into [`SHAPES`].
    pub shape: usize,
    /// Index into [`COLORS`].
    pub color: usize,
}

impl Tile {
    /// All 64, by shape, then colour.
    pub fn all() -> impl Iterator<Item = Tile> {
        (0..SHAPES.len()).flat_map(|shape| (0..COLORS.len()).map(move |color| Tile { shape, color }))
    }

    /// The name of the shape.
    pub fn noun(self) -> &'static str {
        SHAPES[self.shape].0
    }

    /// The name of the colour.
    pub fn color_name(self) -> &'static str {
        COLORS[self.color].0
    }
}

/// A drawing, tile by tile in reading order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct TileGrid {
    /// What stands where; tile `row * GRID + column`.
    pub tiles: [Option<Tile>; TILES],
}

/// Shapes and colours as a list to make tasks from.
pub fn object_list() -> ObjectList {
    ObjectList {
        nouns: SHAPES.iter().map(|(name, _)| (*name).into()).collect(),
        colors: COLORS.iter().map(|(name, _)| (*name).into()).collect(),
    }
}

pub(crate) fn index_of<T>(kind: &str, name: &str, known: &[(&str, T)]) -> Result<usize> {
    known.iter().position(|(word, _)| *word == name).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
        crate::error::unknown_name(kind, name, &names)
    })
}

/// The pixel of a tile's picture: row, column, channel.
pub(crate) fn pixel(tile: Option<Tile>, row: usize, column: usize, channel: usize) -> f32 {
    match tile {
        Some(tile) if SHAPES[tile.shape].1[row].as_bytes()[column] == b'#' => COLORS[tile.color].1[channel],
        _ => BACKGROUND[channel],
    }
}

/// The drawings as one tensor `[B,3,32,32]`, f32 in `0..=1`.
pub fn render(scenes: &[TileGrid]) -> Tensor {
    let pixels: Vec<f32> = scenes.iter().flat_map(TileGrid::pixels).collect();
    Tensor::from_slice(&pixels).view([scenes.len() as i64, 3, SIDE as i64, SIDE as i64])
}

impl TileGrid {
    /// The drawing as `[3,32,32]` in one slice, in `0..=1`.
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

    /// The drawing as a tensor `[3,32,32]`.
    pub fn render(&self) -> Tensor {
        Tensor::from_slice(&self.pixels()).view([3, SIDE as i64, SIDE as i64])
    }

    /// What is there with its place, in reading order.
    pub fn objects(&self) -> impl Iterator<Item = (usize, Tile)> + '_ {
        self.tiles.iter().enumerate().filter_map(|(place, tile)| tile.map(|tile| (place, tile)))
    }

    /// Whether the drawing shows exactly what was asked for and nothing else; the error says what is wrong.
    pub fn check(&self, spec: &PromptSpec) -> Result<()> {
        let mut left: Vec<(usize, Tile)> = self.objects().collect();
        let mut places = Vec::new();
        for object in &spec.objects {
            for found in 0..object.count {
                let fits = |(_, tile): &(usize, Tile)| {
                    tile.noun() == object.noun
                        && object.color.as_deref().is_none_or(|c| c == tile.color_name())
                };
                let Some(index) = left.iter().position(fits) else {
                    let color = object.color.as_ref().map(|color| format!("{color} ")).unwrap_or_default();
                    let what = format!("{color}{}", object.noun);
                    return Err(Error::failure(format!("{found} of {} `{what}`", object.count)));
                };
                places.push(left.remove(index).0);
            }
        }
        if let Some((_, tile)) = left.first() {
            return Err(Error::failure(format!("an extra `{} {}`", tile.color_name(), tile.noun())));
        }
        if let (Some(asked), [first, second]) = (spec.relation, places.as_slice())
            && relation(*first, *second) != Some(asked)
        {
            let noun = |at: usize| spec.objects.get(at).map_or("", |object| &object.noun);
            let (first, second) = (noun(0), noun(1));
            return Err(Error::failure(format!("`{first}` is not {} `{second}`", asked.words())));
        }
        Ok(())
    }
}

/// Where the first place lies, seen from the second: only in the same row or column.
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

/// A random task of the drawn world.
pub fn sample(category: Category, split: Split, rng: &mut Rng) -> Result<Task> {
    prompts::sample(&object_list(), category, split, rng).map(task)
}

/// The task of some facts, in the words that the embedded models know.
pub fn task(spec: PromptSpec) -> Task {
    PromptTemplates::tiles().task(spec)
}
