//! The plugin ABI.
//!
//! A plugin implements `UnifiedModel`, `RewardFunction` or `Detector`. `adapt` wraps the object as a [`component::Component`];
//! on the host, `unirl_engine::plugin` wraps the component and implements the same trait. `wire` encodes every operation as a
//! message of JSON and named tensors, so that messages can evolve while the layout is fixed within an ABI number.
//!
//! Host and plugin have separate copies of std, the tracing dispatcher, the panic hook and the inventory registry. They share
//! the libtorch of the process, and with it autograd, the grad mode and the random state.

pub mod adapt;
pub mod component;
pub mod export;
pub mod log;
pub mod panic;
pub mod stamp;
pub mod tensor;
pub mod wire;
