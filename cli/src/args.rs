//! The command line.

use std::any::TypeId;
use std::ffi::OsString;
use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::{PathBufValueParser, StringValueParser, TypedValueParser as _};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum, ValueHint};
use unirl::error::{Error, Result, nearest};
use unirl::home;
use unirl::plugin::Plugins;

/// Post-trains unified multimodal models on their own images (UniRL, arXiv 2505.23380).
///
/// Without a command, `unirl --plugin showo --optimizer grpo` trains. Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 finish the step, save
/// a checkpoint and end the run with exit status 130; `unirl --resume RUN` continues it.
#[derive(Debug, Parser)]
#[command(name = "unirl", version, max_term_width = 100, subcommand_negates_reqs = true)]
#[command(override_usage = "unirl --plugin <NAME|PATH> [OPTIONS]\n       unirl [OPTIONS] <COMMAND>")]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    #[command(flatten)]
    pub(crate) run: RunArgs,
    /// More of the log; twice for everything.
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// The form of the log on stderr.
    #[arg(long, value_name = "FORM", default_value = "text", global = true)]
    pub(crate) log: LogForm,
}

/// The form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogForm {
    /// For people, with a progress bar.
    Text,
    /// One JSON object a line, no progress bar.
    Json,
}

/// The command line, the name of the program first, or clap's word on it.
pub(crate) fn parse(arguments: &[OsString]) -> Result<Args, clap::Error> {
    let mut command = command();
    let matches = match command.try_get_matches_from_mut(arguments) {
        Ok(matches) => matches,
        Err(error) if !error.use_stderr() => return Err(error),
        Err(mut error) => {
            if let (Some(ContextValue::String(wrong)), None) =
                (error.get(ContextKind::InvalidSubcommand), error.get(ContextKind::SuggestedSubcommand))
                && let Some(near) =
                    nearest(wrong, self::command().get_subcommands().map(clap::Command::get_name))
            {
                let near = ContextValue::Strings(vec![near.into()]);
                error.insert(ContextKind::SuggestedSubcommand, near);
            }
            // An option in the wrong place is missing in the right one: that is not what is to be said of it.
            let mut lenient = self::command().ignore_errors(true);
            if let Ok(matches) = lenient.try_get_matches_from_mut(arguments) {
                check_order(&mut lenient, &matches)?;
            }
            return Err(error);
        }
    };
    check_order(&mut command, &matches)?;
    Args::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

/// Everything that the program understands.
pub(crate) fn command() -> clap::Command {
    with_parsers(Args::command().bin_name("unirl"))
}

/// What can be a path may begin with `~`, and what is a number says so of anything else, a negative one included.
fn with_parsers(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|arg| {
        let kind = arg.get_value_parser().type_id();
        if kind == TypeId::of::<PathBuf>() {
            return arg.value_parser(PathBufValueParser::new().map(|path: PathBuf| match path.to_str() {
                Some(text) => home::expand(text).as_ref().into(),
                None => path,
            }));
        }
        if arg.get_value_hint() != ValueHint::Unknown {
            let expand = |text: String| home::expand(&text).into_owned();
            return arg.value_parser(StringValueParser::new().map(expand));
        }
        let arg = if kind == TypeId::of::<usize>() {
            arg.value_parser(|text: &str| number::<usize>(text, COUNT))
        } else if kind == TypeId::of::<u64>() {
            arg.value_parser(|text: &str| number::<u64>(text, COUNT))
        } else if kind == TypeId::of::<i64>() {
            arg.value_parser(|text: &str| number::<i64>(text, "a whole number"))
        } else if kind == TypeId::of::<f64>() {
            arg.value_parser(|text: &str| number::<f64>(text, "a number"))
        } else {
            return arg;
        };
        arg.allow_negative_numbers(true)
    });
    command.mut_subcommands(with_parsers)
}

const COUNT: &str = "a whole number of at least 0";

fn number<T: FromStr>(text: &str, expected: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("expected {expected}"))
}

/// Options of a command follow it; only global ones may stand before it as well.
fn check_order(command: &mut clap::Command, matches: &ArgMatches) -> Result<(), clap::Error> {
    let Some((name, inner)) = matches.subcommand() else { return Ok(()) };
    let given = |arg: &&clap::Arg| {
        !arg.is_global_set() && matches.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine)
    };
    let misplaced = command.get_arguments().find(given).map(ToString::to_string);
    if let Some(arg) = misplaced {
        let message = format!(
            "the argument '{arg}' cannot stand before the command '{name}'\n\n  \
             tip: options of a command follow it: '{} {name} ...'",
            command.get_bin_name().unwrap_or_default()
        );
        return Err(command.error(ErrorKind::ArgumentConflict, message));
    }
    match command.find_subcommand_mut(name) {
        Some(subcommand) => check_order(subcommand, inner),
        None => Ok(()),
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Trains: the same as without a command
    Train(Box<RunArgs>),
    /// Trains a fresh model, or one named by `--model`, on drawn images: how the embedded checkpoints are made
    Pretrain(PretrainArgs),
    /// Does a step that failed again, from the folder that it left behind
    ReplayStep(ReplayStepArgs),
    /// Writes a page about one run or several: curves, figures, pictures, times, settings
    Report(ReportArgs),
    /// Measures drawing, answering and their balance
    Eval(Box<EvalArgs>),
    /// Draws images from prompts
    Generate(GenerateArgs),
    /// Asks about an image
    Ask(AskArgs),
    /// Writes prompts with their facts, questions and right answers, one JSON object a line
    Prompts(PromptsArgs),
    /// Scores answers, and compares rule sets on answers already given
    #[command(subcommand)]
    Reward(RewardCommand),
    /// Draws a set of images for GenEval's prompts, and judges one by GenEval's rules
    #[command(subcommand)]
    Geneval(GenevalCommand),
    /// Tells what this installation is made of, and with `--plugin` whether a model keeps what training builds on
    Doctor(DoctorArgs),
    /// Lists the plugins found, makes a new one, checks one
    Plugins(PluginsArgs),
    /// Prints the JSON Schema of a configuration
    Schema(SchemaArgs),
    /// Prints a script that completes commands, options and paths in a shell
    Completions(CompletionsArgs),
    /// Prints the manual page of the program, or of a command
    Man(ManArgs),
}

/// Where plugins are looked for.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SearchArgs {
    /// A folder with plugins, before those of `UNIRL_PLUGIN_PATH` and those beside the program
    #[arg(long, value_name = "DIR")]
    pub(crate) plugin_dir: Vec<PathBuf>,
}

impl SearchArgs {
    /// The plugins, none of which is opened yet.
    pub(crate) fn plugins(&self) -> Result<Plugins> {
        match self.plugin_dir.iter().find(|dir| !dir.is_dir()) {
            Some(missing) => {
                Err(Error::usage(format!("`--plugin-dir {0}`: no folder at `{0}`", missing.display())))
            }
            None => Ok(Plugins::new(&self.plugin_dir)),
        }
    }
}

/// Which model.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ModelArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// The model's plugin: a name, or the path of its file
    #[arg(long, value_name = "NAME|PATH", required = true, value_hint = ValueHint::AnyPath)]
    pub(crate) plugin: Option<String>,
    /// `builtin`, a checkpoint folder, or a run's folder for its newest checkpoint
    #[arg(long, value_name = "builtin|DIR|RUN", value_hint = ValueHint::AnyPath)]
    pub(crate) model: Option<String>,
    /// The folder of the image tokenizer, where the checkpoint's does not hold it
    #[arg(long = "image-tokenizer", alias = "tokenizer", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) tokenizer: Option<String>,
    /// `auto`, `cpu`, `cuda` or `cuda:N`
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,
    /// A TOML file of settings
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// One setting, e.g. `rollout.group=4`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
    /// The seed of everything random
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

impl ModelArgs {
    /// A model of a plugin that is checked.
    pub(crate) fn of_entry(args: &PluginsCheckArgs, entry: &str) -> Self {
        Self {
            search: args.search.clone(),
            plugin: Some(entry.into()),
            model: args.model.clone(),
            tokenizer: None,
            device: args.device.clone(),
            config: None,
            sets: Vec::new(),
            seed: None,
        }
    }
}

/// Training.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Training")]
#[command(mut_arg("plugin", |plugin| plugin.required(false).required_unless_present("resume")))]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The algorithm: `sft`, `grpo` or `grpo-split`
    #[arg(long, value_name = "NAME")]
    pub(crate) optimizer: Option<String>,
    /// A shipped set of settings: `tiles` or `tiles-split` (the default for models of the drawn world) or `paper`
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// The reward rules: a name, the path of a rule file or plugin, or `cmd:PROGRAM ARGUMENTS`; repeated, they add up
    #[arg(long, value_name = "NAME|FILE.toml|PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) reward: Vec<String>,
    /// Updates of the weights
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u64>,
    /// The folder of the run; the first free `runs/…` without it
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Goes on with the run in a folder; its settings hold
    #[arg(long, value_name = "RUN", conflicts_with_all = ["preset", "out", "dry_run"])]
    pub(crate) resume: Option<PathBuf>,
    /// Goes on even where settings given here are not those of the run
    #[arg(long, requires = "resume")]
    pub(crate) allow_change: bool,
    /// Only algorithms of libtorch that answer the same each time; slower on a GPU
    #[arg(long)]
    pub(crate) deterministic: bool,
    /// Checks the settings and prints what memory and disk the run would take, without reading the weights
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// A page about runs.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ReportArgs {
    /// The folders of the runs; the first is what the settings of the others are compared with
    #[arg(value_name = "RUN", required = true)]
    pub(crate) runs: Vec<PathBuf>,
    /// The page; `report.html` in the folder of the first run without it
    #[arg(long, value_name = "FILE.html")]
    pub(crate) out: Option<PathBuf>,
}

/// A step once more.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ReplayStepArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// What the step left behind, `RUN/failed-step-NNNNNN`, or a checkpoint, of which the next step is done
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
    /// Another value of a setting, e.g. `update.learning_rate=1e-5`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
}

/// Pretraining; with `--model` it goes on from there.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PretrainArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The folder of the checkpoint
    #[arg(long, value_name = "DIR", required = true)]
    pub(crate) out: PathBuf,
}

/// Evaluation.
#[derive(Debug, Clone, clap::Args)]
#[command(subcommand_negates_reqs = true)]
#[command(override_usage = "unirl eval --plugin <NAME|PATH> [OPTIONS]\n       unirl eval verify <FILE>")]
pub(crate) struct EvalArgs {
    #[command(subcommand)]
    pub(crate) command: Option<EvalCommand>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// A folder for the verdicts and, at the end, `receipt.json`; one that was left unfinished is gone on with
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Evaluates every N-th part from the K-th, into the `--out` that all shards share
    #[arg(long, value_name = "K/N", requires = "out")]
    pub(crate) shard: Option<String>,
    /// Prompts a category
    #[arg(long, value_name = "N", conflicts_with = "metadata")]
    pub(crate) prompts: Option<usize>,
    /// One JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) geneval: GenevalEvalArgs,
    #[command(flatten)]
    pub(crate) judge: JudgeArgs,
}

/// GenEval's prompts instead of those of the drawn world.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "GenEval's prompts, judged by its rules")]
pub(crate) struct GenevalEvalArgs {
    /// GenEval's `evaluation_metadata.jsonl`, with or without questions and answers
    #[arg(long, value_name = "FILE.jsonl", requires = "detector")]
    pub(crate) metadata: Option<PathBuf>,
    /// The detector of a plugin: its name, or the path of the plugin's file
    #[arg(long, value_name = "NAME|PATH", requires = "metadata", value_hint = ValueHint::AnyPath)]
    pub(crate) detector: Option<String>,
    /// Images of another model, as `unirl geneval draw` leaves them; the model is asked about the right ones
    #[arg(long, value_name = "IMG", requires_all = ["metadata", "results"])]
    pub(crate) references: Option<PathBuf>,
    /// Which of them are right: what `unirl geneval judge --out` wrote
    #[arg(long, value_name = "FILE.jsonl", requires = "references")]
    pub(crate) results: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) thresholds: ThresholdArgs,
}

/// The scores above which detections count.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct ThresholdArgs {
    /// The score above which a detection counts; GenEval's is 0.3
    #[arg(long, value_name = "SCORE")]
    pub(crate) threshold: Option<f32>,
    /// The same for prompts of the tag `counting`; GenEval's is 0.9
    #[arg(long, value_name = "SCORE")]
    pub(crate) counting_threshold: Option<f32>,
}

/// A language model that judges answers instead of the rules of `exact`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "A language model as the judge of answers")]
pub(crate) struct JudgeArgs {
    /// Where it is asked: an OpenAI-compatible endpoint, e.g. `http://localhost:8000/v1`
    #[arg(id = "judge-url", long = "judge-url", value_name = "URL", requires = "judge-model")]
    pub(crate) url: Option<String>,
    /// Its name there
    #[arg(id = "judge-model", long = "judge-model", value_name = "NAME", requires = "judge-url")]
    pub(crate) model: Option<String>,
    /// The environment variable that holds the key; no key is sent where it is not set
    #[arg(
        id = "judge-key",
        long = "judge-key",
        value_name = "VARIABLE",
        default_value = "OPENAI_API_KEY",
        requires = "judge-url"
    )]
    pub(crate) key: String,
    /// What it is asked: `question` (with the question that was asked), `paper` (whether the predicted answer matches the
    /// ground-truth answer, as in A.1), or a file with `{question}`, `{truth}` and `{answer}` in it
    #[arg(
        id = "judge-question",
        long = "judge-question",
        value_name = "NAME|FILE",
        default_value = "question",
        requires = "judge-url", value_hint = ValueHint::AnyPath)]
    pub(crate) question: String,
    /// The temperature of its replies; left out for a model that refuses one
    #[arg(
        id = "judge-temperature",
        long = "judge-temperature",
        value_name = "T",
        default_value_t = 0.0,
        requires = "judge-url"
    )]
    pub(crate) temperature: f64,
    /// Where its replies are kept, so that none is asked for twice; `judge.jsonl` in the user's cache folder without it
    #[arg(id = "judge-cache", long = "judge-cache", value_name = "FILE.jsonl", requires = "judge-url")]
    pub(crate) cache: Option<PathBuf>,
}

/// What else to do with evaluations.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum EvalCommand {
    /// Checks a receipt: that nothing in it was altered, and that its figures follow from its verdicts
    Verify(VerifyArgs),
}

/// Checking a receipt.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_version_flag = true)]
pub(crate) struct VerifyArgs {
    /// The receipt
    #[arg(value_name = "FILE")]
    pub(crate) receipt: PathBuf,
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// The plugin of a model whose weights are to be those of the receipt
    #[arg(long, value_name = "NAME|PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) plugin: Option<String>,
    /// `builtin`, or the checkpoint folder of that model
    #[arg(long, value_name = "builtin|DIR", requires = "plugin", default_value = "builtin", value_hint = ValueHint::AnyPath)]
    pub(crate) model: String,
}

/// How images are drawn.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct GenerationArgs {
    /// Classifier-free guidance, as the model's family counts it
    #[arg(long, value_name = "G")]
    pub(crate) guidance: Option<f64>,
    /// Decoding steps of a masked model
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<i64>,
    /// Images at once; as many as fit the memory without it
    #[arg(long, value_name = "N")]
    pub(crate) batch: Option<usize>,
}

/// Drawing.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// What to draw; may be repeated
    #[arg(long, value_name = "TEXT", required = true)]
    pub(crate) prompt: Vec<String>,
    /// Images a prompt
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) count: usize,
    #[command(flatten)]
    pub(crate) drawing: GenerationArgs,
    /// The picture to write, all images as one grid, a row a prompt; or a folder for a picture each
    #[arg(long, value_name = "FILE.png|DIR", default_value = "generated.png")]
    pub(crate) out: PathBuf,
}

/// Asking.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct AskArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The image, PNG or JPEG; several are asked about one by one
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub(crate) image: Vec<PathBuf>,
    /// The question, asked about each image
    #[arg(long, value_name = "TEXT", required = true)]
    pub(crate) question: String,
    /// 0 takes the likeliest token each time, 1 draws from the model's distribution
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f64>,
    /// Draws among so many of the likeliest tokens; 0 among all
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<i64>,
    /// Most tokens of an answer
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<i64>,
    /// Images at once; as many as fit the memory without it
    #[arg(long, value_name = "N")]
    pub(crate) batch: Option<usize>,
}

/// Making prompts.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PromptsArgs {
    /// How many
    #[arg(long, value_name = "N", default_value_t = 600)]
    pub(crate) count: usize,
    /// The seed
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Shares of the categories, e.g. `single=1,two=1,position=2`; as many of each without it
    #[arg(long, value_name = "CATEGORY=SHARE,...")]
    pub(crate) mix: Option<String>,
    /// What there is to draw: `everyday`, `tiles`, or a file with a noun a line or TOML `nouns` and `colors`
    #[arg(long, value_name = "NAME|FILE", default_value = "everyday", value_hint = ValueHint::AnyPath)]
    pub(crate) objects: String,
    /// The words of prompts, questions and answers: `paper` (Table 1), `evaluation` (GenEval's, with the released questions),
    /// `tiles`, or a TOML file of one's own
    #[arg(long, value_name = "NAME|FILE.toml", value_hint = ValueHint::AnyPath)]
    pub(crate) wording: Option<String>,
    /// Which prompts: `train` leaves out those that the evaluation of the drawn world asks for, `test` has only these in the
    /// categories that are split, `all` has both; without it `train` for the objects `tiles`, else `all`
    #[arg(long, value_name = "train|test|all")]
    pub(crate) split: Option<String>,
    /// Prompts that must not appear: GenEval's metadata or our own; may be repeated
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) exclude: Vec<PathBuf>,
    /// The file to write, instead of stdout
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) out: Option<PathBuf>,
}

/// What to do with rewards.
#[derive(Debug, Subcommand)]
pub(crate) enum RewardCommand {
    /// Scores the samples on stdin: a line with `reward`, `max`, `parts` and `why` for each
    Score(ScoreArgs),
    /// Shows which samples on stdin are worth something else under B than under A, and how the weights in their group move
    Diff(DiffArgs),
    /// The same for the samples of a finished run: what they got there, and what they would get
    Replay(ReplayArgs),
}

/// Scoring.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// The rules: a name, the path of a rule file or plugin, or `cmd:PROGRAM ARGUMENTS`; repeated, they add up
    #[arg(long, value_name = "NAME|FILE.toml|PATH", required_unless_present = "config", value_hint = ValueHint::AnyPath)]
    pub(crate) reward: Vec<String>,
    /// A configuration, for its `reward.rules` with their weights
    #[arg(long, value_name = "FILE", conflicts_with = "reward")]
    pub(crate) config: Option<PathBuf>,
}

/// Comparing.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DiffArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// The rules before
    #[arg(value_name = "A", value_hint = ValueHint::AnyPath)]
    pub(crate) before: String,
    /// The rules after
    #[arg(value_name = "B", value_hint = ValueHint::AnyPath)]
    pub(crate) after: String,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
    /// How rewards become weights: `softmax` or `advantage`
    #[arg(long, value_name = "NAME", default_value = "softmax")]
    pub(crate) weighting: String,
    /// The temperature of softmax weights
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    pub(crate) temperature: f64,
}

/// Replaying.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// The folder of the run
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// The rules: a name, the path of a rule file or plugin, or `cmd:PROGRAM ARGUMENTS`; repeated, they add up
    #[arg(long, value_name = "NAME|FILE.toml|PATH", required = true, value_hint = ValueHint::AnyPath)]
    pub(crate) reward: Vec<String>,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
}

/// How differences are shown.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct ShowArgs {
    /// Changed samples to show; 0 shows all
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) show: usize,
    /// A JSON object for every changed sample, and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

/// What to do with a set of images.
#[derive(Debug, Subcommand)]
pub(crate) enum GenevalCommand {
    /// Draws the images of every prompt into GenEval's folders; what is there already stays
    Draw(GenevalGenerateArgs),
    /// Judges a folder of images by what a detector found in them
    Judge(GenevalJudgeArgs),
}

/// Drawing a set.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct GenevalGenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// The prompts, GenEval's `evaluation_metadata.jsonl` or a file of the same form
    #[arg(long, value_name = "FILE.jsonl", required = true)]
    pub(crate) metadata: PathBuf,
    /// The folder of the set
    #[arg(long, value_name = "DIR", required = true)]
    pub(crate) out: PathBuf,
    /// Images a prompt
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) count: usize,
    #[command(flatten)]
    pub(crate) drawing: GenerationArgs,
}

/// Judging a set.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct GenevalJudgeArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// The folder of the set: `00000/metadata.jsonl`, `00000/samples/0000.png` (or `.jpg`), …
    #[arg(long, value_name = "DIR", required = true)]
    pub(crate) images: PathBuf,
    #[command(flatten)]
    pub(crate) found: FoundArgs,
    /// One option of the detector, e.g. `score=0.5`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "detector")]
    pub(crate) sets: Vec<String>,
    /// Where the detector is given the pictures: `auto`, `cpu`, `cuda` or `cuda:N`
    #[arg(long, value_name = "DEVICE", requires = "detector")]
    pub(crate) device: Option<String>,
    #[command(flatten)]
    pub(crate) thresholds: ThresholdArgs,
    /// Judges the prompts of some tags or numbers, e.g. `counting,colors` or `0-99,200`
    #[arg(long, value_name = "TAG|N|N-M,...")]
    pub(crate) subset: Option<String>,
    /// The file to write with a line an image, as GenEval's script writes it
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) out: Option<PathBuf>,
    /// One JSON object instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where detections come from.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct FoundArgs {
    /// What a detector found, a line an image
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) detections: Option<PathBuf>,
    /// The detector: a name, or the path of a plugin
    #[arg(long, value_name = "NAME|PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) detector: Option<String>,
}

/// Looking for what is wrong.
#[derive(Debug, Clone, clap::Args)]
#[command(mut_arg("plugin", |plugin| plugin.required(false)))]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Prompts of each category that the model is examined on
    #[arg(long, value_name = "N", default_value_t = 1, requires = "plugin")]
    pub(crate) prompts: usize,
    /// One JSON object instead of lists
    #[arg(long)]
    pub(crate) json: bool,
}

/// Plugins; without a command they are listed.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PluginsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<PluginsCommand>,
    #[command(flatten)]
    pub(crate) list: PluginsListArgs,
}

/// What to do with plugins.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum PluginsCommand {
    /// Lists the plugins found, what they offer, and why one was refused
    List(PluginsListArgs),
    /// Writes a crate that builds, loads and trains, to be changed from the inside
    New(PluginsNewArgs),
    /// Finds out whether what a plugin makes keeps its promises
    Check(PluginsCheckArgs),
    /// Opens a plugin, and nothing else: what the list does in a process of its own
    #[command(hide = true)]
    Probe {
        /// The file
        file: String,
    },
}

/// Listing plugins.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PluginsListArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// One JSON object instead of a list
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a plugin makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PluginKind {
    /// A model that draws and answers.
    Model,
    /// A rule that says what answers are worth.
    Reward,
}

/// A new plugin.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PluginsNewArgs {
    /// Its name, e.g. `my-model`
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// What it makes
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: PluginKind,
    /// The folder to make; named like the plugin without it
    #[arg(long, value_name = "D")]
    pub(crate) dir: Option<PathBuf>,
    /// The crate `unirl` to build with, `core` of a checkout; without it, of the one that this program was built from
    #[arg(long, value_name = "PATH")]
    pub(crate) unirl: Option<PathBuf>,
}

/// Examining a plugin.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PluginsCheckArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// The plugin: its file, or its name
    #[arg(value_name = "FILE", value_hint = ValueHint::AnyPath)]
    pub(crate) plugin: String,
    /// `builtin`, or a checkpoint folder for its model
    #[arg(long, value_name = "builtin|DIR", value_hint = ValueHint::AnyPath)]
    pub(crate) model: Option<String>,
    /// `auto`, `cpu`, `cuda` or `cuda:N`
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,
}

/// Printing schemas.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SchemaArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// `run`, `pretrain`, `rules` (a rule file), `wording` (a file of wordings), `metrics` (a line of `metrics.jsonl`), or the name of an optimizer
    #[arg(value_name = "WHAT", default_value = "run")]
    pub(crate) what: String,
    /// The options of a plugin's entries instead
    #[arg(long, value_name = "NAME|PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) plugin: Option<String>,
}

/// Completing in a shell.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell, e.g. `unirl completions bash > ~/.local/share/bash-completion/completions/unirl`
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

/// Manual pages.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ManArgs {
    /// The command, e.g. `reward score`; the whole program without it
    #[arg(value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}
