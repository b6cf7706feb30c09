//! `unirl report RUN...`: one self-contained HTML page about runs.

mod chart;
mod run;

use askama::Template;
use chart::Curve;
use run::Run;
use unirl::error::{Error, Result};
use unirl_base::layers;
use unirl_engine::atomic_fs;

use crate::args::ReportArgs;
use crate::io::check_output;
use crate::progress;

/// The charts: title, metric, and whether the axis is 0 to 1.
const CHARTS: [(&str, &str, bool); 14] = [
    ("mean reward", "reward/mean", true),
    ("correct images (judge)", "judge/right", true),
    ("false positives (wrong images with full reward)", "judge/wrong_passed", true),
    ("T2I (drift monitor)", "eval/t2i", true),
    ("MMU (drift monitor)", "eval/mmu", true),
    ("T2I→MMU (drift monitor)", "eval/t2i_to_mmu", true),
    ("MMU→T2I (drift monitor)", "eval/mmu_to_t2i", true),
    ("samples in groups with reward variance", "reward/informative", true),
    ("KL of answers (nats per token)", "kl/answer", false),
    ("KL of images (nats per token)", "kl/image", false),
    ("answer term of the loss", "loss/answer", false),
    ("image term of the loss", "loss/image", false),
    ("gradient norm", "update/gradient_norm", false),
    ("generation time (seconds)", "time/draw", false),
];

#[derive(Template)]
#[template(path = "report.html")]
struct Page {
    runs: Vec<Run>,
    /// Title and SVG.
    charts: Vec<(&'static str, String)>,
    /// Name of another run, and the differences of its settings from those of the first run.
    changes: Vec<(String, Vec<String>)>,
    version: &'static str,
}

pub(crate) fn run(args: &ReportArgs) -> Result<()> {
    if let Some(out) = &args.out {
        check_output(out)?;
    }
    let runs = args
        .runs
        .iter()
        .enumerate()
        .map(|(index, root)| Run::read(root, index))
        .collect::<Result<Vec<_>>>()?;
    let (first, others) = runs.split_first().ok_or_else(|| Error::usage("expected at least one run"))?;
    let changes = others
        .iter()
        .map(|other| (other.name.clone(), layers::differences(&first.settings, &other.settings)))
        .collect();
    let page = Page { charts: charts(&runs)?, changes, runs, version: env!("CARGO_PKG_VERSION") };
    let text = page.render().map_err(|error| Error::failure("cannot render the report").cause(error))?;
    let out = args.out.clone().unwrap_or_else(|| args.runs[0].join("report.html"));
    atomic_fs::write(&out, &text)?;
    progress::note(&format!("report: {}", out.display()));
    Ok(())
}

fn charts(runs: &[Run]) -> Result<Vec<(&'static str, String)>> {
    let mut charts = Vec::new();
    for (title, name, shares) in CHARTS {
        let curves: Vec<Curve> = runs
            .iter()
            .enumerate()
            .map(|(color, run)| curve(run, color, name))
            .filter(|curve| !curve.points.is_empty())
            .collect();
        if !curves.is_empty() {
            charts.push((title, chart::svg(&curves, shares)?));
        }
    }
    Ok(charts)
}

/// A metric with its recorded interval, or its running mean with a standard error.
fn curve(run: &Run, color: usize, name: &str) -> Curve {
    let values = run.values(name);
    let (low, high) = (run.values(&format!("{name}_low")), run.values(&format!("{name}_high")));
    if low.is_empty() {
        return Curve::smoothed(color, &values);
    }
    let interval = low.into_iter().zip(high).map(|((step, low), (_, high))| (step, low, high)).collect();
    Curve { color, points: values, interval }
}
