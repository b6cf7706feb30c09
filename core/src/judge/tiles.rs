//! The exact judge of the drawn world: every tile is compared with every tile there is.

use tch::{Kind, Tensor};

use super::Verdict;
use crate::error::{Error, Result};
use crate::prompts::{Category, Object, PromptSpec, Relation};
use crate::tiles::{GRID, SIDE, TILE, TILES, Tile, TileGrid, pixel};

/// The largest mean squared error at which a tile is still read.
///
/// The two nearest tiles (a cross in orange and in yellow) are 0.027 apart, so that a tile within a quarter of that is
/// nearer to its own picture than to any other; from there up to this limit, two fifths, it is still the likeliest.
/// Even noise of +-0.05 is an error of 0.0025.
pub const READABLE: f32 = 0.011;

/// What the judge sees in a tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecognizedTile {
    /// Paper.
    Empty,
    /// A shape in a colour.
    Object(Tile),
    /// Nothing of this world.
    Unreadable,
}

/// What the judge sees in an image, tile by tile in reading order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecognizedGrid {
    /// Tile `row * GRID + column`.
    pub tiles: [RecognizedTile; TILES],
}

impl RecognizedGrid {
    /// The scene, if every tile is readable.
    pub fn scene(&self) -> Option<TileGrid> {
        (self.unreadable() == 0).then(|| self.readable())
    }

    /// How many tiles are unreadable.
    pub fn unreadable(&self) -> usize {
        self.tiles.iter().filter(|tile| **tile == RecognizedTile::Unreadable).count()
    }

    /// The scene with nothing where a tile is unreadable.
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

/// Reads images `[B,3,32,32]` with values in `0..=1`, from any device.
pub fn read(pixels: &Tensor) -> Result<Vec<RecognizedGrid>> {
    let side = SIDE as i64;
    let size = pixels.size();
    let batch = match size[..] {
        [batch, 3, height, width] if height == side && width == side => batch as usize,
        _ => return Err(Error::failure(format!("tiles judge: expected pixels [B,3,32,32], got {size:?}"))),
    };
    let flat = pixels.detach().to_device(tch::Device::Cpu).to_kind(Kind::Float).contiguous().view([-1]);
    let values = Vec::<f32>::try_from(&flat)?;
    let templates = templates();
    let read_tile = |image: &[f32], place: usize| {
        let (top, left) = (place / GRID * TILE, place % GRID * TILE);
        let seen = std::array::from_fn(|i| {
            let (channel, row, column) = (i / (TILE * TILE), i / TILE % TILE, i % TILE);
            image[(channel * SIDE + top + row) * SIDE + left + column]
        });
        templates
            .iter()
            .map(|(reading, template)| (error(&seen, template), *reading))
            .filter(|(error, _)| *error <= READABLE)
            .min_by(|one, other| one.0.total_cmp(&other.0))
            .map_or(RecognizedTile::Unreadable, |(_, reading)| reading)
    };
    let image = |at: usize| &values[at * 3 * SIDE * SIDE..(at + 1) * 3 * SIDE * SIDE];
    Ok((0..batch)
        .map(|at| RecognizedGrid { tiles: std::array::from_fn(|place| read_tile(image(at), place)) })
        .collect())
}

/// Judges one reading. To the strict judge an unreadable tile is a mistake, to the lenient one it is empty, as to a
/// detector that finds nothing there.
pub fn judge(spec: &PromptSpec, reading: &RecognizedGrid) -> Verdict {
    let seen = reading.readable();
    let checked = match reading.unreadable() {
        0 => seen.check(spec),
        count => Err(Error::failure(format!("{count} unreadable tiles"))),
    };
    let reason = checked.err().map(|error| error.message().to_string()).unwrap_or_default();
    Verdict { strict: reason.is_empty(), lenient: lenient(spec, &seen), reason }
}

fn lenient(spec: &PromptSpec, scene: &TileGrid) -> bool {
    let places = |object: &Object| -> Vec<usize> {
        let fits = |tile: Tile| {
            tile.noun() == object.noun
                && object.color.as_deref().is_none_or(|color| color == tile.color_name())
        };
        scene.objects().filter(|(_, tile)| fits(*tile)).map(|(place, _)| place).collect()
    };
    let found: Vec<Vec<usize>> = spec.objects.iter().map(places).collect();
    let enough = spec.objects.iter().zip(&found).all(|(object, places)| {
        let exact = spec.category == Category::Counting;
        places.len() == object.count as usize || (!exact && places.len() > object.count as usize)
    });
    enough
        && match (spec.relation, found.as_slice()) {
            (Some(asked), [firsts, seconds]) => {
                firsts.iter().any(|first| seconds.iter().any(|second| roughly(asked, *first, *second)))
            }
            _ => true,
        }
}

/// `GenEval`'s rule for boxes of one tile: the distance of the centres, less a tenth of both sizes along either axis,
/// must point more than half that way. Neighbours across a corner are both `left of` and `above`.
fn roughly(asked: Relation, first: usize, second: usize) -> bool {
    let x = (first % GRID) as f64 - (second % GRID) as f64;
    let y = (first / GRID) as f64 - (second / GRID) as f64;
    let length = x.hypot(y);
    let share = |offset: f64| (offset.abs() - 0.2).max(0.0) * offset.signum() / length;
    length > 0.0
        && match asked {
            Relation::LeftOf => share(x) < -0.5,
            Relation::RightOf => share(x) > 0.5,
            Relation::Above => share(y) < -0.5,
            Relation::Below => share(y) > 0.5,
        }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompts::Split;
    use crate::prompts::rng::Rng;
    use crate::tiles::{reference_answer, render, sample};

    fn reading(scene: &TileGrid) -> RecognizedGrid {
        RecognizedGrid {
            tiles: scene.tiles.map(|tile| tile.map_or(RecognizedTile::Empty, RecognizedTile::Object)),
        }
    }

    #[test]
    fn the_limit_is_two_fifths_of_the_smallest_distance() {
        let all = templates();
        let mut nearest = (f32::MAX, RecognizedTile::Empty, RecognizedTile::Empty);
        for (index, (name, one)) in all.iter().enumerate() {
            for (second, other) in &all[..index] {
                if error(one, other) < nearest.0 {
                    nearest = (error(one, other), *second, *name);
                }
            }
        }
        assert!((0.36..0.45).contains(&(READABLE / nearest.0)), "{nearest:?}");
    }

    #[test]
    fn every_tile_is_read_through_noise() {
        let tiles: Vec<Tile> = Tile::all().collect();
        let scenes: Vec<TileGrid> = tiles
            .chunks(8)
            .map(|chunk| TileGrid {
                tiles: std::array::from_fn(|place| (place % 2 == 0).then(|| chunk[place / 2])),
            })
            .collect();
        let clean = render(&scenes);
        let mut rng = Rng::new(9);
        let noise: Vec<f32> =
            (0..clean.numel()).map(|_| (rng.below(1001) as f32 / 1000.0 - 0.5) * 0.1).collect();
        let noisy = &clean + Tensor::from_slice(&noise).view_as(&clean);
        for pixels in [clean, noisy] {
            let seen: Vec<_> = read(&pixels).unwrap().iter().map(RecognizedGrid::scene).collect();
            assert_eq!(seen, scenes.iter().copied().map(Some).collect::<Vec<_>>());
        }
    }

    #[test]
    fn what_is_no_tile_is_unreadable() {
        let grey = Tensor::full([1, 3, 32, 32], 0.5, (Kind::Float, tch::Device::Cpu));
        let grey = read(&grey).unwrap();
        assert_eq!(grey[0].unreadable(), TILES);
        let spec = PromptSpec {
            category: Category::SingleObject,
            objects: vec![Object::one("ring")],
            relation: None,
        };
        let expected = Verdict { strict: false, lenient: false, reason: "16 unreadable tiles".into() };
        assert_eq!(judge(&spec, &grey[0]), expected);
        assert!(read(&Tensor::zeros([3, 32, 32], (Kind::Float, tch::Device::Cpu))).is_err());
    }

    #[test]
    fn right_drawings_pass_and_wrong_ones_do_not() {
        let mut rng = Rng::new(21);
        for category in Category::ALL {
            let tasks: Vec<_> = (0..300).map(|_| sample(category, Split::All, &mut rng).unwrap()).collect();
            let right: Vec<_> = tasks.iter().map(|t| TileGrid::draw(&t.spec, &mut rng).unwrap()).collect();
            for (task, reading) in tasks.iter().zip(read(&render(&right)).unwrap()) {
                let verdict = judge(&task.spec, &reading);
                assert!(verdict.strict && verdict.lenient, "{}: {verdict:?}", task.prompt);
            }
            let wrong: Vec<_> =
                tasks.iter().map(|t| TileGrid::with_mistake(&t.spec, &mut rng).unwrap()).collect();
            for (task, reading) in tasks.iter().zip(read(&render(&wrong)).unwrap()) {
                let verdict = judge(&task.spec, &reading);
                let said = reference_answer(category, &reading.scene().unwrap());
                assert!(!verdict.strict && !verdict.reason.is_empty(), "{}", task.prompt);
                assert!(!super::super::answer_is_right(&task.spec, &said), "{}: {said}", task.prompt);
            }
        }
    }

    #[test]
    fn the_lenient_judge_allows_extras_and_corners() {
        let circle = |place: usize| (place, Tile { shape: 0, color: 3 });
        let star = |place: usize| (place, Tile { shape: 6, color: 0 });
        let scene = |tiles: &[(usize, Tile)]| {
            let mut scene = TileGrid::default();
            for (place, tile) in tiles {
                scene.tiles[*place] = Some(*tile);
            }
            reading(&scene)
        };
        let objects = vec![Object::one("circle"), Object::one("star")];
        let left = PromptSpec { category: Category::Position, objects, relation: Some(Relation::LeftOf) };
        let verdict = judge(&left, &scene(&[circle(0), star(5)]));
        assert!(verdict.lenient && !verdict.strict);
        assert_eq!(verdict.reason, "`circle` is not left of `star`");
        assert!(!judge(&left, &scene(&[circle(0), star(9)])).lenient);

        let mut one = Object::one("circle");
        let single =
            PromptSpec { category: Category::SingleObject, objects: vec![one.clone()], relation: None };
        let verdict = judge(&single, &scene(&[circle(0), star(5)]));
        assert!(verdict.lenient && !verdict.strict);
        assert_eq!(verdict.reason, "an extra `red star`");
        one.count = 2;
        let two = PromptSpec { category: Category::Counting, objects: vec![one], relation: None };
        assert!(judge(&two, &scene(&[circle(0), circle(2), star(5)])).lenient);
        assert!(!judge(&two, &scene(&[circle(0), circle(2), circle(5)])).lenient);
    }
}
