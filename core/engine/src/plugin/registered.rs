//! What the crates of this program register, without a library file.

use serde_json::Value;
use unirl::abi::component::ComponentBox;
use unirl::abi::{export, wire};
use unirl::error::{Error, Result};
use unirl::model::{ModelSource, UnifiedModel};
use unirl::reward::RewardFunction;

use super::EntryKind;
use super::foreign::{ForeignModel, ForeignReward};

/// Creates a model that a crate of this program registers. Every call crosses the plugin boundary and is validated, as if the model
/// came from a library file.
pub fn registered_model(name: &str, config: &Value, source: &ModelSource) -> Result<Box<dyn UnifiedModel>> {
    let component = make(EntryKind::Model, name, config, Some(source))?;
    Ok(Box::new(ForeignModel::new(name.into(), component)?))
}

/// Creates a reward function that a crate of this program registers, as [`registered_model`] creates a model.
pub fn registered_reward(name: &str, config: &Value) -> Result<Box<dyn RewardFunction>> {
    Ok(Box::new(ForeignReward::new(name.into(), make(EntryKind::Reward, name, config, None)?)?))
}

fn make(kind: EntryKind, name: &str, config: &Value, source: Option<&ModelSource>) -> Result<ComponentBox> {
    let json = wire::make(config, source)?;
    let made = export::make(kind.to_string().as_str().into(), name.into(), json.as_str().into());
    made.into_result().map_err(Error::from)
}
