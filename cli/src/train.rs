//! `unirl --plugin NAME --optimizer NAME` and `unirl --resume RUN`.

use std::path::Path;

use unirl::algorithms;
use unirl::checkpoint::TrainingState;
use unirl::config::RunConfig;
use unirl::error::{Error, Result};
use unirl::model::UnifiedModel;
use unirl::plugin::Plugins;
use unirl::reward::RewardSet;
use unirl::run_dir::RunDir;
use unirl::train::{Event, RunReport};
use unirl::{autograd, config::layers, eval, prompts, train};

use crate::args::RunArgs;
use crate::build::{self, Settings};
use crate::progress::Watcher;
use crate::{dry_run, interrupt};

pub(crate) fn run(args: &RunArgs) -> Result<()> {
    match &args.resume {
        None => begin(args),
        Some(root) => resume(args, root),
    }
}

fn begin(args: &RunArgs) -> Result<()> {
    let settings = settings(args)?.settled()?;
    let early = settings.early()?;
    if let Some(out) = &args.out {
        RunDir::check_free(out)?;
    }
    let mut plugins = args.model.search.plugins()?;
    plugins.load(&early.model.plugin)?;
    check(&early, &mut plugins)?;
    if args.dry_run {
        return dry_run::run(&settings, &early, &mut plugins, args.out.as_deref());
    }
    prepare(&early);
    let model = build::model(&mut plugins, &early.model, early.train.seed)?;
    let config = settings.config(model.card())?;
    train::check_tasks(&config, model.card())?;
    let mut all = TrainSession::new(model, &config, &mut plugins)?;
    let name = format!("{}-{}", all.model.card().name, config.optimizer.name);
    let inputs = build::inputs(&mut plugins, &config)?;
    let mut run_dir = RunDir::create(args.out.clone(), &name, &config)?;
    run_dir.inputs = inputs;
    all.train(&config, &run_dir, None)
}

fn resume(args: &RunArgs, root: &Path) -> Result<()> {
    let mut run_dir = RunDir::open(root)?;
    let recorded = layers::read(&root.join("config.toml"))?;
    let before = RunConfig::from_table(recorded.clone())?;
    let config = settings(args)?.over(recorded)?;
    let changes = layers::differences(&before.to_table()?, &config.to_table()?);
    if !changes.is_empty() && !args.allow_change {
        let mut error = Error::usage("the settings are not those of the run");
        for change in &changes {
            error = error.cause(change);
        }
        return Err(error.hint("go on with them all the same: `--allow-change`"));
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
            "`train.steps`: expected at least {}, which are done, got {}",
            from.step, config.train.steps
        )));
    }
    let mut plugins = args.model.search.plugins()?;
    check(&config, &mut plugins)?;
    run_dir.inputs = build::inputs(&mut plugins, &config)?;
    let changed = from.as_ref().map_or_else(Vec::new, |from| from.changed_inputs(&run_dir.inputs));
    if !changed.is_empty() && !args.allow_change {
        let error = Error::usage("files are not those of the run (SHA-256)");
        let error = changed.iter().fold(error, Error::cause);
        return Err(error.hint("go on with them all the same: `--allow-change`"));
    }
    prepare(&config);
    let model = build::model(&mut plugins, &config.model, config.train.seed)?;
    let mut all = TrainSession::new(model, &config, &mut plugins)?;
    let done = from.as_ref().map_or(0, |from| from.step);
    tracing::info!("going on after step {done} of {}", config.train.steps);
    if !changes.is_empty() {
        run_dir.write_settings(&config)?;
    }
    all.train(&config, &run_dir, from)
}

/// Everything of a run but its folder.
pub(crate) struct TrainSession {
    pub(crate) model: Box<dyn UnifiedModel>,
    pub(crate) rules: RewardSet,
    pub(crate) answer_rules: Option<RewardSet>,
}

impl TrainSession {
    pub(crate) fn new(
        model: Box<dyn UnifiedModel>,
        config: &RunConfig,
        plugins: &mut Plugins,
    ) -> Result<Self> {
        let rules = build::rules(plugins, &config.reward.rules)?;
        let answer_rules = build::answer_rules(plugins, &config.reward)?;
        algorithms::check_fits(algorithms::find(&config.optimizer.name)?, model.card())?;
        if config.eval.prompts > 0 || config.eval.every > 0 {
            eval::check_tiles(model.card())?;
        }
        Ok(Self { model, rules, answer_rules })
    }

    fn train(&mut self, config: &RunConfig, run_dir: &RunDir, from: Option<TrainingState>) -> Result<()> {
        interrupt::listen()?;
        let mut watcher = Watcher::new();
        let mut watch = |event: Event<'_>| {
            watcher.on(&event);
            interrupt::asked()
        };
        let (model, answer_rules) = (&mut *self.model, self.answer_rules.as_ref());
        let report = train::train(model, &self.rules, answer_rules, config, run_dir, from, &mut watch)?;
        drop(watcher);
        show(&report, config, run_dir);
        Ok(())
    }
}

/// What can be told to be wrong before the model is loaded.
fn check(config: &RunConfig, plugins: &mut Plugins) -> Result<()> {
    algorithms::build(algorithms::find(&config.optimizer.name)?, config)?;
    build::rules(plugins, &config.reward.rules)?;
    build::answer_rules(plugins, &config.reward)?;
    if let Some(tasks) = &config.train.tasks {
        prompts::read_jsonl(tasks.as_ref())?;
    }
    Ok(())
}

/// What has to be set before the device is used.
pub(crate) fn prepare(config: &RunConfig) {
    if config.train.deterministic {
        autograd::set_deterministic();
    }
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn show(report: &RunReport, config: &RunConfig, run_dir: &RunDir) {
    if let (Some(before), Some(after)) = (&report.before, &report.after) {
        println!(
            "base -> trained, {} prompts a category, {} steps\n",
            config.eval.prompts, config.train.steps
        );
        println!("{}", eval::comparison(before, after));
    }
    if let Some(why) = &report.stopped {
        println!("stopped by the guard: {why}\n");
    }
    let alarms = report.warnings;
    for (count, what) in [
        (alarms.equal_rewards, "no group had unequal rewards: nothing was learned"),
        (alarms.diverged, "the policy was more than 1 nat a token from its reference"),
    ] {
        if count > 0 {
            println!("at {count} of {} steps {what}", config.train.steps);
        }
    }
    println!("run         {}", run_dir.root().display());
    println!("checkpoint  {}", report.checkpoint.display());
    println!("wall time   {:.0} s", report.wall.as_secs_f64());
}

fn settings(args: &RunArgs) -> Result<Settings> {
    let mut settings = Settings::new(&args.model, args.preset.as_deref())?;
    if let Some(name) = &args.optimizer {
        settings.put("optimizer.name", name.as_str())?;
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
