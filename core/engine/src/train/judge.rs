//! Metrics of each step from the judge of the benchmark. The judge only measures; it never trains.

use std::collections::BTreeMap;

use unirl::error::Result;
use unirl_prompts::Task;

use super::step::Trainer;
use crate::algorithms::{self, Outcome};

impl Trainer<'_> {
    /// Adds `judge/right`, the share of strictly correct images, `judge/wrong_passed`, the share of the incorrect images whose
    /// answer passes, and `judge/precision`, the share of correct images among those whose answer passes.
    pub(super) fn judge(
        &self,
        tasks: &[Task],
        outcome: &Outcome,
        metrics: &mut BTreeMap<String, f64>,
    ) -> Result<()> {
        let Some(benchmark) = self.source.benchmark() else { return Ok(()) };
        let pixels = algorithms::pixels(self.model, &outcome.images, &self.rollout)?;
        let verdicts = benchmark.image_judge().judge(tasks, &pixels)?;
        let mut all = Counts::default();
        let mut by_category: BTreeMap<&'static str, Counts> = BTreeMap::new();
        for ((task, verdict), reward) in tasks.iter().zip(verdicts).zip(&outcome.rewards) {
            for counts in [&mut all, by_category.entry(task.spec.category.name()).or_default()] {
                counts.add(verdict.strict, reward.passes());
            }
        }
        metrics.insert("judge/right".into(), all.correct as f64 / tasks.len() as f64);
        let all = std::iter::once((String::new(), all));
        let by_category = by_category.into_iter().map(|(category, counts)| (format!("/{category}"), counts));
        for (suffix, counts) in all.chain(by_category) {
            for (name, share) in [("wrong_passed", counts.wrong_passed()), ("precision", counts.precision())]
            {
                if let Some(share) = share {
                    metrics.insert(format!("judge/{name}{suffix}"), share);
                }
            }
        }
        Ok(())
    }
}

/// Images by the judge and by the reward of their answers.
#[derive(Debug, Clone, Copy, Default)]
struct Counts {
    correct: u64,
    wrong: u64,
    passed_correct: u64,
    passed_wrong: u64,
}

impl Counts {
    fn add(&mut self, correct: bool, passed: bool) {
        let (count, passing) = match correct {
            true => (&mut self.correct, &mut self.passed_correct),
            false => (&mut self.wrong, &mut self.passed_wrong),
        };
        *count += 1;
        *passing += u64::from(passed);
    }

    fn wrong_passed(self) -> Option<f64> {
        (self.wrong > 0).then(|| self.passed_wrong as f64 / self.wrong as f64)
    }

    fn precision(self) -> Option<f64> {
        let passed = self.passed_correct + self.passed_wrong;
        (passed > 0).then(|| self.passed_correct as f64 / passed as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_absent_if_nothing_was_counted() {
        let mut counts = Counts::default();
        assert_eq!((counts.wrong_passed(), counts.precision()), (None, None));
        counts.add(true, false);
        assert_eq!((counts.wrong_passed(), counts.precision()), (None, None));
        // Four wrong images, one of which passes, and three correct images that pass.
        for (correct, passed, count) in [(false, false, 3), (false, true, 1), (true, true, 3)] {
            (0..count).for_each(|_| counts.add(correct, passed));
        }
        assert_eq!((counts.wrong_passed(), counts.precision()), (Some(0.25), Some(0.75)));
    }
}
