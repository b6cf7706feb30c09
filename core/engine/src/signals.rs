//! Keeps signals away from the threads that compute.
//!
//! A signal handler runs on the stack of the interrupted thread. Kernels of MKL, which libtorch calls, use the stack pointer for
//! their own buffers on the heap, so that a handler that interrupts them overwrites the heap. Therefore one thread takes every
//! signal, and the others block them.
#![allow(unsafe_code, reason = "std cannot change the signal mask of a thread")]

use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::{io, ptr, thread};

/// The signals that end a process, or a run.
const SIGNALS: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGUSR1];

/// Starts a thread that takes SIGINT, SIGTERM, SIGHUP and SIGUSR1, and blocks them in this thread and those that it starts later.
/// Handlers and default actions work as before. Call it once, before any other thread is started.
pub fn confine() -> io::Result<()> {
    thread::Builder::new().name("signals".into()).spawn(|| {
        if mask(libc::SIG_UNBLOCK).is_ok() {
            loop {
                thread::park();
            }
        }
    })?;
    mask(libc::SIG_BLOCK)
}

/// Unblocks the signals in the process that `command` starts, which would inherit the mask of this thread.
pub(crate) fn unblock_in(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec, the closure calls only `sigemptyset`, `sigaddset` and `pthread_sigmask`, which are
    // async-signal-safe.
    unsafe { command.pre_exec(|| mask(libc::SIG_UNBLOCK)) }
}

/// Changes the mask of this thread.
fn mask(how: i32) -> io::Result<()> {
    let mut set = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `sigemptyset` initializes the set, and the signal numbers are valid.
    let status = unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        for signal in SIGNALS {
            libc::sigaddset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(how, set.as_ptr(), ptr::null_mut())
    };
    if status == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(status)) }
}
