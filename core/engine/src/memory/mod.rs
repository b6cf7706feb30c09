//! Memory estimation: the memory plan of a run, and the memory of a device.

mod device;
mod plan;

pub use device::{available, tune_malloc};
pub use plan::MemoryPlan;
pub(crate) use plan::size;
