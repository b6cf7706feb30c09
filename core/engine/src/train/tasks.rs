//! The source of the tasks of a run.

use unirl::error::{Error, Result};
use unirl::model::ModelCard;
use unirl::prompt::Category;
use unirl_benchmarks::Benchmark;
use unirl_prompts::rng::Rng;
use unirl_prompts::{Exclusion, Task, read_jsonl};

use crate::config::{Rollout, TrainOptions};

/// The prompts of a benchmark, or a file.
pub(super) enum TaskSource<'a> {
    Generated(&'a dyn Benchmark),
    File(Vec<Task>),
}

impl<'a> TaskSource<'a> {
    /// Returns the prompts of `train.prompts_file`, or else those of the benchmark. Errors if there is neither.
    pub(super) fn new(
        options: &TrainOptions,
        benchmark: Option<&'a dyn Benchmark>,
        card: &ModelCard,
    ) -> Result<Self> {
        match (&options.prompts_file, benchmark) {
            (Some(path), _) => Ok(Self::File(read_jsonl(path.as_ref())?)),
            (None, Some(benchmark)) => Ok(Self::Generated(benchmark)),
            (None, None) => Err(no_prompts(card)),
        }
    }

    /// Returns the number of evaluation tasks that are also in the file. Only categories that are split into training and
    /// test tasks count; the others share all their tasks.
    pub(super) fn overlap(&self, evaluated: &[Task]) -> usize {
        let Self::File(tasks) = self else { return 0 };
        let mut trained = Exclusion::default();
        trained.add(tasks);
        evaluated.iter().filter(|task| task.spec.category.is_split() && trained.repeats(task)).count()
    }

    /// Returns the benchmark whose tasks these are; `None` for those of a file.
    pub(super) fn benchmark(&self) -> Option<&'a dyn Benchmark> {
        match self {
            Self::Generated(benchmark) => Some(*benchmark),
            Self::File(_) => None,
        }
    }

    /// Returns the tasks of a step, each repeated for its group. They depend on the step and the seed only. Generated tasks
    /// cycle through the categories of the benchmark.
    pub(super) fn batch(&self, step: u64, rollout: &Rollout, seed: u64) -> Result<Vec<Task>> {
        let first = (step - 1) as usize * rollout.prompts_per_step;
        let mut rng = Rng::new(seed);
        let mut tasks = Vec::with_capacity(rollout.prompts_per_step * rollout.group_size);
        for index in first..first + rollout.prompts_per_step {
            let task = match self {
                Self::Generated(benchmark) => {
                    let categories = benchmark.categories();
                    benchmark.sample(categories[index % categories.len()], &mut rng)?
                }
                Self::File(tasks) => tasks[rng.below(tasks.len())].clone(),
            };
            tasks.extend(std::iter::repeat_n(task, rollout.group_size));
        }
        Ok(tasks)
    }

    /// Returns the tasks of the sample grids: one held-out task per category of the benchmark, else the first six of the file.
    pub(super) fn sample_tasks(&self, seed: u64) -> Result<Vec<Task>> {
        match self {
            Self::Generated(benchmark) => benchmark.test_tasks(1, seed),
            Self::File(tasks) => Ok(tasks.iter().take(Category::ALL.len()).cloned().collect()),
        }
    }
}

/// The error of a run without prompts: it has neither a prompts file nor a benchmark.
pub(super) fn no_prompts(card: &ModelCard) -> Error {
    Error::usage(format!("`train.prompts_file` is required for `{}` at {1}x{1}", card.name, card.resolution))
        .hint(
            "give a prompts file, such as `examples/tasks.jsonl`: `--set train.prompts_file=FILE`; `unirl prompts` writes one",
        )
        .hint("or train on the prompts of a benchmark: `--benchmark geneval`")
}
