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

/// A chart: its title, its metrics with their labels, and whether the axis is 0 to 1. A chart of two metrics has a legend; the
/// second is dashed.
struct Chart {
    title: &'static str,
    metrics: &'static [(&'static str, &'static str)],
    unit_axis: bool,
}

const fn unit(title: &'static str, metrics: &'static [(&'static str, &'static str)]) -> Chart {
    Chart { title, metrics, unit_axis: true }
}

const fn open(title: &'static str, metrics: &'static [(&'static str, &'static str)]) -> Chart {
    Chart { title, metrics, unit_axis: false }
}

/// The first shows whether the reward follows the judge.
const CHARTS: [Chart; 14] = [
    unit(
        "mean reward and the judge",
        &[("reward/mean", "mean reward"), ("judge/right", "correct images (judge)")],
    ),
    unit("precision of the reward (correct images among those with full reward)", &[("judge/precision", "")]),
    unit("false positives (wrong images with full reward)", &[("judge/wrong_passed", "")]),
    unit("T2I (drift monitor)", &[("eval/t2i", "")]),
    unit("MMU (drift monitor)", &[("eval/mmu", "")]),
    unit("T2I→MMU (drift monitor)", &[("eval/t2i_to_mmu", "")]),
    unit("MMU→T2I (drift monitor)", &[("eval/mmu_to_t2i", "")]),
    unit("samples in groups with reward variance", &[("reward/informative", "")]),
    open("KL of answers (nats per token)", &[("kl/answer", "")]),
    open("KL of images (nats per token)", &[("kl/image", "")]),
    open("answer term of the loss", &[("loss/answer", "")]),
    open("image term of the loss", &[("loss/image", "")]),
    open("gradient norm", &[("update/gradient_norm", "")]),
    open("generation time (seconds)", &[("time/draw", "")]),
];

/// A chart as the template shows it.
struct Figure {
    title: &'static str,
    /// CSS class of the line, and label.
    legend: Vec<(&'static str, &'static str)>,
    svg: String,
}

#[derive(Template)]
#[template(path = "report.html")]
struct Page {
    runs: Vec<Run>,
    charts: Vec<Figure>,
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

fn charts(runs: &[Run]) -> Result<Vec<Figure>> {
    let mut charts = Vec::new();
    for Chart { title, metrics, unit_axis } in CHARTS {
        let (mut curves, mut legend) = (Vec::new(), Vec::new());
        for ((name, label), dashed) in metrics.iter().copied().zip([false, true]) {
            let before = curves.len();
            let of_runs =
                runs.iter().enumerate().map(|(color, run)| Curve { dashed, ..curve(run, color, name) });
            curves.extend(of_runs.filter(|curve| !curve.points.is_empty()));
            if !label.is_empty() && curves.len() > before {
                legend.push((if dashed { "dashed" } else { "solid" }, label));
            }
        }
        if !curves.is_empty() {
            charts.push(Figure { title, legend, svg: chart::svg(&curves, unit_axis)? });
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
    Curve { color, points: values, interval, ..Curve::default() }
}
