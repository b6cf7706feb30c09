//! Where the tasks of a run come from.

use crate::config::Rollout;
use crate::error::Result;
use crate::eval;
use crate::prompts::rng::Rng;
use crate::prompts::{Category, Exclusion, Split, Task, read_jsonl};
use crate::tiles;

/// The drawn world's generator or a file.
pub(super) enum TaskSource {
    Generated,
    File(Vec<Task>),
}

impl TaskSource {
    pub(super) fn new(path: Option<&str>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::Generated) };
        Ok(Self::File(read_jsonl(path.as_ref())?))
    }

    /// How many tasks of an evaluation are among those of the file; of the categories whose tasks are split, as the others
    /// are shared in any case.
    pub(super) fn overlap(&self, evaluated: &[Task]) -> usize {
        let Self::File(known) = self else { return 0 };
        let mut trained = Exclusion::default();
        trained.add(known);
        evaluated.iter().filter(|task| task.spec.category.is_split() && trained.repeats(task)).count()
    }

    /// Whether the tasks are of the drawn world.
    pub(super) fn is_generated(&self) -> bool {
        matches!(self, Self::Generated)
    }

    /// The tasks of a step, each repeated for its group: the same for the same step and seed. Generated ones take the six
    /// categories in turn.
    pub(super) fn batch(&self, step: u64, rollout: &Rollout, seed: u64) -> Result<Vec<Task>> {
        let first = (step - 1) as usize * rollout.prompts;
        let mut rng = Rng::new(seed);
        let mut tasks = Vec::with_capacity(rollout.prompts * rollout.group);
        for index in first..first + rollout.prompts {
            let task = match self {
                Self::Generated => {
                    let category = Category::ALL[index % Category::ALL.len()];
                    tiles::sample(category, Split::Train, &mut rng)?
                }
                Self::File(known) => known[rng.below(known.len())].clone(),
            };
            tasks.extend(std::iter::repeat_n(task, rollout.group));
        }
        Ok(tasks)
    }

    /// Tasks whose drawings show how the model comes on: held out, one a category, where they are generated; else the first
    /// of the file.
    pub(super) fn shown(&self, seed: u64) -> Result<Vec<Task>> {
        match self {
            Self::Generated => eval::tasks(1, seed),
            Self::File(known) => Ok(known.iter().take(Category::ALL.len()).cloned().collect()),
        }
    }
}
