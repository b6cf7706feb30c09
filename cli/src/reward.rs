//! `unirl reward`: scores answers, and compares two rewards on the same answers.

use std::io::Read as _;
use std::ops::Range;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tch::Tensor;
use unirl::error::{Context, Error, Result, unknown_name};
use unirl::reward::{Reward, Sample};
use unirl_base::{input, json, layers};
use unirl_engine::algorithms::objective::Weighting;
use unirl_engine::config::{OptimizerOptions, RunConfig};
use unirl_engine::rewards::{RewardSet, WeightedReward};
use unirl_prompts::{Record, read_records};

use crate::args::{DiffArgs, ReplayArgs, RewardCommand, ScoreArgs, SearchArgs, ShowArgs};
use crate::{io, load};

/// Samples per batch.
const BATCH: usize = 4096;

pub(crate) fn run(command: &RewardCommand) -> Result<()> {
    let written = match command {
        RewardCommand::Score(args) => score(args),
        RewardCommand::Diff(args) => diff(args),
        RewardCommand::Replay(args) => replay(args),
    }?;
    io::print(&written)
}

/// A line of `unirl reward score`.
#[derive(Serialize)]
struct Scored<'a> {
    reward: f64,
    max: f64,
    parts: &'a std::collections::BTreeMap<String, f64>,
    why: &'a str,
}

fn score(args: &ScoreArgs) -> Result<String> {
    let rules = match &args.config {
        Some(path) => RunConfig::from_table(layers::read(path)?)?.reward.rules,
        None => args.reward.iter().map(WeightedReward::named).collect(),
    };
    let rules = load(&args.search, &rules)?;
    let samples = read_records("stdin", &stdin()?, Record::sample)?;
    let mut text = String::new();
    for Reward { score, max, parts, why, .. } in &rewards(&rules, &samples)? {
        let line = Scored { reward: *score, max: *max, parts, why };
        text += &serde_json::to_string(&line).context(|| "cannot write a reward")?;
        text.push('\n');
    }
    Ok(text)
}

fn diff(args: &DiffArgs) -> Result<String> {
    let weighting = match args.weighting.as_str() {
        "softmax" => Weighting::Softmax,
        "advantage" => Weighting::Advantage,
        name => return Err(unknown_name("weighting", name, &["softmax", "advantage"])),
    };
    if !(args.temperature.is_finite() && args.temperature > 0.0) {
        return Err(Error::usage(format!(
            "`--temperature`: expected a number above 0, got {}",
            args.temperature
        )));
    }
    let [before, after] =
        [&args.before, &args.after].map(|name| load(&args.search, &[WeightedReward::named(name)]));
    let (before, after) = (before?, after?);
    let samples = read_records("stdin", &stdin()?, Record::sample)?;
    let places = (1..=samples.len()).map(|number| format!("sample {number}")).collect();
    let (before, after) = (rewards(&before, &samples)?, rewards(&after, &samples)?);
    let groups = groups(&samples);
    Comparison { places, samples, before, after, groups, weighting, temperature: args.temperature }
        .show(args.show, [&args.before, &args.after])
}

fn replay(args: &ReplayArgs) -> Result<String> {
    let folder = args.run.join("samples");
    let config = args.run.join("config.toml");
    if !folder.is_dir() || !config.is_file() {
        return Err(Error::usage(format!("`{}` is not a run directory", args.run.display())).hint(
            "a run directory contains `config.toml` and `samples/`; `unirl --plugin … --optimizer …` writes one",
        ));
    }
    let config = RunConfig::from_table(layers::read(&config)?)?;
    let (weighting, temperature) = weighting(config.optimizer)?;

    let (mut places, mut samples, mut before, mut groups) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for path in sample_files(&folder)? {
        let text = input::read_text(&path)?;
        let read = read_records(&path.display().to_string(), &text, |record| {
            let reward = record.reward().ok_or_else(|| Error::usage("missing field `reward`"))?;
            let reward: Reward = json::from_value(reward).context(|| "cannot read `reward`")?;
            Ok((record.sample()?, reward))
        })?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let first = samples.len();
        for (number, (sample, reward)) in read.into_iter().enumerate() {
            places.push(format!("{name}:{}", number + 1));
            samples.push(sample);
            before.push(reward);
        }
        groups.extend(
            self::groups(&samples[first..]).into_iter().map(|rows| rows.start + first..rows.end + first),
        );
    }
    let rules: Vec<WeightedReward> = args.reward.iter().map(WeightedReward::named).collect();
    let after = rewards(&load(&args.search, &rules)?, &samples)?;
    Comparison { places, samples, before, after, groups, weighting, temperature }
        .show(args.show, ["run", &args.reward.join("+")])
}

/// How a run turned rewards into weights: the weighting and its temperature. `sft` uses no rewards and is shown as `grpo`.
fn weighting(mut options: OptimizerOptions) -> Result<(Weighting, f64)> {
    #[derive(Deserialize)]
    struct Options {
        weighting: Weighting,
        reward_temperature: f64,
    }
    if options.name == "sft" {
        options.name = "grpo".into();
    }
    options.resolve()?;
    let Options { weighting, reward_temperature } = toml::Value::Table(options.table()?)
        .try_into()
        .context(|| format!("`optimizer.{}` has no weighting of rewards", options.name))?;
    Ok((weighting, reward_temperature))
}

fn sample_files(folder: &Path) -> Result<Vec<std::path::PathBuf>> {
    let place = || format!("cannot read `{}`", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).context(place)? {
        let path = entry.context(place)?.path();
        if path.extension().is_some_and(|end| end == "jsonl") {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(Error::usage(format!("`{}` contains no samples", folder.display()))
            .hint("a run saves samples if `train.sample_every` is above 0"));
    }
    files.sort();
    Ok(files)
}

fn stdin() -> Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).context(|| "cannot read stdin")?;
    input::text("stdin", bytes)
}

fn load(search: &SearchArgs, rules: &[WeightedReward]) -> Result<RewardSet> {
    let rules = load::rewards(&mut search.plugins()?, rules)?;
    if rules.wants_pixels() {
        return Err(Error::usage("one of the rewards needs images, but the samples are text")
            .hint("use it to train: `unirl --plugin … --optimizer … --reward …`"));
    }
    Ok(rules)
}

fn rewards(rules: &RewardSet, samples: &[Sample]) -> Result<Vec<Reward>> {
    let mut rewards = Vec::with_capacity(samples.len());
    for batch in samples.chunks(BATCH) {
        rewards.extend(rules.score(batch, None)?);
    }
    rules.finish()?;
    Ok(rewards)
}

/// The rows of each group: consecutive samples with the same prompt and question.
fn groups(samples: &[Sample]) -> Vec<Range<usize>> {
    let mut first = 0;
    let same = |one: &Sample, next: &Sample| one.prompt == next.prompt && one.question == next.question;
    let rows = |group: &[Sample]| {
        let rows = first..first + group.len();
        first = rows.end;
        rows
    };
    samples.chunk_by(same).map(rows).collect()
}

/// Samples with two rewards each.
struct Comparison {
    places: Vec<String>,
    samples: Vec<Sample>,
    before: Vec<Reward>,
    after: Vec<Reward>,
    groups: Vec<Range<usize>>,
    weighting: Weighting,
    temperature: f64,
}

/// A changed sample, as a line of `--json`.
#[derive(Serialize)]
struct Changed<'a> {
    place: &'a str,
    prompt: &'a str,
    answer: &'a str,
    before: &'a Reward,
    after: &'a Reward,
    weight_before: f64,
    weight_after: f64,
}

impl Comparison {
    fn weights(&self, rewards: &[Reward]) -> Result<Vec<f64>> {
        let mut weights = Vec::with_capacity(rewards.len());
        for rows in &self.groups {
            let scores: Vec<f32> = rewards[rows.clone()].iter().map(|reward| reward.score as f32).collect();
            let group =
                self.weighting.weights(&Tensor::from_slice(&scores), scores.len() as i64, self.temperature);
            weights.extend(Vec::<f32>::try_from(group)?.into_iter().map(f64::from));
        }
        Ok(weights)
    }

    fn show(&self, show: ShowArgs, names: [&str; 2]) -> Result<String> {
        let (old, new) = (self.weights(&self.before)?, self.weights(&self.after)?);
        let differs = |row: &usize| {
            let share = |reward: &Reward| if reward.abstains() { 0.0 } else { reward.score / reward.max };
            let (before, after) = (share(&self.before[*row]), share(&self.after[*row]));
            (before - after).abs() > 1e-9 || (old[*row] - new[*row]).abs() > 1e-6
        };
        let changed: Vec<usize> = (0..self.samples.len()).filter(differs).collect();
        let mut text = String::new();
        if show.json {
            for row in changed {
                let line = Changed {
                    place: &self.places[row],
                    prompt: &self.samples[row].prompt,
                    answer: &self.samples[row].answer,
                    before: &self.before[row],
                    after: &self.after[row],
                    weight_before: old[row],
                    weight_after: new[row],
                };
                text += &serde_json::to_string(&line).context(|| "cannot write a sample")?;
                text.push('\n');
            }
            return Ok(text);
        }
        let limit = if show.show == 0 { changed.len() } else { show.show };
        for row in changed.iter().copied().take(limit) {
            let sample = &self.samples[row];
            text += &format!("{}  {}: \"{}\"\n", self.places[row], sample.prompt, sample.answer);
            for (name, reward, weight) in
                [(names[0], &self.before[row], old[row]), (names[1], &self.after[row], new[row])]
            {
                let why = match reward.why.as_str() {
                    "" => format!("{} of {}", reward.score, reward.max),
                    why => why.into(),
                };
                text += &format!("    weight {weight:+.3}  {name}: {why}\n");
            }
        }
        if changed.len() > limit {
            text += &format!("... and {} more; `--show 0` shows every one\n", changed.len() - limit);
        }
        if !changed.is_empty() {
            text.push('\n');
        }
        let moved =
            self.groups.iter().filter(|rows| (*rows).clone().any(|row| (old[row] - new[row]).abs() > 1e-6));
        let best = |weights: &[f64], rows: &Range<usize>| {
            rows.clone().reduce(|best, row| if weights[row] > weights[best] + 1e-6 { row } else { best })
        };
        let overtaken = self.groups.iter().filter(|rows| best(&old, rows) != best(&new, rows));
        text += &format!("rewards differ for {} of {} samples\n", changed.len(), self.samples.len());
        text += &format!(
            "weights differ in {} of {} groups; the best sample differs in {}\n",
            moved.count(),
            self.groups.len(),
            overtaken.count()
        );
        text += &format!("full reward {} -> {}\n", passes(&self.before), passes(&self.after));
        Ok(text)
    }
}

fn passes(rewards: &[Reward]) -> usize {
    rewards.iter().filter(|reward| reward.passes()).count()
}
