//! The one error type: a message, what caused it, and hints on what to do.
//!
//! Messages are lower-case, without a full stop, with literals in backticks. A usage error (exit status 2) is one that
//! another command line or configuration would not have; everything else is a failure (exit status 1).

use std::fmt;

/// What kind of mistake an [`Error`] is, which decides the exit status of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// A wrong argument, option, name or configuration value: exit status 2.
    Usage,
    /// The operation is not known to the other side of the plugin boundary.
    Unsupported,
    /// A plugin panicked.
    Panic,
    /// A tensor holds NaN or an infinity.
    NonFinite,
    /// The user asked for an end: exit status 130.
    Interrupted,
    /// Anything else: exit status 1.
    Failure,
}

impl Code {
    /// The name that crosses the plugin boundary.
    pub fn name(self) -> &'static str {
        match self {
            Code::Usage => "usage",
            Code::Unsupported => "unsupported",
            Code::Panic => "panic",
            Code::NonFinite => "non_finite",
            Code::Interrupted => "interrupted",
            Code::Failure => "failure",
        }
    }

    /// The inverse of [`Code::name`]; a name of a later version reads as [`Code::Failure`].
    pub fn from_name(name: &str) -> Self {
        [Code::Usage, Code::Unsupported, Code::Panic, Code::NonFinite, Code::Interrupted]
            .into_iter()
            .find(|code| code.name() == name)
            .unwrap_or(Code::Failure)
    }
}

/// An error that a user reads: message, causes (outermost first) and hints.
#[derive(Debug, Clone)]
pub struct Error {
    code: Code,
    message: String,
    causes: Vec<String>,
    hints: Vec<String>,
}

/// The result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of the given kind.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), causes: Vec::new(), hints: Vec::new() }
    }

    /// A mistake in what the user asked for.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, message)
    }

    /// Something that went wrong while doing what the user asked for.
    pub fn failure(message: impl Into<String>) -> Self {
        Self::new(Code::Failure, message)
    }

    /// Adds a way out, shown behind `hint:`. The same hint is kept once.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        if !self.hints.contains(&hint) {
            self.hints.push(hint);
        }
        self
    }

    /// Adds a cause below those already there.
    #[must_use]
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.causes.push(cause.to_string());
        self
    }

    /// Puts `message` on top; what was the message becomes the first cause.
    #[must_use]
    pub fn context(mut self, message: impl Into<String>) -> Self {
        let inner = std::mem::replace(&mut self.message, message.into());
        self.causes.insert(0, inner);
        self
    }

    /// The same error as a failure: what was asked for is right, and what was found is not.
    #[must_use]
    pub fn into_failure(self) -> Self {
        Self { code: Code::Failure, ..self }
    }

    /// The kind of mistake.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The first line, without its causes.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The causes, outermost first.
    pub fn causes(&self) -> &[String] {
        &self.causes
    }

    /// The ways out.
    pub fn hints(&self) -> &[String] {
        &self.hints
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        for cause in &self.causes {
            write!(f, "\n  caused by: {cause}")?;
        }
        if !self.hints.is_empty() {
            f.write_str("\n")?;
        }
        for hint in &self.hints {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

impl From<tch::TchError> for Error {
    /// libtorch appends a C++ backtrace to its messages: the user gets the first line, the log the rest.
    fn from(error: tch::TchError) -> Self {
        let text = match &error {
            tch::TchError::Torch(text) => text.clone(),
            other => other.to_string(),
        };
        let (message, backtrace) = text.split_once("\nException raised from").unwrap_or((&text, ""));
        if !backtrace.is_empty() {
            tracing::debug!("libtorch: {text}");
        }
        Error::failure(format!("libtorch: {}", message.trim_end()))
    }
}

/// Puts a message on top of any error, and turns foreign errors into [`Error`].
pub trait Context<T> {
    /// Adds what was being done; evaluated only when there is an error.
    fn context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|error| error.context(message()))
    }
}

macro_rules! foreign_context {
    ($($foreign:ty),+) => {$(
        impl<T> Context<T> for std::result::Result<T, $foreign> {
            fn context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T> {
                self.map_err(|error| Error::failure(message()).cause(error))
            }
        }
    )+};
}
foreign_context!(std::io::Error, serde_json::Error, toml::de::Error, toml::ser::Error, png::EncodingError);

impl<T> Context<T> for std::result::Result<T, tch::TchError> {
    fn context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|error| Error::from(error).context(message()))
    }
}

/// The name of `known` that `wrong` most likely meant, if any is near.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        .filter(|(distance, name)| *distance <= 1.max(name.len() / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// The error for a name that is none of `known`: what kind of thing, the wrong name, the nearest one, all of them.
pub fn unknown_name(kind: &str, wrong: &str, known: &[&str]) -> Error {
    let error = Error::usage(format!("unknown {kind} `{wrong}`"));
    let error = match nearest(wrong, known.iter().copied()) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error,
    };
    if known.is_empty() { error } else { error.hint(format!("known: {}", known.join(", "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_puts_causes_and_hints_below_the_message() {
        let error = Error::failure("inner").hint("try again").hint("try again").context("outer");
        assert_eq!(error.to_string(), "outer\n  caused by: inner\n\nhint: try again");
    }

    #[test]
    fn a_backtrace_of_libtorch_stays_out_of_the_message() {
        let error = Error::from(tch::TchError::Torch("bad shape\nException raised from f at g.cpp:1".into()));
        assert_eq!(error.message(), "libtorch: bad shape");
    }

    #[test]
    fn nearest_finds_a_typo_and_nothing_far() {
        assert_eq!(nearest("gpro", ["sft", "grpo"]), Some("grpo"));
        assert_eq!(nearest("adam", ["sft", "grpo"]), None);
    }
}
