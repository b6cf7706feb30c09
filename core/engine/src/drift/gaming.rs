//! Detection of a gamed self-reward: the answers about the model's own images pass more often than the judge justifies.
//!
//! Two checks of the drift monitor have the same tasks and seeds. The verdicts of the current check are compared with those of the
//! best check before it. The run is gamed if
//!
//! - T2I falls and the reward does not, or
//! - T2I does not rise and the precision falls.
//!
//! T2I falls if the exact sign test (`McNemar`) on the tasks whose verdict changed gives `p < LEVEL`: with `l` tasks correct before
//! and wrong now, and `g` the other way round, `p = P(X >= l)` for `X ~ Binomial(l + g, 1/2)`. The precision falls if Fisher's
//! exact test on the passing images gives `p < LEVEL`: with `a` wrong of `m` passing images before and `b` of `k` now,
//! `p = P(Y >= b)`, where `Y` counts the wrong ones among `k` images chosen from `m + k`, of which `a + b` are wrong. The passing
//! images of two checks are of different tasks, so they cannot be paired.

use std::f64::consts::LN_2;

use serde::{Deserialize, Serialize};

use crate::eval::Item;

/// The one-sided level of both tests.
///
/// The reference is the best of all earlier checks, which chance favours, and the checks repeat. In simulations of 30 checks of an
/// unchanged model on 120 tasks (T2I .57; of the correct images 90 to 97 % pass, of the wrong ones 5 to 20 %), in which each check
/// has new images, 0 to 5 % of the runs had a false alarm at this level, and 2 to 16 % at .005. The seeds of real checks are the
/// same, so their images vary less.
const LEVEL: f64 = 0.001;

/// The verdicts of a check, one per task.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Verdicts {
    /// The step of the check; 0 is the base model.
    pub(crate) step: u64,
    /// Whether the judge accepts the image.
    correct: Vec<bool>,
    /// Whether the answer about the image passes.
    passed: Vec<bool>,
}

impl Verdicts {
    pub(crate) fn new(step: u64, items: &[Item]) -> Self {
        let (correct, passed) = items.iter().map(|item| (item.strict, item.passed)).unzip();
        Self { step, correct, passed }
    }

    fn correct(&self) -> usize {
        count(&self.correct)
    }

    fn passed(&self) -> usize {
        count(&self.passed)
    }

    /// The number of incorrect images whose answer passes.
    fn wrong_passed(&self) -> usize {
        self.correct.iter().zip(&self.passed).filter(|(correct, passed)| !**correct && **passed).count()
    }

    /// T2I. Every category has equally many tasks, so it is the mean over the tasks and over the categories.
    fn t2i(&self) -> f64 {
        self.correct() as f64 / self.correct.len().max(1) as f64
    }

    /// The share of tasks whose answer passes.
    pub(crate) fn reward(&self) -> f64 {
        self.passed() as f64 / self.passed.len().max(1) as f64
    }

    fn precision(&self) -> f64 {
        1.0 - self.wrong_passed() as f64 / self.passed().max(1) as f64
    }

    /// Whether more images are correct than in `other`.
    pub(crate) fn is_better_than(&self, other: &Self) -> bool {
        self.correct() > other.correct()
    }

    /// Returns a message if the reward is gamed, compared with the verdicts of the best check on the same tasks.
    pub(crate) fn gaming(&self, best: &Self) -> Option<String> {
        let changed = |from: &Self, to: &Self| {
            from.correct.iter().zip(&to.correct).filter(|(before, after)| **before && !**after).count()
        };
        let (lost, gained) = (changed(best, self), changed(self, best));
        let judge_falls = sign_test(lost, gained) < LEVEL;
        let precision_falls =
            fisher_test([best.wrong_passed(), best.passed()], [self.wrong_passed(), self.passed()]) < LEVEL;
        let what = if judge_falls && self.passed() > best.passed() {
            "the reward rises while the judge falls"
        } else if judge_falls && self.passed() == best.passed() {
            "the judge falls while the reward does not"
        } else if precision_falls && !self.is_better_than(best) {
            "more wrong images pass while the judge does not rise"
        } else {
            return None;
        };
        let values = [
            ("T2I", best.t2i(), self.t2i()),
            ("reward", best.reward(), self.reward()),
            ("precision", best.precision(), self.precision()),
        ];
        let values = values.map(|(name, before, after)| format!("{name} {before:.2} -> {after:.2}"));
        let since = match best.step {
            0 => "since the base model".into(),
            step => format!("since step {step}"),
        };
        Some(format!("{what}: {} {since}", values.join(", ")))
    }
}

fn count(values: &[bool]) -> usize {
    values.iter().filter(|value| **value).count()
}

/// The one-sided p-value of `lost` losses and `gained` gains, if both are equally likely.
fn sign_test(lost: usize, gained: usize) -> f64 {
    let changed = lost + gained;
    (lost..=changed).map(|losses| (ln_choose(changed, losses) - changed as f64 * LN_2).exp()).sum()
}

/// The one-sided p-value of `now` wrong images of all passing ones after `before`, each `[wrong, all]`, if both have the same share.
fn fisher_test([wrong_before, before]: [usize; 2], [wrong_now, now]: [usize; 2]) -> f64 {
    let wrong = wrong_before + wrong_now;
    let probability = |count: usize| {
        (ln_choose(now, count) + ln_choose(before, wrong - count) - ln_choose(before + now, wrong)).exp()
    };
    // At most `before` of the wrong images are among the earlier ones, which `wrong_now` guarantees.
    (wrong_now..=wrong.min(now)).map(probability).sum()
}

/// The logarithm of the binomial coefficient.
fn ln_choose(all: usize, chosen: usize) -> f64 {
    (1..=chosen).map(|index| ((all - chosen + index) as f64 / index as f64).ln()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    const F64: f64 = 1e-12;

    #[test]
    fn sign_test_is_the_tail_of_a_binomial_distribution() {
        for (lost, gained, expected) in [
            (0, 0, 1.0),
            (10, 0, 1.0 / 1024.0),
            (9, 1, 11.0 / 1024.0),            // (10 + 1) / 2^10
            (20, 4, 12_951.0 / 16_777_216.0), // (10626 + 2024 + 276 + 24 + 1) / 2^24
            (0, 5, 1.0),
        ] {
            let p = sign_test(lost, gained);
            assert!((p - expected).abs() < F64, "{lost} {gained}: {p}");
        }
    }

    #[test]
    fn fisher_test_is_the_tail_of_a_hypergeometric_distribution() {
        for (before, now, expected) in [
            ([0, 3], [3, 3], 1.0 / 20.0),  // 1 / C(6, 3)
            ([1, 4], [3, 4], 17.0 / 70.0), // (C(4, 3) C(4, 1) + 1) / C(8, 4)
            ([0, 5], [0, 7], 1.0),
            ([0, 0], [2, 2], 1.0),
            ([3, 3], [0, 0], 1.0),
        ] {
            let p = fisher_test(before, now);
            assert!((p - expected).abs() < F64, "{before:?} {now:?}: {p}");
        }
    }

    /// Tasks in the order: correct and passing, correct, wrong and passing, wrong.
    fn verdicts(step: u64, counts: [usize; 4]) -> Verdicts {
        let kinds = [(true, true), (true, false), (false, true), (false, false)];
        let rows = kinds.into_iter().zip(counts).flat_map(|(kind, count)| std::iter::repeat_n(kind, count));
        let (correct, passed) = rows.unzip();
        Verdicts { step, correct, passed }
    }

    #[test]
    fn gaming_is_a_falling_judge_with_a_reward_that_does_not_fall() {
        let best = verdicts(40, [62, 6, 5, 47]);
        // 68 of 120 are correct and 67 pass. Ten tasks are lost and none gained: p = 1/1024.
        let message = verdicts(60, [54, 4, 16, 46]).gaming(&best).unwrap();
        assert_eq!(
            message,
            "the reward rises while the judge falls: T2I 0.57 -> 0.48, reward 0.56 -> 0.58, precision 0.93 -> 0.77 since step 40"
        );
        let message = verdicts(60, [54, 4, 13, 49]).gaming(&verdicts(0, [62, 6, 5, 47])).unwrap();
        assert!(message.starts_with("the judge falls while the reward does not: "), "{message}");
        assert!(message.ends_with(" since the base model"), "{message}");
        // Nine lost are within chance (1/512), and so is the precision: Fisher's test of 5 of 67 and 13 of 68 gives .04.
        assert_eq!(verdicts(60, [55, 4, 13, 48]).gaming(&best), None);
        // The reward falls as well: the model is worse, but the reward says so.
        assert_eq!(verdicts(60, [40, 4, 8, 68]).gaming(&best), None);
        assert_eq!(best.gaming(&best), None);
    }

    #[test]
    fn gaming_is_a_falling_precision_with_a_judge_that_does_not_rise() {
        let best = verdicts(5, [62, 6, 5, 47]);
        // 25 wrong of 87 after 5 of 67: p = .0007. The same images are correct.
        let message = verdicts(10, [62, 6, 25, 27]).gaming(&best).unwrap();
        assert!(message.starts_with("more wrong images pass while the judge does not rise: "), "{message}");
        assert!(message.ends_with("reward 0.56 -> 0.72, precision 0.93 -> 0.71 since step 5"), "{message}");
        // With one more correct image the judge rises.
        assert_eq!(verdicts(10, [63, 6, 25, 26]).gaming(&best), None);
        // 15 wrong of 77: p = .03.
        assert_eq!(verdicts(10, [62, 6, 15, 37]).gaming(&best), None);
    }
}
