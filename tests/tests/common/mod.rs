//! What several test files share.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Command, Output};

/// Where cargo leaves the plugins that this package depends on.
pub(crate) fn plugin_dir() -> PathBuf {
    std::env::current_exe().unwrap().parent().unwrap().to_owned()
}

/// The command, without a GPU, and on one thread: small as the models are, they gain nothing from two and wait for them.
pub(crate) fn program<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_unirl-under-test"));
    command.args(arguments).env("CUDA_VISIBLE_DEVICES", "").env("OMP_NUM_THREADS", "1");
    command
}

/// The same with the plugins of this package.
pub(crate) fn unirl<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = program(arguments);
    command.arg("--plugin-dir").arg(plugin_dir());
    command
}

/// Exit status, stdout and stderr of the command, as a snapshot has them.
pub(crate) fn shown(output: &Output) -> String {
    format!(
        "exit: {}\nstdout:\n{}stderr:\n{}",
        output.status.code().unwrap(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
