//! The folder of a run: `config.toml`, `metrics.jsonl`, `samples/` (`step-000020`, and `base` and `trained`, the same
//! prompts from the same seed), `checkpoints/step-000100/` with `checkpoints/latest`
//! pointing at the last and, where the run is guarded, `checkpoints/best` at the best, `eval/base.json` and `eval/trained.json`, the receipts of the evaluations before and after, and at
//! the end `report.json`, their figures.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use tch::Tensor;

use crate::error::{Context, Error, Result};
use crate::model::UnifiedModel;
use crate::picture;
use crate::reward::Reward;
use crate::scene::Task;

/// The folder of one run.
#[derive(Debug, Clone)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// Takes `root`, which must be empty or absent; without one, the first free `runs/NAME-001`.
    pub fn create(root: Option<PathBuf>, name: &str) -> Result<Self> {
        let root = match root {
            Some(root) => {
                Self::check_free(&root)?;
                root
            }
            None => (1..=u32::MAX)
                .map(|number| PathBuf::from(format!("runs/{name}-{number:03}")))
                .find(|path| !path.exists())
                .unwrap_or_default(),
        };
        for folder in [root.clone(), root.join("samples"), root.join("eval"), root.join("checkpoints")] {
            fs::create_dir_all(&folder).context(|| format!("cannot create `{}`", folder.display()))?;
        }
        Ok(Self { root })
    }

    /// Refuses a folder that holds something: a run never writes over another.
    pub fn check_free(root: &Path) -> Result<()> {
        let used = fs::read_dir(root).is_ok_and(|mut entries| entries.next().is_some());
        if used || root.is_file() {
            return Err(Error::usage(format!("`{}` exists and is not an empty folder", root.display()))
                .hint("name another one: `--out DIR`"));
        }
        Ok(())
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Writes a file of the run's folder.
    pub fn write(&self, name: &str, contents: &str) -> Result<()> {
        let path = self.root.join(name);
        fs::write(&path, contents).context(|| format!("cannot write `{}`", path.display()))
    }

    /// Saves the model as `checkpoints/step-NNNNNN` and points `checkpoints/latest` there. The folder appears under its
    /// name only when it is complete.
    pub fn save_checkpoint(&self, model: &dyn UnifiedModel, step: u64) -> Result<PathBuf> {
        let folder = self.root.join("checkpoints");
        let name = format!("step-{step:06}");
        let path = folder.join(&name);
        if !path.exists() {
            save_whole(model, &path)?;
        }
        point(&folder, "latest", &name)?;
        Ok(path)
    }

    /// Saves the model of the best step so far and points `checkpoints/best` there. `before` is removed: the folder of an
    /// earlier best that nothing else wants. What is returned is to be given back with the next one.
    pub fn save_best(
        &self,
        model: &dyn UnifiedModel,
        step: u64,
        before: Option<PathBuf>,
    ) -> Result<Option<PathBuf>> {
        let folder = self.root.join("checkpoints");
        let name = format!("step-{step:06}");
        let path = folder.join(&name);
        let own = !path.exists();
        if own {
            save_whole(model, &path)?;
        }
        point(&folder, "best", &name)?;
        if let Some(before) = before
            && fs::read_link(folder.join("latest")).ok().is_none_or(|latest| folder.join(latest) != before)
        {
            fs::remove_dir_all(&before).context(|| format!("cannot remove `{}`", before.display()))?;
        }
        Ok(own.then_some(path))
    }

    /// Writes sample drawings, and what was asked, answered and rewarded, as `samples/NAME.png` and `.jsonl`.
    pub fn save_samples(&self, name: &str, samples: &Samples<'_>) -> Result<()> {
        let name = format!("samples/{name}");
        let path = self.root.join(format!("{name}.png"));
        picture::write_grid(samples.pixels, samples.columns, &path, &[])?;
        let lines: Vec<String> = samples
            .tasks
            .iter()
            .zip(samples.answers)
            .zip(samples.rewards)
            .map(|((task, answer), reward)| serde_json::to_string(&Line { task, answer, reward }))
            .collect::<std::result::Result<_, _>>()
            .context(|| "cannot write the samples")?;
        self.write(&format!("{name}.jsonl"), &(lines.join("\n") + "\n"))
    }
}

/// Points the link `name` of a folder at one of its entries.
fn point(folder: &Path, name: &str, entry: &str) -> Result<()> {
    let (link, next) = (folder.join(name), folder.join(format!("{name}.new")));
    let place = || format!("cannot point `{}` at `{entry}`", link.display());
    let _ = fs::remove_file(&next);
    std::os::unix::fs::symlink(entry, &next).context(place)?;
    fs::rename(&next, &link).context(place)
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
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    task: &'a Task,
    answer: &'a str,
    reward: &'a Reward,
}

/// Writes a file that appears under its name only when it is complete.
pub fn write_whole(path: &Path, text: &str) -> Result<()> {
    let place = || format!("cannot write `{}`", path.display());
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".partial-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)
        .context(place)?;
    file.write_all(text.as_bytes()).context(place)?;
    file.persist(path).map_err(|error| error.error).context(place)?;
    Ok(())
}

/// Saves a model into `path`, which must not exist and does not until the checkpoint is whole.
pub fn save_whole(model: &dyn UnifiedModel, path: &Path) -> Result<()> {
    let place = || format!("cannot save a checkpoint to `{}`", path.display());
    if path.exists() {
        return Err(
            Error::usage(format!("`{}` exists", path.display())).hint("name another folder: `--out DIR`")
        );
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).context(place)?;
    let partial = tempfile::Builder::new().prefix(".partial-").tempdir_in(parent).context(place)?;
    model.save(partial.path())?;
    fs::rename(partial.path(), path).context(place)?;
    let _ = partial.keep();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(path, readable).context(place)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_folder_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("notes"), "mine").unwrap();
        assert!(RunDir::create(Some(dir.path().into()), "x").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
