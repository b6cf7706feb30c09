//! A reward rule in a process of its own: JSON lines on its stdin and stdout, in any language.
//!
//! A line of the request is a batch: `{"samples": [{"facts": …, "prompt": …, "question": …, "truth": …, "answer": …}, …]}`. A line
//! of the reply is `{"rewards": [{"score": 1, "max": 2, "why": "…"}, null, …]}`, one a sample, `null` where the rule has nothing
//! to say; or `{"error": "…"}`. What the process writes to stderr goes to ours. It ends when its stdin does.

use std::cell::RefCell;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Reward, RewardFunction, Sample};
use crate::error::{Context, Error, Result};

/// What a rule's name begins with that is a process.
pub const PREFIX: &str = "cmd:";

/// How often a process is started again for one batch.
const RESTARTS: usize = 2;

/// Options of a rule that is a process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProcessOptions {
    /// Its arguments.
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

/// A reward rule that is a process.
pub struct ProcessReward {
    program: PathBuf,
    options: ProcessOptions,
    running: RefCell<Option<Running>>,
}

#[derive(Serialize)]
struct Request<'a> {
    samples: &'a [Sample],
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Reply {
    #[serde(default)]
    rewards: Vec<Option<Reward>>,
    #[serde(default)]
    error: Option<String>,
}

impl ProcessReward {
    /// Starts `program`: a wrong one is told before anything is drawn.
    pub fn start(program: &Path, options: ProcessOptions) -> Result<Self> {
        let reward = Self { program: program.into(), options, running: RefCell::new(None) };
        *reward.running.borrow_mut() = Some(reward.spawn()?);
        Ok(reward)
    }

    fn label(&self) -> String {
        format!("reward rule `{PREFIX}{}`", self.program.display())
    }

    fn spawn(&self) -> Result<Running> {
        // A name without a folder is that of a file here, not of a program somewhere.
        let program = if self.program.components().count() == 1 {
            Path::new(".").join(&self.program)
        } else {
            self.program.clone()
        };
        let child = Command::new(&program)
            .args(&self.options.args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| {
                Error::usage(format!("cannot start `{}`", program.display()))
                    .cause(error)
                    .hint("it has to be a file that can be executed: `chmod +x`, and a first line such as `#!/usr/bin/env python3`")
            })?;
        Running::of(child)
    }

    /// One round trip. What is wrong with the answer is an error; what is wrong with the process is for the caller to mend.
    fn ask(&self, request: &str) -> Result<Answer> {
        let mut running = self.running.borrow_mut();
        if running.is_none() {
            *running = Some(self.spawn()?);
        }
        let Some(process) = running.as_mut() else { return Ok(Answer::Gone) };
        let answer = process.ask(request, Duration::from_secs_f64(self.options.timeout_seconds));
        if !matches!(answer, Answer::Line(_)) {
            *running = None; // which ends it
        }
        Ok(answer)
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
            why = match self.ask(&request).context(|| self.label())? {
                Answer::Line(line) => return read(&line, samples.len()).context(|| self.label()),
                Answer::Gone => "ended before it answered".into(),
                Answer::Late => format!("did not answer in {} s", self.options.timeout_seconds),
            };
        }
        Err(Error::failure(format!("{} {why}, {} times", self.label(), RESTARTS + 1))
            .hint("what it wrote to stderr is above; `timeout_seconds` of its options gives it more time"))
    }
}

fn read(line: &str, samples: usize) -> Result<Vec<Reward>> {
    let shown: String = line.chars().take(120).collect();
    let reply: Reply = serde_json::from_str(line)
        .context(|| format!("expected a line `{{\"rewards\": […]}}`, got `{shown}`"))
        .map_err(|error| {
            error.hint(
                "its stdout is for replies alone: print everything else to stderr, and flush after each",
            )
        })?;
    if let Some(error) = reply.error {
        return Err(Error::failure(error));
    }
    if reply.rewards.len() != samples {
        return Err(Error::failure(format!("expected {samples} rewards, got {}", reply.rewards.len())));
    }
    Ok(reply
        .rewards
        .into_iter()
        .map(|reward| reward.unwrap_or_else(|| Reward::abstain("nothing to say")))
        .collect())
}

enum Answer {
    Line(String),
    Gone,
    Late,
}

/// The process, ended when this is dropped.
struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Running {
    fn of(mut child: Child) -> Result<Self> {
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().ok_or_else(|| Error::failure("a process without stdout"))?;
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(std::io::Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, stdin, lines })
    }

    fn ask(&mut self, request: &str, patience: Duration) -> Answer {
        let Some(mut stdin) = self.stdin.take() else { return Answer::Gone };
        let request = format!("{request}\n");
        // A process that does not read would hold us up: the pipe holds less than a batch.
        let (sender, written) = mpsc::channel();
        thread::spawn(move || {
            let outcome = stdin.write_all(request.as_bytes()).and_then(|()| stdin.flush());
            let _ = sender.send(outcome.is_ok().then_some(stdin));
        });
        let answer = match self.lines.recv_timeout(patience) {
            Ok(line) => Answer::Line(line),
            Err(RecvTimeoutError::Timeout) => return Answer::Late,
            Err(RecvTimeoutError::Disconnected) => return Answer::Gone,
        };
        match written.recv_timeout(patience) {
            Ok(Some(stdin)) => self.stdin = Some(stdin),
            _ => return Answer::Gone,
        }
        answer
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stdin.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
