//! Stops panics at the plugin boundary, on the side of the plugin: only the copy of std that raised a panic can catch it.

use abi_stable::std_types::{RErr, ROk, RResult};
use unirl_base::panic::catch_unwind_to_error;

use super::component::FfiError;
use crate::error::Result;

/// Runs the body of a boundary function and converts an error or a panic into an [`FfiError`].
pub fn catch_unwind_to_ffi_error<T>(body: impl FnOnce() -> Result<T>) -> RResult<T, FfiError> {
    match catch_unwind_to_error(body) {
        Ok(value) => ROk(value),
        Err(error) => RErr(error.into()),
    }
}
