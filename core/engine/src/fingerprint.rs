//! What identifies a model: its family, its plugin and the checksum of its weights.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tch::Device;
use unirl::error::Result;
use unirl::model::UnifiedModel;

/// The identity of a model in receipts and checkpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFingerprint {
    /// The model family.
    pub name: String,
    /// The plugin and, if known, its version.
    pub plugin: String,
    /// The SHA-256 of all weights by name, which does not depend on the layout of the files.
    pub weights: String,
}

impl ModelFingerprint {
    /// Computes the fingerprint of a model.
    pub fn new(model: &dyn UnifiedModel, plugin: impl Into<String>) -> Result<Self> {
        Ok(Self { name: model.card().name.clone(), plugin: plugin.into(), weights: checksum(model)? })
    }
}

/// Returns the SHA-256 over name, type, shape and bytes of every weight, sorted by name. It does not depend on the layout of
/// the checkpoint's files.
pub(crate) fn checksum(model: &dyn UnifiedModel) -> Result<String> {
    let mut parameters = model.parameters()?;
    parameters.sort_by(|one, other| one.name.cmp(&other.name));
    let mut hash = Sha256::new();
    for parameter in &parameters {
        let tensor = parameter.tensor.detach().to_device(Device::Cpu).contiguous();
        hash.update(format!("{} {:?} {:?}\n", parameter.name, tensor.kind(), tensor.size()));
        let (count, width) = (tensor.numel(), tensor.kind().elt_size_in_bytes());
        let mut bytes = vec![0u8; count * width];
        tensor.f_copy_data_u8(&mut bytes, count)?;
        hash.update(&bytes);
    }
    Ok(format!("{:x}", hash.finalize()))
}
