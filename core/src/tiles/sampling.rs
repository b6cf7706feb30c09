//! Right and wrong drawings of facts, and captions with one fact wrong.

use super::{COLORS, GRID, SHAPES, TILES, Tile, TileGrid, index_of, partner, relation};
use crate::error::Result;
use crate::prompts::rng::Rng;
use crate::prompts::{Category, PromptSpec, Relation, Task};

/// How many of the scattered scenes are chess boards.
const CHESS: f64 = 0.7;
/// The most objects of the others.
const SPARSE: usize = 8;
/// How often a wrong drawing has a second mistake.
const SECOND_MISTAKE: f64 = 0.2;

/// The mistakes that drawings make.
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

/// Another shape or colour: the partner half of the time.
fn confuse(index: usize, rng: &mut Rng) -> usize {
    if rng.chance(0.5) { partner(index) } else { (index + 1 + rng.below(7)) % 8 }
}

/// Two places of which the first lies as asked, seen from the second.
fn related(asked: Relation, rng: &mut Rng) -> Vec<usize> {
    let line = rng.below(GRID);
    let (one, other) = rng.two_below(GRID);
    let (near, far) = (one.min(other), one.max(other));
    match asked {
        Relation::LeftOf => vec![line * GRID + near, line * GRID + far],
        Relation::RightOf => vec![line * GRID + far, line * GRID + near],
        Relation::Above => vec![near * GRID + line, far * GRID + line],
        Relation::Below => vec![far * GRID + line, near * GRID + line],
    }
}

impl TileGrid {
    /// Any tiles: what an image tokenizer learns from. A part has up to `SPARSE` anywhere; most fill the fields of one
    /// colour of a chess board, since a convolutional decoder knows where in a tile it is by the neighbours that differ.
    pub fn scattered(rng: &mut Rng) -> Self {
        let mut scene = Self::default();
        let places = if rng.chance(CHESS) {
            let colour = rng.below(2);
            (0..TILES).filter(|place| (place / GRID + place % GRID) % 2 == colour).collect()
        } else {
            let count = rng.below(SPARSE + 1);
            rng.distinct(count, TILES)
        };
        for place in places {
            scene.tiles[place] = Some(random_tile(rng));
        }
        scene
    }

    /// A right drawing of the facts; colours and places that they leave open are random. Fails for a noun or colour
    /// of another world.
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
            Some(asked) => related(asked, rng),
            None => rng.distinct(tiles.len(), TILES),
        };
        let mut scene = Self::default();
        for (place, tile) in places.into_iter().zip(tiles) {
            scene.tiles[place] = Some(tile);
        }
        Ok(scene)
    }

    /// A drawing with one or two of the mistakes that drawings make: never one that [`TileGrid::check`] accepts.
    pub fn with_mistake(spec: &PromptSpec, rng: &mut Rng) -> Result<Self> {
        let kinds = mistakes(spec.category);
        // A second mistake may undo the first, and a random change may change nothing: then again.
        for _ in 0..64 {
            let mut scene = Self::sample(spec, rng)?;
            scene.spoil(kinds[rng.below(kinds.len())], spec, rng);
            if rng.chance(SECOND_MISTAKE) {
                scene.spoil(kinds[rng.below(kinds.len())], spec, rng);
            }
            if scene.check(spec).is_err() {
                return Ok(scene);
            }
        }
        // Nothing is never what was asked for.
        Ok(Self::default())
    }

    fn add(&mut self, tile: Tile, rng: &mut Rng) {
        let free: Vec<usize> = (0..TILES).filter(|place| self.tiles[*place].is_none()).collect();
        if !free.is_empty() {
            self.tiles[free[rng.below(free.len())]] = Some(tile);
        }
    }

    fn spoil(&mut self, mistake: Mistake, spec: &PromptSpec, rng: &mut Rng) {
        let places: Vec<usize> = self.objects().map(|(place, _)| place).collect();
        if places.is_empty() {
            self.add(random_tile(rng), rng);
            return;
        }
        let at = places[rng.below(places.len())];
        let Some(tile) = self.tiles[at] else { return };
        match mistake {
            Mistake::Extra => {
                // As often one more of the same as anything else.
                let other = random_tile(rng);
                let shape = if rng.chance(0.5) { tile.shape } else { other.shape };
                self.add(Tile { shape, ..other }, rng);
            }
            Mistake::Missing => self.tiles[at] = None,
            Mistake::Count => {
                let wanted = 1 + rng.below(6);
                for place in places.iter().skip(wanted) {
                    self.tiles[*place] = None;
                }
                for _ in places.len()..wanted {
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
                // Half in another relation of the four, half anywhere.
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

/// The task with one fact wrong, as a careless caption has it: a shape or colour becomes its partner, a number its
/// neighbour, a relation its opposite, two colours change places.
pub fn caption_noise(task: &Task, rng: &mut Rng) -> Result<Task> {
    let mut spec = task.spec.clone();
    spec.check()?;
    if let Some(asked) = spec.relation {
        spec.relation = Some(asked.opposite());
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
        // Of "a circle and a ring" would be left "a ring and a ring".
        while spec.objects.iter().any(|object| object.noun == wrong) {
            wrong = SHAPES[rng.below(SHAPES.len())].0;
        }
        spec.objects[at].noun = wrong.into();
    }
    Ok(super::task(spec))
}

#[cfg(test)]
mod tests {
    use super::super::{reference_answer, sample};
    use super::*;
    use crate::judge::is_correct_answer;
    use crate::prompts::Split;

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
    fn a_truthful_reader_passes_right_drawings_and_no_other() {
        each_task(1, |task, rng| {
            assert!(is_correct_answer(&task.spec, &task.reference_answer), "{task:?}");
            let right = TileGrid::sample(&task.spec, rng).unwrap();
            right.check(&task.spec).unwrap();
            let said = reference_answer(task.spec.category, &right);
            assert!(is_correct_answer(&task.spec, &said), "{}: {said}", task.prompt);
            let wrong = TileGrid::with_mistake(&task.spec, rng).unwrap();
            assert!(wrong.check(&task.spec).is_err(), "{}", task.prompt);
            let said = reference_answer(task.spec.category, &wrong);
            assert!(!is_correct_answer(&task.spec, &said), "{}: {said}", task.prompt);
        });
    }

    #[test]
    fn crowded_drawings_never_pass() {
        each_task(2, |task, rng| {
            let mut scene = TileGrid::default();
            for _ in 0..=rng.below(TILES) {
                scene.add(random_tile(rng), rng);
            }
            let said = reference_answer(task.spec.category, &scene);
            assert_eq!(
                scene.check(&task.spec).is_ok(),
                is_correct_answer(&task.spec, &said),
                "{}: {said}",
                task.prompt
            );
        });
    }

    #[test]
    fn noisy_captions_are_wrong() {
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
