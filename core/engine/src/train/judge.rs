//! Metrics of each step from the judge of the benchmark. The judge only measures; it never trains.

use std::collections::BTreeMap;

use unirl::error::Result;
use unirl_prompts::Task;

use super::step::Trainer;
use crate::algorithms::{self, Outcome};

impl Trainer<'_> {
    /// Adds `judge/right`, the share of strictly correct images, and `judge/wrong_passed`, the share of the incorrect images
    /// whose answer passes.
    pub(super) fn judge(
        &self,
        tasks: &[Task],
        outcome: &Outcome,
        metrics: &mut BTreeMap<String, f64>,
    ) -> Result<()> {
        let Some(benchmark) = self.source.benchmark() else { return Ok(()) };
        let pixels = algorithms::pixels(self.model, &outcome.images, &self.rollout)?;
        let verdicts = benchmark.image_judge().judge(tasks, &pixels)?;
        let mut strict_correct = 0;
        let mut false_positives: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new(); // passed, incorrect
        for ((task, verdict), reward) in tasks.iter().zip(verdicts).zip(&outcome.rewards) {
            if verdict.strict {
                strict_correct += 1;
            } else {
                let (passed, incorrect) = false_positives.entry(task.spec.category.name()).or_default();
                *passed += u64::from(reward.passes());
                *incorrect += 1;
            }
        }
        metrics.insert("judge/right".into(), f64::from(strict_correct) / tasks.len() as f64);
        let (passed, incorrect) =
            false_positives.values().fold((0, 0), |sum, of| (sum.0 + of.0, sum.1 + of.1));
        if incorrect > 0 {
            metrics.insert("judge/wrong_passed".into(), passed as f64 / incorrect as f64);
        }
        for (category, (passed, incorrect)) in false_positives {
            metrics.insert(format!("judge/wrong_passed/{category}"), passed as f64 / incorrect as f64);
        }
        Ok(())
    }
}
