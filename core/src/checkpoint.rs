//! A checkpoint: a model in its family's own layout, and beside it, in the folder `training/`, what a run needs to go on to
//! the same result. `state.safetensors` holds the weights that learn, in the precision in which they are updated, and their
//! moments; `state.json` the rest, with the SHA-256 of every file, sealed.
//!
//! Nothing random is kept: every stream of random numbers follows from the seed and the step, and so do the tasks of a step.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::atomic_fs;
use crate::config::RunConfig;
use crate::drift::DriftState;
use crate::error::{Context, Error, Result};
use crate::eval::ModelFingerprint;
use crate::hash;
use crate::memory::{self, MemoryPlan};
use crate::model::UnifiedModel;
use crate::optim::SlotState;
use crate::plugin::mapped_version;
use crate::weights::{self, Weights};

/// The form of `state.json`; one of another form is refused.
const FORM: u32 = 1;
const STATE: &str = "training/state.json";
const TENSORS: &str = "training/state.safetensors";

/// Everything that decides how a run goes on.
#[derive(Debug)]
pub struct TrainingState {
    /// Steps done.
    pub step: u64,
    /// The settings of the run.
    pub config: RunConfig,
    /// The model that the run began with: the reference policy.
    pub base: ModelFingerprint,
    /// Images that go through the model at once; fewer than the settings say after memory ran out.
    pub micro_batch: usize,
    /// Why the run ended early, if it did.
    pub stopped: Option<String>,
    /// The files that the run reads, by what they are to it, and the SHA-256 of each; empty in older checkpoints.
    pub inputs: BTreeMap<String, String>,
    /// The weights that learn and their moments.
    pub(crate) slots: Vec<SlotState>,
    /// The drift guard.
    pub(crate) guard: Option<DriftState>,
    /// Where the guard may go back: the weights of the best step, in the order of `slots`.
    pub(crate) best: Vec<Tensor>,
}

/// `state.json`, but for the seal.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    form: u32,
    unirl: String,
    libtorch: String,
    step: u64,
    micro_batch: usize,
    stopped: Option<String>,
    base: ModelFingerprint,
    config: RunConfig,
    /// The weights that learn, in the model's order, and how many updates each has had.
    updates: Vec<(String, u64)>,
    guard: Option<DriftState>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    inputs: BTreeMap<String, String>,
    /// The SHA-256 of every other file of the checkpoint.
    files: BTreeMap<String, String>,
}

impl TrainingState {
    /// Writes the state into the folder of a checkpoint, beside the files that are there.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let place = || "cannot write the training state";
        fs::create_dir_all(folder.join("training")).context(place)?;
        let mut tensors = Vec::new();
        for slot in &self.slots {
            for (part, tensor) in slot.tensors() {
                tensors.push((format!("{part}/{}", slot.name), tensor.shallow_clone()));
            }
        }
        for (slot, weight) in self.slots.iter().zip(&self.best) {
            tensors.push((format!("best/{}", slot.name), weight.shallow_clone()));
        }
        weights::write(&folder.join(TENSORS), &tensors, &[])?;
        let body = Body {
            form: FORM,
            unirl: env!("CARGO_PKG_VERSION").into(),
            libtorch: mapped_version().unwrap_or_else(|| "unknown".into()),
            step: self.step,
            micro_batch: self.micro_batch,
            stopped: self.stopped.clone(),
            base: self.base.clone(),
            config: self.config.clone(),
            updates: self.slots.iter().map(|slot| (slot.name.clone(), slot.steps)).collect(),
            guard: self.guard.clone(),
            inputs: self.inputs.clone(),
            files: hashes(folder)?,
        };
        let json = hash::seal(serde_json::to_value(&body).context(place)?);
        atomic_fs::write(&folder.join(STATE), &format!("{json:#}\n"))
    }

    /// The inputs that are no longer what they were when the state was written, each with both hashes. A state of an earlier
    /// release knows none.
    pub fn changed_inputs(&self, inputs: &BTreeMap<String, String>) -> Vec<String> {
        let short = |hash: &str| hash.get(..12).unwrap_or(hash).to_string();
        let changed = self.inputs.iter().filter(|(name, hash)| inputs.get(*name) != Some(*hash));
        changed
            .map(|(name, hash)| {
                let now = inputs.get(name).map_or_else(|| "nothing".into(), |hash| short(hash));
                format!("{name}: {} -> {now}", short(hash))
            })
            .collect()
    }

    /// Reads the state of a checkpoint; refuses one of which any file is missing or is not what was written.
    pub fn read(folder: &Path) -> Result<Self> {
        let folder = &atomic_fs::follow(folder);
        let damaged = || format!("checkpoint `{}` is damaged", folder.display());
        let path = folder.join(STATE);
        if !path.is_file() && !folder.join(TENSORS).is_file() {
            return Err(Error::usage(format!("`{}` holds no training state", folder.display()))
                .cause(format!("no `{STATE}`"))
                .hint("name a checkpoint of a run: `RUN/checkpoints/step-NNNNNN`"));
        }
        let text = fs::read_to_string(&path).context(|| format!("cannot read `{STATE}`")).context(damaged)?;
        let json =
            hash::unseal("training state", FORM, &text).context(|| format!("`{STATE}`")).context(damaged)?;
        let body: Body = serde_json::from_value(json).context(|| format!("`{STATE}`")).context(damaged)?;
        check_files(folder, &body.files).context(damaged)?;

        let tensors = Weights::open(&folder.join(TENSORS)).context(damaged)?;
        let slot = |(name, steps): &(String, u64)| {
            SlotState::from_tensors(name, *steps, |part| tensors.read(&format!("{part}/{name}")))
        };
        let slots = body.updates.iter().map(slot).collect::<Result<Vec<_>>>().context(damaged)?;
        let best = if tensors.names().any(|name| name.starts_with("best/")) {
            let best = slots.iter().map(|slot| tensors.read(&format!("best/{}", slot.name)));
            best.collect::<Result<_>>().context(damaged)?
        } else {
            Vec::new()
        };
        Ok(Self {
            step: body.step,
            config: body.config,
            base: body.base,
            micro_batch: body.micro_batch,
            stopped: body.stopped,
            inputs: body.inputs,
            slots,
            guard: body.guard,
            best,
        })
    }

    /// What the state takes on disk.
    fn bytes(&self) -> u64 {
        let of = |tensor: &Tensor| tensor.numel() as u64 * tensor.kind().elt_size_in_bytes() as u64;
        let slots = self.slots.iter().flat_map(SlotState::tensors).map(|(_, tensor)| of(tensor)).sum::<u64>();
        slots + self.best.iter().map(of).sum::<u64>()
    }
}

/// Saves a checkpoint of `model` as `path`; `state` alone where there is no `model` to save. Refuses to begin where the disk
/// has no room for it.
pub(crate) fn save(path: &Path, model: Option<&dyn UnifiedModel>, state: &TrainingState) -> Result<()> {
    let place = || format!("cannot save a checkpoint to `{}`", path.display());
    let model_bytes = model.map(model_bytes).transpose()?.unwrap_or(0);
    let rest = 1 << 20; // tables, tokenizers, configurations
    atomic_fs::check_space(path.parent().unwrap_or(path), state.bytes() + model_bytes + rest)
        .context(place)?;
    atomic_fs::folder(path, |partial| {
        if let Some(model) = model {
            model.save(partial)?;
        }
        state.write(partial)
    })
    .context(place)
}

/// What the weights of a model take on disk.
fn model_bytes(model: &dyn UnifiedModel) -> Result<u64> {
    let bytes = |tensor: &Tensor| tensor.numel() as u64 * tensor.kind().elt_size_in_bytes() as u64;
    Ok(model.parameters()?.iter().map(|parameter| bytes(&parameter.tensor)).sum())
}

/// What the checkpoints of a run take on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskPlan {
    /// Bytes of one: the model, and f32 weights with two moments of each that learns.
    pub checkpoint: u64,
    /// How many there are at most at a time: those that are kept, and the one that is being written.
    pub most: u64,
    /// The folder that they lie in.
    pub folder: PathBuf,
    /// Free bytes there, where that can be told.
    pub free: Option<u64>,
}

impl DiskPlan {
    /// The plan of a run in `folder`, or in one that will be there.
    pub fn new(memory: &MemoryPlan, config: &RunConfig, folder: &Path) -> Self {
        let (_, learning) = memory.values;
        let weights: i64 =
            memory.held.iter().filter(|(name, _)| *name == "weights").map(|(_, bytes)| bytes).sum();
        let options = &config.checkpoint;
        let written = if options.every == 0 { 1 } else { config.train.steps.div_ceil(options.every) };
        let kept = if options.keep == 0 { written } else { written.min(options.keep as u64 + 1) };
        Self {
            checkpoint: (weights + learning * 3 * 4) as u64,
            most: kept + u64::from(config.eval.every > 0),
            folder: folder.into(),
            free: atomic_fs::free_space(folder),
        }
    }

    /// The plan as a table for people.
    pub fn table(&self) -> String {
        let size = |bytes: u64| memory::size(bytes as i64);
        let mut text = format!("{:<20}{:>16}\n", "a checkpoint", size(self.checkpoint));
        text += &format!("{:<20}{:>16}\n", "of these at most", self.most);
        if let Some(free) = self.free {
            text += &format!("{:<20}{:>16}\n", "the disk has", size(free));
        }
        text
    }

    /// Refuses a disk that they do not fit.
    pub fn check(&self) -> Result<()> {
        atomic_fs::check_space(&self.folder, self.checkpoint * self.most).map_err(|error| {
            error.hint("keep fewer (`--set checkpoint.keep=1`), or write to another disk: `--out DIR`")
        })
    }
}

/// After how many steps a checkpoint was written.
pub(crate) fn step(folder: &Path) -> Result<u64> {
    #[derive(Deserialize)]
    struct Step {
        step: u64,
    }
    weights::read_json::<Step>(&folder.join(STATE)).map(|Step { step }| step)
}

/// Whether two folders are the same checkpoint: the state holds the hashes of all other files.
pub(crate) fn same(one: &Path, other: &Path) -> bool {
    let state = |folder: &Path| fs::read(folder.join(STATE)).ok();
    state(one).is_some() && state(one) == state(other)
}

fn relative(folder: &Path, file: &Path) -> String {
    file.strip_prefix(folder).unwrap_or(file).to_string_lossy().into_owned()
}

fn hashes(folder: &Path) -> Result<BTreeMap<String, String>> {
    let files = atomic_fs::files(folder).context(|| format!("cannot list `{}`", folder.display()))?;
    files.iter().map(|file| Ok((relative(folder, file), hash::file(file)?))).collect()
}

fn check_files(folder: &Path, known: &BTreeMap<String, String>) -> Result<()> {
    for (name, expected) in known {
        let file = folder.join(name);
        if !file.is_file() {
            return Err(Error::failure(format!("`{name}` is missing")));
        }
        if hash::file(&file)? != *expected {
            return Err(Error::failure(format!("`{name}` is not what was written")));
        }
    }
    Ok(())
}
