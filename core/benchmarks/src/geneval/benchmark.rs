//! `GenEval` as a benchmark: its prompts are the test prompts, and training prompts are made of the same objects and colours.

use std::path::Path;

use unirl::error::{Error, Result};
use unirl::model::ModelCard;
use unirl::prompt::Category;
use unirl_prompts::rng::Rng;
use unirl_prompts::{Exclusion, ObjectList, PromptTemplates, Split, Task, read_jsonl};

use super::GenevalJudge;
use crate::Benchmark;
use crate::judge::ImageJudge;

/// The name of the benchmark.
pub const NAME: &str = "geneval";

/// The number of prompts that are sampled to find one that is not a test prompt.
const MAX_ATTEMPTS: usize = 1000;

/// The prompts of a file in `GenEval`'s format, with their judge.
pub struct Geneval {
    judge: GenevalJudge,
    tests: Vec<Task>,
    categories: Vec<Category>,
    excluded: Exclusion,
    list: ObjectList,
}

impl Geneval {
    /// Creates the benchmark of the prompts in `metadata`.
    pub fn new(metadata: &Path, judge: GenevalJudge) -> Result<Self> {
        let tests = read_jsonl(metadata)?;
        let mut excluded = Exclusion::default();
        excluded.add(&tests);
        let has = |category: &Category| tests.iter().any(|task| task.spec.category == *category);
        let categories = Category::ALL.into_iter().filter(has).collect();
        let list = judge.objects();
        Ok(Self { judge, tests, categories, excluded, list })
    }
}

impl Benchmark for Geneval {
    fn name(&self) -> &'static str {
        NAME
    }

    /// Every image can be judged.
    fn check_fits(&self, _: &ModelCard) -> Result<()> {
        Ok(())
    }

    fn categories(&self) -> &[Category] {
        &self.categories
    }

    fn sample(&self, category: Category, rng: &mut Rng) -> Result<Task> {
        for _ in 0..MAX_ATTEMPTS {
            let spec = unirl_prompts::sample(&self.list, category, Split::All, rng)?;
            let task = PromptTemplates::evaluation().task(spec);
            if !category.is_split() || !self.excluded.repeats(&task) {
                return Ok(task);
            }
        }
        Err(Error::usage(format!("benchmark `{NAME}` has no training prompts of `{}`", category.name())).hint(
            "its file of prompts names too few objects or colours; give training prompts: `--set train.prompts_file=FILE`",
        ))
    }

    /// In the order of the file.
    fn test_tasks(&self, per_category: usize, seed: u64) -> Result<Vec<Task>> {
        let mut chosen = Vec::new();
        let mut rng = Rng::new(seed);
        for category in &self.categories {
            let of_category = |index: &usize| self.tests[*index].spec.category == *category;
            let mut left: Vec<usize> = (0..self.tests.len()).filter(of_category).collect();
            while left.len() > per_category {
                left.remove(rng.below(left.len()));
            }
            chosen.extend(left);
        }
        chosen.sort_unstable();
        Ok(chosen.into_iter().map(|index| self.tests[index].clone()).collect())
    }

    fn image_judge(&self) -> &dyn ImageJudge {
        &self.judge
    }

    fn has_references(&self) -> bool {
        self.judge.has_references()
    }

    fn warnings(&self) -> Vec<String> {
        self.judge.warnings()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use tch::Tensor;
    use unirl::detector::{Detection, Detector};

    use super::super::{GenevalJudge, Thresholds};
    use super::*;

    /// Finds nothing.
    struct Blind;

    impl Detector for Blind {
        fn detect(&self, pixels: &Tensor, _: &[String], _: &[String]) -> Result<Vec<Vec<Detection>>> {
            Ok(vec![Vec::new(); pixels.size()[0] as usize])
        }
    }

    const LINES: &str = r#"{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}
{"tag": "two_object", "include": [{"class": "cow", "count": 1}, {"class": "bench", "count": 1}], "prompt": "a photo of a cow and a bench"}
{"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "red"}], "prompt": "a photo of a red cow"}
{"tag": "colors", "include": [{"class": "bench", "count": 1, "color": "blue"}], "prompt": "a photo of a blue bench"}
"#;

    fn benchmark() -> Geneval {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(LINES.as_bytes()).unwrap();
        let detector = ("blind".to_string(), Box::new(Blind) as Box<dyn Detector>);
        let judge = GenevalJudge::new(file.path(), detector, Thresholds::default()).unwrap();
        Geneval::new(file.path(), judge).unwrap()
    }

    #[test]
    fn test_tasks_are_the_prompts_of_the_file_or_a_choice_among_them() {
        let benchmark = benchmark();
        assert_eq!(benchmark.categories(), [Category::SingleObject, Category::TwoObject, Category::Colors]);
        let prompts = |count| -> Vec<String> {
            benchmark.test_tasks(count, 3).unwrap().into_iter().map(|task| task.prompt).collect()
        };
        let all = [
            "a photo of a bench",
            "a photo of a cow and a bench",
            "a photo of a red cow",
            "a photo of a blue bench",
        ];
        assert_eq!(prompts(100), all);
        assert_eq!(prompts(1).len(), 3);
        assert_eq!(prompts(1), prompts(1));
    }

    #[test]
    fn training_prompts_are_no_test_prompts_and_are_judged() {
        let benchmark = benchmark();
        let mut rng = Rng::new(1);
        for _ in 0..50 {
            let task = benchmark.sample(Category::Colors, &mut rng).unwrap();
            assert!(!LINES.contains(&format!("\"{}\"", task.prompt)), "{}", task.prompt);
        }
        // With two objects, the only two-object prompt is the test prompt.
        let error = benchmark.sample(Category::TwoObject, &mut rng).unwrap_err();
        assert_eq!(error.message(), "benchmark `geneval` has no training prompts of `two_object`");
        let task = benchmark.sample(Category::Colors, &mut rng).unwrap();
        let pixels = Tensor::zeros([1, 3, 8, 8], (tch::Kind::Float, tch::Device::Cpu));
        let verdict = benchmark.image_judge().judge(&[task], &pixels).unwrap().remove(0);
        assert!(!verdict.strict && verdict.reason.contains("expected"), "{}", verdict.reason);
    }
}
