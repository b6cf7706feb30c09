//! The source of the tasks of a run.

use unirl::error::Result;
use unirl::prompt::Category;
use unirl_benchmarks::tiles;
use unirl_prompts::rng::Rng;
use unirl_prompts::{Exclusion, Split, Task, read_jsonl};

use crate::config::Rollout;
use crate::eval;

/// The prompt generator of the tiles benchmark, or a file.
pub(super) enum TaskSource {
    Generated,
    File(Vec<Task>),
}

impl TaskSource {
    pub(super) fn new(path: Option<&str>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::Generated) };
        Ok(Self::File(read_jsonl(path.as_ref())?))
    }

    /// Returns the number of evaluation tasks that are also in the file. Only categories that are split into training and
    /// test tasks count; the others share all their tasks.
    pub(super) fn overlap(&self, evaluated: &[Task]) -> usize {
        let Self::File(tasks) = self else { return 0 };
        let mut trained = Exclusion::default();
        trained.add(tasks);
        evaluated.iter().filter(|task| task.spec.category.is_split() && trained.repeats(task)).count()
    }

    /// Whether the tasks are those of the tiles benchmark.
    pub(super) fn is_generated(&self) -> bool {
        matches!(self, Self::Generated)
    }

    /// Returns the tasks of a step, each repeated for its group. They depend on the step and the seed only. Generated tasks
    /// cycle through the six categories.
    pub(super) fn batch(&self, step: u64, rollout: &Rollout, seed: u64) -> Result<Vec<Task>> {
        let first = (step - 1) as usize * rollout.prompts_per_step;
        let mut rng = Rng::new(seed);
        let mut tasks = Vec::with_capacity(rollout.prompts_per_step * rollout.group_size);
        for index in first..first + rollout.prompts_per_step {
            let task = match self {
                Self::Generated => {
                    let category = Category::ALL[index % Category::ALL.len()];
                    tiles::sample(category, Split::Train, &mut rng)?
                }
                Self::File(tasks) => tasks[rng.below(tasks.len())].clone(),
            };
            tasks.extend(std::iter::repeat_n(task, rollout.group_size));
        }
        Ok(tasks)
    }

    /// Returns the tasks of the sample grids: one held-out task per category if tasks are generated, else the first six of
    /// the file.
    pub(super) fn sample_tasks(&self, seed: u64) -> Result<Vec<Task>> {
        match self {
            Self::Generated => eval::tasks(1, seed),
            Self::File(tasks) => Ok(tasks.iter().take(Category::ALL.len()).cloned().collect()),
        }
    }
}
