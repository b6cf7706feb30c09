//! Ctrl-C and SIGTERM: the first asks for an end at the next good place, the second is an end.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;
use unirl::error::{Context, Result};

use crate::progress;

/// The exit status of what was interrupted: 128 and SIGINT's number.
pub(crate) const STATUS: u8 = 130;

static ASKED: AtomicBool = AtomicBool::new(false);

/// From here on, signals are listened to.
pub(crate) fn listen() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context(|| "cannot listen to signals")?;
    thread::spawn(move || {
        for _ in signals.forever() {
            if ASKED.swap(true, Ordering::Relaxed) {
                low_level::exit(STATUS.into());
            }
            progress::note("interrupted: the step is finished and saved first; once more ends at once");
        }
    });
    Ok(())
}

/// Whether to go on.
pub(crate) fn asked() -> ControlFlow<()> {
    if ASKED.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
