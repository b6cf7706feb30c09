//! `unirl pretrain`.

use unirl::error::{Context, Error, Result};
use unirl::model::Checkpoint;
use unirl_base::layers;
use unirl_engine::config::BenchmarkOptions;
use unirl_engine::eval::{self, Evaluation, Report};
use unirl_engine::pretrain::{Event, PretrainConfig, pretrain};
use unirl_engine::{atomic_fs, benchmark, train};

use crate::args::PretrainArgs;
use crate::{load, progress, settings};

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &PretrainArgs) -> Result<()> {
    let mut table = settings::user_settings::<PretrainConfig>(&args.model)?;
    if let Some(seed) = args.model.seed {
        table.insert("seed".into(), toml::Value::Integer(seed as i64));
    }
    let config = PretrainConfig::from_table(table.clone())?;
    if args.out.exists() {
        return Err(Error::usage(format!("`{}` already exists", args.out.display()))
            .hint("name another directory: `--out DIR`"));
    }
    let mut plugins = args.model.search.plugins()?;
    let mut source = load::source(&config.model, config.seed)?;
    if args.model.model.is_none() {
        source.checkpoint = Checkpoint::Fresh;
    }
    let mut model = load::construct(&mut plugins, &config.model, &source)?;
    let mut settings = settings::sampling_defaults(model.card())?;
    layers::merge(&mut settings, table);
    let config = PretrainConfig::from_table(settings)?;
    let benchmark = benchmark::open(&BenchmarkOptions::default(), model.card(), &mut plugins)?;
    let benchmark = benchmark.ok_or_else(|| train::no_benchmark(model.card()))?;

    let mut bar = indicatif::ProgressBar::hidden();
    pretrain(&mut *model, &*benchmark, &config, &mut |event| match event {
        Event::Stage(name, steps) => {
            bar.finish_and_clear();
            bar = progress::bar(name, steps);
            tracing::info!("{name}: {steps} steps");
        }
        Event::Reconstructed(share) => {
            bar.suspend(|| {
                tracing::info!("tokenizer: {:.1} % of the tile grids reconstructed exactly", share * 100.0);
            });
        }
        Event::Stepped(losses) => {
            bar.inc(1);
            let text: Vec<String> = losses.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
            let text = text.join("  ");
            if bar.position().is_multiple_of(100) {
                tracing::info!(step = bar.position(), "{text}");
            }
            bar.set_message(text);
        }
    })?;
    bar.finish_and_clear();
    let recipe = toml::to_string(&config).context(|| "cannot serialize the configuration")?;
    atomic_fs::create_dir(&args.out, |partial| {
        model.save(partial)?;
        atomic_fs::write(&partial.join("pretrain.toml"), &recipe)
    })?;
    println!("checkpoint  {}", args.out.display());

    if config.eval.prompts > 0 {
        let tasks = benchmark.test_tasks(config.eval.prompts, config.eval.seed)?;
        let bar = progress::bar("eval", tasks.len() as u64);
        let options = &config.eval;
        let evaluation = Evaluation::new(&*benchmark, &tasks, &config.rollout, options.batch, options.seed);
        let items = evaluation.run(&mut *model, |done| {
            bar.inc(done as u64);
            Ok(())
        })?;
        bar.finish_and_clear();
        print!("\n{}", eval::table(&Report::of(&tasks, &items)));
    }
    Ok(())
}
