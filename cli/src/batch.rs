//! The batch size of commands that do not train.

use unirl::error::{Code, Error, Result};
use unirl::model::{Cost, Footprint, UnifiedModel, Workload};
use unirl_engine::config::RunConfig;
use unirl_engine::memory;

use crate::load;

/// The batch size if the model or the device does not support memory estimation.
const DEFAULT: usize = 8;
/// The largest batch size that is chosen; larger ones are not faster.
const MAX: usize = 128;

/// The batch size that the user requests, or as many images as fit in 80 % of the free memory at `cost` each.
pub(crate) fn size(
    model: &dyn UnifiedModel,
    config: &RunConfig,
    requested: Option<usize>,
    cost: impl FnOnce(&Footprint) -> Cost,
) -> Result<usize> {
    match requested {
        Some(0) => return Err(Error::usage("`--batch`: expected at least 1, got 0")),
        Some(size) => return Ok(size),
        None => {}
    }
    let (images, answers) = (config.rollout.images.clone(), config.rollout.answers.clone());
    let footprint = match model.footprint(&Workload { images, answers, states: 1 }) {
        Err(error) if error.code() == Code::Unsupported => return Ok(DEFAULT),
        footprint => footprint?,
    };
    let device = load::device(&config.model.device)?;
    let Some(available) = memory::available(device) else { return Ok(DEFAULT) };
    // `available` is the free memory of the CPU, without the loaded weights, but the total memory of a GPU.
    let resident = if device.is_cuda() { footprint.weights } else { 0 };
    let Cost { cache, activations } = cost(&footprint);
    let free = (available - resident) as f64 * 0.8;
    Ok(((free / (cache + activations).max(1) as f64) as usize).clamp(1, MAX))
}
