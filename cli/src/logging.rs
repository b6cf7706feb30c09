//! The log on stderr, and errors.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use tracing_subscriber::EnvFilter;
use unirl::error::{Code, Error};

use crate::args::LogFormat;

static JSON: AtomicBool = AtomicBool::new(false);

/// Initializes the log: warnings by default, `-v` info, `-vv` debug. `RUST_LOG` takes precedence.
pub(crate) fn init(verbose: u8, format: LogFormat) {
    let level = match verbose {
        0 => "warn",
        1 => "info",
        _ => "debug",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    // Write errors would be reported on stderr, which panics if stderr is closed.
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    match format {
        LogFormat::Text => {
            let colors = std::io::stderr().is_terminal();
            builder.without_time().with_target(verbose > 1).with_ansi(colors).init();
        }
        LogFormat::Json => {
            JSON.store(true, Ordering::Relaxed);
            builder.json().init();
        }
    }
}

/// Whether every line on stderr is a JSON object.
pub(crate) fn is_json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// Writes a line to stderr. Errors are ignored, so that a run survives a closed terminal.
pub(crate) fn line(text: impl Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Prints the error that ends the program.
pub(crate) fn error(error: &Error) {
    if is_json() {
        line(as_json(error));
    } else {
        line(format_args!("error: {error}"));
    }
}

fn as_json(error: &Error) -> serde_json::Value {
    json!({
        "level": "ERROR",
        "code": error.code().name(),
        "message": error.message(),
        "causes": error.causes(),
        "hints": error.hints(),
    })
}

/// Prints what clap returns instead of arguments: help, the version or a usage error. Returns the exit status.
pub(crate) fn print_clap(error: &clap::Error) -> ExitCode {
    if error.use_stderr() && requests_json(std::env::args()) {
        line(as_json(&from_clap(&error.to_string())));
    } else {
        let _ = error.print();
    }
    ExitCode::from(error.exit_code() as u8)
}

/// Whether arguments contain `--log json`, even if they are invalid otherwise.
fn requests_json(arguments: impl Iterator<Item = String>) -> bool {
    let arguments: Vec<String> = arguments.collect();
    let apart = |pair: &[String]| pair[0] == "--log" && pair[1] == "json";
    arguments.contains(&"--log=json".to_string()) || arguments.windows(2).any(apart)
}

/// Converts the text of a clap error: its first paragraph is the message, the others are hints.
fn from_clap(text: &str) -> Error {
    let mut paragraphs = text.trim().split("\n\n").map(str::trim);
    let message = paragraphs.next().unwrap_or_default();
    let error = Error::new(Code::Usage, message.strip_prefix("error: ").unwrap_or(message));
    paragraphs.fold(error, |error, paragraph| {
        paragraph
            .split("\n  tip: ")
            .fold(error, |error, hint| error.hint(hint.trim().strip_prefix("tip: ").unwrap_or(hint.trim())))
    })
}
