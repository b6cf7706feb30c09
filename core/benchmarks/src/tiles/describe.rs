//! Reference answers: everything that an image shows, in the form that the question asks for.

use std::collections::BTreeSet;

use unirl::prompt::{Category, Relation};
use unirl_prompts::{PromptTemplates, article, number_word, plural};

use super::{COLORS, SHAPES, Tile, TileGrid, relation};

/// The number of objects, or kinds of objects, that an answer names before `and more`.
const NAMED: usize = 4;
/// The same for phrases of four words.
const NAMED_WITH_COLOR: usize = 3;

fn list(phrases: &[String], named: usize) -> String {
    if phrases.is_empty() {
        return "nothing".into();
    }
    let more = if phrases.len() > named { " and more" } else { "" };
    format!("{}{more}", phrases[..phrases.len().min(named)].join(" and "))
}

/// Returns the reference answer to the question of a category about any image, objects in row-major order.
///
/// It passes if and only if the image is correct, so a model that answers truthfully passes no incorrect image.
pub fn reference_answer(category: Category, grid: &TileGrid) -> String {
    let objects: Vec<(usize, Tile)> = grid.objects().collect();
    if let (Category::Position, [(first, one), (second, other)]) = (category, objects.as_slice()) {
        let relation = relation(*first, *second).map_or("diagonal to", Relation::words);
        return format!("the {} is {relation} the {}", one.noun(), other.noun());
    }
    if category.names_colors() {
        let phrase = |(_, tile): &(usize, Tile)| format!("the {} is {}", tile.noun(), tile.color_name());
        return list(&objects.iter().map(phrase).collect::<Vec<_>>(), NAMED_WITH_COLOR);
    }
    if category == Category::Counting {
        let mut kinds: Vec<(usize, u32)> = Vec::new();
        for (_, tile) in &objects {
            match kinds.iter_mut().find(|(shape, _)| *shape == tile.shape) {
                Some((_, count)) => *count += 1,
                None => kinds.push((tile.shape, 1)),
            }
        }
        let phrase = |(shape, count): &(usize, u32)| {
            let noun = SHAPES[*shape].0;
            format!("{} {}", number_word(*count), if *count == 1 { noun.into() } else { plural(noun) })
        };
        return list(&kinds.iter().map(phrase).collect::<Vec<_>>(), NAMED);
    }
    let phrase = |(_, tile): &(usize, Tile)| format!("{} {}", article(tile.noun()), tile.noun());
    list(&objects.iter().map(phrase).collect::<Vec<_>>(), NAMED)
}

/// Returns every word of the prompts, questions and reference answers, sorted.
pub fn vocabulary() -> Vec<String> {
    let mut words: BTreeSet<String> = BTreeSet::new();
    let fixed = ["an", "diagonal to", "nothing more"];
    for text in fixed.into_iter().chain(Relation::ALL.map(Relation::words)) {
        words.extend(text.split(' ').map(String::from));
    }
    words.extend(PromptTemplates::tiles().words());
    words.extend((1..=super::TILES as u32).map(number_word));
    words.extend(COLORS.iter().map(|(name, _)| (*name).into()));
    words.extend(SHAPES.iter().flat_map(|(name, _)| [(*name).into(), plural(name)]));
    words.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use unirl_prompts::Split;
    use unirl_prompts::rng::Rng;

    use super::super::{TILES, caption_noise, sample};
    use super::*;

    fn grid(tiles: &[(usize, usize, usize)]) -> TileGrid {
        let mut grid = TileGrid::default();
        for (place, shape, color) in tiles {
            grid.tiles[*place] = Some(Tile { shape: *shape, color: *color });
        }
        grid
    }

    #[test]
    fn reference_answers_name_all_objects() {
        let two = grid(&[(5, 0, 3), (7, 6, 0)]);
        assert_eq!(reference_answer(Category::TwoObject, &two), "a circle and a star");
        assert_eq!(reference_answer(Category::Position, &two), "the circle is left of the star");
        assert_eq!(reference_answer(Category::ColorAttr, &two), "the circle is green and the star is red");
        let stars = grid(&[(0, 6, 0), (5, 6, 1), (6, 0, 1)]);
        assert_eq!(reference_answer(Category::Counting, &stars), "two stars and one circle");
        assert_eq!(reference_answer(Category::Position, &stars), "a star and a star and a circle");
        assert_eq!(
            reference_answer(Category::Position, &grid(&[(0, 6, 0), (5, 6, 1)])),
            "the star is diagonal to the star"
        );
        assert_eq!(
            reference_answer(Category::Position, &grid(&[(1, 6, 0), (5, 7, 1)])),
            "the star is above the cross"
        );
        assert_eq!(reference_answer(Category::Colors, &TileGrid::default()), "nothing");
    }

    #[test]
    fn texts_use_the_vocabulary_and_answers_are_short() {
        let words = vocabulary();
        let mut rng = Rng::new(11);
        let check = |text: &str| {
            for word in text.split(' ') {
                assert!(words.iter().any(|known| known == word), "`{word}` of `{text}`");
            }
        };
        for category in Category::ALL.into_iter().cycle().take(3000) {
            let task = sample(category, Split::All, &mut rng).unwrap();
            let noisy = caption_noise(&task, &mut rng).unwrap();
            for text in [&task.prompt, &task.question, &task.reference_answer, &noisy.prompt] {
                check(text);
            }
            let mut full = TileGrid::with_mistake(&task.spec, &mut rng).unwrap();
            for _ in 0..2 {
                let answer = reference_answer(task.spec.category, &full);
                check(&answer);
                assert!(answer.split(' ').count() <= 16, "{answer}");
                let fill = rng.below(TILES);
                for place in &mut full.tiles[..fill] {
                    *place = Some(Tile { shape: rng.below(8), color: rng.below(8) });
                }
            }
        }
    }
}
