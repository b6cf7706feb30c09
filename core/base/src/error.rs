//! The error type: a message, its causes and hints.
//!
//! Messages are lower-case, have no full stop and put literals in backticks. A usage error (exit status 2) can be fixed by
//! changing the command line or the configuration; every other error is a failure (exit status 1).

use std::fmt;

/// The kind of an [`Error`]; it determines the exit status of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// A wrong argument, option, name or configuration value: exit status 2.
    Usage,
    /// The other side of the plugin boundary does not know the operation.
    Unsupported,
    /// A plugin panicked.
    Panic,
    /// A value is NaN or infinite.
    NonFinite,
    /// The user interrupted the command: exit status 130.
    Interrupted,
    /// Anything else: exit status 1.
    Failure,
}

impl Code {
    /// Returns the name that crosses the plugin boundary.
    #[doc(hidden)] // for the host
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

    /// The inverse of [`Code::name`]; unknown names, from later versions, become [`Code::Failure`].
    #[doc(hidden)] // for the host
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

/// The result of every fallible function of unirl.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Creates an error of the given kind.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), causes: Vec::new(), hints: Vec::new() }
    }

    /// Creates a usage error.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::Usage, message)
    }

    /// Creates a failure.
    pub fn failure(message: impl Into<String>) -> Self {
        Self::new(Code::Failure, message)
    }

    /// Adds a hint, shown after `hint:`. A duplicate is dropped.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        let hint = hint.into();
        if !self.hints.contains(&hint) {
            self.hints.push(hint);
        }
        self
    }

    /// Appends a cause.
    #[must_use]
    pub fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.causes.push(cause.to_string());
        self
    }

    /// Makes `message` the message; the old message becomes the first cause.
    #[must_use]
    pub fn context(mut self, message: impl Into<String>) -> Self {
        let inner = std::mem::replace(&mut self.message, message.into());
        self.causes.insert(0, inner);
        self
    }

    /// Turns the error into a failure: the request is valid, but what was found is not.
    #[doc(hidden)] // for the host
    #[must_use]
    pub fn into_failure(self) -> Self {
        Self { code: Code::Failure, ..self }
    }

    /// Returns the kind of the error.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Returns the message without causes and hints.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the causes, outermost first.
    pub fn causes(&self) -> &[String] {
        &self.causes
    }

    /// Returns the hints.
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
    /// Keeps the message for the user and logs the C++ backtrace that libtorch appends.
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

/// Adds a message to any error, and converts foreign errors into [`Error`].
pub trait Context<T> {
    /// Adds a message that says what failed; evaluated only on an error.
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
foreign_context!(std::io::Error, serde_json::Error);
#[cfg(feature = "toml")]
foreign_context!(toml::de::Error, toml::ser::Error);

impl<T> Context<T> for std::result::Result<T, tch::TchError> {
    fn context<M: Into<String>>(self, message: impl FnOnce() -> M) -> Result<T> {
        self.map_err(|error| Error::from(error).context(message()))
    }
}

/// Returns the name of `known` that is nearest to `wrong`, if any is near enough to be a typo.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(wrong, name), name))
        .filter(|(distance, name)| *distance <= 1.max(name.len() / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Returns the usage error for a `kind` named `wrong` that is not among `known`, with hints.
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
    fn display_prints_causes_and_hints_below_the_message() {
        let error = Error::failure("inner").hint("try again").hint("try again").context("outer");
        assert_eq!(error.to_string(), "outer\n  caused by: inner\n\nhint: try again");
    }

    #[test]
    fn libtorch_backtrace_is_not_in_the_message() {
        let error = Error::from(tch::TchError::Torch("bad shape\nException raised from f at g.cpp:1".into()));
        assert_eq!(error.message(), "libtorch: bad shape");
    }

    #[test]
    fn nearest_matches_typos_only() {
        assert_eq!(nearest("gpro", ["sft", "grpo"]), Some("grpo"));
        assert_eq!(nearest("adam", ["sft", "grpo"]), None);
    }
}
