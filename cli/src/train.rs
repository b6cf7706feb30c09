//! `unirl --plugin NAME --optimizer NAME`.

use unirl::config::RunConfig;
use unirl::error::{Error, Result};
use unirl::memory::MemoryPlan;
use unirl::model::ModelSource;
use unirl::optimizer;
use unirl::plugin::Plugins;
use unirl::run_dir::RunDir;
use unirl::{eval, scene, train};

use crate::args::RunArgs;
use crate::build::{self, Settings};
use crate::progress::Watcher;

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &RunArgs) -> Result<()> {
    let settings = settings(args)?;
    let early = settings.early()?;
    let entry = optimizer::find(&early.optimizer.name)?;
    optimizer::build(entry, &early)?;
    if let Some(out) = &args.out {
        RunDir::check_free(out)?;
    }
    let mut plugins = Plugins::new(&args.model.search.plugin_dir);
    plugins.load(&early.model.plugin)?;
    build::rules(&mut plugins, &early.reward.rules)?;
    build::answer_rules(&mut plugins, &early.reward)?;
    if let Some(tasks) = &early.train.tasks {
        scene::read_jsonl(tasks.as_ref())?;
    }
    if args.dry_run {
        return plan(&settings, &early, &mut plugins);
    }

    let mut model = build::model(&mut plugins, &early.model, early.train.seed)?;
    let config = settings.config(model.card())?;
    let rules = build::rules(&mut plugins, &config.reward.rules)?;
    let answer_rules = build::answer_rules(&mut plugins, &config.reward)?;
    let entry = optimizer::find(&config.optimizer.name)?;
    optimizer::check_fits(entry, model.card())?;
    if config.eval.prompts > 0 || config.eval.every > 0 {
        eval::check_tiles(model.card())?;
    }

    let run_dir =
        RunDir::create(args.out.clone(), &format!("{}-{}", model.card().name, config.optimizer.name))?;
    let mut watcher = Watcher::new();
    let mut watch = |event: train::Event<'_>| watcher.on(&event);
    let report = train::train(&mut *model, &rules, answer_rules.as_ref(), &config, &run_dir, &mut watch)?;
    drop(watcher);

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
    println!("run         {}", run_dir.root().display());
    println!("checkpoint  {}", report.checkpoint.display());
    println!("wall time   {:.0} s", report.wall.as_secs_f64());
    Ok(())
}

/// `--dry-run`: what the run would take, from sizes alone.
#[expect(clippy::print_stdout, reason = "the result of the command")]
fn plan(settings: &Settings, early: &RunConfig, plugins: &mut Plugins) -> Result<()> {
    let source = ModelSource { dry: true, ..build::source(&early.model, early.train.seed)? };
    let model = build::construct(plugins, &early.model, &source)?;
    let config = settings.config(model.card())?;
    let entry = optimizer::find(&config.optimizer.name)?;
    optimizer::check_fits(entry, model.card())?;
    let algorithm = optimizer::build(entry, &config)?;
    let plan = MemoryPlan::new(&*model, &*algorithm, &config, source.device)?;
    println!("{} of {} on {}\n", entry.name, model.card().name, build::device_name(source.device));
    print!("{}", plan.table());
    match plan.fitting() {
        Some(0) => Err(Error::failure("the run does not fit the device, not even an image at a time").hint(format!(
            "use smaller images or a GPU with more memory; `unirl schema --plugin {}` lists what a model offers to take less",
            early.model.plugin
        ))),
        Some(fitting) if fitting < plan.micro_batch => {
            Err(Error::failure(format!("{} images at once do not fit the device", plan.micro_batch))
                .hint(format!("`--set rollout.micro_batch={fitting}`")))
        }
        _ => Ok(()),
    }
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
    Ok(settings)
}
