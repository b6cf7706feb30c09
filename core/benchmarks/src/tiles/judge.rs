//! The exact judge of the tiles benchmark: every tile is compared with the template of every possible tile.

use tch::{Kind, Tensor};
use unirl::error::{Error, Result};
use unirl::prompt::{Category, Object, PromptSpec, Relation};

use super::{GRID, SIDE, TILE, TILES, Tile, TileGrid, pixel};
use crate::judge::Verdict;

/// The largest mean squared error to a template at which a tile is recognized.
///
/// The two closest templates, a cross in orange and in yellow, are 0.027 apart. A tile within a quarter of that is closer to
/// its template than to any other; up to this limit, two fifths, its template is still the most likely one. Uniform noise of
/// ±0.05 is an error below 0.0025.
pub const MAX_ERROR: f32 = 0.011;

/// The content that the judge recognizes in a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecognizedTile {
    /// Background.
    Empty,
    /// A coloured shape.
    Object(Tile),
    /// No template is close enough.
    Unreadable,
}

/// The content that the judge recognizes in an image, tile by tile in row-major order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecognizedGrid {
    /// Tile `row * GRID + column`.
    pub tiles: [RecognizedTile; TILES],
}

impl RecognizedGrid {
    /// Returns the grid, if every tile is readable.
    pub fn grid(&self) -> Option<TileGrid> {
        (self.unreadable() == 0).then(|| self.readable())
    }

    /// Returns the number of unreadable tiles.
    pub fn unreadable(&self) -> usize {
        self.tiles.iter().filter(|tile| **tile == RecognizedTile::Unreadable).count()
    }

    /// Returns the grid with unreadable tiles left empty.
    fn readable(&self) -> TileGrid {
        let tiles = self.tiles.map(|tile| match tile {
            RecognizedTile::Object(tile) => Some(tile),
            RecognizedTile::Empty | RecognizedTile::Unreadable => None,
        });
        TileGrid { tiles }
    }
}

const TILE_PIXELS: usize = 3 * TILE * TILE;

fn template(tile: Option<Tile>) -> [f32; TILE_PIXELS] {
    std::array::from_fn(|i| pixel(tile, i / TILE % TILE, i % TILE, i / (TILE * TILE)))
}

fn templates() -> Vec<(RecognizedTile, [f32; TILE_PIXELS])> {
    let objects = Tile::all().map(|tile| (RecognizedTile::Object(tile), template(Some(tile))));
    std::iter::once((RecognizedTile::Empty, template(None))).chain(objects).collect()
}

fn error(one: &[f32; TILE_PIXELS], other: &[f32; TILE_PIXELS]) -> f32 {
    one.iter().zip(other).map(|(a, b)| (a - b) * (a - b)).sum::<f32>() / TILE_PIXELS as f32
}

/// Recognizes the tiles of images `[B,3,32,32]` with values in `0..=1`, on any device.
pub fn recognize(pixels: &Tensor) -> Result<Vec<RecognizedGrid>> {
    let side = SIDE as i64;
    let size = pixels.size();
    let batch = match size[..] {
        [batch, 3, height, width] if height == side && width == side => batch as usize,
        _ => return Err(Error::failure(format!("tiles judge: expected pixels [B,3,32,32], got {size:?}"))),
    };
    let flat = pixels.detach().to_device(tch::Device::Cpu).to_kind(Kind::Float).contiguous().view([-1]);
    let values = Vec::<f32>::try_from(&flat)?;
    let templates = templates();
    let recognize_tile = |image: &[f32], place: usize| {
        let (top, left) = (place / GRID * TILE, place % GRID * TILE);
        let tile = std::array::from_fn(|i| {
            let (channel, row, column) = (i / (TILE * TILE), i / TILE % TILE, i % TILE);
            image[(channel * SIDE + top + row) * SIDE + left + column]
        });
        templates
            .iter()
            .map(|(recognized, template)| (error(&tile, template), *recognized))
            .filter(|(error, _)| *error <= MAX_ERROR)
            .min_by(|one, other| one.0.total_cmp(&other.0))
            .map_or(RecognizedTile::Unreadable, |(_, recognized)| recognized)
    };
    let image = |at: usize| &values[at * 3 * SIDE * SIDE..(at + 1) * 3 * SIDE * SIDE];
    Ok((0..batch)
        .map(|at| RecognizedGrid { tiles: std::array::from_fn(|place| recognize_tile(image(at), place)) })
        .collect())
}

/// Judges a recognized image. An unreadable tile fails the strict verdict. The lenient verdict treats it as empty, like a
/// detector that finds nothing.
pub fn judge(spec: &PromptSpec, recognized: &RecognizedGrid) -> Verdict {
    let grid = recognized.readable();
    let checked = match recognized.unreadable() {
        0 => grid.check(spec),
        count => Err(Error::failure(format!("{count} unreadable tiles"))),
    };
    let reason = checked.err().map(|error| error.message().to_string()).unwrap_or_default();
    Verdict { strict: reason.is_empty(), lenient: lenient(spec, &grid), reason }
}

fn lenient(spec: &PromptSpec, grid: &TileGrid) -> bool {
    let places = |object: &Object| -> Vec<usize> {
        let fits = |tile: Tile| {
            tile.noun() == object.noun
                && object.color.as_deref().is_none_or(|color| color == tile.color_name())
        };
        grid.objects().filter(|(_, tile)| fits(*tile)).map(|(place, _)| place).collect()
    };
    let found: Vec<Vec<usize>> = spec.objects.iter().map(places).collect();
    let enough = spec.objects.iter().zip(&found).all(|(object, places)| {
        let exact = spec.category == Category::Counting;
        places.len() == object.count as usize || (!exact && places.len() > object.count as usize)
    });
    enough
        && match (spec.relation, found.as_slice()) {
            (Some(relation), [firsts, seconds]) => firsts
                .iter()
                .any(|first| seconds.iter().any(|second| holds_leniently(relation, *first, *second))),
            _ => true,
        }
}

/// The position rule of `GenEval` for boxes of one tile: the offset of the centres along an axis, minus a tenth of both sizes,
/// must be more than half of the distance. Diagonal neighbours can be both `left of` and `above`.
fn holds_leniently(relation: Relation, first: usize, second: usize) -> bool {
    let x = (first % GRID) as f64 - (second % GRID) as f64;
    let y = (first / GRID) as f64 - (second / GRID) as f64;
    let length = x.hypot(y);
    let share = |offset: f64| (offset.abs() - 0.2).max(0.0) * offset.signum() / length;
    length > 0.0
        && match relation {
            Relation::LeftOf => share(x) < -0.5,
            Relation::RightOf => share(x) > 0.5,
            Relation::Above => share(y) < -0.5,
            Relation::Below => share(y) > 0.5,
        }
}

#[cfg(test)]
mod tests {
    use unirl_prompts::Split;
    use unirl_prompts::rng::Rng;

    use super::*;
    use crate::tiles::{reference_answer, render, sample};

    fn recognized(grid: &TileGrid) -> RecognizedGrid {
        RecognizedGrid {
            tiles: grid.tiles.map(|tile| tile.map_or(RecognizedTile::Empty, RecognizedTile::Object)),
        }
    }

    #[test]
    fn max_error_is_two_fifths_of_the_smallest_template_distance() {
        let all = templates();
        let mut nearest = (f32::MAX, RecognizedTile::Empty, RecognizedTile::Empty);
        for (index, (name, one)) in all.iter().enumerate() {
            for (second, other) in &all[..index] {
                if error(one, other) < nearest.0 {
                    nearest = (error(one, other), *second, *name);
                }
            }
        }
        assert!((0.36..0.45).contains(&(MAX_ERROR / nearest.0)), "{nearest:?}");
    }

    #[test]
    fn recognize_finds_every_tile_despite_noise() {
        let tiles: Vec<Tile> = Tile::all().collect();
        let grids: Vec<TileGrid> = tiles
            .chunks(8)
            .map(|chunk| TileGrid {
                tiles: std::array::from_fn(|place| (place % 2 == 0).then(|| chunk[place / 2])),
            })
            .collect();
        let clean = render(&grids);
        let mut rng = Rng::new(9);
        let noise: Vec<f32> =
            (0..clean.numel()).map(|_| (rng.below(1001) as f32 / 1000.0 - 0.5) * 0.1).collect();
        let noisy = &clean + Tensor::from_slice(&noise).view_as(&clean);
        for pixels in [clean, noisy] {
            let found: Vec<_> = recognize(&pixels).unwrap().iter().map(RecognizedGrid::grid).collect();
            assert_eq!(found, grids.iter().copied().map(Some).collect::<Vec<_>>());
        }
    }

    #[test]
    fn grey_image_is_unreadable() {
        let grey = Tensor::full([1, 3, 32, 32], 0.5, (Kind::Float, tch::Device::Cpu));
        let grey = recognize(&grey).unwrap();
        assert_eq!(grey[0].unreadable(), TILES);
        let spec = PromptSpec {
            category: Category::SingleObject,
            objects: vec![Object::one("ring")],
            relation: None,
        };
        let expected = Verdict { strict: false, lenient: false, reason: "16 unreadable tiles".into() };
        assert_eq!(judge(&spec, &grey[0]), expected);
        assert!(recognize(&Tensor::zeros([3, 32, 32], (Kind::Float, tch::Device::Cpu))).is_err());
    }

    #[test]
    fn judge_accepts_correct_images_and_rejects_incorrect_ones() {
        let mut rng = Rng::new(21);
        for category in Category::ALL {
            let tasks: Vec<_> = (0..300).map(|_| sample(category, Split::All, &mut rng).unwrap()).collect();
            let correct: Vec<_> =
                tasks.iter().map(|t| TileGrid::sample(&t.spec, &mut rng).unwrap()).collect();
            for (task, recognized) in tasks.iter().zip(recognize(&render(&correct)).unwrap()) {
                let verdict = judge(&task.spec, &recognized);
                assert!(verdict.strict && verdict.lenient, "{}: {verdict:?}", task.prompt);
            }
            let incorrect: Vec<_> =
                tasks.iter().map(|t| TileGrid::with_mistake(&t.spec, &mut rng).unwrap()).collect();
            for (task, recognized) in tasks.iter().zip(recognize(&render(&incorrect)).unwrap()) {
                let verdict = judge(&task.spec, &recognized);
                let answer = reference_answer(category, &recognized.grid().unwrap());
                assert!(!verdict.strict && !verdict.reason.is_empty(), "{}", task.prompt);
                assert!(!crate::judge::is_correct_answer(&task.spec, &answer), "{}: {answer}", task.prompt);
            }
        }
    }

    #[test]
    fn lenient_verdict_allows_extra_objects_and_diagonal_positions() {
        let circle = |place: usize| (place, Tile { shape: 0, color: 3 });
        let star = |place: usize| (place, Tile { shape: 6, color: 0 });
        let image = |tiles: &[(usize, Tile)]| {
            let mut grid = TileGrid::default();
            for (place, tile) in tiles {
                grid.tiles[*place] = Some(*tile);
            }
            recognized(&grid)
        };
        let objects = vec![Object::one("circle"), Object::one("star")];
        let left = PromptSpec { category: Category::Position, objects, relation: Some(Relation::LeftOf) };
        let verdict = judge(&left, &image(&[circle(0), star(5)]));
        assert!(verdict.lenient && !verdict.strict);
        assert_eq!(verdict.reason, "`circle` is not left of `star`");
        assert!(!judge(&left, &image(&[circle(0), star(9)])).lenient);

        let mut one = Object::one("circle");
        let single =
            PromptSpec { category: Category::SingleObject, objects: vec![one.clone()], relation: None };
        let verdict = judge(&single, &image(&[circle(0), star(5)]));
        assert!(verdict.lenient && !verdict.strict);
        assert_eq!(verdict.reason, "an extra `red star`");
        one.count = 2;
        let two = PromptSpec { category: Category::Counting, objects: vec![one], relation: None };
        assert!(judge(&two, &image(&[circle(0), circle(2), star(5)])).lenient);
        assert!(!judge(&two, &image(&[circle(0), circle(2), circle(5)])).lenient);
    }
}
