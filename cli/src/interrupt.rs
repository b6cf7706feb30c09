//! On Ctrl-C, SIGTERM, SIGHUP or SIGUSR1, a run finishes the current step, saves a checkpoint and exits. A second Ctrl-C or
//! SIGTERM exits immediately.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use signal_hook::low_level;
use unirl::error::{Context, Result};

use crate::progress;

/// The exit status after an interruption: 128 plus the number of SIGINT.
pub(crate) const STATUS: u8 = 130;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Installs the signal handlers.
pub(crate) fn listen() -> Result<()> {
    let mut listened = vec![SIGINT, SIGTERM, SIGUSR1];
    if !hangups_are_ignored() {
        listened.push(SIGHUP);
    }
    let mut signals = Signals::new(&listened).context(|| "cannot install signal handlers")?;
    thread::spawn(move || {
        let mut forced = false;
        for signal in signals.forever() {
            // A closing terminal sends SIGHUP twice, and schedulers send SIGUSR1 before SIGTERM: neither forces an exit.
            let forces = signal == SIGINT || signal == SIGTERM;
            if forced && forces {
                low_level::exit(STATUS.into());
            }
            forced |= forces;
            if !INTERRUPTED.swap(true, Ordering::Relaxed) {
                progress::note(
                    "interrupted: finishing the current step and saving (press Ctrl-C again to exit now)",
                );
            }
        }
    });
    Ok(())
}

/// Whether SIGHUP is ignored, as after `nohup`.
fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored >> (SIGHUP - 1) & 1 == 1
}

/// `Break` once a signal has been received.
pub(crate) fn interrupted() -> ControlFlow<()> {
    if INTERRUPTED.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
