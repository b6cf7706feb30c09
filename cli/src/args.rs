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
use unirl_engine::home;
use unirl_engine::plugin::Plugins;

/// Post-train unified multimodal models on their own images (UniRL, arXiv 2505.23380)
///
/// Without a command, unirl trains: `unirl --plugin showo --optimizer grpo`. On Ctrl-C, SIGTERM, SIGHUP or SIGUSR1 it finishes
/// the current step, saves a checkpoint and exits with status 130. `unirl --resume RUN` continues the run.
#[derive(Debug, Parser)]
#[command(name = "unirl", version, max_term_width = 100, subcommand_negates_reqs = true)]
#[command(override_usage = "unirl --plugin <NAME|PATH> [OPTIONS]\n       unirl [OPTIONS] <COMMAND>")]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
    /// Increase log verbosity (repeat for debug output)
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub(crate) verbose: u8,
    /// Set the format of the log on stderr
    #[arg(long, value_name = "FORMAT", default_value = "text", global = true)]
    pub(crate) log: LogFormat,
    // Last, because its help heading applies to all fields after it.
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    /// Print text and a progress bar
    Text,
    /// Print one JSON object per line and no progress bar
    Json,
}

/// Parses a command line, whose first word is the name of the program. The error holds help and version texts as well.
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
            // A misplaced option is also reported as missing; the misplacement is the better message.
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

/// The clap command with its value parsers.
pub(crate) fn command() -> clap::Command {
    with_parsers(Args::command().bin_name("unirl"))
}

/// Expands `~` in every value that can be a path, and gives every number an error that says what was expected, also for
/// negative values.
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

/// Refuses options before their command, except global ones.
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
    /// Train a model (the default without a command)
    Train(Box<RunArgs>),
    /// Pretrain a fresh model, or the one of `--model`, on images of the tiles benchmark
    Pretrain(PretrainArgs),
    /// Repeat a failed training step from the directory that it saved
    ReplayStep(ReplayStepArgs),
    /// Write an HTML report that shows one run or compares several
    Report(ReportArgs),
    /// Evaluate generation, understanding and their consistency
    Eval(Box<EvalArgs>),
    /// Generate images from prompts
    Generate(GenerateArgs),
    /// Answer a question about images
    Ask(AskArgs),
    /// Write prompts with specs, questions and reference answers as JSON lines
    Prompts(PromptsArgs),
    /// Score answers and compare reward functions
    #[command(subcommand)]
    Reward(RewardCommand),
    /// Generate images for GenEval's prompts and judge them by GenEval's rules
    #[command(subcommand)]
    Geneval(GenevalCommand),
    /// Show the installation and, with `--plugin`, run the conformance checks of a model
    Doctor(DoctorArgs),
    /// List, create and check plugins
    Plugins(PluginsArgs),
    /// Print the JSON Schema of a configuration or file
    Schema(SchemaArgs),
    /// Print a shell completion script
    Completions(CompletionsArgs),
    /// Print the manual page of unirl or of one of its commands
    Man(ManArgs),
}

/// Where to search for plugins.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SearchArgs {
    /// Search this directory for plugins first (may be repeated)
    #[arg(long, value_name = "DIR")]
    pub(crate) plugin_dir: Vec<PathBuf>,
}

impl SearchArgs {
    /// The plugins on the search path; none is opened yet.
    pub(crate) fn plugins(&self) -> Result<Plugins> {
        match self.plugin_dir.iter().find(|dir| !dir.is_dir()) {
            Some(missing) => {
                Err(Error::usage(format!("`--plugin-dir {0}`: `{0}` is not a directory", missing.display())))
            }
            None => Ok(Plugins::new(&self.plugin_dir)),
        }
    }
}

/// The model and the settings of a command.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ModelArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// Load the model from this plugin, a name or the path of its file
    #[arg(long, value_name = "NAME|PATH", required = true, value_hint = ValueHint::AnyPath)]
    pub(crate) plugin: Option<String>,
    /// Load weights from the plugin (`builtin`), a checkpoint, or the newest checkpoint of a run
    #[arg(long, value_name = "builtin|DIR|RUN", value_hint = ValueHint::AnyPath)]
    pub(crate) model: Option<String>,
    /// Load the image tokenizer from this directory if the checkpoint does not contain it
    #[arg(long = "image-tokenizer", alias = "tokenizer", value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) tokenizer: Option<String>,
    /// Run on this device: `auto`, `cpu`, `cuda` or `cuda:N`
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,
    /// Read settings from this TOML file
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Set a configuration key, e.g. `rollout.group_size=4` (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
    /// Set the random seed
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
}

impl ModelArgs {
    /// The arguments that load the model `entry` of the plugin under check.
    pub(crate) fn for_entry(args: &PluginsCheckArgs, entry: &str) -> Self {
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

/// The arguments of `unirl train`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Training")]
#[command(mut_arg("plugin", |plugin| plugin.required(false).required_unless_present("resume")))]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Train with this algorithm: `sft`, `grpo` or `grpo-split`
    #[arg(long, value_name = "NAME")]
    pub(crate) optimizer: Option<String>,
    /// Take prompts and the judge of images from this benchmark: `tiles` or `geneval` (default: that of the model, if it has one)
    #[arg(long, value_name = "NAME")]
    pub(crate) benchmark: Option<String>,
    /// Start from a preset: `tiles` or `tiles-split` (defaults of the benchmark `tiles`), or `paper`
    #[arg(long, value_name = "NAME")]
    pub(crate) preset: Option<String>,
    /// Add a reward: a name, a rule file, a plugin, or `cmd:PROGRAM ARGUMENTS` (repeat to sum several)
    #[arg(long, value_name = "NAME|FILE.toml|PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) reward: Vec<String>,
    /// Train for this number of steps
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<u64>,
    /// Write the run to this directory (default: the next free one in `runs/`)
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Resume the run in this directory with its settings
    #[arg(long, value_name = "RUN", conflicts_with_all = ["preset", "out", "dry_run"])]
    pub(crate) resume: Option<PathBuf>,
    /// Resume even if these settings or input files differ from the original run
    #[arg(long, requires = "resume")]
    pub(crate) allow_change: bool,
    /// Use deterministic algorithms (slower on GPU)
    #[arg(long)]
    pub(crate) deterministic: bool,
    /// Check the settings and estimate memory and disk space without loading the weights
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// The arguments of `unirl report`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ReportArgs {
    /// Report on these run directories; settings are compared with the first
    #[arg(value_name = "RUN", required = true)]
    pub(crate) runs: Vec<PathBuf>,
    /// Write the page to this file (default: `report.html` in the first run)
    #[arg(long, value_name = "FILE.html")]
    pub(crate) out: Option<PathBuf>,
}

/// The arguments of `unirl replay-step`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ReplayStepArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// Repeat the step saved in `RUN/failed-step-NNNNNN`, or the step after a checkpoint
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
    /// Change a configuration key, e.g. `update.learning_rate=1e-5` (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
}

/// The arguments of `unirl pretrain`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PretrainArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Write the checkpoint to this directory
    #[arg(long, value_name = "DIR", required = true)]
    pub(crate) out: PathBuf,
}

/// The arguments of `unirl eval`.
#[derive(Debug, Clone, clap::Args)]
#[command(subcommand_negates_reqs = true)]
#[command(override_usage = "unirl eval --plugin <NAME|PATH> [OPTIONS]\n       unirl eval verify <FILE>")]
pub(crate) struct EvalArgs {
    #[command(subcommand)]
    pub(crate) command: Option<EvalCommand>,
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Take prompts and the judge of images from this benchmark: `tiles` or `geneval` (default: that of the model, if it has one)
    #[arg(long, value_name = "NAME")]
    pub(crate) benchmark: Option<String>,
    /// Write verdicts and `receipt.json` to this directory; an incomplete evaluation is resumed
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Evaluate every N-th chunk, starting with chunk K, into the `--out` that all shards share
    #[arg(long, value_name = "K/N", requires = "out")]
    pub(crate) shard: Option<String>,
    /// Evaluate this number of prompts per category
    #[arg(long, value_name = "N", conflicts_with = "metadata")]
    pub(crate) prompts: Option<usize>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) geneval: GenevalEvalArgs,
    #[command(flatten)]
    pub(crate) judge: JudgeArgs,
}

/// The benchmark `geneval`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "GenEval")]
pub(crate) struct GenevalEvalArgs {
    /// Evaluate the prompts of GenEval's `evaluation_metadata.jsonl` or a file in its format
    #[arg(long, value_name = "FILE.jsonl", requires = "detector")]
    pub(crate) metadata: Option<PathBuf>,
    /// Detect objects with this detector, a name or the path of a plugin
    #[arg(long, value_name = "NAME|PATH", requires = "metadata", value_hint = ValueHint::AnyPath)]
    pub(crate) detector: Option<String>,
    /// Ask the model about the correct images of this directory, written by `unirl geneval draw`
    #[arg(long, value_name = "IMG", requires_all = ["metadata", "results"])]
    pub(crate) references: Option<PathBuf>,
    /// Read which of these images are correct from the output of `unirl geneval judge --out`
    #[arg(long, value_name = "FILE.jsonl", requires = "references")]
    pub(crate) results: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) thresholds: ThresholdArgs,
}

/// Score thresholds of detections.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct ThresholdArgs {
    /// Count detections with a score above this threshold (GenEval: 0.3)
    #[arg(long, value_name = "SCORE")]
    pub(crate) threshold: Option<f32>,
    /// Set the threshold for prompts of the tag `counting` (GenEval: 0.9)
    #[arg(long, value_name = "SCORE")]
    pub(crate) counting_threshold: Option<f32>,
}

/// A language model that judges answers instead of `exact`.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Language model as answer judge")]
pub(crate) struct JudgeArgs {
    /// Judge answers with an OpenAI-compatible endpoint, e.g. `http://localhost:8000/v1`
    #[arg(id = "judge-url", long = "judge-url", value_name = "URL", requires = "judge-model")]
    pub(crate) url: Option<String>,
    /// Request this model from the endpoint
    #[arg(id = "judge-model", long = "judge-model", value_name = "NAME", requires = "judge-url")]
    pub(crate) model: Option<String>,
    /// Read the API key from this environment variable; if it is unset, none is sent
    #[arg(
        id = "judge-key",
        long = "judge-key",
        value_name = "VARIABLE",
        default_value = "OPENAI_API_KEY",
        requires = "judge-url"
    )]
    pub(crate) key: String,
    /// Send this judge prompt: `question` (includes the question), `paper` (appendix A.1), or a file that contains `{truth}`,
    /// `{answer}` and optionally `{question}`
    #[arg(
        id = "judge-question",
        long = "judge-question",
        value_name = "NAME|FILE",
        default_value = "question",
        requires = "judge-url", value_hint = ValueHint::AnyPath)]
    pub(crate) question: String,
    /// Sample replies at this temperature; omitted for models that reject the parameter
    #[arg(
        id = "judge-temperature",
        long = "judge-temperature",
        value_name = "T",
        default_value_t = 0.0,
        requires = "judge-url"
    )]
    pub(crate) temperature: f64,
    /// Cache verdicts in this file (default: `unirl/judge.jsonl` in the user's cache directory)
    #[arg(id = "judge-cache", long = "judge-cache", value_name = "FILE.jsonl", requires = "judge-url")]
    pub(crate) cache: Option<PathBuf>,
}

/// The subcommands of `unirl eval`.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum EvalCommand {
    /// Verify that a receipt is unaltered and that its figures follow from its verdicts
    Verify(VerifyArgs),
}

/// The arguments of `unirl eval verify`.
#[derive(Debug, Clone, clap::Args)]
#[command(disable_version_flag = true)]
pub(crate) struct VerifyArgs {
    /// Verify this receipt
    #[arg(value_name = "FILE")]
    pub(crate) receipt: PathBuf,
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// Check that the weights of this plugin's model are those of the receipt
    #[arg(long, value_name = "NAME|PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) plugin: Option<String>,
    /// Load that model from the plugin (`builtin`) or a checkpoint
    #[arg(long, value_name = "builtin|DIR", requires = "plugin", default_value = "builtin", value_hint = ValueHint::AnyPath)]
    pub(crate) model: String,
}

/// How images are generated.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct GenerationArgs {
    /// Set the classifier-free guidance scale, in the convention of the model family
    #[arg(long, value_name = "G")]
    pub(crate) guidance: Option<f64>,
    /// Set the number of decoding steps of a masked model
    #[arg(long, value_name = "N")]
    pub(crate) steps: Option<i64>,
    /// Process this number of images at once (default: as many as fit in memory)
    #[arg(long, value_name = "N")]
    pub(crate) batch: Option<usize>,
}

/// The arguments of `unirl generate`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct GenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Generate images from this prompt (may be repeated)
    #[arg(long, value_name = "TEXT", required = true)]
    pub(crate) prompt: Vec<String>,
    /// Generate this number of images per prompt
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) count: usize,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
    /// Write a grid with one row per prompt to this file, or one file per image to this directory
    #[arg(long, value_name = "FILE.png|DIR", default_value = "generated.png")]
    pub(crate) out: PathBuf,
}

/// The arguments of `unirl ask`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct AskArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Ask about these images (PNG or JPEG)
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    pub(crate) image: Vec<PathBuf>,
    /// Ask this question about each image
    #[arg(long, value_name = "TEXT", required = true)]
    pub(crate) question: String,
    /// Sample answers at this temperature; 0 is greedy
    #[arg(long, value_name = "T")]
    pub(crate) temperature: Option<f64>,
    /// Sample from the K most likely tokens; 0 means all
    #[arg(long, value_name = "K")]
    pub(crate) top_k: Option<i64>,
    /// Limit each answer to this number of tokens
    #[arg(long, value_name = "N")]
    pub(crate) max_tokens: Option<i64>,
    /// Process this number of images at once (default: as many as fit in memory)
    #[arg(long, value_name = "N")]
    pub(crate) batch: Option<usize>,
}

/// The arguments of `unirl prompts`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PromptsArgs {
    /// Write this number of prompts
    #[arg(long, value_name = "N", default_value_t = 600)]
    pub(crate) count: usize,
    /// Set the random seed
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Set the shares of the categories, e.g. `single=1,two=1,position=2` (default: equal)
    #[arg(long, value_name = "CATEGORY=SHARE,...")]
    pub(crate) mix: Option<String>,
    /// Choose objects from `everyday`, `tiles`, or a file with one noun per line or TOML `nouns` and `colors`
    #[arg(long, value_name = "NAME|FILE", default_value = "everyday", value_hint = ValueHint::AnyPath)]
    pub(crate) objects: String,
    /// Use these prompt templates: `paper` (Table 1), `evaluation` (GenEval's prompts with the released questions), `tiles`, or
    /// a TOML file
    #[arg(long, value_name = "NAME|FILE.toml", value_hint = ValueHint::AnyPath)]
    pub(crate) wording: Option<String>,
    /// Write prompts of this split: `train` (without those held out by the tiles benchmark), `test` (only these) or `all`
    /// (default: `train` with `--objects tiles`, otherwise `all`)
    #[arg(long, value_name = "train|test|all")]
    pub(crate) split: Option<String>,
    /// Exclude the prompts of this file, in our format or GenEval's (may be repeated)
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) exclude: Vec<PathBuf>,
    /// Write to this file instead of stdout
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) out: Option<PathBuf>,
}

/// The subcommands of `unirl reward`.
#[derive(Debug, Subcommand)]
pub(crate) enum RewardCommand {
    /// Score samples from stdin; print `reward`, `max`, `parts` and `why` of each as a JSON line
    Score(ScoreArgs),
    /// Show samples from stdin whose reward or weight differs between two reward functions
    Diff(DiffArgs),
    /// Rescore the samples of a finished run and show what changes
    Replay(ReplayArgs),
}

/// The arguments of `unirl reward score`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ScoreArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// Add a reward: a name, a rule file, a plugin, or `cmd:PROGRAM ARGUMENTS` (repeat to sum several)
    #[arg(long, value_name = "NAME|FILE.toml|PATH", required_unless_present = "config", value_hint = ValueHint::AnyPath)]
    pub(crate) reward: Vec<String>,
    /// Use the weighted `reward.rules` of this configuration
    #[arg(long, value_name = "FILE", conflicts_with = "reward")]
    pub(crate) config: Option<PathBuf>,
}

/// The arguments of `unirl reward diff`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DiffArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// Compare from this reward function
    #[arg(value_name = "A", value_hint = ValueHint::AnyPath)]
    pub(crate) before: String,
    /// Compare to this reward function
    #[arg(value_name = "B", value_hint = ValueHint::AnyPath)]
    pub(crate) after: String,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
    /// Turn rewards into weights with `softmax` or `advantage`
    #[arg(long, value_name = "NAME", default_value = "softmax")]
    pub(crate) weighting: String,
    /// Set the temperature of softmax weights
    #[arg(long, value_name = "T", default_value_t = 1.0)]
    pub(crate) temperature: f64,
}

/// The arguments of `unirl reward replay`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ReplayArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// Rescore this run directory
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// Add a reward: a name, a rule file, a plugin, or `cmd:PROGRAM ARGUMENTS` (repeat to sum several)
    #[arg(long, value_name = "NAME|FILE.toml|PATH", required = true, value_hint = ValueHint::AnyPath)]
    pub(crate) reward: Vec<String>,
    #[command(flatten)]
    pub(crate) show: ShowArgs,
}

/// Which differences to print.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct ShowArgs {
    /// Show at most this number of changed samples; 0 shows all
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) show: usize,
    /// Print one JSON object per changed sample and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

/// The subcommands of `unirl geneval`.
#[derive(Debug, Subcommand)]
pub(crate) enum GenevalCommand {
    /// Generate the images of every prompt in GenEval's layout; existing images are kept
    #[command(name = "draw")]
    Generate(GenevalGenerateArgs),
    /// Judge a directory of images by the detections in them
    Judge(GenevalJudgeArgs),
}

/// The arguments of `unirl geneval draw`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct GenevalGenerateArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Read prompts from GenEval's `evaluation_metadata.jsonl` or a file in its format
    #[arg(long, value_name = "FILE.jsonl", required = true)]
    pub(crate) metadata: PathBuf,
    /// Write the images to this directory
    #[arg(long, value_name = "DIR", required = true)]
    pub(crate) out: PathBuf,
    /// Generate this number of images per prompt
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub(crate) count: usize,
    #[command(flatten)]
    pub(crate) generation: GenerationArgs,
}

/// The arguments of `unirl geneval judge`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct GenevalJudgeArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// Judge the images of this directory (`00000/metadata.jsonl`, `00000/samples/0000.png` or `.jpg`, …)
    #[arg(long, value_name = "DIR", required = true)]
    pub(crate) images: PathBuf,
    #[command(flatten)]
    pub(crate) found: FoundArgs,
    /// Set an option of the detector, e.g. `score=0.5` (may be repeated)
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "detector")]
    pub(crate) sets: Vec<String>,
    /// Pass images to the detector on this device: `auto`, `cpu`, `cuda` or `cuda:N`
    #[arg(long, value_name = "DEVICE", requires = "detector")]
    pub(crate) device: Option<String>,
    #[command(flatten)]
    pub(crate) thresholds: ThresholdArgs,
    /// Judge only prompts with these tags or numbers, e.g. `counting,colors` or `0-99,200`
    #[arg(long, value_name = "TAG|N|N-M,...")]
    pub(crate) subset: Option<String>,
    /// Write one line per image to this file, in the format of GenEval's script
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) out: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

/// Where detections come from.
#[derive(Debug, Clone, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct FoundArgs {
    /// Read detections from this file, one image per line
    #[arg(long, value_name = "FILE.jsonl")]
    pub(crate) detections: Option<PathBuf>,
    /// Detect objects with this detector, a name or the path of a plugin
    #[arg(long, value_name = "NAME|PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) detector: Option<String>,
}

/// The arguments of `unirl doctor`.
#[derive(Debug, Clone, clap::Args)]
#[command(mut_arg("plugin", |plugin| plugin.required(false)))]
pub(crate) struct DoctorArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,
    /// Check the model on this number of prompts per category
    #[arg(long, value_name = "N", default_value_t = 1, requires = "plugin")]
    pub(crate) prompts: usize,
    /// Print JSON instead of text
    #[arg(long)]
    pub(crate) json: bool,
}

/// The arguments of `unirl plugins`; without a subcommand, plugins are listed.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PluginsArgs {
    #[command(subcommand)]
    pub(crate) command: Option<PluginsCommand>,
    #[command(flatten)]
    pub(crate) list: PluginsListArgs,
}

/// The subcommands of `unirl plugins`.
#[derive(Debug, Clone, Subcommand)]
pub(crate) enum PluginsCommand {
    /// List plugins, what they provide, and why a plugin was refused
    List(PluginsListArgs),
    /// Create a plugin crate that builds, loads and trains, as a starting point
    New(PluginsNewArgs),
    /// Run the conformance checks of a plugin's models and rewards
    Check(PluginsCheckArgs),
    /// Open a plugin in this process, for `plugins list`
    #[command(hide = true)]
    Probe {
        /// Open this file
        file: String,
    },
}

/// The arguments of `unirl plugins list`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PluginsListArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// Print JSON instead of a list
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a plugin provides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PluginKind {
    /// Create a model that generates images and answers questions
    Model,
    /// Create a reward function that scores answers
    Reward,
}

/// The arguments of `unirl plugins new`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PluginsNewArgs {
    /// Name the plugin, e.g. `my-model`
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
    /// Choose what the plugin provides
    #[arg(long, value_name = "KIND")]
    pub(crate) kind: PluginKind,
    /// Create this directory (default: the plugin's name)
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,
    /// Build against this `unirl` crate, `core` of a checkout (default: the checkout that unirl was built from)
    #[arg(long, value_name = "PATH")]
    pub(crate) unirl: Option<PathBuf>,
}

/// The arguments of `unirl plugins check`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PluginsCheckArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// Check this plugin, the path of its file or a name
    #[arg(value_name = "FILE", value_hint = ValueHint::AnyPath)]
    pub(crate) plugin: String,
    /// Load weights from the plugin (`builtin`) or a checkpoint
    #[arg(long, value_name = "builtin|DIR", value_hint = ValueHint::AnyPath)]
    pub(crate) model: Option<String>,
    /// Run on this device: `auto`, `cpu`, `cuda` or `cuda:N`
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<String>,
}

/// The arguments of `unirl schema`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SchemaArgs {
    #[command(flatten)]
    pub(crate) search: SearchArgs,
    /// Print the schema of `run`, `pretrain`, `rules` (rule files), `wording` (prompt templates), `metrics` (a line of
    /// `metrics.jsonl`) or an algorithm
    #[arg(value_name = "WHAT", default_value = "run")]
    pub(crate) what: String,
    /// Print the schemas of the options of this plugin instead
    #[arg(long, value_name = "NAME|PATH", value_hint = ValueHint::AnyPath)]
    pub(crate) plugin: Option<String>,
}

/// The arguments of `unirl completions`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// Choose the shell, e.g. `unirl completions bash > ~/.local/share/bash-completion/completions/unirl`
    #[arg(value_name = "SHELL")]
    pub(crate) shell: clap_complete::Shell,
}

/// The arguments of `unirl man`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ManArgs {
    /// Print the page of this command, e.g. `reward score` (default: unirl)
    #[arg(value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}
