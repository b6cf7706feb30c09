//! The post-training loop, top to bottom.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tch::Tensor;

use crate::config::{Rollout, RunConfig};
use crate::error::{Error, Result};
use crate::eval::{self, Evaluation, ModelStamp, Receipt, Report};
use crate::guard::{Course, Guard};
use crate::judge::tiles as judge;
use crate::metrics::MetricsFile;
use crate::model::{Mode, Parameter, ParameterGroup, UnifiedModel};
use crate::optimizer::{self, Iteration, Outcome, Phases};
use crate::reward::RuleSet;
use crate::run_dir::{RunDir, Samples};
use crate::scene::rng::Rng;
use crate::scene::{Category, Split, Task, read_jsonl};
use crate::update::AdamW;
use crate::{seed, tiles};

/// What a step reports to whoever watches.
#[derive(Debug, Clone)]
pub struct StepReport {
    /// The step, from 1.
    pub step: u64,
    /// Its metrics, under the names of [`crate::metrics`].
    pub metrics: BTreeMap<String, f64>,
    /// Where its time went.
    pub phases: Phases,
}

/// What a run came to.
#[derive(Debug)]
pub struct RunReport {
    /// The evaluation before, unless there was none.
    pub before: Option<Report>,
    /// The evaluation after.
    pub after: Option<Report>,
    /// The last checkpoint.
    pub checkpoint: PathBuf,
    /// Why the drift guard ended the run early, if it did.
    pub stopped: Option<String>,
    /// From the first evaluation to the last.
    pub wall: Duration,
}

/// Progress of a run.
#[derive(Debug)]
pub enum Event<'a> {
    /// An evaluation of so many tasks begins.
    EvalStarted(&'static str, usize),
    /// So many more of them are done.
    Evaluated(usize),
    /// Training begins.
    TrainStarted(u64),
    /// A step is done.
    Stepped(&'a StepReport),
}

/// Trains `model` as `config` says, writing into `run_dir`. `answer_rules` are those of the answer objective, where it has
/// its own.
pub fn train(
    model: &mut dyn UnifiedModel,
    rules: &RuleSet,
    answer_rules: Option<&RuleSet>,
    config: &RunConfig,
    run_dir: &RunDir,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<RunReport> {
    let started = Instant::now();
    let options = &config.train;
    let entry = optimizer::find(&config.optimizer.name)?;
    optimizer::check_fits(entry, model.card())?;
    let algorithm = optimizer::build(entry, config)?;
    let source = TaskSource::new(options.tasks.as_deref())?;
    let judged = options.tasks.is_none() && eval::check_tiles(model.card()).is_ok();

    let text = toml::to_string(config)
        .map_err(|error| Error::failure("cannot write the configuration").cause(error))?;
    run_dir.write("config.toml", &text)?;
    let mut file = MetricsFile::create(&run_dir.root().join("metrics.jsonl"))?;

    let before = evaluate(model, rules, config, run_dir, "base", watch)?;

    model.freeze_reference()?;
    let (frozen, weights): (Vec<Parameter>, Vec<Parameter>) =
        model.parameters()?.into_iter().partition(|parameter| parameter.group == ParameterGroup::Tokenizer);
    for parameter in &frozen {
        let _ = parameter.tensor.set_requires_grad(false);
    }
    let mut update = AdamW::new(weights, config.update.clone(), options.steps);
    let mut guard = Guard::new(model, config, &update)?;
    let mut last = options.steps;
    let mut stopped = None;

    watch(Event::TrainStarted(options.steps));
    for step in 1..=options.steps {
        let step_seed = seed::derive(options.seed, &[step]);

        // 1. Draw, answer, score and backpropagate.
        let tasks = source.batch(step, &config.rollout, step_seed)?;
        update.zero_grad();
        model.set_mode(Mode::Train)?;
        let mut iteration = Iteration {
            model: &mut *model,
            tasks: &tasks,
            rules,
            answer_rules,
            rollout: &config.rollout,
            step,
            seed: step_seed,
            shuffle_rewards: options.shuffle_rewards,
            phases: Phases::default(),
        };
        let outcome =
            algorithm.accumulate(&mut iteration).map_err(|error| dump_batch(run_dir, step, &tasks, error))?;
        let mut phases = iteration.phases;

        // 2. Update the weights.
        let updating = Instant::now();
        let updated = update.apply().map_err(|error| dump_batch(run_dir, step, &tasks, error))?;
        phases.update += updating.elapsed();
        model.set_mode(Mode::Eval)?;

        // 3. Report.
        let mut metrics: BTreeMap<String, f64> =
            outcome.metrics.iter().map(|(name, value)| ((*name).to_string(), *value)).collect();
        metrics.extend(optimizer::part_metrics(&outcome.rewards));
        metrics.insert("update/gradient_norm".into(), updated.gradient_norm);
        metrics.insert("update/learning_rate".into(), updated.learning_rate);
        let show = options.sample_every > 0 && (step == 1 || step % options.sample_every == 0);
        if judged || show {
            let pixels = optimizer::pixels(model, &outcome.images, &config.rollout)?;
            if judged {
                judge_drawings(&pixels, &tasks, &outcome, &mut metrics)?;
            }
            if show {
                let columns = config.rollout.group as i64;
                let samples = Samples {
                    pixels: &pixels,
                    columns,
                    tasks: &tasks,
                    answers: &outcome.answers,
                    rewards: &outcome.rewards,
                };
                run_dir.save_samples(&format!("step-{step:06}"), &samples)?;
            }
        }
        metrics.extend(phases.metrics());
        let course = match &mut guard {
            Some(guard) => guard.after(step, model, &mut update, run_dir, &mut metrics)?,
            None => Course::On,
        };
        file.append(step, &metrics)?;
        watch(Event::Stepped(&StepReport { step, metrics, phases }));

        // 4. Keep the weights.
        if let Course::Stop(why) = course {
            (last, stopped) = (step, Some(why));
            break;
        }
        let every = config.checkpoint.every;
        if every > 0 && step % every == 0 && step < options.steps {
            run_dir.save_checkpoint(model, step)?;
        }
    }
    let checkpoint = run_dir.save_checkpoint(model, last)?;
    let after = evaluate(model, rules, config, run_dir, "trained", watch)?;
    let wall = started.elapsed();
    let report = serde_json::json!({
        "base": before,
        "trained": after,
        "steps": last,
        "stopped": stopped,
        "wall_seconds": wall.as_secs_f64(),
    });
    run_dir.write("report.json", &format!("{report:#}\n"))?;
    Ok(RunReport { before, after, checkpoint, stopped, wall })
}

fn evaluate(
    model: &mut dyn UnifiedModel,
    rules: &RuleSet,
    config: &RunConfig,
    run_dir: &RunDir,
    what: &'static str,
    watch: &mut dyn FnMut(Event<'_>),
) -> Result<Option<Report>> {
    let options = &config.eval;
    if options.prompts == 0 {
        return Ok(None);
    }
    model.set_mode(Mode::Eval)?;
    let tasks = eval::tasks(options.prompts, options.seed)?;
    watch(Event::EvalStarted(what, tasks.len()));
    let evaluation =
        Evaluation::of_tiles(model.card(), &tasks, &config.rollout, options.batch, options.seed)?;
    let items = evaluation.run(model, |done| watch(Event::Evaluated(done)))?;
    let stamp = ModelStamp::new(model, &config.model.plugin)?;
    let receipt = Receipt::new(&evaluation, stamp, items)?;
    run_dir.write(&format!("eval/{what}.json"), &receipt.to_json()?)?;
    if options.pictures > 0 {
        save_pictures(model, rules, config, run_dir, what)?;
    }
    Ok(Some(receipt.figures))
}

/// Draws a prompt of each category a few times, the same for every model, so that base and trained can be compared.
fn save_pictures(
    model: &mut dyn UnifiedModel,
    rules: &RuleSet,
    config: &RunConfig,
    run_dir: &RunDir,
    name: &str,
) -> Result<()> {
    let columns = config.eval.pictures;
    let tasks: Vec<Task> = eval::tasks(1, config.eval.seed)?
        .into_iter()
        .flat_map(|task| std::iter::repeat_n(task, columns))
        .collect();
    let mut iteration = Iteration {
        model: &mut *model,
        tasks: &tasks,
        rules,
        answer_rules: None,
        rollout: &config.rollout,
        step: 1,
        seed: config.eval.seed,
        shuffle_rewards: false,
        phases: Phases::default(),
    };
    let images = iteration.draw()?;
    let answers = iteration.answer(&images)?;
    let (rewards, _) = iteration.score(&images, &answers)?;
    let pixels = optimizer::pixels(model, &images, &config.rollout)?;
    let samples = Samples {
        pixels: &pixels,
        columns: columns as i64,
        tasks: &tasks,
        answers: &answers.text,
        rewards: &rewards,
    };
    run_dir.save_samples(name, &samples)
}

/// Measures what the judge thinks of the drawings beside what the model made of them. The judge never teaches.
fn judge_drawings(
    pixels: &Tensor,
    tasks: &[Task],
    outcome: &Outcome,
    metrics: &mut BTreeMap<String, f64>,
) -> Result<()> {
    let mut right = 0;
    let mut wrong: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new(); // passed, all
    for ((task, reading), reward) in tasks.iter().zip(judge::read(pixels)?).zip(&outcome.rewards) {
        if judge::judge(&task.facts, &reading).strict {
            right += 1;
        } else {
            let (passed, all) = wrong.entry(task.facts.category.name()).or_default();
            *passed += u64::from(reward.passes());
            *all += 1;
        }
    }
    metrics.insert("judge/right".into(), f64::from(right) / tasks.len() as f64);
    let (passed, all) = wrong.values().fold((0, 0), |sum, part| (sum.0 + part.0, sum.1 + part.1));
    if all > 0 {
        metrics.insert("judge/wrong_passed".into(), passed as f64 / all as f64);
    }
    for (category, (passed, all)) in wrong {
        metrics.insert(format!("judge/wrong_passed/{category}"), passed as f64 / all as f64);
    }
    Ok(())
}

/// Keeps the tasks of a step that failed, so that it can be looked at.
fn dump_batch(run_dir: &RunDir, step: u64, tasks: &[Task], error: Error) -> Error {
    let name = format!("failed-step-{step:06}.jsonl");
    let lines: Vec<String> = tasks.iter().filter_map(|task| serde_json::to_string(task).ok()).collect();
    let error = error.context(format!("step {step} failed"));
    match run_dir.write(&name, &(lines.join("\n") + "\n")) {
        Ok(()) => error.hint(format!("its tasks are in `{}`", run_dir.root().join(name).display())),
        Err(_) => error,
    }
}

/// Where tasks come from: the drawn world's generator or a file.
enum TaskSource {
    Generated,
    File(Vec<Task>),
}

impl TaskSource {
    fn new(path: Option<&str>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::Generated) };
        let tasks = read_jsonl(path.as_ref())?;
        if tasks.is_empty() {
            return Err(Error::usage(format!("`{path}` holds no task")));
        }
        Ok(Self::File(tasks))
    }

    /// The tasks of a step, each repeated for its group. Generated ones take the six categories in turn.
    fn batch(&self, step: u64, rollout: &Rollout, seed: u64) -> Result<Vec<Task>> {
        let first = (step - 1) as usize * rollout.prompts;
        let mut rng = Rng::new(seed);
        let mut tasks = Vec::with_capacity(rollout.prompts * rollout.group);
        for index in first..first + rollout.prompts {
            let task = match self {
                Self::Generated => {
                    let category = Category::ALL[index % Category::ALL.len()];
                    tiles::sample(category, Split::Train, &mut rng)?
                }
                Self::File(known) => known[rng.below(known.len())].clone(),
            };
            tasks.extend(std::iter::repeat_n(task, rollout.group));
        }
        Ok(tasks)
    }
}
