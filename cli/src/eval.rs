//! `unirl eval`.

use std::path::Path;

use unirl::error::{Context, Error, Result};
use unirl::model::ModelCard;
use unirl_benchmarks::geneval::{GenevalJudge, Thresholds};
use unirl_benchmarks::judge::{AnswerJudge, Exact};
use unirl_engine::atomic_fs;
use unirl_engine::config::ModelOptions;
use unirl_engine::eval::{self, EvalFolder, Evaluation, Receipt, Report, Shard};
use unirl_engine::fingerprint::ModelFingerprint;
use unirl_engine::plugin::Plugins;

use crate::args::{EvalArgs, EvalCommand, GenevalEvalArgs, VerifyArgs};
use crate::endpoint::Endpoint;
use crate::resolve::resolve;
use crate::settings::Settings;
use crate::{io, load, progress};

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
    if args.geneval.metadata.is_none() && settings.early()?.eval.prompts == 0 {
        return Err(Error::usage("prompts per category: expected at least 1, got 0"));
    }
    let mut plugins = args.model.search.plugins()?;
    let (mut model, config) = load::model_and_config(&settings, &mut plugins)?;
    let plugin = plugins.load(&config.model.plugin)?;
    let plugin = format!("{} {}", plugin.name, plugin.version);
    let options = &config.eval;
    let geneval = geneval_judge(&args.geneval, &mut plugins, model.card())?;
    let tasks = match &args.geneval.metadata {
        Some(path) => unirl_prompts::read_jsonl(path)?,
        None => eval::tasks(options.prompts, options.seed)?,
    };
    let (rollout, batch, seed) = (&config.rollout, options.batch, options.seed);
    let answers: &dyn AnswerJudge = endpoint.as_ref().map_or(&Exact as _, |endpoint| endpoint);
    let evaluation = match &geneval {
        Some(images) => Evaluation { tasks: &tasks, images, answers, rollout, batch, seed },
        None => Evaluation { answers, ..Evaluation::of_tiles(model.card(), &tasks, rollout, batch, seed)? },
    };

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
    for warning in geneval.iter().flat_map(GenevalJudge::warnings) {
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

/// The judge of GenEval's prompts; `None` without `--metadata`.
fn geneval_judge(
    args: &GenevalEvalArgs,
    plugins: &mut Plugins,
    card: &ModelCard,
) -> Result<Option<GenevalJudge>> {
    let (Some(metadata), Some(name)) = (&args.metadata, &args.detector) else { return Ok(None) };
    let detector = plugins.detector(name, &serde_json::json!({}))?;
    let thresholds = Thresholds::new(args.thresholds.threshold, args.thresholds.counting_threshold)?;
    let judge = GenevalJudge::new(metadata, (name.clone(), detector), thresholds)?;
    let (Some(images), Some(results)) = (&args.references, &args.results) else { return Ok(Some(judge)) };
    let read = io::image_reader(card);
    let read = move |path: &Path| Ok(read(path)?.squeeze_dim(0));
    judge.with_references(images, results, Box::new(read)).map(Some)
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
