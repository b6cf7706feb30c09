//! Random images of a spec, correct or with mistakes, and captions with one mistake.

use unirl::error::Result;
use unirl::prompt::{Category, PromptSpec, Relation};
use unirl_prompts::Task;
use unirl_prompts::rng::Rng;

use super::{COLORS, GRID, SHAPES, TILES, Tile, TileGrid, index_of, partner, relation};

/// The share of scattered images that are checkerboards.
const CHECKERBOARD: f64 = 0.7;
/// The maximum number of objects of the other scattered images.
const SPARSE: usize = 8;
/// The probability of a second mistake.
const SECOND_MISTAKE: f64 = 0.2;

/// The mistakes of an incorrect image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mistake {
    Extra,
    Missing,
    Count,
    Shape,
    OtherShapes,
    Color,
    SwappedColors,
    Opposite,
    Diagonal,
    Elsewhere,
}

fn mistakes(category: Category) -> &'static [Mistake] {
    use Mistake::{
        Color, Count, Diagonal, Elsewhere, Extra, Missing, Opposite, OtherShapes, Shape, SwappedColors,
    };
    match category {
        Category::SingleObject => &[Extra, Missing, Shape, Shape],
        Category::TwoObject => &[Extra, Missing, Shape, Shape, OtherShapes],
        Category::Counting => &[Count, Count, Count, Extra, Missing, Shape, OtherShapes],
        Category::Colors => &[Color, Color, Shape, Extra, Missing],
        Category::Position => &[Opposite, Opposite, Diagonal, Diagonal, Elsewhere, Shape, Extra, Missing],
        Category::ColorAttr => &[SwappedColors, SwappedColors, Color, Color, Shape, Extra, Missing],
    }
}

fn random_tile(rng: &mut Rng) -> Tile {
    Tile { shape: rng.below(SHAPES.len()), color: rng.below(COLORS.len()) }
}

/// Returns another shape or colour: the partner with probability ½.
fn confuse(index: usize, rng: &mut Rng) -> usize {
    if rng.chance(0.5) { partner(index) } else { (index + 1 + rng.below(7)) % 8 }
}

/// Samples two positions in the given relation.
fn related(relation: Relation, rng: &mut Rng) -> Vec<usize> {
    let line = rng.below(GRID);
    let (one, other) = rng.two_below(GRID);
    let (near, far) = (one.min(other), one.max(other));
    match relation {
        Relation::LeftOf => vec![line * GRID + near, line * GRID + far],
        Relation::RightOf => vec![line * GRID + far, line * GRID + near],
        Relation::Above => vec![near * GRID + line, far * GRID + line],
        Relation::Below => vec![far * GRID + line, near * GRID + line],
    }
}

impl TileGrid {
    /// Samples random tiles to train an image tokenizer. Most images fill every other tile like a checkerboard, because a
    /// convolutional decoder locates a tile by neighbours that differ; the others have up to `SPARSE` objects anywhere.
    pub fn scattered(rng: &mut Rng) -> Self {
        let mut grid = Self::default();
        let places = if rng.chance(CHECKERBOARD) {
            let parity = rng.below(2);
            (0..TILES).filter(|place| (place / GRID + place % GRID) % 2 == parity).collect()
        } else {
            let count = rng.below(SPARSE + 1);
            rng.distinct(count, TILES)
        };
        for place in places {
            grid.tiles[place] = Some(random_tile(rng));
        }
        grid
    }

    /// Samples a correct image of a spec; colours and positions that the spec leaves open are random. Errors for an unknown
    /// noun or colour.
    pub fn sample(spec: &PromptSpec, rng: &mut Rng) -> Result<Self> {
        spec.check()?;
        let mut tiles = Vec::new();
        for object in &spec.objects {
            let shape = index_of("shape", &object.noun, &SHAPES)?;
            let color = object.color.as_ref().map(|name| index_of("color", name, &COLORS)).transpose()?;
            for _ in 0..object.count {
                tiles.push(Tile { shape, color: color.unwrap_or_else(|| rng.below(COLORS.len())) });
            }
        }
        let places = match spec.relation {
            Some(relation) => related(relation, rng),
            None => rng.distinct(tiles.len(), TILES),
        };
        let mut grid = Self::default();
        for (place, tile) in places.into_iter().zip(tiles) {
            grid.tiles[place] = Some(tile);
        }
        Ok(grid)
    }

    /// Samples an image with one or two mistakes. [`TileGrid::check`] never accepts it.
    pub fn with_mistake(spec: &PromptSpec, rng: &mut Rng) -> Result<Self> {
        let kinds = mistakes(spec.category);
        // Retry: a second mistake can undo the first, and a random change can have no effect.
        for _ in 0..64 {
            let mut grid = Self::sample(spec, rng)?;
            grid.add_mistake(kinds[rng.below(kinds.len())], spec, rng);
            if rng.chance(SECOND_MISTAKE) {
                grid.add_mistake(kinds[rng.below(kinds.len())], spec, rng);
            }
            if grid.check(spec).is_err() {
                return Ok(grid);
            }
        }
        // An empty image is always incorrect.
        Ok(Self::default())
    }

    fn add(&mut self, tile: Tile, rng: &mut Rng) {
        let free: Vec<usize> = (0..TILES).filter(|place| self.tiles[*place].is_none()).collect();
        if !free.is_empty() {
            self.tiles[free[rng.below(free.len())]] = Some(tile);
        }
    }

    fn add_mistake(&mut self, mistake: Mistake, spec: &PromptSpec, rng: &mut Rng) {
        let places: Vec<usize> = self.objects().map(|(place, _)| place).collect();
        if places.is_empty() {
            self.add(random_tile(rng), rng);
            return;
        }
        let at = places[rng.below(places.len())];
        let Some(tile) = self.tiles[at] else { return };
        match mistake {
            Mistake::Extra => {
                // Another object of the same shape with probability ½.
                let other = random_tile(rng);
                let shape = if rng.chance(0.5) { tile.shape } else { other.shape };
                self.add(Tile { shape, ..other }, rng);
            }
            Mistake::Missing => self.tiles[at] = None,
            Mistake::Count => {
                let count = 1 + rng.below(6);
                for place in places.iter().skip(count) {
                    self.tiles[*place] = None;
                }
                for _ in places.len()..count {
                    self.add(Tile { color: rng.below(COLORS.len()), ..tile }, rng);
                }
            }
            Mistake::Shape => self.tiles[at] = Some(Tile { shape: confuse(tile.shape, rng), ..tile }),
            Mistake::OtherShapes => {
                let shape = confuse(tile.shape, rng);
                for place in places {
                    self.tiles[place] = self.tiles[place].map(|tile| Tile { shape, ..tile });
                }
            }
            Mistake::Color => self.tiles[at] = Some(Tile { color: confuse(tile.color, rng), ..tile }),
            Mistake::SwappedColors => {
                if let [first, second, ..] = places[..]
                    && let (Some(one), Some(other)) = (self.tiles[first], self.tiles[second])
                {
                    self.tiles[first] = Some(Tile { color: other.color, ..one });
                    self.tiles[second] = Some(Tile { color: one.color, ..other });
                }
            }
            Mistake::Opposite => {
                if let [first, second, ..] = places[..] {
                    self.tiles.swap(first, second);
                }
            }
            Mistake::Diagonal => {
                let free: Vec<usize> = (0..TILES)
                    .filter(|place| self.tiles[*place].is_none())
                    .filter(|place| {
                        places.iter().all(|other| *other == at || relation(*place, *other).is_none())
                    })
                    .collect();
                if !free.is_empty() {
                    self.tiles.swap(at, free[rng.below(free.len())]);
                }
            }
            Mistake::Elsewhere => {
                // In one of the four relations or anywhere, with probability ½ each.
                let to = if rng.chance(0.5) && places.len() == 2 && spec.relation.is_some() {
                    related(Relation::ALL[rng.below(4)], rng)
                } else {
                    rng.distinct(places.len(), TILES)
                };
                let old = std::mem::take(&mut self.tiles);
                for (from, to) in places.into_iter().zip(to) {
                    self.tiles[to] = old[from];
                }
            }
        }
    }
}

/// Returns the task with one mistake, like a careless caption: a shape or colour becomes its partner, a count changes by one,
/// a relation becomes its opposite, or two colours are swapped.
pub fn caption_noise(task: &Task, rng: &mut Rng) -> Result<Task> {
    let mut spec = task.spec.clone();
    spec.check()?;
    if let Some(relation) = spec.relation {
        spec.relation = Some(relation.opposite());
        return Ok(super::task(spec));
    }
    let at = rng.below(spec.objects.len());
    if spec.category == Category::Counting {
        let object = &mut spec.objects[at];
        object.count = match object.count {
            3 => 2 + 2 * rng.below(2) as u32,
            _ => 3,
        };
    } else if let [first, second] = spec.objects.as_mut_slice()
        && spec.category.names_colors()
    {
        std::mem::swap(&mut first.color, &mut second.color);
    } else if spec.category.names_colors() {
        let color = spec.objects[at].color.as_deref().unwrap_or_default();
        spec.objects[at].color = Some(COLORS[partner(index_of("color", color, &COLORS)?)].0.into());
    } else {
        let shape = index_of("shape", &spec.objects[at].noun, &SHAPES)?;
        let mut wrong = SHAPES[partner(shape)].0;
        // Avoid a duplicate: "a circle and a ring" would become "a ring and a ring".
        while spec.objects.iter().any(|object| object.noun == wrong) {
            wrong = SHAPES[rng.below(SHAPES.len())].0;
        }
        spec.objects[at].noun = wrong.into();
    }
    Ok(super::task(spec))
}

#[cfg(test)]
mod tests {
    use unirl_prompts::Split;

    use super::super::{reference_answer, sample};
    use super::*;
    use crate::judge::is_correct_answer;

    fn each_task(seed: u64, mut test: impl FnMut(Task, &mut Rng)) {
        let mut rng = Rng::new(seed);
        for category in Category::ALL {
            for _ in 0..2000 {
                let task = sample(category, Split::All, &mut rng).unwrap();
                test(task, &mut rng);
            }
        }
    }

    #[test]
    fn reference_answer_passes_only_for_correct_images() {
        each_task(1, |task, rng| {
            assert!(is_correct_answer(&task.spec, &task.reference_answer), "{task:?}");
            let correct = TileGrid::sample(&task.spec, rng).unwrap();
            correct.check(&task.spec).unwrap();
            let answer = reference_answer(task.spec.category, &correct);
            assert!(is_correct_answer(&task.spec, &answer), "{}: {answer}", task.prompt);
            let incorrect = TileGrid::with_mistake(&task.spec, rng).unwrap();
            assert!(incorrect.check(&task.spec).is_err(), "{}", task.prompt);
            let answer = reference_answer(task.spec.category, &incorrect);
            assert!(!is_correct_answer(&task.spec, &answer), "{}: {answer}", task.prompt);
        });
    }

    #[test]
    fn reference_answer_of_random_tiles_passes_only_if_check_does() {
        each_task(2, |task, rng| {
            let mut grid = TileGrid::default();
            for _ in 0..=rng.below(TILES) {
                grid.add(random_tile(rng), rng);
            }
            let answer = reference_answer(task.spec.category, &grid);
            assert_eq!(
                grid.check(&task.spec).is_ok(),
                is_correct_answer(&task.spec, &answer),
                "{}: {answer}",
                task.prompt
            );
        });
    }

    #[test]
    fn caption_noise_makes_the_reference_answer_incorrect() {
        each_task(3, |task, rng| {
            let noisy = caption_noise(&task, rng).unwrap();
            noisy.spec.check().unwrap();
            assert!(
                !is_correct_answer(&task.spec, &noisy.reference_answer),
                "{}: {}",
                task.prompt,
                noisy.prompt
            );
            assert!(noisy.spec.objects.iter().all(|object| object.count <= 4));
        });
    }
}
