//! Ctrl-C, SIGTERM, SIGHUP and SIGUSR1: the step is finished and saved, then the run ends. A second Ctrl-C or SIGTERM ends it
//! at once.

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use signal_hook::low_level;
use unirl::error::{Context, Result};

use crate::progress;

/// The exit status of what was interrupted: 128 and SIGINT's number.
pub(crate) const STATUS: u8 = 130;

static ASKED: AtomicBool = AtomicBool::new(false);

/// From here on, signals are listened to.
pub(crate) fn listen() -> Result<()> {
    let mut listened = vec![SIGINT, SIGTERM, SIGUSR1];
    if !hangups_are_ignored() {
        listened.push(SIGHUP);
    }
    let mut signals = Signals::new(&listened).context(|| "cannot listen to signals")?;
    thread::spawn(move || {
        let mut insisted = false;
        for signal in signals.forever() {
            // A terminal that hangs up sends two, and a scheduler SIGUSR1 before SIGTERM: neither asks for an end at once.
            let insists = signal == SIGINT || signal == SIGTERM;
            if insisted && insists {
                low_level::exit(STATUS.into());
            }
            insisted |= insists;
            if !ASKED.swap(true, Ordering::Relaxed) {
                progress::note(
                    "interrupted: the step is finished and saved first; a second Ctrl-C or SIGTERM ends at once",
                );
            }
        }
    });
    Ok(())
}

/// Whether the program was started so that it outlives its terminal, as by `nohup`.
fn hangups_are_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored >> (SIGHUP - 1) & 1 == 1
}

/// Whether to go on.
pub(crate) fn asked() -> ControlFlow<()> {
    if ASKED.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
}
