//! A reward in a separate process, in any language: JSON lines on stdin and stdout.
//!
//! A request line is a batch: `{"samples": [{"facts": …, "prompt": …, "question": …, "truth": …, "answer": …}, …]}`. A reply line
//! is `{"rewards": [{"score": 1, "max": 2, "why": "…"}, 0.5, null, …]}`, with one entry per sample: a number is a share of 1,
//! `null` abstains. The list without the object is also accepted. `{"error": "…"}` ends the run. The process must write exactly
//! one line per batch: anything else on stdout is an error. Its stderr is inherited. It should exit when its stdin is closed.

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;
use tch::Tensor;
use unirl::error::{Context, Error, Result};
use unirl::reward::{Reward, RewardFunction, Sample};

use crate::{home, signals};

/// The prefix of the name of a process reward.
pub const PREFIX: &str = "cmd:";

/// The number of restarts per batch.
const RESTARTS: usize = 2;

/// The maximum length of a reply line in bytes.
const MAX_LINE: usize = 64 << 20;

/// The time to wait for an unexpected line after a reply.
const EXTRA_LINE_TIMEOUT: Duration = Duration::from_millis(10);

/// The time to wait for the exit status after the end of stdout, and for the rest of stdout after a kill.
const EXIT_TIMEOUT: Duration = Duration::from_millis(500);

/// The time to wait for the process to exit after its stdin is closed.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Options of a process reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessOptions {
    /// Arguments, after those in the name.
    pub args: Vec<String>,
    /// The timeout of a batch in seconds. On a timeout the process is killed and restarted.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub timeout_seconds: f64,
}

impl Default for ProcessOptions {
    fn default() -> Self {
        Self { args: Vec::new(), timeout_seconds: 60.0 }
    }
}

/// Returns the program and the arguments of a command line (the text after `cmd:`). It is split like in a shell, unless the
/// whole line is the path of a file. A leading `~` of a word is expanded to the home directory.
pub fn command(line: &str) -> Result<(PathBuf, Vec<String>)> {
    let whole = PathBuf::from(home::expand(line).as_ref());
    if whole.is_file() {
        return Ok((here(whole), Vec::new()));
    }
    let words = shlex::split(line)
        .ok_or_else(|| Error::usage(format!("`{PREFIX}{line}`: unclosed quote or trailing `\\`")))?;
    let mut words = words.into_iter().map(|word| home::expand(&word).into_owned());
    let program = words.next().filter(|program| !program.is_empty()).ok_or_else(|| {
        Error::usage(format!("`{PREFIX}{line}`: missing program")).hint("for example `cmd:python3 reward.py`")
    })?;
    Ok((here(program.into()), words.collect()))
}

/// Resolves a name without a directory to a file in the current directory if it exists, else to a program on `PATH`.
fn here(program: PathBuf) -> PathBuf {
    if program.components().count() == 1 && program.is_file() {
        Path::new(".").join(program)
    } else {
        program
    }
}

/// A reward in a separate process.
pub struct ProcessReward {
    name: String,
    program: PathBuf,
    args: Vec<String>,
    timeout: Duration,
    running: RefCell<Option<Running>>,
}

#[derive(Serialize)]
struct Request<'a> {
    samples: &'a [Sample],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reply<'a> {
    #[serde(default, borrow)]
    rewards: Vec<&'a RawValue>,
    #[serde(default)]
    error: Option<String>,
}

impl ProcessReward {
    /// Starts the program of a command line, so that an invalid one is reported before training.
    pub fn start(line: &str, options: ProcessOptions) -> Result<Self> {
        let timeout = Some(options.timeout_seconds).filter(|seconds| *seconds > 0.0);
        let timeout = timeout.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let timeout = timeout.ok_or_else(|| {
            let got = options.timeout_seconds;
            Error::usage(format!("`timeout_seconds`: expected a positive number, got {got}"))
        })?;
        let (program, mut args) = command(line)?;
        args.extend(options.args);
        let name = format!("{PREFIX}{line}");
        let reward = Self { name, program, args, timeout, running: RefCell::new(None) };
        *reward.running.borrow_mut() = Some(reward.spawn()?);
        Ok(reward)
    }

    fn label(&self) -> String {
        format!("reward `{}`", self.name)
    }

    fn spawn(&self) -> Result<Running> {
        let child = signals::unblock_in(&mut Command::new(&self.program))
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| {
                Error::usage(format!("cannot start `{}`", self.program.display())).cause(error).hint(
                    "give an executable file (`chmod +x`, with a first line such as `#!/usr/bin/env python3`), \
                     or a program with its arguments: `cmd:python3 reward.py`",
                )
            })?;
        Running::of(child)
    }

    /// Sends a request and reads its reply. An invalid reply is an error. If the process exited or hangs, the caller restarts
    /// it.
    fn request(&self, request: &str, samples: usize) -> Result<Exchange<Vec<Reward>>> {
        let running = self.running.take();
        let mut process = running.map_or_else(|| self.spawn(), Ok)?;
        let line = match process.request(request, self.timeout)? {
            Exchange::Done(line) => line,
            Exchange::Failed(why) => return Ok(Exchange::Failed(why)),
        };
        let rewards = read(&line, samples)?;
        process.check_no_extra_line()?;
        self.running.replace(Some(process));
        Ok(Exchange::Done(rewards))
    }
}

impl RewardFunction for ProcessReward {
    fn score(&self, samples: &[Sample], _pixels: Option<&Tensor>) -> Result<Vec<Reward>> {
        if samples.is_empty() {
            return Ok(Vec::new());
        }
        let request =
            serde_json::to_string(&Request { samples }).context(|| "cannot serialize the samples")?;
        let mut why = String::new();
        for attempt in 0..=RESTARTS {
            if attempt > 0 {
                tracing::warn!("{} {why}; restarting it", self.label());
            }
            why = match self.request(&request, samples.len()).context(|| self.label())? {
                Exchange::Done(rewards) => return Ok(rewards),
                Exchange::Failed(why) => why,
            };
        }
        Err(Error::failure(format!("{} {why}, in {} attempts", self.label(), RESTARTS + 1))
            .hint("see its stderr above; for a slow program, raise `timeout_seconds` in its options"))
    }

    fn finish(&self) -> Result<()> {
        match self.running.take() {
            Some(process) => process.finish().context(|| self.label()),
            None => Ok(()),
        }
    }
}

/// Parses the rewards of a reply.
fn read(line: &[u8], samples: usize) -> Result<Vec<Reward>> {
    let line = std::str::from_utf8(line).map_err(|error| {
        let at = error.valid_up_to();
        Error::failure(format!("the reply is not UTF-8: byte 0x{:02x} at column {}", line[at], at + 1))
            .cause(format!("got {}", shown(line)))
            .hint("write UTF-8, or ASCII with escapes (`\\u00e9`) like `json.dumps` in Python")
    })?;
    // NaN and infinities are not valid JSON, but `json.dumps` in Python writes them. Quoted, their error has an index.
    rewards(line, samples).or_else(|error| rewards(&quoted(line), samples).map_err(|_| error)).unwrap_or_else(
        |error| {
            let got = shown(line.as_bytes());
            let message = format!("expected a reply `{{\"rewards\": […]}}`, got {got}");
            Err(Error::failure(message).cause(error).hint(STDOUT))
        },
    )
}

const STDOUT: &str = "write one line per batch to stdout and flush it; print everything else to stderr";

const FORMS: &str = "a reward is a number from 0 to 1, `{\"score\": 1, \"max\": 2, \"why\": \"…\"}` with 0 <= score <= max, or `null`";

/// Parses a line. The outer error is a syntax error.
fn rewards(line: &str, samples: usize) -> serde_json::Result<Result<Vec<Reward>>> {
    let reply = if line.trim_start().starts_with('[') {
        Reply { rewards: serde_json::from_str(line)?, error: None }
    } else {
        serde_json::from_str(line)?
    };
    if let Some(error) = reply.error {
        return Ok(Err(Error::failure(error)));
    }
    if reply.rewards.len() != samples {
        let error = Error::failure(format!("expected {samples} rewards, got {}", reply.rewards.len()));
        return Ok(Err(error.hint("write one reward per sample, in order")));
    }
    let read = |(index, raw): (usize, &&RawValue)| {
        reward(raw.get()).map_err(|what| Error::failure(format!("`rewards[{index}]{what}")).hint(FORMS))
    };
    Ok(reply.rewards.iter().enumerate().map(read).collect())
}

/// Parses a reward. The error is the rest of the path of the value, a closing backtick, and the reason.
fn reward(json: &str) -> std::result::Result<Reward, String> {
    let invalid = |expected: &str, got: &dyn std::fmt::Display| format!("`: expected {expected}, got {got}");
    let number = "a finite number";
    match serde_json::from_str(json).map_err(|_| invalid(number, &format!("`{json}`")))? {
        Value::Null => Ok(Reward::abstain("abstains")),
        Value::Number(share) => match share.as_f64() {
            Some(score) if (0.0..=1.0).contains(&score) => Ok(Reward::new(score, 1.0)),
            _ => Err(invalid("a number from 0 to 1", &share)),
        },
        Value::Object(fields) => {
            for name in ["score", "max"] {
                let value = fields.get(name).ok_or_else(|| format!("`: missing field `{name}`"))?;
                if !value.is_number() {
                    return Err(format!(".{name}{}", invalid(number, value)));
                }
            }
            let parts = fields.get("parts").and_then(Value::as_object).into_iter().flatten();
            if let Some((name, value)) = parts.into_iter().find(|(_, value)| !value.is_number()) {
                return Err(format!(".parts.{name}{}", invalid(number, value)));
            }
            serde_json::from_value(Value::Object(fields)).map_err(|error| format!("`: {error}"))
        }
        other => Err(invalid("a number, an object or `null`", &other)),
    }
}

/// Non-finite numbers as programs print them.
const NON_FINITE: [&str; 7] = ["NaN", "nan", "-nan", "Infinity", "-Infinity", "inf", "-inf"];

/// Quotes the words of [`NON_FINITE`] outside of strings.
fn quoted(line: &str) -> String {
    let (mut text, mut rest, mut inside) = (String::with_capacity(line.len() + 16), line, false);
    while let Some(next) = rest.chars().next() {
        let word = NON_FINITE.into_iter().find(|word| rest.starts_with(word));
        let (taken, left) = match word.filter(|_| !inside) {
            Some(word) => {
                text += &format!("\"{word}\"");
                rest = &rest[word.len()..];
                continue;
            }
            // An escaped character does not end a string.
            None if inside && next == '\\' => {
                let escaped = rest[1..].chars().next().map_or(0, char::len_utf8);
                rest.split_at(1 + escaped)
            }
            None => rest.split_at(next.len_utf8()),
        };
        inside ^= taken == "\"";
        text += taken;
        rest = left;
    }
    text
}

/// Returns the beginning of a line in backticks.
fn shown(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end();
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}

/// The result of a request: `T`, or the reason why the process exited or hangs.
enum Exchange<T> {
    Done(T),
    Failed(String),
}

/// Output of the process on stdout.
enum Output {
    Line(Vec<u8>),
    /// More than [`MAX_LINE`] bytes without a line end; reading has stopped.
    TooLong,
    /// The end of stdout, with the bytes after the last line end.
    End(Vec<u8>),
}

impl Output {
    /// Errors for output without a request. The end of stdout is not an error.
    fn unexpected(self, batches: usize) -> Result<()> {
        let (Output::Line(line) | Output::End(line)) = self else { return Err(line_too_long()) };
        if line.is_empty() {
            return Ok(());
        }
        let what = match batches {
            0 => "the process wrote to stdout before the first batch".to_string(),
            1 => "the process wrote more than one line for one batch".to_string(),
            batches => format!("the process wrote more than {batches} lines for {batches} batches"),
        };
        let error = Error::failure(what).cause(format!("unexpected line {}", shown(&line))).hint(STDOUT);
        Err(match batches {
            0 | 1 => error,
            _ => error.hint("earlier rewards may have been assigned to the wrong batch"),
        })
    }
}

fn line_too_long() -> Error {
    Error::failure(format!("the process wrote more than {} MiB without a line end", MAX_LINE >> 20))
        .hint(STDOUT)
}

/// A running process. Dropping it kills the process.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    output: Receiver<Output>,
    /// The number of batches with a reply.
    replies: usize,
}

impl Running {
    fn of(mut child: Child) -> Result<Self> {
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or_else(|| Error::failure("the process has no stdout"))?;
        // Holds one line, so that a process that writes without end blocks instead of filling our memory.
        let (sender, output) = mpsc::sync_channel(1);
        thread::spawn(move || forward(stdout, &sender));
        Ok(Self { child, stdin, output, replies: 0 })
    }

    fn request(&mut self, request: &str, timeout: Duration) -> Result<Exchange<Vec<u8>>> {
        match self.output.try_recv() {
            Ok(Output::End(partial)) if partial.is_empty() => return Ok(self.exited()),
            Ok(output) => output.unexpected(self.replies)?,
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(self.exited()),
        }
        let Some(mut stdin) = self.stdin.take() else { return Ok(self.exited()) };
        let request = format!("{request}\n");
        // In a thread, because the pipe can hold less than a batch, and the process may not read.
        let (sender, written) = mpsc::channel();
        thread::spawn(move || {
            let outcome = stdin.write_all(request.as_bytes()).and_then(|()| stdin.flush());
            let _ = sender.send(outcome.is_ok().then_some(stdin));
        });
        let line = match self.output.recv_timeout(timeout) {
            Ok(Output::Line(line)) => line,
            Ok(Output::TooLong) => return Err(line_too_long()),
            Ok(Output::End(partial)) if !partial.is_empty() => {
                return Ok(Exchange::Failed(format!("exited in the middle of a line, {}", shown(&partial))));
            }
            Ok(Output::End(_)) | Err(RecvTimeoutError::Disconnected) => return Ok(self.exited()),
            Err(RecvTimeoutError::Timeout) => return Ok(self.timed_out(timeout)),
        };
        match written.recv_timeout(timeout) {
            Ok(Some(stdin)) => self.stdin = Some(stdin),
            _ => return Ok(Exchange::Failed("did not read the whole batch".into())),
        }
        self.replies += 1;
        Ok(Exchange::Done(line))
    }

    /// Errors if another line arrives within [`EXTRA_LINE_TIMEOUT`].
    fn check_no_extra_line(&self) -> Result<()> {
        self.output.recv_timeout(EXTRA_LINE_TIMEOUT).map_or(Ok(()), |output| output.unexpected(self.replies))
    }

    /// The process exited: reports its status, if it is known soon.
    fn exited(&mut self) -> Exchange<Vec<u8>> {
        let started = Instant::now();
        let status = loop {
            match self.child.try_wait() {
                Ok(None) if started.elapsed() < EXIT_TIMEOUT => {
                    thread::sleep(Duration::from_millis(5));
                }
                status => break status.ok().flatten(),
            }
        };
        Exchange::Failed(match status {
            Some(status) => format!("exited before its reply ({status})"),
            None => "closed its stdout before its reply".into(),
        })
    }

    /// The process timed out: kills it, and reports an incomplete line.
    fn timed_out(&mut self, timeout: Duration) -> Exchange<Vec<u8>> {
        let _ = self.child.kill();
        let why = format!("did not reply within {} s", timeout.as_secs_f64());
        Exchange::Failed(match self.output.recv_timeout(EXIT_TIMEOUT) {
            Ok(Output::End(partial)) if !partial.is_empty() => {
                format!("{why}: missing line end after {}", shown(&partial))
            }
            _ => why,
        })
    }

    /// Closes stdin and errors for any further output.
    fn finish(mut self) -> Result<()> {
        drop(self.stdin.take());
        let until = Instant::now() + SHUTDOWN_TIMEOUT;
        while let Ok(output) = self.output.recv_timeout(until.saturating_duration_since(Instant::now())) {
            output.unexpected(self.replies)?;
        }
        Ok(())
    }
}

/// Forwards lines until the end of the output or until the receiver is dropped.
fn forward(stdout: impl Read, sender: &SyncSender<Output>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let read = stdout.by_ref().take(MAX_LINE as u64).read_until(b'\n', &mut line);
        let output = match read {
            Ok(_) if line.ends_with(b"\n") => Output::Line(line),
            Ok(length) if length == MAX_LINE => Output::TooLong,
            _ => Output::End(line),
        };
        let ends = !matches!(output, Output::Line(_));
        if sender.send(output).is_err() || ends {
            break;
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
