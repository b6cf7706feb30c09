//! `unirl eval`.

use std::path::PathBuf;

use unirl::error::{Context, Error, Result};
use unirl_benchmarks::geneval;
use unirl_engine::config::ModelOptions;
use unirl_engine::eval::{self, EvalFolder, Evaluation, Receipt, Report, Shard};
use unirl_engine::fingerprint::ModelFingerprint;
use unirl_engine::train::no_benchmark;
use unirl_engine::{atomic_fs, benchmark};

use crate::args::{EvalArgs, EvalCommand, GenevalEvalArgs, VerifyArgs};
use crate::endpoint::Endpoint;
use crate::resolve::resolve;
use crate::settings::Settings;
use crate::{load, progress};

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &EvalArgs) -> Result<()> {
    if let Some(EvalCommand::Verify(args)) = &args.command {
        return verify(args);
    }
    let endpoint = Endpoint::new(&args.judge)?;
    let shard: Shard = args.shard.as_deref().map_or(Ok(Shard::default()), str::parse)?;
    let mut settings = Settings::new(&args.model, None)?;
    if let Some(prompts) = args.prompts {
        settings.put("eval.prompts", prompts as i64)?;
    }
    if let Some(seed) = args.model.seed {
        settings.put("eval.seed", seed as i64)?;
    }
    benchmark_settings(args, &mut settings)?;
    if args.geneval.metadata.is_none() && settings.early()?.eval.prompts == 0 {
        return Err(Error::usage("prompts per category: expected at least 1, got 0"));
    }
    let mut plugins = args.model.search.plugins()?;
    let (mut model, config) = load::model_and_config(&settings, &mut plugins)?;
    let plugin = plugins.load(&config.model.plugin)?;
    let plugin = format!("{} {}", plugin.name, plugin.version);
    let options = &config.eval;
    let benchmark = benchmark::open(&config.benchmark, model.card(), &mut plugins)?;
    let benchmark = benchmark.ok_or_else(|| no_benchmark(model.card()))?;
    let per_category = if args.geneval.metadata.is_some() { usize::MAX } else { options.prompts };
    let tasks = benchmark.test_tasks(per_category, options.seed)?;
    let mut evaluation = Evaluation::new(&*benchmark, &tasks, &config.rollout, options.batch, options.seed);
    if let Some(endpoint) = &endpoint {
        evaluation.answers = endpoint;
    }

    let chunks = (shard.index..evaluation.parts()).step_by(shard.of);
    let bar = progress::bar("eval", chunks.map(|part| evaluation.part_tasks(part).len() as u64).sum());
    let figures = match &args.out {
        None => {
            let on_progress = |done: usize| {
                bar.inc(done as u64);
                Ok(())
            };
            Report::of(&tasks, &evaluation.run(&mut *model, on_progress)?)
        }
        Some(out) => {
            let dir = EvalFolder::open(out, &evaluation, ModelFingerprint::new(&*model, plugin)?)?;
            let mut recorded = config.clone();
            resolve(&mut recorded, &mut plugins)?;
            atomic_fs::write(&out.join("config.toml"), &recorded.to_toml()?)?;
            let receipt = dir.run(&mut *model, shard, |done| bar.inc(done as u64))?;
            bar.finish_and_clear();
            let Some(receipt) = receipt else {
                let (done, parts) = (dir.done()?.len(), evaluation.parts());
                progress::note(&format!(
                    "{done} of {parts} chunks are complete; the receipt is written after the last one"
                ));
                return Ok(());
            };
            progress::note(&format!("receipt: {}", out.join("receipt.json").display()));
            receipt.figures
        }
    };
    bar.finish_and_clear();
    for warning in benchmark.warnings() {
        tracing::warn!("{warning}");
    }
    if figures.not_judged > 0 {
        tracing::warn!(
            "the judge gave no verdict on {} answers; they count as wrong and distort MMU, T2I→MMU and MMU→T2I",
            figures.not_judged
        );
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&figures).context(|| "cannot serialize the report")?);
    } else {
        print!("{}", eval::table(&figures));
    }
    Ok(())
}

/// Puts the flags of the benchmark into the settings. `--metadata` chooses `geneval`.
fn benchmark_settings(args: &EvalArgs, settings: &mut Settings) -> Result<()> {
    let GenevalEvalArgs { metadata, detector, references, results, thresholds } = &args.geneval;
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
    for (key, value) in [
        ("name", args.benchmark.clone().or(metadata.as_ref().map(|_| geneval::NAME.into()))),
        ("metadata", path(metadata)),
        ("detector", detector.clone()),
        ("references", path(references)),
        ("results", path(results)),
    ] {
        if let Some(value) = value {
            settings.put(&format!("benchmark.{key}"), value)?;
        }
    }
    for (key, value) in
        [("threshold", thresholds.threshold), ("counting_threshold", thresholds.counting_threshold)]
    {
        if let Some(value) = value {
            settings.put(&format!("benchmark.{key}"), f64::from(value))?;
        }
    }
    Ok(())
}

/// `unirl eval verify`.
#[expect(clippy::print_stdout, reason = "the result of the command")]
fn verify(args: &VerifyArgs) -> Result<()> {
    let receipt = Receipt::verify(&args.receipt)?;
    let plan = &receipt.plan;
    if let Some(plugin) = &args.plugin {
        let options = ModelOptions {
            plugin: plugin.clone(),
            checkpoint: args.model.clone(),
            device: "cpu".into(),
            ..ModelOptions::default()
        };
        let model = load::model(&mut args.search.plugins()?, &options, plan.seed)?;
        receipt.check_model(&*model)?;
    }
    println!(
        "the receipt is unaltered: {} verdicts on `{}` ({})",
        receipt.items.len(),
        plan.model.name,
        plan.model.plugin
    );
    println!(
        "weights  {}{}",
        plan.model.weights,
        if args.plugin.is_some() { ", equal to those of the model" } else { "" }
    );
    println!("prompts  {}", plan.prompts);
    if let Some(count) = receipt.trained_on {
        println!("         {count} of {} were training prompts", receipt.tasks.len());
    }
    println!("judges   `{}` for images, `{}` for answers", plan.image_judge, plan.answer_judge);
    println!("seed     {}, unirl {}, libtorch {}\n", plan.seed, plan.unirl, plan.libtorch);
    print!("{}", eval::table(&receipt.figures));
    Ok(())
}
