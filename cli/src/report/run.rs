//! The contents of a report about one run, read from its directory.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Deserialize;
use unirl::error::{Context, Error, Result};
use unirl_base::layers;
use unirl_engine::config::RunConfig;
use unirl_engine::eval::{Interval, Report, Score};
use unirl_engine::metrics::{self, Line};
use unirl_engine::train::TrainWarnings;

use super::chart::COLORS;

/// The parts of `report.json`, written at the end of a run, that the report shows.
#[derive(Debug, Deserialize)]
struct End {
    base: Option<Report>,
    trained: Option<Report>,
    stopped: Option<String>,
    /// The step that `trained` is of; absent in runs of earlier releases, which show the last step.
    shown: Option<String>,
    wall_seconds: f64,
    #[serde(default, rename = "alarms")]
    warnings: TrainWarnings,
}

/// A run as the template shows it.
pub(super) struct Run {
    pub(super) name: String,
    pub(super) color: String,
    pub(super) settings: toml::Table,
    pub(super) text: String,
    pub(super) lines: Vec<Line>,
    /// Label and value.
    pub(super) details: Vec<(&'static str, String)>,
    /// One row per figure.
    pub(super) figures: Vec<FigureRow>,
    /// Caption and image as a `data:` URL.
    pub(super) images: Vec<(&'static str, String)>,
    /// Phase, seconds per step and percentage of the step.
    pub(super) times: Vec<(String, f64, f64)>,
}

/// A figure before and after training, by category and as means.
pub(super) struct FigureRow {
    pub(super) name: &'static str,
    pub(super) cells: Vec<Cell>,
}

/// One value in a row of the evaluation table.
pub(super) struct Cell {
    /// `0.50 → 0.61`.
    pub(super) text: String,
    /// The interval of the value after training.
    pub(super) interval: String,
    /// CSS class: `rises` or `falls` if the intervals before and after do not overlap, otherwise empty.
    pub(super) class: &'static str,
}

impl Run {
    pub(super) fn read(root: &Path, index: usize) -> Result<Self> {
        let config = root.join("config.toml");
        if !config.is_file() {
            return Err(Error::usage(format!(
                "`{}` is not a run: it does not contain `config.toml`",
                root.display()
            ))
            .hint("name the directory of a run, e.g. `runs/showo-grpo-001`"));
        }
        let text = fs::read_to_string(&config).context(|| format!("cannot read `{}`", config.display()))?;
        let settings = RunConfig::from_table(layers::read(&config)?)?;
        let metrics = root.join("metrics.jsonl");
        let lines = if metrics.is_file() { metrics::read(&metrics)? } else { Vec::new() };
        let end = end(root)?;
        let color = COLORS[index % COLORS.len()];
        Ok(Self {
            name: root.display().to_string(),
            color: format!("#{:02x}{:02x}{:02x}", color.0, color.1, color.2),
            details: details(&settings, &lines, end.as_ref()),
            figures: end.as_ref().map(figures).unwrap_or_default(),
            images: images(root)?,
            times: times(&lines),
            settings: settings.to_table()?,
            text,
            lines,
        })
    }

    /// The values of a metric at the steps that have it.
    pub(super) fn values(&self, name: &str) -> Vec<(f64, f64)> {
        let value = |line: &Line| Some((line.step as f64, *line.metrics.get(name)?));
        self.lines.iter().filter_map(value).collect()
    }
}

fn end(root: &Path) -> Result<Option<End>> {
    let path = root.join("report.json");
    if !path.is_file() {
        return Ok(None);
    }
    let place = || format!("cannot read `{}`", path.display());
    let text = fs::read_to_string(&path).context(place)?;
    serde_json::from_str(&text).context(place).map(Some)
}

fn details(config: &RunConfig, lines: &[Line], end: Option<&End>) -> Vec<(&'static str, String)> {
    let (done, steps) = (lines.last().map_or(0, |line| line.step), config.train.steps);
    let state = match end {
        None => format!("incomplete: {done} of {steps} steps"),
        Some(End { stopped: Some(why), .. }) => {
            format!("stopped by the drift monitor after {done} of {steps} steps: {why}")
        }
        Some(_) => format!("complete: {steps} steps"),
    };
    let rules: Vec<&str> = config.reward.rules.iter().map(|rule| rule.name.as_str()).collect();
    let mut details = vec![
        ("model", format!("{} ({})", config.model.plugin, config.model.checkpoint)),
        ("optimizer", config.optimizer.name.clone()),
        ("reward", rules.join(", ")),
        ("seed", config.train.seed.to_string()),
        ("state", state),
    ];
    if config.train.shuffle_rewards {
        details.push(("control", "rewards are shuffled; the run must not gain".into()));
    }
    if let Some(end) = end {
        if let Some(shown) = &end.shown {
            details.push(("trained model", shown.clone()));
        }
        details.push(("wall time", format!("{:.0} s", end.wall_seconds)));
        for (count, what) in [
            (end.warnings.equal_rewards, "without reward variance in any group"),
            (end.warnings.diverged, "with a KL above 1 nat per token to the reference policy"),
        ] {
            if count > 0 {
                details.push(("steps", format!("{count} {what}")));
            }
        }
    }
    details
}

fn figures(end: &End) -> Vec<FigureRow> {
    let (Some(base), Some(trained)) = (&end.base, &end.trained) else { return Vec::new() };
    let rows = base.rows().into_iter().zip(trained.rows());
    rows.map(|((name, before), (_, after))| FigureRow { name, cells: cells(before, after) }).collect()
}

fn cells(before: &Score, after: &Score) -> Vec<Cell> {
    type Value = (Option<f64>, Option<Interval>);
    let of = |score: &Score| -> Vec<Value> {
        let categories = unirl::prompt::Category::ALL.map(|category| {
            let name = category.name();
            (score.by_category.get(name).copied().flatten(), score.intervals.get(name).copied().flatten())
        });
        let means = [(score.macro_mean, score.macro_interval), (score.micro_mean, score.micro_interval)];
        categories.into_iter().chain(means).collect()
    };
    let number = |value: Option<f64>| value.map_or_else(|| "–".into(), |value| format!("{value:.2}"));
    let cell = |((before, old), (after, new)): (Value, Value)| Cell {
        text: format!("{} → {}", number(before), number(after)),
        interval: new.map_or_else(String::new, |[low, high]| format!("{low:.2} to {high:.2}")),
        class: match (old, new) {
            (Some([_, old]), Some([new, _])) if new > old => "rises",
            (Some([old, _]), Some([_, new])) if new < old => "falls",
            _ => "",
        },
    };
    of(before).into_iter().zip(of(after)).map(cell).collect()
}

/// The sample grids of the base model and of the trained model, or else of the last step that has one.
fn images(root: &Path) -> Result<Vec<(&'static str, String)>> {
    let dir = root.join("samples");
    let mut steps: Vec<_> = fs::read_dir(&dir)
        .map(|entries| entries.filter_map(|entry| Some(entry.ok()?.path())).collect())
        .unwrap_or_default();
    steps.retain(|path: &std::path::PathBuf| {
        let step = path.file_stem().is_some_and(|name| name.to_string_lossy().starts_with("step-"));
        step && path.extension().is_some_and(|end| end == "png")
    });
    steps.sort();
    let trained = dir.join("trained.png");
    let last = if trained.is_file() {
        Some(("trained", trained))
    } else {
        steps.pop().map(|path| ("last step", path))
    };
    let shown = [Some(("base", dir.join("base.png"))), last];
    let mut images = Vec::new();
    for (what, path) in shown.into_iter().flatten().filter(|(_, path)| path.is_file()) {
        let bytes = fs::read(&path).context(|| format!("cannot read `{}`", path.display()))?;
        images.push((what, format!("data:image/png;base64,{}", BASE64_STANDARD.encode(bytes))));
    }
    Ok(images)
}

fn times(lines: &[Line]) -> Vec<(String, f64, f64)> {
    let mean = |name: &str| {
        let values: Vec<f64> = lines.iter().filter_map(|line| line.metrics.get(name).copied()).collect();
        values.iter().sum::<f64>() / values.len().max(1) as f64
    };
    let phases = [("generate", "draw"), ("answer", "answer"), ("score", "score"), ("update", "update")]
        .map(|(label, phase)| (label, mean(&format!("time/{phase}"))));
    let total: f64 = phases.iter().map(|(_, seconds)| seconds).sum();
    phases
        .map(|(label, seconds)| (label.into(), seconds, 100.0 * seconds / total.max(f64::MIN_POSITIVE)))
        .into()
}
