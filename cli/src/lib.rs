//! The `unirl` command line. Data go to stdout, logs and errors to stderr.

mod args;
mod ask;
mod batch;
mod doctor;
mod dry_run;
mod endpoint;
mod eval;
mod generate;
mod geneval;
mod interrupt;
mod io;
mod load;
mod logging;
mod plugins;
mod pretrain;
mod progress;
mod prompts;
mod replay;
mod report;
mod resolve;
mod reward;
mod schema;
mod settings;
mod shell;
mod train;

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;

use args::{Args, Command};
use unirl::error::{Code, Error, Result};

/// Runs the command. Exit status: 0 success, 1 failure, 2 usage error, 130 interrupted.
pub fn main() -> ExitCode {
    if let Err(error) = unirl_engine::signals::confine() {
        logging::error(&Error::failure("cannot set the signal mask").cause(error));
        return ExitCode::FAILURE;
    }
    let args = match args::parse(&std::env::args_os().collect::<Vec<_>>()) {
        Ok(args) => args,
        Err(error) => return logging::print_clap(&error),
    };
    logging::init(args.verbose, args.log);
    match catch_panic(|| run(args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            logging::error(&error);
            ExitCode::from(match error.code() {
                Code::Usage => 2,
                Code::Interrupted => interrupt::STATUS,
                _ => 1,
            })
        }
    }
}

/// Checks a command line, whose first word is the name of the program. The tests of `docs/` use it.
#[doc(hidden)]
pub fn check_arguments(arguments: &[OsString]) -> Result<(), clap::Error> {
    args::parse(arguments).map(drop)
}

/// Limits libtorch to the CPU quota of a container; libtorch itself counts the processors of the machine.
fn limit_threads() {
    let cores = std::thread::available_parallelism().map_or(i32::MAX, |cores| cores.get() as i32);
    if std::env::var_os("OMP_NUM_THREADS").is_none() && cores < tch::get_num_threads() {
        tch::set_num_threads(cores);
    }
}

fn run(args: Args) -> Result<()> {
    limit_threads();
    match args.command {
        None => train::run(&args.run),
        Some(Command::Train(options)) => train::run(&options),
        Some(Command::Pretrain(options)) => pretrain::run(&options),
        Some(Command::Eval(options)) => eval::run(&options),
        Some(Command::Generate(options)) => generate::run(&options),
        Some(Command::Ask(options)) => ask::run(&options),
        Some(Command::Prompts(options)) => prompts::run(&options),
        Some(Command::ReplayStep(options)) => replay::run(&options),
        Some(Command::Report(options)) => report::run(&options),
        Some(Command::Reward(command)) => reward::run(&command),
        Some(Command::Geneval(command)) => geneval::run(&command),
        Some(Command::Doctor(options)) => doctor::run(&options),
        Some(Command::Plugins(options)) => plugins::run(&options),
        Some(Command::Schema(options)) => schema::run(&options),
        Some(Command::Completions(options)) => shell::completions(options),
        Some(Command::Man(options)) => shell::man(&options),
    }
}

/// Turns a panic into an error. tch panics on libtorch errors such as exhausted memory; only the first line of such an error
/// is kept.
fn catch_panic(work: impl FnOnce() -> Result<()>) -> Result<()> {
    static LAST: Mutex<Option<String>> = Mutex::new(None);
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(|place| format!("{}:{}", place.file(), place.line()));
        if let Ok(mut last) = LAST.lock() {
            *last = place;
        }
    }));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        let text = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("panic without a message");
        let text = text.split("\\nException raised from").next().unwrap_or(text);
        let text = text.split("\nException raised from").next().unwrap_or(text);
        let place = LAST.lock().ok().and_then(|mut last| last.take()).unwrap_or_default();
        Err(Error::failure(format!("internal error: {text}"))
            .cause(format!("raised at {place}"))
            .hint("if memory ran out, use fewer prompts per step: `--set rollout.prompts_per_step=N`; otherwise this is a bug in unirl"))
    })
}
