//! How many images go through the model at once where nothing is learned.

use unirl::config::RunConfig;
use unirl::error::{Code, Error, Result};
use unirl::memory;
use unirl::model::{Cost, Footprint, UnifiedModel, Workload};

use crate::load;

/// Where a model does not say what it needs.
const MODEST: usize = 8;
/// More at once is no faster.
const ENOUGH: usize = 128;

/// As many as the user says, or as fit what is free beside the weights.
pub(crate) fn size(
    model: &dyn UnifiedModel,
    config: &RunConfig,
    wanted: Option<usize>,
    cost: impl FnOnce(&Footprint) -> Cost,
) -> Result<usize> {
    match wanted {
        Some(0) => return Err(Error::usage("`--batch`: expected at least 1, got 0")),
        Some(size) => return Ok(size),
        None => {}
    }
    let (images, answers) = (config.rollout.images.clone(), config.rollout.answers.clone());
    let footprint = match model.footprint(&Workload { images, answers, states: 1 }) {
        Err(error) if error.code() == Code::Unsupported => return Ok(MODEST),
        footprint => footprint?,
    };
    let device = load::device(&config.model.device)?;
    let Some(available) = memory::available(device) else { return Ok(MODEST) };
    // The weights are loaded: on the CPU they are no longer among what is available, on a GPU all of it is told.
    let taken = if device.is_cuda() { footprint.weights } else { 0 };
    let Cost { cache, activations } = cost(&footprint);
    let free = (available - taken) as f64 * 0.8;
    Ok(((free / (cache + activations).max(1) as f64) as usize).clamp(1, ENOUGH))
}
