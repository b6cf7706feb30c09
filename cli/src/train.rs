//! `unirl --plugin NAME --optimizer NAME`.

use unirl::config::RunConfig;
use unirl::error::Result;
use unirl::optimizer;
use unirl::plugin::Plugins;
use unirl::run_dir::RunDir;
use unirl::{eval, train};

use crate::args::RunArgs;
use crate::build;
use crate::progress::Watcher;

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &RunArgs) -> Result<()> {
    let config = configuration(args)?;
    let entry = optimizer::find(&config.optimizer.name)?;
    (entry.build)(config.optimizer.table()?)?;

    if let Some(out) = &args.out {
        RunDir::check_free(out)?;
    }
    let mut plugins = Plugins::new(&args.model.search.plugin_dir);
    plugins.load(&config.model.plugin)?;
    let rules = build::rules(&mut plugins, &config.reward.rules)?;
    let mut model = build::model(&mut plugins, &config.model, false, config.train.seed)?;
    optimizer::check_fits(entry, model.card())?;
    if config.eval.prompts > 0 {
        eval::check_tiles(model.card())?;
    }

    let run_dir =
        RunDir::create(args.out.clone(), &format!("{}-{}", model.card().name, config.optimizer.name))?;
    let mut watcher = Watcher::new();
    let report = train::train(&mut *model, &rules, &config, &run_dir, &mut |event| watcher.on(&event))?;
    drop(watcher);

    if let (Some(before), Some(after)) = (&report.before, &report.after) {
        println!(
            "base -> trained, {} prompts a category, {} steps\n",
            config.eval.prompts, config.train.steps
        );
        println!("{}", eval::table(before, Some(after)));
    }
    println!("run         {}", run_dir.root().display());
    println!("checkpoint  {}", report.checkpoint.display());
    println!("wall time   {:.0} s", report.wall.as_secs_f64());
    Ok(())
}

fn configuration(args: &RunArgs) -> Result<RunConfig> {
    let preset = args.preset.as_deref().unwrap_or("tiles");
    let mut table = build::table(&args.model, Some(preset))?;
    if let Some(name) = &args.optimizer {
        build::put(&mut table, "optimizer", "name", name.as_str())?;
    }
    if let Some(name) = &args.reward {
        let rule = toml::Table::from_iter([("name".to_string(), toml::Value::from(name.as_str()))]);
        build::put(&mut table, "reward", "rules", vec![toml::Value::Table(rule)])?;
    }
    if let Some(steps) = args.steps {
        build::put(&mut table, "train", "steps", steps as i64)?;
    }
    if let Some(seed) = args.model.seed {
        build::put(&mut table, "train", "seed", seed as i64)?;
    }
    RunConfig::from_table(table)
}
