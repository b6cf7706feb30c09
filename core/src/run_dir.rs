//! The folder of a run:
//!
//! | entry | what it is |
//! |---|---|
//! | `config.toml` | the settings, whole |
//! | `run.lock` | held by the one process that writes here |
//! | `metrics.jsonl` | a line a step, see [`crate::metrics`] |
//! | `tensorboard/` | the same for TensorBoard |
//! | `samples/` | the same prompts from the same seeds: `base`, `step-000020` and so on, `trained`; a picture and its lines |
//! | `checkpoints/step-000100/` | a model and the state of its training, see [`crate::checkpoint`] |
//! | `checkpoints/latest` | the last of them |
//! | `checkpoints/best` | the best of them, where the drift guard looks (`eval.every`) |
//! | `eval/base.json`, `eval/trained.json` | the receipts of the evaluations before and after |
//! | `failed-step-000012/` | the state before a step that could not be done, for `unirl replay-step`, and its tasks |
//! | `report.json` | at the end: the figures of both evaluations |

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tch::Tensor;

use crate::checkpoint::{self, TrainingState};
use crate::config::RunConfig;
use crate::error::{Context, Error, Result};
use crate::judge::Verdict;
use crate::model::UnifiedModel;
use crate::picture::{self, Caption};
use crate::reward::Reward;
use crate::scene::Task;
use crate::whole;

const FOLDERS: [&str; 4] = ["samples", "eval", "checkpoints", "tensorboard"];

/// The folder of one run, which no other process writes to as long as this one is there.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    _lock: File,
}

impl RunDir {
    /// Takes `root`, which must be empty or absent; without one, the first free `runs/NAME-001`. Writes the settings.
    pub fn create(root: Option<PathBuf>, name: &str, config: &RunConfig) -> Result<Self> {
        let root = match root {
            Some(root) => {
                Self::check_free(&root)?;
                make(&root)?;
                root
            }
            None => first_free(name)?,
        };
        let run = Self { _lock: lock(&root)?, root };
        run.write_settings(config)?;
        run.make_folders()?;
        Ok(run)
    }

    /// Opens the folder of a run to go on with it, and tidies up after the process that was interrupted.
    pub fn open(root: &Path) -> Result<Self> {
        if !root.join("config.toml").is_file() {
            return Err(Error::usage(format!("`{}` holds no run: it has no `config.toml`", root.display()))
                .hint("name the folder of a run, e.g. `--resume runs/showo-grpo-001`"));
        }
        let run = Self { _lock: lock(root)?, root: root.into() };
        run.make_folders()?;
        for folder in FOLDERS.map(|name| run.root.join(name)).iter().chain([&run.root]) {
            whole::clean(folder)?;
        }
        Ok(run)
    }

    /// Refuses a folder that holds something: a run never writes over another.
    pub fn check_free(root: &Path) -> Result<()> {
        let used = fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_some());
        if used || root.is_file() {
            let error = Error::usage(format!("`{}` exists and is not an empty folder", root.display()));
            return Err(if root.join("config.toml").is_file() {
                error.hint(format!("go on with the run there: `--resume {}`", root.display()))
            } else {
                error
            }
            .hint("name another one: `--out DIR`"));
        }
        Ok(())
    }

    fn make_folders(&self) -> Result<()> {
        FOLDERS.iter().try_for_each(|name| make(&self.root.join(name)))
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Writes a file of the run's folder.
    pub fn write(&self, name: &str, contents: &str) -> Result<()> {
        whole::write(&self.root.join(name), contents)
    }

    /// Writes `config.toml`.
    pub fn write_settings(&self, config: &RunConfig) -> Result<()> {
        self.write("config.toml", &config.to_toml()?)
    }

    /// The state of the newest checkpoint; none where the run has none yet. A damaged one is an error: nobody is to find
    /// out later that a run went on from somewhere else.
    pub fn newest(&self) -> Result<Option<TrainingState>> {
        let steps = self.checkpoints()?;
        let Some(newest) = steps.last() else { return Ok(None) };
        let path = self.checkpoint(*newest);
        TrainingState::read(&path).map(Some).map_err(|error| {
            let before = match steps.iter().rev().nth(1) {
                Some(before) => format!("from step {before}"),
                None => "from the beginning".into(),
            };
            error.hint(format!("remove `{}` to go on {before}", path.display()))
        })
    }

    /// Saves a checkpoint and points `checkpoints/latest` at it, and `checkpoints/best` at the best; then removes all but
    /// the last `keep` and the best, unless `keep` is 0.
    pub(crate) fn save(
        &self,
        model: &dyn UnifiedModel,
        state: &TrainingState,
        keep: usize,
    ) -> Result<PathBuf> {
        let path = self.checkpoint(state.step);
        if !path.exists() {
            checkpoint::save(&path, Some(model), state)?;
        }
        let best = state.guard.as_ref().and_then(|guard| guard.best_step);
        self.point(state.step, best)?;
        let steps = self.checkpoints()?;
        let old = steps.len().saturating_sub(if keep == 0 { steps.len() } else { keep });
        for step in &steps[..old] {
            if Some(*step) != best {
                whole::remove_folder(&self.checkpoint(*step))?;
            }
        }
        Ok(path)
    }

    /// Points `latest` and `best` at checkpoints.
    pub(crate) fn point(&self, latest: u64, best: Option<u64>) -> Result<()> {
        let folder = self.root.join("checkpoints");
        for (name, step) in [("latest", Some(latest)), ("best", best)] {
            let Some(step) = step else { continue };
            let (link, next, entry) =
                (folder.join(name), folder.join(format!(".partial-{name}")), checkpoint_name(step));
            let place = || format!("cannot point `{}` at `{entry}`", link.display());
            let _ = fs::remove_file(&next);
            std::os::unix::fs::symlink(&entry, &next).context(place)?;
            fs::rename(&next, &link).context(place)?;
        }
        Ok(())
    }

    pub(crate) fn checkpoint(&self, step: u64) -> PathBuf {
        self.root.join("checkpoints").join(checkpoint_name(step))
    }

    /// The steps of the checkpoints that are there, in order.
    fn checkpoints(&self) -> Result<Vec<u64>> {
        let folder = self.root.join("checkpoints");
        let place = || format!("cannot list `{}`", folder.display());
        let mut steps = Vec::new();
        for entry in fs::read_dir(&folder).context(place)? {
            let name = entry.context(place)?.file_name();
            steps.extend(
                name.to_string_lossy().strip_prefix("step-").and_then(|step| step.parse::<u64>().ok()),
            );
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// Writes drawings, and what was asked, answered, rewarded and judged, as `samples/NAME.png` and `.jsonl`.
    pub fn save_samples(&self, name: &str, samples: &Samples<'_>) -> Result<()> {
        let name = format!("samples/{name}");
        let captions: Vec<Caption> = samples.rows().map(Line::caption).collect();
        let path = self.root.join(format!("{name}.png"));
        picture::write_captioned(samples.pixels, samples.columns, &captions, &path)?;
        let lines: Vec<String> = samples
            .rows()
            .map(|line| serde_json::to_string(&line))
            .collect::<std::result::Result<_, _>>()
            .context(|| "cannot write the samples")?;
        self.write(&format!("{name}.jsonl"), &(lines.join("\n") + "\n"))
    }

    /// Keeps the state before a step that failed, and its tasks; where the disk has no room for the state, the tasks.
    pub(crate) fn save_failure(&self, state: &TrainingState, tasks: &[Task]) -> Result<PathBuf> {
        let path = self.root.join(format!("failed-{}", checkpoint_name(state.step + 1)));
        if path.exists() {
            whole::remove_folder(&path)?;
        }
        if let Err(error) = checkpoint::save(&path, None, state) {
            tracing::warn!("{error}");
            make(&path)?;
        }
        whole::write(&path.join("tasks.jsonl"), &crate::scene::write_jsonl(tasks)?)?;
        Ok(path)
    }
}

fn checkpoint_name(step: u64) -> String {
    format!("step-{step:06}")
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).context(|| format!("cannot create `{}`", folder.display()))
}

/// Takes the first `runs/NAME-001` that nobody has.
fn first_free(name: &str) -> Result<PathBuf> {
    make(Path::new("runs"))?;
    for number in 1..=u32::MAX {
        let path = PathBuf::from(format!("runs/{name}-{number:03}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).context(|| format!("cannot create `{}`", path.display())),
        }
    }
    Err(Error::failure(format!("every `runs/{name}-…` is taken")))
}

/// Keeps other processes out of a folder until this one ends.
fn lock(root: &Path) -> Result<File> {
    let path = root.join("run.lock");
    let place = || format!("cannot lock `{}`", path.display());
    let file = File::options().create(true).append(true).open(&path).context(place)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::usage(format!("another process writes to `{}`", root.display()))
                .hint("wait until it ends, or give this run a folder of its own: `--out DIR`"))
        }
        Err(TryLockError::Error(error)) => Err(error).context(place),
    }
}

/// Drawings with what was asked, answered and rewarded, row by row.
pub struct Samples<'a> {
    /// `[B,3,H,W]` in `0..=1`.
    pub pixels: &'a Tensor,
    /// Pictures a row of the grid.
    pub columns: i64,
    /// What was to be drawn.
    pub tasks: &'a [Task],
    /// What the model said of it.
    pub answers: &'a [String],
    /// What that was worth.
    pub rewards: &'a [Reward],
    /// What the judge says of the drawings, where there is one.
    pub verdicts: Option<&'a [Verdict]>,
}

impl<'a> Samples<'a> {
    fn rows(&self) -> impl Iterator<Item = Line<'a>> {
        let rows = self.tasks.iter().zip(self.answers).zip(self.rewards).enumerate();
        let verdicts = self.verdicts;
        rows.map(move |(row, ((task, answer), reward))| Line {
            task,
            answer,
            reward,
            verdict: verdicts.and_then(|verdicts| verdicts.get(row)),
        })
    }
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    task: &'a Task,
    answer: &'a str,
    reward: &'a Reward,
    #[serde(skip_serializing_if = "Option::is_none")]
    verdict: Option<&'a Verdict>,
}

impl Line<'_> {
    fn caption(self) -> Caption {
        let mut below = self.answer.to_string();
        if !self.reward.abstains() {
            below += &format!(" {:.2}/{:.2}", self.reward.score, self.reward.max);
        }
        if let Some(verdict) = self.verdict {
            below += if verdict.strict { " right" } else { " wrong" };
        }
        Caption { above: self.task.prompt.clone(), below }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn create(root: &Path) -> Result<RunDir> {
        RunDir::create(Some(root.into()), "x", &RunConfig::default())
    }

    #[test]
    fn a_used_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("notes"), "mine").unwrap();
        assert!(create(dir.path()).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn one_process_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let run = create(dir.path()).unwrap();
        let error = RunDir::open(dir.path()).unwrap_err();
        assert!(error.message().starts_with("another process writes to"), "{error}");
        drop(run);
        RunDir::open(dir.path()).unwrap();
    }

    #[test]
    fn what_is_no_run_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        assert!(RunDir::open(dir.path()).is_err());
        assert!(RunDir::open(&dir.path().join("nowhere")).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
