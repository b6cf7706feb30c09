//! What the exact judge says of the images of each step.

use std::collections::BTreeMap;

use super::step::Trainer;
use crate::algorithms::{self, Outcome};
use crate::error::Result;
use crate::eval::check_tiles;
use crate::judge::{ImageJudge, TilesJudge};
use crate::prompts::Task;

impl Trainer<'_> {
    /// Whether the exact judge can tell what the drawings of this run show.
    pub(super) fn judges(&self) -> bool {
        self.source.is_generated() && check_tiles(self.model.card()).is_ok()
    }

    /// Measures what the judge thinks of the drawings of a step beside what the model made of them. The judge never teaches.
    pub(super) fn judge(
        &self,
        tasks: &[Task],
        outcome: &Outcome,
        metrics: &mut BTreeMap<String, f64>,
    ) -> Result<()> {
        if !self.judges() {
            return Ok(());
        }
        let pixels = algorithms::pixels(self.model, &outcome.images, &self.rollout)?;
        let verdicts = TilesJudge.judge(tasks, &pixels)?;
        let mut right = 0;
        let mut wrong: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new(); // passed, all
        for ((task, verdict), reward) in tasks.iter().zip(verdicts).zip(&outcome.rewards) {
            if verdict.strict {
                right += 1;
            } else {
                let (passed, all) = wrong.entry(task.spec.category.name()).or_default();
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
}
