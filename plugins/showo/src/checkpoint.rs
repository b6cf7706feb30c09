//! Checkpoints: a folder in Show-o's layout, the embedded one, or fresh weights.
//!
//! A folder holds `config.json`, `pytorch_model.safetensors` (or `weights.safetensors`),
//! `magvit_config.json`, `magvit.safetensors` and `tokenizer.json`. The embedded one is the same folder
//! packed into one safetensors file: weights as f16, the JSON files in its metadata.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use tch::{Device, Kind, Tensor};
use unirl::error::Context;
use unirl::model::{Checkpoint, ModelSource};
use unirl::{Error, Result};

use crate::config::{CheckpointConfig, MagvitConfig, ShowoConfig};
use crate::store::{Store, read_json};
use crate::text::Text;

const CONFIG: &str = "config.json";
const WEIGHTS: [&str; 2] = ["pytorch_model.safetensors", "weights.safetensors"];
const MAGVIT_CONFIG: &str = "magvit_config.json";
const MAGVIT_WEIGHTS: &str = "magvit.safetensors";
const TOKENIZER: &str = "tokenizer.json";

const BUILTIN: &[u8] = include_bytes!("../builtin/tiles.safetensors");

/// What a model is put together from.
pub struct Parts {
    /// Sizes and special tokens.
    pub config: CheckpointConfig,
    /// Sizes of the image tokenizer.
    pub magvit_config: MagvitConfig,
    /// The text tokenizer.
    pub text: Text,
    /// Weights of the transformer.
    pub phi_store: Store,
    /// Weights of the image tokenizer.
    pub magvit_store: Store,
}

/// The parts that `source` names.
pub fn parts(config: ShowoConfig, source: &ModelSource) -> Result<Parts> {
    match &source.checkpoint {
        Checkpoint::Fresh => fresh(config, source),
        Checkpoint::Folder(folder) => open(folder, source.device),
        Checkpoint::Builtin => unpack(BUILTIN, source.device),
    }
}

fn fresh(config: ShowoConfig, source: &ModelSource) -> Result<Parts> {
    let architecture = config.architecture.unwrap_or_default();
    architecture.magvit.check()?;
    let words =
        if architecture.words.is_empty() { unirl::tiles::vocabulary() } else { architecture.words.clone() };
    let text = Text::of_words(&words)?;
    let config = CheckpointConfig::fresh(&architecture, text.vocabulary_size());
    config.check("model.options.architecture")?;
    tch::manual_seed(source.seed as i64);
    Ok(Parts {
        config,
        magvit_config: architecture.magvit,
        text,
        phi_store: Store::fresh(source.device),
        magvit_store: Store::fresh(source.device),
    })
}

/// Opens a checkpoint folder.
pub fn open(folder: &Path, device: Device) -> Result<Parts> {
    let path = folder.join(CONFIG);
    let config: CheckpointConfig = read_json(&path)?;
    config.check(&path.display().to_string())?;
    let path = folder.join(MAGVIT_CONFIG);
    let magvit_config: MagvitConfig = read_json(&path)?;
    magvit_config.check().context(|| format!("cannot use `{}`", path.display()))?;
    let weights =
        WEIGHTS.iter().map(|name| folder.join(name)).find(|path| path.is_file()).ok_or_else(|| {
            Error::failure(format!("no weights in `{}`", folder.display()))
                .hint(format!("expected `{}`", WEIGHTS[0]))
        })?;
    Ok(Parts {
        text: Text::open(&folder.join(TOKENIZER), config.ids.eos)?,
        phi_store: Store::open(&weights, device)?,
        magvit_store: Store::open(&folder.join(MAGVIT_WEIGHTS), device)?,
        config,
        magvit_config,
    })
}

/// Writes a checkpoint folder.
pub fn save(
    folder: &Path,
    config: &CheckpointConfig,
    magvit_config: &MagvitConfig,
    text: &Text,
    phi: &[(String, Tensor)],
    magvit: &[(String, Tensor)],
) -> Result<()> {
    let write = |name: &str, contents: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, contents).context(|| format!("cannot write `{}`", path.display()))
    };
    let mut json = serde_json::to_value(config).context(|| "cannot write the configuration")?;
    json["_class_name"] = "Showo".into();
    write(CONFIG, &serde_json::to_vec_pretty(&json).context(|| "cannot write the configuration")?)?;
    let mut json = serde_json::to_value(magvit_config).context(|| "cannot write the configuration")?;
    json["_class_name"] = "MAGVITv2".into();
    write(MAGVIT_CONFIG, &serde_json::to_vec_pretty(&json).context(|| "cannot write the configuration")?)?;
    write(TOKENIZER, text.json())?;
    for (name, weights) in [(WEIGHTS[0], phi), (MAGVIT_WEIGHTS, magvit)] {
        let weights: Vec<(&str, Tensor)> = weights
            .iter()
            .map(|(name, tensor)| (name.as_str(), tensor.detach().to_device(Device::Cpu)))
            .collect();
        Tensor::write_safetensors(&weights, folder.join(name))
            .context(|| format!("cannot write `{name}`"))?;
    }
    Ok(())
}

/// Packs a checkpoint folder into one file for embedding: weights as f16.
pub fn pack(folder: &Path) -> Result<Vec<u8>> {
    let mut metadata = HashMap::new();
    for name in [CONFIG, MAGVIT_CONFIG, TOKENIZER] {
        let path = folder.join(name);
        let text = fs::read_to_string(&path).context(|| format!("cannot read `{}`", path.display()))?;
        metadata.insert(name.to_string(), text);
    }
    let mut halves = Vec::new();
    for name in [WEIGHTS[0], MAGVIT_WEIGHTS] {
        for (weight, tensor) in
            Tensor::read_safetensors(folder.join(name)).context(|| format!("cannot read `{name}`"))?
        {
            if weight.starts_with("quantize.") {
                continue;
            }
            let shape: Vec<usize> = tensor.size().iter().map(|size| *size as usize).collect();
            let half = tensor.to_kind(Kind::Half).contiguous();
            let mut bytes = vec![0u8; half.numel() * 2];
            half.f_copy_data_u8(&mut bytes, half.numel())?;
            halves.push((weight, shape, bytes));
        }
    }
    let views = halves
        .iter()
        .map(|(name, shape, bytes)| Ok((name.as_str(), TensorView::new(Dtype::F16, shape.clone(), bytes)?)))
        .collect::<std::result::Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|error| Error::failure("cannot pack the weights").cause(error))?;
    safetensors::serialize(views, Some(metadata))
        .map_err(|error| Error::failure("cannot pack the weights").cause(error))
}

/// The parts of a packed checkpoint.
pub fn unpack(bytes: &[u8], device: Device) -> Result<Parts> {
    let broken =
        |error: &dyn std::fmt::Display| Error::failure("the embedded checkpoint is broken").cause(error);
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(|error| broken(&error))?;
    let files = header.metadata().clone().unwrap_or_default();
    let file = |name: &str| files.get(name).ok_or_else(|| broken(&format!("no `{name}`")));
    let config: CheckpointConfig = serde_json::from_str(file(CONFIG)?).map_err(|error| broken(&error))?;
    let magvit_config: MagvitConfig =
        serde_json::from_str(file(MAGVIT_CONFIG)?).map_err(|error| broken(&error))?;
    config.check(CONFIG)?;
    let text = Text::from_json(file(TOKENIZER)?.clone().into_bytes(), config.ids.eos, TOKENIZER)?;
    let [mut phi, mut magvit] = [Vec::new(), Vec::new()];
    for (name, view) in SafeTensors::deserialize(bytes).map_err(|error| broken(&error))?.tensors() {
        let shape: Vec<i64> = view.shape().iter().map(|size| *size as i64).collect();
        let tensor = Tensor::f_from_data_size(view.data(), &shape, Kind::Half)?;
        if name.starts_with("showo.") { &mut phi } else { &mut magvit }.push((name, tensor));
    }
    Ok(Parts {
        text,
        config,
        magvit_config,
        phi_store: Store::from_tensors("the embedded checkpoint".into(), phi, device),
        magvit_store: Store::from_tensors("the embedded checkpoint".into(), magvit, device),
    })
}
