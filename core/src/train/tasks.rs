//! Where the tasks of a run come from.

use crate::config::Rollout;
use crate::error::{Error, Result};
use crate::eval;
use crate::scene::rng::Rng;
use crate::scene::{Category, Split, Task, read_jsonl};
use crate::tiles;

/// The drawn world's generator or a file.
pub(super) enum TaskSource {
    Generated,
    File(Vec<Task>),
}

impl TaskSource {
    pub(super) fn new(path: Option<&str>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::Generated) };
        let tasks = read_jsonl(path.as_ref())?;
        if tasks.is_empty() {
            return Err(Error::usage(format!("`{path}` holds no task")));
        }
        Ok(Self::File(tasks))
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
