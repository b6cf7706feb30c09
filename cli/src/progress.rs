//! Progress on stderr: a bar with the remaining time, or log lines without a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use unirl_engine::train::{Event, StepReport};

use crate::logging;

/// A progress bar of `length` units; hidden if stderr is not a terminal or the log is JSON.
pub(crate) fn bar(what: &'static str, length: u64) -> ProgressBar {
    let target = if logging::is_json() { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
    let bar = ProgressBar::with_draw_target(Some(length), target);
    let template = "{prefix:>8} {bar:24} {pos}/{len} {elapsed_precise} eta {eta} {wide_msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_prefix(what);
    bar
}

/// Prints an information line on stderr, regardless of the verbosity.
pub(crate) fn note(text: &str) {
    if logging::is_json() {
        logging::line(serde_json::json!({ "level": "INFO", "message": text }));
    } else {
        logging::line(text);
    }
}

/// The progress bars of a training run.
pub(crate) struct TrainProgress {
    bar: ProgressBar,
}

impl TrainProgress {
    pub(crate) fn new() -> Self {
        Self { bar: ProgressBar::hidden() }
    }

    pub(crate) fn on(&mut self, event: &Event<'_>) {
        match event {
            Event::EvalStarted(what, length) => self.start(what, *length as u64),
            Event::Evaluated(count) => self.bar.inc(*count as u64),
            Event::TrainStarted(done, steps) => {
                self.start("train", *steps);
                self.bar.set_position(*done);
                self.bar.reset_eta();
            }
            Event::Stepped(report) => self.step(report),
        }
    }

    fn start(&mut self, what: &'static str, length: u64) {
        self.bar.finish_and_clear();
        self.bar = bar(what, length);
        tracing::info!("{what}: {length}");
    }

    fn step(&mut self, report: &StepReport) {
        let metric = |name: &str| report.metrics.get(name).copied();
        let format = |name: &str| metric(name).map_or_else(|| "-".into(), |value| format!("{value:.3}"));
        let phases = &report.phases;
        let message = format!(
            "reward {} correct {} false positives {} | generate {:.1}s answer {:.1}s score {:.1}s update {:.1}s",
            format("reward/mean"),
            format("judge/right"),
            format("judge/wrong_passed"),
            phases.generate.as_secs_f64(),
            phases.answer.as_secs_f64(),
            phases.score.as_secs_f64(),
            phases.update.as_secs_f64(),
        );
        tracing::info!(step = report.step, "{message}");
        self.bar.set_message(message);
        self.bar.inc(1);
    }
}

impl Drop for TrainProgress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
