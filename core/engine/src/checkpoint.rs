//! A checkpoint: a model in the layout of its family and, in `training/`, the state from which a run resumes bit-equally.
//! `training/state.safetensors` holds the trainable weights, in the precision in which they are updated, and their moments;
//! `training/state.json` is sealed and holds the rest, with the SHA-256 of every file.
//!
//! No random state is saved: every random stream and the tasks of a step follow from the seed and the step.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::Tensor;
use unirl::error::{Context, Error, Result};
use unirl::model::UnifiedModel;
use unirl::weights::{self, Weights};
use unirl_base::{checksum, links};
use unirl_torch::libtorch::mapped_version;

use crate::config::RunConfig;
use crate::drift::DriftState;
use crate::fingerprint::ModelFingerprint;
use crate::optim::SlotState;
use crate::{atomic_fs, sealed};

/// The format version of `state.json`.
const FORM: u32 = 1;
const STATE: &str = "training/state.json";
const TENSORS: &str = "training/state.safetensors";

/// The state from which a run resumes.
#[derive(Debug)]
pub struct TrainingState {
    /// The number of completed steps.
    pub step: u64,
    /// The settings of the run.
    pub config: RunConfig,
    /// The model at the start of the run, which is the reference policy.
    pub base: ModelFingerprint,
    /// The micro-batch size; smaller than in the settings if memory ran out.
    pub micro_batch: usize,
    /// Why the run stopped early, if it did.
    pub stopped: Option<String>,
    /// The SHA-256 of every input file of the run by its role; empty in older checkpoints.
    pub inputs: BTreeMap<String, String>,
    /// The trainable weights and their moments.
    pub(crate) slots: Vec<SlotState>,
    /// The moving average that reads images, in the order of `slots`; empty for other readers.
    pub(crate) reader: Vec<Tensor>,
    /// The state of the drift monitor.
    pub(crate) drift: Option<DriftState>,
    /// The weights of the best step, to which the drift monitor may roll back, in the order of `slots`.
    pub(crate) best: Vec<Tensor>,
}

/// `state.json` without the seal.
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
    /// The trainable weights, in the order of the model, and the number of updates of each.
    updates: Vec<(String, u64)>,
    #[serde(rename = "guard")]
    drift: Option<DriftState>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    inputs: BTreeMap<String, String>,
    /// The SHA-256 of every other file of the checkpoint.
    files: BTreeMap<String, String>,
}

impl TrainingState {
    /// Writes the state into the directory of a checkpoint, which already holds the other files.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let place = || "cannot write the training state";
        fs::create_dir_all(folder.join("training")).context(place)?;
        let mut tensors = Vec::new();
        for slot in &self.slots {
            for (part, tensor) in slot.tensors() {
                tensors.push((format!("{part}/{}", slot.name), tensor.shallow_clone()));
            }
        }
        for (part, weights) in [("reader", &self.reader), ("best", &self.best)] {
            for (slot, weight) in self.slots.iter().zip(weights) {
                tensors.push((format!("{part}/{}", slot.name), weight.shallow_clone()));
            }
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
            drift: self.drift.clone(),
            inputs: self.inputs.clone(),
            files: hashes(folder)?,
        };
        let json = sealed::seal(serde_json::to_value(&body).context(place)?);
        atomic_fs::write(&folder.join(STATE), &format!("{json:#}\n"))
    }

    /// Describes the inputs that changed since the state was written, each with both checksums. States of earlier releases
    /// record no inputs.
    pub fn changed_inputs(&self, inputs: &BTreeMap<String, String>) -> Vec<String> {
        let short = |hash: &str| hash.get(..12).unwrap_or(hash).to_string();
        let changed = self.inputs.iter().filter(|(name, hash)| inputs.get(*name) != Some(*hash));
        changed
            .map(|(name, hash)| {
                let now = inputs.get(name).map_or_else(|| "absent".into(), |hash| short(hash));
                format!("{name}: {} -> {now}", short(hash))
            })
            .collect()
    }

    /// Reads the state of a checkpoint. Errors if any of its files is missing or was modified.
    pub fn read(folder: &Path) -> Result<Self> {
        let folder = &links::follow(folder);
        let damaged = || damaged(folder);
        let (body, tensors) = open(folder)?;
        let slot = |(name, steps): &(String, u64)| {
            SlotState::from_tensors(name, *steps, |part| tensors.read(&format!("{part}/{name}")))
        };
        let slots = body.updates.iter().map(slot).collect::<Result<Vec<_>>>().context(damaged)?;
        let copies = |part: &str| -> Result<Vec<Tensor>> {
            if !tensors.names().any(|name| name.starts_with(part)) {
                return Ok(Vec::new());
            }
            slots.iter().map(|slot| tensors.read(&format!("{part}{}", slot.name))).collect()
        };
        let (reader, best) = (copies("reader/").context(damaged)?, copies("best/").context(damaged)?);
        Ok(Self {
            step: body.step,
            // Options of algorithms are read as they were written, perhaps under former names.
            config: RunConfig::from_table(body.config.to_table()?).context(damaged)?,
            base: body.base,
            micro_batch: body.micro_batch,
            stopped: body.stopped,
            inputs: body.inputs,
            slots,
            reader,
            drift: body.drift,
            best,
        })
    }

    /// The size of the state on disk.
    fn bytes(&self) -> u64 {
        let of = |tensor: &Tensor| tensor.numel() as u64 * tensor.kind().elt_size_in_bytes() as u64;
        let slots = self.slots.iter().flat_map(SlotState::tensors).map(|(_, tensor)| of(tensor)).sum::<u64>();
        slots + self.reader.iter().chain(&self.best).map(of).sum::<u64>()
    }
}

/// Opens the state of a checkpoint. Errors if any file of the checkpoint is missing or was modified.
fn open(folder: &Path) -> Result<(Body, Weights)> {
    let damaged = || damaged(folder);
    let path = folder.join(STATE);
    if !path.is_file() && !folder.join(TENSORS).is_file() {
        return Err(Error::usage(format!("`{}` has no training state", folder.display()))
            .cause(format!("no `{STATE}`"))
            .hint("name a checkpoint of a run: `RUN/checkpoints/step-NNNNNN`"));
    }
    let text = fs::read_to_string(&path).context(|| format!("cannot read `{STATE}`")).context(damaged)?;
    let json =
        sealed::unseal("training state", FORM, &text).context(|| format!("`{STATE}`")).context(damaged)?;
    let body: Body = serde_json::from_value(json).context(|| format!("`{STATE}`")).context(damaged)?;
    check_files(folder, &body.files).context(damaged)?;
    let tensors = Weights::open(&folder.join(TENSORS)).context(damaged)?;
    Ok((body, tensors))
}

fn damaged(folder: &Path) -> String {
    format!("checkpoint `{}` is damaged", folder.display())
}

/// Reads the trainable weights of a checkpoint, in f32 and in the order of the model.
pub(crate) fn trainable_weights(folder: &Path) -> Result<Vec<Tensor>> {
    let (body, tensors) = open(folder)?;
    let weights = body.updates.iter().map(|(name, _)| tensors.read(&format!("weight/{name}")));
    weights.collect::<Result<_>>().context(|| damaged(folder))
}

/// Saves a checkpoint to `path`; without `model`, only the training state. Errors if the disk has too little space.
pub(crate) fn save(path: &Path, model: Option<&dyn UnifiedModel>, state: &TrainingState) -> Result<()> {
    let place = || format!("cannot save a checkpoint to `{}`", path.display());
    let model_bytes = model.map(model_bytes).transpose()?.unwrap_or(0);
    let rest = 1 << 20; // tables, tokenizers, configurations
    atomic_fs::check_space(path.parent().unwrap_or(path), state.bytes() + model_bytes + rest)
        .context(place)?;
    atomic_fs::create_dir(path, |partial| {
        if let Some(model) = model {
            model.save(partial)?;
        }
        state.write(partial)
    })
    .context(place)
}

/// The size of a model's weights on disk.
fn model_bytes(model: &dyn UnifiedModel) -> Result<u64> {
    let bytes = |tensor: &Tensor| tensor.numel() as u64 * tensor.kind().elt_size_in_bytes() as u64;
    Ok(model.parameters()?.iter().map(|parameter| bytes(&parameter.tensor)).sum())
}

/// Returns the step of a checkpoint.
pub(crate) fn step(folder: &Path) -> Result<u64> {
    #[derive(Deserialize)]
    struct Step {
        step: u64,
    }
    weights::read_json::<Step>(&folder.join(STATE)).map(|Step { step }| step)
}

/// Whether two directories hold the same checkpoint: the state includes the checksums of all other files.
pub(crate) fn same(one: &Path, other: &Path) -> bool {
    let state = |folder: &Path| fs::read(folder.join(STATE)).ok();
    state(one).is_some() && state(one) == state(other)
}

fn relative(folder: &Path, file: &Path) -> String {
    file.strip_prefix(folder).unwrap_or(file).to_string_lossy().into_owned()
}

fn hashes(folder: &Path) -> Result<BTreeMap<String, String>> {
    let files = atomic_fs::files(folder).context(|| format!("cannot list `{}`", folder.display()))?;
    files.iter().map(|file| Ok((relative(folder, file), checksum::file(file)?))).collect()
}

fn check_files(folder: &Path, known: &BTreeMap<String, String>) -> Result<()> {
    for (name, expected) in known {
        let file = folder.join(name);
        if !file.is_file() {
            return Err(Error::failure(format!("`{name}` is missing")));
        }
        if checksum::file(&file)? != *expected {
            return Err(Error::failure(format!("`{name}` was modified")));
        }
    }
    Ok(())
}
