//! `unirl eval`.

use unirl::error::{Context, Error, Result};
use unirl::eval;
use unirl::plugin::Plugins;

use crate::args::EvalArgs;
use crate::build::{self, Settings};
use crate::progress;

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &EvalArgs) -> Result<()> {
    let mut settings = Settings::new(&args.model, None)?;
    if let Some(prompts) = args.prompts {
        settings.put("eval.prompts", prompts as i64)?;
    }
    if let Some(seed) = args.model.seed {
        settings.put("eval.seed", seed as i64)?;
    }
    if settings.early()?.eval.prompts == 0 {
        return Err(Error::usage("prompts a category: expected at least 1, got 0"));
    }
    let mut plugins = Plugins::new(&args.model.search.plugin_dir);
    let (mut model, config) = build::inference(&settings, &mut plugins)?;
    eval::check_tiles(model.card())?;
    let tasks = eval::tasks(config.eval.prompts, config.eval.seed)?;
    let bar = progress::bar("eval", tasks.len() as u64);
    let report =
        eval::evaluate(&mut *model, &tasks, &config.rollout, config.eval.batch, config.eval.seed, |done| {
            bar.inc(done as u64);
        })?;
    bar.finish_and_clear();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report).context(|| "cannot write the report")?);
    } else {
        println!("{}", eval::table(&report, None));
    }
    Ok(())
}
