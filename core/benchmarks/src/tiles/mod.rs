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
use unirl::model::ModelCard;
use unirl::prompt::{Category, PromptSpec, Relation};
use unirl_prompts::rng::Rng;
use unirl_prompts::{ObjectList, PromptTemplates, Split, Task};

use crate::Benchmark;
use crate::judge::{ImageJudge, Verdict};
use crate::pretraining::{PretrainingData, Question};

pub use describe::{reference_answer, vocabulary};
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

/// The share of the questions of pretraining that are chosen among all questions about the facts of an image, so that a model
/// also understands the question in other words and questions about a part of the facts.
const OTHER_QUESTIONS: f64 = 0.4;

/// The tiles benchmark.
#[derive(Debug, Clone, Copy)]
pub struct Tiles;

impl Benchmark for Tiles {
    fn name(&self) -> &'static str {
        NAME
    }

    fn check_fits(&self, card: &ModelCard) -> Result<()> {
        if card.resolution == SIDE as i64 {
            return Ok(());
        }
        Err(Error::usage(format!(
            "benchmark `{NAME}` judges images of {SIDE}x{SIDE} pixels, model `{}` generates {1}x{1}",
            card.name, card.resolution
        ))
        .hint("choose another benchmark: `--benchmark geneval`"))
    }

    fn categories(&self) -> &[Category] {
        &Category::ALL
    }

    fn sample(&self, category: Category, rng: &mut Rng) -> Result<Task> {
        sample(category, Split::Train, rng)
    }

    fn test_tasks(&self, per_category: usize, seed: u64) -> Result<Vec<Task>> {
        let mut rng = Rng::new(seed);
        Category::ALL
            .iter()
            .flat_map(|category| std::iter::repeat_n(*category, per_category))
            .map(|category| sample(category, Split::Test, &mut rng))
            .collect()
    }

    fn image_judge(&self) -> &dyn ImageJudge {
        self
    }

    fn has_references(&self) -> bool {
        true
    }

    fn pretraining(&self) -> Option<&dyn PretrainingData> {
        Some(self)
    }
}

impl ImageJudge for Tiles {
    fn name(&self) -> String {
        NAME.into()
    }

    fn judge(&self, tasks: &[Task], pixels: &Tensor) -> Result<Vec<Verdict>> {
        let grids = judge::recognize(pixels)?;
        Ok(tasks.iter().zip(&grids).map(|(task, grid)| judge::judge(&task.spec, grid)).collect())
    }

    fn references(&self, tasks: &[Task], seed: u64) -> Result<Vec<Option<Tensor>>> {
        let mut rng = Rng::new(seed);
        tasks.iter().map(|task| Ok(Some(TileGrid::sample(&task.spec, &mut rng)?.render()))).collect()
    }
}

impl PretrainingData for Tiles {
    fn image(&self, rng: &mut Rng) -> Tensor {
        TileGrid::scattered(rng).render()
    }

    fn captioned(&self, category: Category, noise: f64, rng: &mut Rng) -> Result<(String, Tensor)> {
        let task = sample(category, Split::All, rng)?;
        let shown = if rng.chance(noise) { caption_noise(&task, rng)?.spec } else { task.spec };
        Ok((task.prompt, TileGrid::sample(&shown, rng)?.render()))
    }

    fn question(&self, category: Category, mistakes: f64, rng: &mut Rng) -> Result<Question> {
        let task = sample(category, Split::All, rng)?;
        let grid = if rng.chance(mistakes) {
            TileGrid::with_mistake(&task.spec, rng)?
        } else {
            TileGrid::sample(&task.spec, rng)?
        };
        let mut questions = task.questions(usize::MAX);
        let asked = if rng.chance(OTHER_QUESTIONS) { rng.below(questions.len()) } else { 0 };
        let asked = questions.swap_remove(asked);
        let answer = reference_answer(asked.spec.category, &grid);
        Ok(Question { question: asked.question, answer, image: grid.render() })
    }

    fn same_content(&self, images: &Tensor, reconstructed: &Tensor) -> Result<f64> {
        let [expected, found] = [judge::recognize(images)?, judge::recognize(reconstructed)?];
        let same = expected
            .iter()
            .zip(&found)
            .filter(|(one, other)| one.grid().is_some() && one.grid() == other.grid());
        Ok(same.count() as f64 / expected.len() as f64)
    }
}

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
