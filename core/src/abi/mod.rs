//! The only code that crosses from one library to another.
//!
//! A plugin implements `UnifiedModel`, `RewardFunction` or `Detector`; `adapt` wraps it as a [`component::Component`],
//! `foreign` wraps that on the host's side and implements the same trait. `wire` writes every operation as a
//! message of JSON and named tensors, so that the layout below never changes within an abi number and
//! messages can.
//!
//! Host and plugin hold one copy each of std, of the tracing dispatcher, of the panic hook and of the
//! inventory registry; they share the one libtorch of the process, and with it autograd, grad mode and random
//! state.

pub(crate) mod adapt;
pub(crate) mod component;
pub(crate) mod export;
pub(crate) mod foreign;
pub(crate) mod log;
pub(crate) mod panic;
pub(crate) mod stamp;
pub(crate) mod tensor;
pub(crate) mod wire;
