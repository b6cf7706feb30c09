//! Benchmarks: where prompts come from, and how images and answers are judged.
//!
//! [`tiles`] and [`geneval`] implement [`Benchmark`]; training, evaluation and the drift monitor know only the trait.

pub mod geneval;
pub mod judge;
pub mod pretraining;
pub mod tiles;

use judge::ImageJudge;
use pretraining::PretrainingData;
use unirl::error::Result;
use unirl::model::{ImageSpace, ModelCard};
use unirl::prompt::Category;
use unirl_prompts::rng::Rng;
use unirl_prompts::{ObjectList, PromptTemplates, Split, Task};

/// The names of the benchmarks.
pub const NAMES: [&str; 2] = [tiles::NAME, geneval::NAME];

/// A source of prompts with a judge of the images that a model generates from them.
pub trait Benchmark {
    /// Returns the name that `--benchmark` takes.
    fn name(&self) -> &'static str;

    /// Errors if the images of a model cannot be judged.
    fn check_fits(&self, card: &ModelCard) -> Result<()>;

    /// Returns the categories that have prompts, in the order of [`Category::ALL`].
    fn categories(&self) -> &[Category];

    /// Samples a training prompt. It is not among the prompts of [`Self::test_tasks`], except in the categories that have too few
    /// prompts to be split ([`Category::is_split`]).
    fn sample(&self, category: Category, rng: &mut Rng) -> Result<Task>;

    /// Returns at most `per_category` test prompts of each category, chosen by the seed.
    fn test_tasks(&self, per_category: usize, seed: u64) -> Result<Vec<Task>>;

    /// Returns the judge of images.
    fn image_judge(&self) -> &dyn ImageJudge;

    /// Whether the judge has reference images, without which only generation is measured.
    fn has_references(&self) -> bool;

    /// Returns the images for pretraining a fresh model; `None` if the benchmark has none.
    fn pretraining(&self) -> Option<&dyn PretrainingData> {
        None
    }

    /// Returns what a user should know about the verdicts so far, such as that no detection counted.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }
}

/// Returns the preset of a benchmark for a model; `None` if the settings of the paper apply.
pub fn preset(benchmark: &str, card: &ModelCard) -> Option<&'static str> {
    (benchmark == tiles::NAME).then_some(match card.image_space {
        ImageSpace::Shared => "tiles",
        ImageSpace::Decoupled => "tiles-split",
    })
}

/// Returns `per_category` prompts of every category for the checks of a model: those of the tiles benchmark for its models, else
/// prompts about everyday objects.
pub fn conformance_tasks(card: &ModelCard, per_category: usize, seed: u64) -> Result<Vec<Task>> {
    if card.benchmark.as_deref() == Some(tiles::NAME) {
        return tiles::Tiles.test_tasks(per_category, seed);
    }
    let (list, templates, mut rng) = (ObjectList::everyday(), PromptTemplates::paper(), Rng::new(seed));
    let categories = Category::ALL.iter().flat_map(|one| std::iter::repeat_n(*one, per_category));
    categories
        .map(|category| Ok(templates.task(unirl_prompts::sample(&list, category, Split::All, &mut rng)?)))
        .collect()
}
