//! A reward rule in a process of its own: JSON lines on its stdin and stdout, in any language.
//!
//! A line of the request is a batch: `{"samples": [{"facts": …, "prompt": …, "question": …, "truth": …, "answer": …}, …]}`. A line
//! of the reply is `{"rewards": [{"score": 1, "max": 2, "why": "…"}, 0.5, null, …]}`, one a sample: a number is a share of 1,
//! `null` abstains; the list alone, without the object around it, is a reply as well. `{"error": "…"}` ends the run. Exactly
//! one line answers a batch: anything else on stdout is an error. What the process writes to stderr goes to ours. It ends
//! when its stdin does.

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

use super::{Reward, RewardFunction, Sample};
use crate::error::{Context, Error, Result};
use crate::home;

/// What a rule's name begins with that is a process.
pub const PREFIX: &str = "cmd:";

/// How often a process is started again for one batch.
const RESTARTS: usize = 2;

/// The longest line of a reply, in bytes.
const LONGEST: usize = 64 << 20;

/// How long a reply is given to be followed by a line too many.
const GRACE: Duration = Duration::from_millis(10);

/// How long is waited for the status of a process whose stdout ended, and for the stdout of one that was ended.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How long a process may take to end after its stdin has.
const FAREWELL: Duration = Duration::from_secs(2);

/// Options of a rule that is a process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessOptions {
    /// Its arguments, behind those of its name.
    pub args: Vec<String>,
    /// Seconds that it may take for a batch; then it is ended and started again.
    #[schemars(extend("exclusiveMinimum" = 0.0))]
    pub timeout_seconds: f64,
}

impl Default for ProcessOptions {
    fn default() -> Self {
        Self { args: Vec::new(), timeout_seconds: 60.0 }
    }
}

/// The program and the arguments of a command line (what follows `cmd:`): split as a shell splits it, unless the whole of it is
/// the path of a file. A leading `~` of a word is the home folder.
pub fn command(line: &str) -> Result<(PathBuf, Vec<String>)> {
    let whole = PathBuf::from(home::expand(line).as_ref());
    if whole.is_file() {
        return Ok((here(whole), Vec::new()));
    }
    let words = shlex::split(line).ok_or_else(|| {
        Error::usage(format!("`{PREFIX}{line}`: a quote is not closed, or a `\\` ends the line"))
    })?;
    let mut words = words.into_iter().map(|word| home::expand(&word).into_owned());
    let program = words.next().filter(|program| !program.is_empty()).ok_or_else(|| {
        Error::usage(format!("`{PREFIX}{line}` names no program")).hint("for example `cmd:python3 reward.py`")
    })?;
    Ok((here(program.into()), words.collect()))
}

/// A name without a folder is that of a file in the current folder if there is one, else of a program on `PATH`.
fn here(program: PathBuf) -> PathBuf {
    if program.components().count() == 1 && program.is_file() {
        Path::new(".").join(program)
    } else {
        program
    }
}

/// A reward rule that is a process.
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
    /// Starts the program of a command line: a wrong one is an error before any sample is drawn.
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
        format!("reward rule `{}`", self.name)
    }

    fn spawn(&self) -> Result<Running> {
        let child = Command::new(&self.program)
            .args(&self.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| {
                Error::usage(format!("cannot start `{}`", self.program.display())).cause(error).hint(
                    "name an executable file (`chmod +x`, and a first line such as `#!/usr/bin/env python3`), \
                     or a program with its arguments: `cmd:python3 reward.py`",
                )
            })?;
        Running::of(child)
    }

    /// One round trip. A wrong reply is an error; a process that ended or hangs is for the caller to start again.
    fn ask(&self, request: &str, samples: usize) -> Result<Answer<Vec<Reward>>> {
        let running = self.running.take();
        let mut process = running.map_or_else(|| self.spawn(), Ok)?;
        let line = match process.ask(request, self.timeout)? {
            Answer::Given(line) => line,
            Answer::Failed(why) => return Ok(Answer::Failed(why)),
        };
        let rewards = read(&line, samples)?;
        process.wait_for_nothing()?;
        self.running.replace(Some(process));
        Ok(Answer::Given(rewards))
    }
}

impl RewardFunction for ProcessReward {
    fn score(&self, samples: &[Sample], _pixels: Option<&Tensor>) -> Result<Vec<Reward>> {
        if samples.is_empty() {
            return Ok(Vec::new());
        }
        let request = serde_json::to_string(&Request { samples }).context(|| "cannot write the samples")?;
        let mut why = String::new();
        for attempt in 0..=RESTARTS {
            if attempt > 0 {
                tracing::warn!("{} {why}: it is started again", self.label());
            }
            why = match self.ask(&request, samples.len()).context(|| self.label())? {
                Answer::Given(rewards) => return Ok(rewards),
                Answer::Failed(why) => why,
            };
        }
        Err(Error::failure(format!("{} {why}, {} times", self.label(), RESTARTS + 1))
            .hint("what it wrote to stderr is above; `timeout_seconds` of its options gives it more time"))
    }

    fn finish(&self) -> Result<()> {
        match self.running.take() {
            Some(process) => process.finish().context(|| self.label()),
            None => Ok(()),
        }
    }
}

/// The rewards of a reply.
fn read(line: &[u8], samples: usize) -> Result<Vec<Reward>> {
    let line = std::str::from_utf8(line).map_err(|error| {
        let at = error.valid_up_to();
        Error::failure(format!("its reply is not UTF-8: byte 0x{:02x} at column {}", line[at], at + 1))
            .cause(format!("got {}", shown(line)))
            .hint("write UTF-8, or JSON in ASCII (`\\u00e9`), as Python's `json.dumps` does")
    })?;
    // NaN and infinities are no JSON, but Python's `json.dumps` writes them: as strings they are errors with an index.
    rewards(line, samples).or_else(|error| rewards(&quoted(line), samples).map_err(|_| error)).unwrap_or_else(
        |error| {
            let got = shown(line.as_bytes());
            let message = format!("expected a line `{{\"rewards\": […]}}`, got {got}");
            Err(Error::failure(message).cause(error).hint(STDOUT))
        },
    )
}

const STDOUT: &str = "its stdout is for replies alone, a line for each batch: print everything else to stderr, and flush after each";

const FORMS: &str = "a reward is a number from 0 to 1, `{\"score\": 1, \"max\": 2, \"why\": \"…\"}` with 0 <= score <= max, or `null`";

/// The outer error is that of the syntax.
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
        return Ok(Err(error.hint("one for each of `samples`, in their order")));
    }
    let read = |(index, raw): (usize, &&RawValue)| {
        reward(raw.get()).map_err(|what| Error::failure(format!("`rewards[{index}]{what}")).hint(FORMS))
    };
    Ok(reply.rewards.iter().enumerate().map(read).collect())
}

/// A reward, or what is wrong with it: the rest of the path of a value, a closing backtick, and why.
fn reward(json: &str) -> std::result::Result<Reward, String> {
    let unfit = |expected: &str, got: &dyn std::fmt::Display| format!("`: expected {expected}, got {got}");
    let number = "a finite number";
    match serde_json::from_str(json).map_err(|_| unfit(number, &format!("`{json}`")))? {
        Value::Null => Ok(Reward::abstain("nothing to say")),
        Value::Number(share) => match share.as_f64() {
            Some(score) if (0.0..=1.0).contains(&score) => Ok(Reward::new(score, 1.0)),
            _ => Err(unfit("a number from 0 to 1", &share)),
        },
        Value::Object(fields) => {
            for name in ["score", "max"] {
                let value = fields.get(name).ok_or_else(|| format!("`: missing field `{name}`"))?;
                if !value.is_number() {
                    return Err(format!(".{name}{}", unfit(number, value)));
                }
            }
            let parts = fields.get("parts").and_then(Value::as_object).into_iter().flatten();
            if let Some((name, value)) = parts.into_iter().find(|(_, value)| !value.is_number()) {
                return Err(format!(".parts.{name}{}", unfit(number, value)));
            }
            serde_json::from_value(Value::Object(fields)).map_err(|error| format!("`: {error}"))
        }
        other => Err(unfit("a number, an object or `null`", &other)),
    }
}

/// What programs print for numbers that are not finite.
const NO_JSON: [&str; 7] = ["NaN", "nan", "-nan", "Infinity", "-Infinity", "inf", "-inf"];

/// The line with the words of [`NO_JSON`] in quotes where they stand outside of strings.
fn quoted(line: &str) -> String {
    let (mut text, mut rest, mut inside) = (String::with_capacity(line.len() + 16), line, false);
    while let Some(next) = rest.chars().next() {
        let word = NO_JSON.into_iter().find(|word| rest.starts_with(word));
        let (taken, left) = match word.filter(|_| !inside) {
            Some(word) => {
                text += &format!("\"{word}\"");
                rest = &rest[word.len()..];
                continue;
            }
            // A character behind a backslash ends no string.
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

/// The beginning of a line in backticks.
fn shown(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end();
    match text.char_indices().nth(120) {
        Some((end, _)) => format!("`{}…`", &text[..end]),
        None => format!("`{text}`"),
    }
}

/// What came of a batch: `T`, or the process ended or hangs, and in what way.
enum Answer<T> {
    Given(T),
    Failed(String),
}

/// What comes from the stdout of a process.
enum Output {
    Line(Vec<u8>),
    /// More than [`LONGEST`] bytes without an end of line; nothing is read any more.
    Endless,
    /// The end, with what stood behind the last end of line.
    End(Vec<u8>),
}

impl Output {
    /// The error of output that no batch asked for; an end is none.
    fn unasked(self, batches: usize) -> Result<()> {
        let (Output::Line(line) | Output::End(line)) = self else { return Err(endless()) };
        if line.is_empty() {
            return Ok(());
        }
        let what = match batches {
            0 => "it wrote to stdout before it was given a batch".to_string(),
            1 => "it answered more than one line for one batch".to_string(),
            batches => format!("it answered more than {batches} lines for {batches} batches"),
        };
        let error = Error::failure(what).cause(format!("the line too many is {}", shown(&line))).hint(STDOUT);
        Err(match batches {
            0 | 1 => error,
            _ => error.hint("the rewards of a batch may have been those of the batch before"),
        })
    }
}

fn endless() -> Error {
    Error::failure(format!("it wrote more than {} MiB without an end of line", LONGEST >> 20)).hint(STDOUT)
}

/// The process, ended when this is dropped.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    output: Receiver<Output>,
    /// Batches that were answered.
    answered: usize,
}

impl Running {
    fn of(mut child: Child) -> Result<Self> {
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or_else(|| Error::failure("a process without stdout"))?;
        // Full with one line: a process that writes on and on waits, and takes no memory of ours.
        let (sender, output) = mpsc::sync_channel(1);
        thread::spawn(move || forward(stdout, &sender));
        Ok(Self { child, stdin, output, answered: 0 })
    }

    fn ask(&mut self, request: &str, patience: Duration) -> Result<Answer<Vec<u8>>> {
        match self.output.try_recv() {
            Ok(Output::End(partial)) if partial.is_empty() => return Ok(self.gone()),
            Ok(output) => output.unasked(self.answered)?,
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Ok(self.gone()),
        }
        let Some(mut stdin) = self.stdin.take() else { return Ok(self.gone()) };
        let request = format!("{request}\n");
        // A process that does not read would hold us up: the pipe holds less than a batch.
        let (sender, written) = mpsc::channel();
        thread::spawn(move || {
            let outcome = stdin.write_all(request.as_bytes()).and_then(|()| stdin.flush());
            let _ = sender.send(outcome.is_ok().then_some(stdin));
        });
        let line = match self.output.recv_timeout(patience) {
            Ok(Output::Line(line)) => line,
            Ok(Output::Endless) => return Err(endless()),
            Ok(Output::End(partial)) if !partial.is_empty() => {
                return Ok(Answer::Failed(format!("ended in the middle of a line, {}", shown(&partial))));
            }
            Ok(Output::End(_)) | Err(RecvTimeoutError::Disconnected) => return Ok(self.gone()),
            Err(RecvTimeoutError::Timeout) => return Ok(self.late(patience)),
        };
        match written.recv_timeout(patience) {
            Ok(Some(stdin)) => self.stdin = Some(stdin),
            _ => return Ok(Answer::Failed("did not read the batch to its end".into())),
        }
        self.answered += 1;
        Ok(Answer::Given(line))
    }

    /// Gives a line too many some time to arrive.
    fn wait_for_nothing(&self) -> Result<()> {
        self.output.recv_timeout(GRACE).map_or(Ok(()), |output| output.unasked(self.answered))
    }

    /// It ended: with which status, if that is known soon.
    fn gone(&mut self) -> Answer<Vec<u8>> {
        let started = Instant::now();
        let status = loop {
            match self.child.try_wait() {
                Ok(None) if started.elapsed() < LAST_WORDS => {
                    thread::sleep(Duration::from_millis(5));
                }
                status => break status.ok().flatten(),
            }
        };
        Answer::Failed(match status {
            Some(status) => format!("ended before it answered ({status})"),
            None => "closed its stdout before it answered".into(),
        })
    }

    /// It is ended, which shows what it wrote without an end of line.
    fn late(&mut self, patience: Duration) -> Answer<Vec<u8>> {
        let _ = self.child.kill();
        let why = format!("did not answer in {} s", patience.as_secs_f64());
        Answer::Failed(match self.output.recv_timeout(LAST_WORDS) {
            Ok(Output::End(partial)) if !partial.is_empty() => {
                format!("{why}: it wrote no end of line behind {}", shown(&partial))
            }
            _ => why,
        })
    }

    /// Closes its stdin, and looks at everything that it still writes.
    fn finish(mut self) -> Result<()> {
        drop(self.stdin.take());
        let until = Instant::now() + FAREWELL;
        while let Ok(output) = self.output.recv_timeout(until.saturating_duration_since(Instant::now())) {
            output.unasked(self.answered)?;
        }
        Ok(())
    }
}

/// Reads lines until the output or the receiver ends.
fn forward(stdout: impl Read, sender: &SyncSender<Output>) {
    let mut stdout = BufReader::new(stdout);
    loop {
        let mut line = Vec::new();
        let read = stdout.by_ref().take(LONGEST as u64).read_until(b'\n', &mut line);
        let output = match read {
            Ok(_) if line.ends_with(b"\n") => Output::Line(line),
            Ok(length) if length == LONGEST => Output::Endless,
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
