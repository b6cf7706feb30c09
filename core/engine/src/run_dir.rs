//! The run directory:
//!
//! | entry | content |
//! |---|---|
//! | `config.toml` | the complete settings |
//! | `run.lock` | locked by the one process that writes to the directory |
//! | `metrics.jsonl` | one line per step, see [`crate::metrics`] |
//! | `tensorboard/` | the same metrics for TensorBoard |
//! | `samples/` | images of fixed prompts and seeds: `base`, `step-000020`, …, `trained`, each a grid and its lines |
//! | `checkpoints/step-000100/` | a model and its training state, see [`crate::checkpoint`] |
//! | `checkpoints/latest` | the newest checkpoint: a link, or a file with its name if the file system has no links |
//! | `checkpoints/best` | the best checkpoint, if the drift monitor runs (`eval.every`) |
//! | `eval/base.json`, `eval/trained.json` | the receipts of the evaluations before and after training |
//! | `failed-step-000012/` | the state before a step that failed and its tasks, for `unirl replay-step` |
//! | `report.json` | at the end of the run: the figures of both evaluations, and the step that they show |

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use serde::Serialize;
use tch::Tensor;
use unirl::error::{Context, Error, Result};
use unirl::model::UnifiedModel;
use unirl::reward::Reward;
use unirl_base::{input, links};
use unirl_benchmarks::judge::Verdict;
use unirl_prompts::Task;

use crate::atomic_fs;
use crate::checkpoint::{self, TrainingState};
use crate::config::RunConfig;
use crate::sample_grid::{self, Caption};

const FOLDERS: [&str; 4] = ["samples", "eval", "checkpoints", "tensorboard"];

/// The links to checkpoints in `checkpoints/`.
const POINTERS: [&str; 2] = ["latest", "best"];

/// A run directory, locked against other processes while this value exists.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    /// The SHA-256 of every input file of the run by its role; saved in every checkpoint.
    pub inputs: BTreeMap<String, String>,
    _lock: File,
}

impl RunDir {
    /// Creates the run directory `root`, which must be empty or absent, or else the first free `runs/NAME-001`. Writes the
    /// settings.
    pub fn create(root: Option<PathBuf>, name: &str, config: &RunConfig) -> Result<Self> {
        let root = match root {
            Some(root) => {
                Self::check_free(&root)?;
                make(&root)?;
                root
            }
            None => create_numbered(name)?,
        };
        let run = Self { _lock: lock(&root)?, inputs: BTreeMap::new(), root };
        run.write_settings(config)?;
        run.make_folders()?;
        run.check_file_system()?;
        Ok(run)
    }

    /// Opens a run directory to resume the run, and removes the temporary files of an interrupted process.
    pub fn open(root: &Path) -> Result<Self> {
        if !root.join("config.toml").is_file() {
            return Err(Error::usage(format!(
                "`{}` is not a run directory: it has no `config.toml`",
                root.display()
            ))
            .hint("name a run directory, for example `--resume runs/showo-grpo-001`"));
        }
        let run = Self { _lock: lock(root)?, inputs: BTreeMap::new(), root: root.into() };
        run.make_folders()?;
        for folder in FOLDERS.map(|name| run.root.join(name)).iter().chain([&run.root]) {
            atomic_fs::clean_temp_files(folder)?;
        }
        for name in POINTERS {
            run.repair_pointer(&run.root.join("checkpoints").join(name))?;
        }
        run.check_file_system()?;
        Ok(run)
    }

    /// Performs the operations of saving a checkpoint with small files, so that an unsuitable file system fails before the
    /// first step.
    fn check_file_system(&self) -> Result<()> {
        let folder = self.root.join("checkpoints/.partial-try");
        let place = || format!("cannot save checkpoints in `{}`", self.root.display());
        let saved = |step: u64| {
            let name = checkpoint_name(step);
            atomic_fs::create_dir(&folder.join(&name), |partial| {
                make(&partial.join("training"))?;
                atomic_fs::write(&partial.join("training/state.json"), "{}\n")
            })?;
            links::link(Path::new(&name), &folder.join("latest"))
        };
        saved(1).and_then(|()| saved(2)).context(place)?;
        atomic_fs::remove_dir(&folder.join(checkpoint_name(1))).context(place)?;
        fs::remove_dir_all(&folder).context(place)
    }

    /// Repairs a pointer that became a directory because the run was copied with links followed: renames it to the checkpoint
    /// of its step, or removes it if that exists.
    fn repair_pointer(&self, pointer: &Path) -> Result<()> {
        if pointer.is_symlink() || !pointer.is_dir() {
            return Ok(());
        }
        let hint = || format!("move `{}` away", pointer.display());
        let step = checkpoint::step(pointer).map_err(|error| error.hint(hint()))?;
        let of_step = self.checkpoint(step);
        if !of_step.exists() {
            let place = || format!("cannot rename `{}`", pointer.display());
            return fs::rename(pointer, &of_step).context(place);
        }
        if !checkpoint::same(pointer, &of_step) {
            let error =
                format!("`{}` and `{}` are different checkpoints", pointer.display(), of_step.display());
            return Err(Error::failure(error).hint(hint()));
        }
        atomic_fs::remove_dir(pointer)
    }

    /// Errors if `root` exists and is not an empty directory: a run never overwrites another.
    pub fn check_free(root: &Path) -> Result<()> {
        let used = fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_some());
        if used || root.is_file() {
            let error =
                Error::usage(format!("`{}` already exists and is not an empty directory", root.display()));
            return Err(if root.join("config.toml").is_file() {
                error.hint(format!("resume that run: `--resume {}`", root.display()))
            } else {
                error
            }
            .hint("name another directory: `--out DIR`"));
        }
        Ok(())
    }

    fn make_folders(&self) -> Result<()> {
        FOLDERS.iter().try_for_each(|name| make(&self.root.join(name)))
    }

    /// Returns the path of the directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Writes a file into the directory.
    pub fn write(&self, name: &str, contents: &str) -> Result<()> {
        atomic_fs::write(&self.root.join(name), contents)
    }

    /// Writes `config.toml`.
    pub fn write_settings(&self, config: &RunConfig) -> Result<()> {
        self.write("config.toml", &config.to_toml()?)
    }

    /// Returns the state of the newest checkpoint, if the run has one. Errors if it is damaged, rather than silently resuming
    /// from an older one.
    pub fn newest(&self) -> Result<Option<TrainingState>> {
        let steps = self.checkpoints()?;
        let Some(newest) = steps.last() else { return Ok(None) };
        let path = self.checkpoint(*newest);
        TrainingState::read(&path).map(Some).map_err(|error| {
            let previous = match steps.iter().rev().nth(1) {
                Some(step) => format!("resume from step {step}"),
                None => "start from the beginning".into(),
            };
            error.hint(format!("remove `{}` to {previous}", path.display()))
        })
    }

    /// Saves a checkpoint, updates `checkpoints/latest` and `checkpoints/best`, and removes all checkpoints but the last `keep`
    /// and the best. With `keep` 0 none is removed.
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
        let best = state.drift.as_ref().and_then(|drift| drift.best_step);
        self.point(state.step, best)?;
        let steps = self.checkpoints()?;
        let old = steps.len().saturating_sub(if keep == 0 { steps.len() } else { keep });
        for step in &steps[..old] {
            if Some(*step) != best {
                atomic_fs::remove_dir(&self.checkpoint(*step))?;
            }
        }
        Ok(path)
    }

    /// Links `latest` and `best` to checkpoints.
    pub(crate) fn point(&self, latest: u64, best: Option<u64>) -> Result<()> {
        for (name, step) in POINTERS.into_iter().zip([Some(latest), best]) {
            if let Some(step) = step {
                links::link(Path::new(&checkpoint_name(step)), &self.root.join("checkpoints").join(name))?;
            }
        }
        Ok(())
    }

    pub(crate) fn checkpoint(&self, step: u64) -> PathBuf {
        self.root.join("checkpoints").join(checkpoint_name(step))
    }

    /// Returns the steps of the existing checkpoints, in order.
    fn checkpoints(&self) -> Result<Vec<u64>> {
        steps(&self.root.join("checkpoints"))
    }

    /// Writes generated images as `samples/NAME.png`, and their tasks, answers, rewards and verdicts as `samples/NAME.jsonl`.
    pub fn save_samples(&self, name: &str, samples: &Samples<'_>) -> Result<()> {
        let name = format!("samples/{name}");
        let captions: Vec<Caption> = samples.rows().map(Line::caption).collect();
        let path = self.root.join(format!("{name}.png"));
        sample_grid::write(samples.pixels, samples.columns, &captions, &path)?;
        let lines: Vec<String> = samples
            .rows()
            .map(|line| serde_json::to_string(&line))
            .collect::<std::result::Result<_, _>>()
            .context(|| "cannot write the samples")?;
        self.write(&format!("{name}.jsonl"), &(lines.join("\n") + "\n"))
    }

    /// Saves the state before a failed step and its tasks; if the disk has no space for the state, only the tasks.
    pub(crate) fn save_failure(&self, state: &TrainingState, tasks: &[Task]) -> Result<PathBuf> {
        let path = self.root.join(format!("failed-{}", checkpoint_name(state.step + 1)));
        if path.exists() {
            atomic_fs::remove_dir(&path)?;
        }
        if let Err(error) = checkpoint::save(&path, None, state) {
            tracing::warn!("{error}");
            make(&path)?;
        }
        atomic_fs::write(&path.join("tasks.jsonl"), &unirl_prompts::write_jsonl(tasks)?)?;
        Ok(path)
    }
}

/// Returns the steps of the checkpoints in a directory, in order.
fn steps(folder: &Path) -> Result<Vec<u64>> {
    let place = || format!("cannot list `{}`", folder.display());
    let mut steps = Vec::new();
    for entry in fs::read_dir(folder).context(place)? {
        let name = entry.context(place)?.file_name();
        steps.extend(name.to_string_lossy().strip_prefix("step-").and_then(|step| step.parse::<u64>().ok()));
    }
    steps.sort_unstable();
    Ok(steps)
}

/// Resolves a path to the directory of a model: a run directory to its newest checkpoint, a `latest` or `best` that is a file to
/// the checkpoint it names, any other path to itself.
pub fn model_folder(path: &Path) -> Result<PathBuf> {
    let checkpoints = path.join("checkpoints");
    if !checkpoints.is_dir() {
        return Ok(links::follow(path));
    }
    if let Some(newest) = steps(&checkpoints)?.last() {
        return Ok(checkpoints.join(checkpoint_name(*newest)));
    }
    let latest = links::follow(&checkpoints.join(POINTERS[0]));
    if latest.is_dir() {
        return Ok(latest);
    }
    if path.join("config.toml").is_file() {
        return Err(Error::usage(format!("the run in `{}` has no checkpoint yet", path.display()))
            .hint(format!("resume the run: `unirl --resume {}`", path.display())));
    }
    Ok(path.to_owned())
}

fn checkpoint_name(step: u64) -> String {
    format!("step-{step:06}")
}

fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).context(|| format!("cannot create `{}`", folder.display()))
}

/// Creates the first free directory of `runs/NAME-001`, `runs/NAME-002`, …
fn create_numbered(name: &str) -> Result<PathBuf> {
    make(Path::new("runs"))?;
    for number in 1..=u32::MAX {
        let path = PathBuf::from(format!("runs/{name}-{number:03}"));
        match fs::create_dir(&path) {
            Ok(()) => return Ok(path),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).context(|| format!("cannot create `{}`", path.display())),
        }
    }
    Err(Error::failure(format!("every `runs/{name}-…` already exists")))
}

/// Locks a run directory against other processes until the file is closed.
fn lock(root: &Path) -> Result<File> {
    let path = root.join("run.lock");
    let place = || format!("cannot lock `{}`", path.display());
    let file = File::options().create(true).append(true).open(&path).context(place)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::usage(format!("another process is writing to `{}`", root.display()))
                .hint("wait until it ends, or use another directory: `--out DIR`"))
        }
        Err(TryLockError::Error(error)) if locks_are_unsupported(&error) => {
            tracing::warn!(
                "the file system does not support locks: make sure that no other process writes to `{}` ({error})",
                root.display()
            );
            Ok(file)
        }
        Err(TryLockError::Error(error)) => Err(error).context(place),
    }
}

/// Whether the file system does not support locks; a network file system may report `ENOLCK`.
fn locks_are_unsupported(error: &std::io::Error) -> bool {
    input::is_unsupported(error) || Errno::from_io_error(error) == Some(Errno::NOLCK)
}

/// Generated images with their tasks, answers and rewards, row by row.
pub struct Samples<'a> {
    /// `[B,3,H,W]` in `0..=1`.
    pub pixels: &'a Tensor,
    /// The number of columns of the grid.
    pub columns: i64,
    /// The tasks.
    pub tasks: &'a [Task],
    /// The model's answers about the images.
    pub answers: &'a [String],
    /// The rewards of the answers.
    pub rewards: &'a [Reward],
    /// The verdicts of the image judge, if any.
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
            below += if verdict.strict { " correct" } else { " wrong" };
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
    fn create_in_used_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("notes"), "mine").unwrap();
        assert!(create(dir.path()).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn open_of_locked_run_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let run = create(dir.path()).unwrap();
        let error = RunDir::open(dir.path()).unwrap_err();
        assert!(error.message().starts_with("another process is writing to"), "{error}");
        drop(run);
        RunDir::open(dir.path()).unwrap();
    }

    #[test]
    fn model_folder_of_run_is_its_newest_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let of = |path: &str| model_folder(&dir.path().join(path));
        assert_eq!(of("").unwrap(), dir.path());
        let run = create(&dir.path().join("run")).unwrap();
        let error = of("run").unwrap_err();
        assert!(error.message().ends_with("has no checkpoint yet"), "{error}");
        let checkpoints = run.root().join("checkpoints");
        for name in ["step-000002", "step-000010", "step-000009"] {
            fs::create_dir(checkpoints.join(name)).unwrap();
        }
        assert_eq!(of("run").unwrap(), checkpoints.join("step-000010"));
        run.point(9, Some(2)).unwrap();
        assert_eq!(of("run/checkpoints/latest").unwrap(), checkpoints.join("latest"), "a link");
        for name in POINTERS {
            fs::remove_file(checkpoints.join(name)).unwrap();
        }
        atomic_fs::write(&checkpoints.join("best"), "step-000002\n").unwrap();
        assert_eq!(of("run/checkpoints/best").unwrap(), checkpoints.join("step-000002"));
        assert_eq!(of("run/checkpoints/step-000009").unwrap(), checkpoints.join("step-000009"));

        // `checkpoints/` alone, if nothing else was copied. A model that happens to have such a directory resolves to itself.
        fs::remove_file(dir.path().join("run/config.toml")).unwrap();
        assert_eq!(of("run").unwrap(), checkpoints.join("step-000010"));
        fs::create_dir_all(dir.path().join("model/checkpoints")).unwrap();
        assert_eq!(of("model").unwrap(), dir.path().join("model"));
    }

    #[test]
    fn check_file_system_leaves_no_files() {
        let dir = tempfile::tempdir().unwrap();
        let run = create(dir.path()).unwrap();
        assert_eq!(fs::read_dir(run.root().join("checkpoints")).unwrap().count(), 0);
    }

    #[test]
    fn open_of_other_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(RunDir::open(dir.path()).is_err());
        assert!(RunDir::open(&dir.path().join("nowhere")).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
