//! Converts panics into errors.
#![allow(unsafe_code, reason = "tch has no function that reads or restores the grad mode")]

use std::any::Any;
use std::backtrace::Backtrace;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use crate::error::{Code, Error, Result};

thread_local! {
    static CATCHING: Cell<bool> = const { Cell::new(false) };
    static LOCATION: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Installs a panic hook that, within [`catch_unwind_to_error`], records the location instead of printing. The host and every
/// plugin have separate hooks.
pub fn install_hook() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CATCHING.get() {
                return before(info);
            }
            let location = info.location().map(|at| {
                let raised = format!("{}:{}", at.file(), at.line());
                if is_foreign(at.file()) { caller().unwrap_or(raised) } else { raised }
            });
            LOCATION.replace(location);
        }));
    });
}

/// Returns the innermost caller outside of dependencies: operators of tch panic within tch.
fn caller() -> Option<String> {
    let trace = Backtrace::force_capture().to_string();
    let frames = trace.lines().filter_map(|line| line.trim_start().strip_prefix("at "));
    let frame = frames
        .into_iter()
        .find(|path| !is_foreign(path) && !path.contains("src/abi/") && !path.contains(file!()))?;
    Some(frame.rsplit_once(':').map_or(frame, |(place, _column)| place).to_owned())
}

fn is_foreign(path: &str) -> bool {
    path.contains("/registry/") || path.contains("/rustc/")
}

/// Runs `body`, converts a panic into an error and restores the grad mode.
pub fn catch_unwind_to_error<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    install_hook();
    let grad = grad_mode();
    let outer = CATCHING.replace(true);
    let outcome = panic::catch_unwind(AssertUnwindSafe(body));
    CATCHING.set(outer);
    outcome.unwrap_or_else(|payload| {
        set_grad_mode(grad); // `tch::no_grad` does not restore it when its closure unwinds
        let location = LOCATION.take().unwrap_or_else(|| "an unknown location".into());
        Err(Error::new(Code::Panic, format!("panicked at {location}: {}", text(&*payload))))
    })
}

fn text(payload: &(dyn Any + Send)) -> String {
    let text =
        payload.downcast_ref::<&str>().copied().or(payload.downcast_ref::<String>().map(String::as_str));
    let text = text.unwrap_or("no message");
    // The Debug form of a tch error: the message, then the C++ backtrace, escaped.
    let end = text.find("\\nException raised from").unwrap_or(text.len());
    text[..end].to_owned()
}

fn grad_mode() -> i32 {
    let mode = set_grad_mode(1);
    set_grad_mode(mode);
    mode
}

fn set_grad_mode(mode: i32) -> i32 {
    // SAFETY: sets a thread-local flag of libtorch and returns its previous value.
    unsafe { torch_sys::at_grad_set_enabled(mode) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn panic_becomes_error_and_grad_mode_is_restored() {
        let result: Result<()> = catch_unwind_to_error(|| tch::no_grad(|| panic!("kaboom {}", 7)));
        let error = result.expect_err("it panicked");
        assert_eq!(error.code(), Code::Panic);
        assert!(error.message().ends_with("kaboom 7"), "{error}");
        assert_eq!(grad_mode(), 1);
    }
}
