//! A language model at an OpenAI-compatible endpoint as the judge of answers. Nothing else in unirl uses the network.

mod verdict;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use unirl::error::{Context, Error, Result, unknown_name};
use unirl_base::checksum;
use unirl_benchmarks::judge::AnswerJudge;
use unirl_prompts::Task;

use crate::args::JudgeArgs;

/// Names and texts of the judge prompts. Receipts contain a hash of the text: never change one.
const QUESTIONS: [(&str, &str); 2] = [
    (
        "question",
        "Somebody was asked about a picture: {question}\nThe right answer is: {truth}\nThe answer given is: {answer}\n\
         Is the answer given right? It is wrong if it leaves out or changes an object, number, colour or position, or \
         names more than the right answer. Reply with yes or no.",
    ),
    (
        "paper",
        "Predicted answer: {answer}\nGround-truth answer: {truth}\nDoes the predicted answer match the ground-truth \
         answer? Reply with yes or no.",
    ),
];

/// Failed attempts in a row before the request fails.
const ATTEMPTS: u32 = 5;
/// Replies without a verdict before an answer counts as not judged.
const REPLIES: u32 = 3;
/// Appended to the message after a reply without a verdict.
const ONE_WORD: &str = "\n\nReply with one word: yes or no.";
/// The delay before the second attempt; it doubles with each further attempt.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// The time limit of an attempt, and the longest delay between two attempts.
const MAX_WAIT: Duration = Duration::from_mins(2);

/// The endpoint, the judge prompt and the cache of verdicts.
pub(crate) struct Endpoint {
    url: String,
    model: String,
    key: Option<String>,
    question: String,
    temperature: f64,
    /// Whether the endpoint accepts the parameter `temperature`; some models reject it.
    accepts_temperature: Cell<bool>,
    agent: ureq::Agent,
    cache: RefCell<Cache>,
}

/// The reason why an attempt failed.
enum Failure {
    /// Another attempt may succeed; the server may name a delay in seconds.
    Temporary(String, Option<u64>),
    /// The model rejects the parameter `temperature`.
    Temperature(String),
    /// No attempt will succeed.
    Permanent(String),
}

impl Endpoint {
    /// The judge of the arguments; `None` without `--judge-url`.
    pub(crate) fn new(args: &JudgeArgs) -> Result<Option<Self>> {
        let (Some(url), Some(model)) = (&args.url, &args.model) else { return Ok(None) };
        if !(url.starts_with("http://") || url.starts_with("https://")) {
            return Err(Error::usage(format!(
                "`--judge-url {url}`: expected a URL that starts with `http://` or `https://`"
            ))
            .hint("e.g. `http://localhost:8000/v1`"));
        }
        let question = match QUESTIONS.iter().find(|(name, _)| *name == args.question) {
            Some((_, text)) => (*text).to_string(),
            None if Path::new(&args.question).is_file() => {
                fs::read_to_string(&args.question).context(|| format!("cannot read `{}`", args.question))?
            }
            None => {
                return Err(unknown_name("judge prompt", &args.question, &QUESTIONS.map(|(name, _)| name))
                    .hint("a file with a judge prompt works as well: `--judge-question FILE`"));
            }
        };
        if !(question.contains("{truth}") && question.contains("{answer}")) {
            return Err(Error::usage("the judge prompt must contain `{truth}` and `{answer}`"));
        }
        if !(args.temperature.is_finite() && args.temperature >= 0.0) {
            return Err(Error::usage(format!(
                "`--judge-temperature`: expected a number of at least 0, got {}",
                args.temperature
            )));
        }
        let config = ureq::Agent::config_builder().timeout_global(Some(MAX_WAIT)).http_status_as_error(false);
        Ok(Some(Self {
            url: url.trim_end_matches('/').into(),
            model: model.clone(),
            key: std::env::var(&args.key).ok().filter(|key| !key.is_empty()),
            question,
            temperature: args.temperature,
            accepts_temperature: Cell::new(true),
            agent: config.build().into(),
            cache: RefCell::new(Cache::open(args.cache.clone())?),
        }))
    }

    /// The verdict on one message; `None` if no reply contains one.
    fn ask(&self, message: &str) -> Result<Option<bool>> {
        let temperature =
            self.nonzero_temperature().map(|temperature| format!("\n{temperature}")).unwrap_or_default();
        let key = checksum::text(&format!("{}\n{}\n{message}{temperature}", self.url, self.model));
        if let Some(verdict) = self.cache.borrow().known.get(&key) {
            return Ok(Some(*verdict));
        }
        let mut request = message.to_string();
        for number in 1..=REPLIES {
            let reply = self.reply(&request)?;
            if let Some(verdict) = verdict::verdict(&reply) {
                self.cache.borrow_mut().insert(key, verdict)?;
                return Ok(Some(verdict));
            }
            let reply: String = reply.chars().take(200).collect();
            tracing::warn!("reply {number} of {REPLIES}: expected yes or no, got `{reply}`");
            request = format!("{message}{ONE_WORD}");
        }
        Ok(None)
    }

    /// The temperature, unless it is the default 0, which cache keys and judge names omit.
    fn nonzero_temperature(&self) -> Option<f64> {
        (self.temperature != 0.0).then_some(self.temperature)
    }

    /// The reply to a message, after at most [`ATTEMPTS`] attempts.
    fn reply(&self, message: &str) -> Result<String> {
        let mut wait = FIRST_WAIT;
        let mut attempt = 1;
        loop {
            match self.attempt(message) {
                Ok(reply) => return Ok(reply),
                Err(Failure::Permanent(why)) => return Err(self.failed(why)),
                Err(Failure::Temperature(why)) => {
                    self.accepts_temperature.set(false);
                    tracing::warn!(
                        "the judge rejects the parameter `temperature`; continuing without it: {why}"
                    );
                }
                Err(Failure::Temporary(why, after)) => {
                    tracing::warn!("attempt {attempt} of {ATTEMPTS}: {why}");
                    if attempt == ATTEMPTS {
                        return Err(self.failed(why).cause(format!("gave up after {ATTEMPTS} attempts")));
                    }
                    std::thread::sleep(after.map_or(wait, Duration::from_secs).min(MAX_WAIT));
                    wait *= 2;
                    attempt += 1;
                }
            }
        }
    }

    fn failed(&self, why: String) -> Error {
        Error::failure(format!("request to the judge at `{}` failed", self.url)).cause(why).hint(
            "verdicts are cached, and `--out DIR` keeps finished chunks: run the same command again to resume",
        )
    }

    fn attempt(&self, message: &str) -> Result<String, Failure> {
        let temporary = |error: ureq::Error| Failure::Temporary(error.to_string(), None);
        let mut body = json!({ "model": self.model, "messages": [{ "role": "user", "content": message }] });
        if self.accepts_temperature.get() {
            body["temperature"] = self.temperature.into();
        }
        let mut request = self
            .agent
            .post(format!("{}/chat/completions", self.url))
            .header("content-type", "application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.send(body.to_string()).map_err(temporary)?;
        let status = response.status().as_u16();
        let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        let text = response.body_mut().read_to_string().map_err(temporary)?;
        let excerpt = || text.chars().take(200).collect::<String>();
        let reply: Value = serde_json::from_str(&text).unwrap_or_default();
        let choices = reply["choices"].as_array();
        let rejected = status != 200 || choices.is_none();
        if rejected && self.accepts_temperature.get() && text.to_lowercase().contains("temperature") {
            return Err(Failure::Temperature(excerpt()));
        }
        match status {
            200 => {}
            408 | 429 | 500.. => {
                return Err(Failure::Temporary(format!("status {status}: {}", excerpt()), after));
            }
            _ => return Err(Failure::Permanent(format!("status {status}: {}", excerpt()))),
        }
        // Gateways return errors of their upstream with status 200.
        let Some(choices) = choices else {
            return Err(Failure::Temporary(format!("the response has no `choices`: {}", excerpt()), after));
        };
        Ok(choices.first().map(|choice| verdict::text_of(&choice["message"]["content"])).unwrap_or_default())
    }
}

impl AnswerJudge for Endpoint {
    fn name(&self) -> String {
        let temperature =
            self.nonzero_temperature().map(|value| format!(", temperature {value}")).unwrap_or_default();
        format!(
            "{} at {}, question {}{temperature}",
            self.model,
            self.url,
            &checksum::text(&self.question)[..12]
        )
    }

    fn judge(&self, tasks: &[Task], answers: &[String]) -> Result<Vec<Option<bool>>> {
        let message = |(task, answer): (&Task, &String)| {
            // The answer last, so that placeholders in it are not replaced.
            let message = self
                .question
                .replace("{question}", &task.question)
                .replace("{truth}", &task.reference_answer);
            message.replace("{answer}", answer)
        };
        tasks.iter().zip(answers).map(|pair| self.ask(&message(pair))).collect()
    }
}

/// Verdicts by the hash of endpoint, model and message, one JSON object a line.
struct Cache {
    known: HashMap<String, bool>,
    file: File,
    path: PathBuf,
}

impl Cache {
    fn open(path: Option<PathBuf>) -> Result<Self> {
        let path = match path {
            Some(path) => path,
            None => default_path().ok_or_else(|| {
                Error::usage("no cache directory for verdicts of the judge")
                    .hint("name a cache file: `--judge-cache FILE.jsonl`")
            })?,
        };
        let place = || format!("cannot open the judge cache `{}`", path.display());
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).context(place)?;
        }
        let mut known = HashMap::new();
        let mut truncated = false;
        if let Ok(text) = fs::read_to_string(&path) {
            truncated = !text.is_empty() && !text.ends_with('\n');
            // An incomplete line, left by a killed process, is ignored.
            let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            known.extend(
                lines.filter_map(|line| Some((line["key"].as_str()?.to_string(), line["right"].as_bool()?))),
            );
        }
        let mut file = OpenOptions::new().create(true).append(true).open(&path).context(place)?;
        if truncated {
            writeln!(file).context(place)?;
        }
        Ok(Self { known, file, path })
    }

    fn insert(&mut self, key: String, verdict: bool) -> Result<()> {
        writeln!(self.file, "{}", json!({ "key": key, "right": verdict }))
            .context(|| format!("cannot write `{}`", self.path.display()))?;
        self.known.insert(key, verdict);
        Ok(())
    }
}

fn default_path() -> Option<PathBuf> {
    let dir = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    let dir = dir.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(dir.join("unirl/judge.jsonl"))
}
