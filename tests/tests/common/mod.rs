//! Helpers shared by the test files.

#![allow(dead_code, reason = "no test file uses all of it")]

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output};

/// The directory in which cargo places the plugins of this package.
pub(crate) fn plugin_dir() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

/// The unirl command without a GPU and on one thread, which is fastest for the small models of the tests.
pub(crate) fn program<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unirl-under-test"));
    command.args(arguments).env("CUDA_VISIBLE_DEVICES", "").env("OMP_NUM_THREADS", "1");
    command
}

/// The unirl command with the plugins of this package.
pub(crate) fn unirl<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = program(arguments);
    command.arg("--plugin-dir").arg(plugin_dir());
    command
}

/// Exit status, stdout and stderr of a command, as text for snapshots.
pub(crate) fn format_output(output: &Output) -> String {
    format!(
        "exit: {}\nstdout:\n{}stderr:\n{}",
        output.status.code().unwrap(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
