//! Training: `unirl --plugin NAME --optimizer NAME` and `unirl --resume RUN`.

use std::path::Path;

use unirl::error::{Error, Result};
use unirl::model::UnifiedModel;
use unirl_base::layers;
use unirl_benchmarks::Benchmark;
use unirl_engine::checkpoint::TrainingState;
use unirl_engine::config::{RewardOptions, RunConfig};
use unirl_engine::plugin::Plugins;
use unirl_engine::rewards::RewardSet;
use unirl_engine::run_dir::RunDir;
use unirl_engine::train::{self, Event, RunReport, RunSetup, Shown};
use unirl_engine::{algorithms, benchmark, eval};
use unirl_torch::autograd;

use crate::args::RunArgs;
use crate::progress::TrainProgress;
use crate::resolve::resolve;
use crate::settings::Settings;
use crate::{dry_run, interrupt, load};

pub(crate) fn run(args: &RunArgs) -> Result<()> {
    match &args.resume {
        None => begin(args),
        Some(root) => resume(args, root),
    }
}

fn begin(args: &RunArgs) -> Result<()> {
    let settings = settings(args)?.with_fixed_checkpoint()?;
    let early = settings.early()?;
    if let Some(out) = &args.out {
        RunDir::check_free(out)?;
    }
    let mut plugins = args.model.search.plugins()?;
    plugins.load(&early.model.plugin)?;
    check(&early)?;
    let rewards = Rewards::load(&mut plugins, &early.reward)?;
    if args.dry_run {
        return dry_run::run(&settings, &early, &mut plugins, args.out.as_deref());
    }
    prepare(&early);
    let model = load::model(&mut plugins, &early.model, early.train.seed)?;
    let mut config = settings.config(model.card())?;
    let benchmark = benchmark::open(&config.benchmark, model.card(), &mut plugins)?;
    // The preset, which may name other rewards, is only known with the model.
    let rewards = match config.reward == early.reward {
        true => rewards,
        false => Rewards::load(&mut plugins, &config.reward)?,
    };
    resolve(&mut config, &mut plugins)?;
    let mut session = TrainSession { model, rewards, benchmark };
    session.setup(&config).check()?;
    let name = format!("{}-{}", session.model.card().name, config.optimizer.name);
    let inputs = load::inputs(&mut plugins, &config)?;
    let mut run_dir = RunDir::create(args.out.clone(), &name, &config)?;
    run_dir.inputs = inputs;
    session.train(&config, &run_dir, None)
}

fn resume(args: &RunArgs, root: &Path) -> Result<()> {
    let mut run_dir = RunDir::open(root)?;
    let recorded = layers::read(&root.join("config.toml"))?;
    let mut plugins = args.model.search.plugins()?;
    // Runs of earlier releases recorded former names, and no defaults of plugins and algorithms.
    let mut before = RunConfig::from_table(recorded)?;
    let mut config = settings(args)?.over(before.to_table()?)?;
    resolve(&mut before, &mut plugins)?;
    resolve(&mut config, &mut plugins)?;
    let changes = layers::differences(&before.to_table()?, &config.to_table()?);
    if !changes.is_empty() && !args.allow_change {
        let mut error = Error::usage("the settings differ from those of the run");
        for change in &changes {
            error = error.cause(change);
        }
        return Err(error.hint("resume with the new settings: `--allow-change`"));
    }
    if changes.is_empty() && root.join("report.json").is_file() {
        return Err(Error::usage(format!("the run in `{}` is complete", root.display())).hint(format!(
            "train on: `--resume {} --set train.steps={} --allow-change`",
            root.display(),
            config.train.steps * 2
        )));
    }
    let from = run_dir.newest()?;
    if let Some(from) = &from
        && from.step > config.train.steps
    {
        return Err(Error::usage(format!(
            "`train.steps`: expected at least {}, the steps already done, got {}",
            from.step, config.train.steps
        )));
    }
    check(&config)?;
    let rewards = Rewards::load(&mut plugins, &config.reward)?;
    run_dir.inputs = load::inputs(&mut plugins, &config)?;
    let changed = from.as_ref().map_or_else(Vec::new, |from| from.changed_inputs(&run_dir.inputs));
    if !changed.is_empty() && !args.allow_change {
        let error = Error::usage("files have changed since the run began (SHA-256)");
        let error = changed.iter().fold(error, Error::cause);
        return Err(error.hint("resume with the changed files: `--allow-change`"));
    }
    prepare(&config);
    let model = load::model(&mut plugins, &config.model, config.train.seed)?;
    let benchmark = benchmark::open(&config.benchmark, model.card(), &mut plugins)?;
    let mut session = TrainSession { model, rewards, benchmark };
    session.setup(&config).check()?;
    let done = from.as_ref().map_or(0, |from| from.step);
    tracing::info!("resuming after step {done} of {}", config.train.steps);
    if !changes.is_empty() {
        run_dir.write_settings(&config)?;
    }
    session.train(&config, &run_dir, from)
}

/// The rewards of a run. A reward that is a program starts here, once per run.
pub(crate) struct Rewards {
    pub(crate) rules: RewardSet,
    /// Those of the answer term, if they differ.
    pub(crate) answer_rules: Option<RewardSet>,
}

impl Rewards {
    pub(crate) fn load(plugins: &mut Plugins, options: &RewardOptions) -> Result<Self> {
        let rules = load::rewards(plugins, &options.rules)?;
        let answer_rules = options.answer_rules.as_ref();
        let answer_rules = answer_rules.map(|rules| load::rewards(plugins, rules)).transpose()?;
        Ok(Self { rules, answer_rules })
    }
}

/// A model with its rewards and its benchmark, ready to train.
pub(crate) struct TrainSession {
    pub(crate) model: Box<dyn UnifiedModel>,
    pub(crate) rewards: Rewards,
    pub(crate) benchmark: Option<Box<dyn Benchmark>>,
}

impl TrainSession {
    pub(crate) fn setup<'a>(&'a mut self, config: &'a RunConfig) -> RunSetup<'a> {
        RunSetup {
            model: &mut *self.model,
            rules: &self.rewards.rules,
            answer_rules: self.rewards.answer_rules.as_ref(),
            benchmark: self.benchmark.as_deref(),
            config,
        }
    }

    fn train(&mut self, config: &RunConfig, run_dir: &RunDir, from: Option<TrainingState>) -> Result<()> {
        interrupt::listen()?;
        let mut progress = TrainProgress::new();
        let mut watch = |event: Event<'_>| {
            progress.on(&event);
            interrupt::interrupted()
        };
        let report = train::train(self.setup(config), run_dir, from, &mut watch)?;
        drop(progress);
        show(&report, config, run_dir);
        Ok(())
    }
}

/// Finds mistakes in the algorithm's options and in the prompts before the model is loaded.
fn check(config: &RunConfig) -> Result<()> {
    config.algorithm(algorithms::find(&config.optimizer.name)?)?;
    if let Some(tasks) = &config.train.prompts_file {
        unirl_prompts::read_jsonl(tasks.as_ref())?;
    }
    Ok(())
}

/// Makes the settings of the process that must precede the first use of the device.
pub(crate) fn prepare(config: &RunConfig) {
    if config.train.deterministic {
        autograd::set_deterministic();
    }
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn show(report: &RunReport, config: &RunConfig, run_dir: &RunDir) {
    if let (Some(before), Some(after)) = (&report.before, &report.after) {
        let early = if report.stopped.is_some() { ", stopped early" } else { "" };
        let shown = report.shown.describe(report.steps);
        println!("base -> {shown}{early}, {} prompts per category\n", config.eval.prompts);
        println!("{}", eval::comparison(before, after));
    }
    if let Some(why) = &report.stopped {
        println!("stopped early: {why}\n");
    }
    let alarms = report.warnings;
    for (count, what) in [
        (alarms.equal_rewards, "every group had equal rewards, so there was nothing to learn"),
        (alarms.diverged, "the KL divergence from the reference policy was above 1 nat per token"),
    ] {
        if count > 0 {
            println!("at {count} of {} steps, {what}", report.steps);
        }
    }
    println!("run         {}", run_dir.root().display());
    println!("checkpoint  {}", report.checkpoint.display());
    if matches!(report.shown, Shown::Best(_)) {
        println!("best        {}", run_dir.root().join("checkpoints/best").display());
    }
    println!("wall time   {:.0} s", report.wall.as_secs_f64());
}

fn settings(args: &RunArgs) -> Result<Settings> {
    let mut settings = Settings::new(&args.model, args.preset.as_deref())?;
    for (key, name) in [("optimizer.name", &args.optimizer), ("benchmark.name", &args.benchmark)] {
        if let Some(name) = name {
            settings.put(key, name.as_str())?;
        }
    }
    if !args.reward.is_empty() {
        let rule = |name: &String| {
            toml::Value::Table(toml::Table::from_iter([("name".to_string(), name.as_str().into())]))
        };
        settings.put("reward.rules", args.reward.iter().map(rule).collect::<Vec<_>>())?;
    }
    if let Some(steps) = args.steps {
        settings.put("train.steps", steps as i64)?;
    }
    if args.deterministic {
        settings.put("train.deterministic", true)?;
    }
    Ok(settings)
}
