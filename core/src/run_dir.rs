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
//! | `checkpoints/latest` | the last of them: a link, or a file with its name where the file system has no links |
//! | `checkpoints/best` | the best of them, where the drift guard looks (`eval.every`) |
//! | `eval/base.json`, `eval/trained.json` | the receipts of the evaluations before and after |
//! | `failed-step-000012/` | the state before a step that could not be done, for `unirl replay-step`, and its tasks |
//! | `report.json` | at the end: the figures of both evaluations |

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use serde::Serialize;
use tch::Tensor;

use crate::atomic_fs;
use crate::checkpoint::{self, TrainingState};
use crate::config::RunConfig;
use crate::error::{Context, Error, Result};
use crate::judge::Verdict;
use crate::model::UnifiedModel;
use crate::prompts::Task;
use crate::reward::Reward;
use crate::sample_grid::{self, Caption};

const FOLDERS: [&str; 4] = ["samples", "eval", "checkpoints", "tensorboard"];

/// What names a checkpoint in `checkpoints/` beside its own name.
const POINTERS: [&str; 2] = ["latest", "best"];

/// The folder of one run, which no other process writes to as long as this one is there.
#[derive(Debug)]
pub struct RunDir {
    root: PathBuf,
    /// The files that the run reads, by what they are to it, and the SHA-256 of each; every checkpoint holds them.
    pub inputs: BTreeMap<String, String>,
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
        let run = Self { _lock: lock(&root)?, inputs: BTreeMap::new(), root };
        run.write_settings(config)?;
        run.make_folders()?;
        run.try_out()?;
        Ok(run)
    }

    /// Opens the folder of a run to go on with it, and tidies up after the process that was interrupted.
    pub fn open(root: &Path) -> Result<Self> {
        if !root.join("config.toml").is_file() {
            return Err(Error::usage(format!("`{}` holds no run: it has no `config.toml`", root.display()))
                .hint("name the folder of a run, e.g. `--resume runs/showo-grpo-001`"));
        }
        let run = Self { _lock: lock(root)?, inputs: BTreeMap::new(), root: root.into() };
        run.make_folders()?;
        for folder in FOLDERS.map(|name| run.root.join(name)).iter().chain([&run.root]) {
            atomic_fs::clean(folder)?;
        }
        for name in POINTERS {
            run.settle(&run.root.join("checkpoints").join(name))?;
        }
        run.try_out()?;
        Ok(run)
    }

    /// Does what saving a checkpoint does, with small files: what this file system cannot do shows before the first step.
    fn try_out(&self) -> Result<()> {
        let folder = self.root.join("checkpoints/.partial-try");
        let place = || format!("cannot keep checkpoints in `{}`", self.root.display());
        let saved = |step: u64| {
            let name = checkpoint_name(step);
            atomic_fs::folder(&folder.join(&name), |partial| {
                make(&partial.join("training"))?;
                atomic_fs::write(&partial.join("training/state.json"), "{}\n")
            })?;
            atomic_fs::link(Path::new(&name), &folder.join("latest"))
        };
        saved(1).and_then(|()| saved(2)).context(place)?;
        atomic_fs::remove_folder(&folder.join(checkpoint_name(1))).context(place)?;
        fs::remove_dir_all(&folder).context(place)
    }

    /// A pointer that became a folder, as in a copy of a run with its links followed, holds a checkpoint: it takes the name
    /// of its step, or goes where that is there.
    fn settle(&self, pointer: &Path) -> Result<()> {
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
        atomic_fs::remove_folder(pointer)
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
        atomic_fs::write(&self.root.join(name), contents)
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
                atomic_fs::remove_folder(&self.checkpoint(*step))?;
            }
        }
        Ok(path)
    }

    /// Points `latest` and `best` at checkpoints.
    pub(crate) fn point(&self, latest: u64, best: Option<u64>) -> Result<()> {
        for (name, step) in POINTERS.into_iter().zip([Some(latest), best]) {
            if let Some(step) = step {
                atomic_fs::link(
                    Path::new(&checkpoint_name(step)),
                    &self.root.join("checkpoints").join(name),
                )?;
            }
        }
        Ok(())
    }

    pub(crate) fn checkpoint(&self, step: u64) -> PathBuf {
        self.root.join("checkpoints").join(checkpoint_name(step))
    }

    /// The steps of the checkpoints that are there, in order.
    fn checkpoints(&self) -> Result<Vec<u64>> {
        steps(&self.root.join("checkpoints"))
    }

    /// Writes drawings, and what was asked, answered, rewarded and judged, as `samples/NAME.png` and `.jsonl`.
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

    /// Keeps the state before a step that failed, and its tasks; where the disk has no room for the state, the tasks.
    pub(crate) fn save_failure(&self, state: &TrainingState, tasks: &[Task]) -> Result<PathBuf> {
        let path = self.root.join(format!("failed-{}", checkpoint_name(state.step + 1)));
        if path.exists() {
            atomic_fs::remove_folder(&path)?;
        }
        if let Err(error) = checkpoint::save(&path, None, state) {
            tracing::warn!("{error}");
            make(&path)?;
        }
        atomic_fs::write(&path.join("tasks.jsonl"), &crate::prompts::write_jsonl(tasks)?)?;
        Ok(path)
    }
}

/// The steps of the checkpoints in a folder, in order.
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

/// The folder of a model that a path means: the newest checkpoint for the folder of a run, the checkpoint that `latest` or
/// `best` name where they are files, else the path itself.
pub fn model_folder(path: &Path) -> Result<PathBuf> {
    let checkpoints = path.join("checkpoints");
    if !checkpoints.is_dir() {
        return Ok(atomic_fs::follow(path));
    }
    if let Some(newest) = steps(&checkpoints)?.last() {
        return Ok(checkpoints.join(checkpoint_name(*newest)));
    }
    let latest = atomic_fs::follow(&checkpoints.join(POINTERS[0]));
    if latest.is_dir() {
        return Ok(latest);
    }
    if path.join("config.toml").is_file() {
        return Err(Error::usage(format!("the run in `{}` has no checkpoint yet", path.display()))
            .hint(format!("go on with it: `unirl --resume {}`", path.display())));
    }
    Ok(path.to_owned())
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
        Err(TryLockError::Error(error)) if cannot_lock(&error) => {
            tracing::warn!(
                "no file can be locked here: see to it that no other process writes to `{}` ({error})",
                root.display()
            );
            Ok(file)
        }
        Err(TryLockError::Error(error)) => Err(error).context(place),
    }
}

/// Whether the file system has no locks; one that is mounted from a server may say that it has none left.
fn cannot_lock(error: &std::io::Error) -> bool {
    atomic_fs::is_unsupported(error) || Errno::from_io_error(error) == Some(Errno::NOLCK)
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
    fn a_run_stands_for_its_newest_checkpoint() {
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

        // `checkpoints/` alone, as when nothing else was copied; a model that happens to have such a folder is itself.
        fs::remove_file(dir.path().join("run/config.toml")).unwrap();
        assert_eq!(of("run").unwrap(), checkpoints.join("step-000010"));
        fs::create_dir_all(dir.path().join("model/checkpoints")).unwrap();
        assert_eq!(of("model").unwrap(), dir.path().join("model"));
    }

    #[test]
    fn what_is_tried_out_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let run = create(dir.path()).unwrap();
        assert_eq!(fs::read_dir(run.root().join("checkpoints")).unwrap().count(), 0);
    }

    #[test]
    fn what_is_no_run_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        assert!(RunDir::open(dir.path()).is_err());
        assert!(RunDir::open(&dir.path().join("nowhere")).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
