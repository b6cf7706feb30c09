//! What several test files share.

use std::process::Output;

/// Exit status, stdout and stderr of the command, as a snapshot has them.
pub(crate) fn shown(output: &Output) -> String {
    format!(
        "exit: {}\nstdout:\n{}stderr:\n{}",
        output.status.code().unwrap(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
