//! The log on stderr.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;

use crate::args::LogForm;

/// Warnings by default, `-v` information, `-vv` everything of ours; `RUST_LOG` wins.
pub(crate) fn init(verbose: u8, form: LogForm) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match form {
        LogForm::Text => {
            let colors = std::io::stderr().is_terminal();
            builder.without_time().with_target(verbose > 1).with_ansi(colors).init();
        }
        LogForm::Json => builder.json().init(),
    }
}
