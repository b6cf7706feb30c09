//! What a reward rule promises.

use tch::Tensor;

use super::{Finding, Outcome, found};
use crate::error::Result;
use crate::prompts::Task;
use crate::reward::{Reward, RewardFunction, Sample};
use crate::tiles;

struct Check {
    name: &'static str,
    hint: &'static str,
    run: fn(&Subject<'_>) -> Result<Outcome>,
}

const ALL: [Check; 4] = [
    Check {
        name: "rewards are points in 0..=max",
        hint: "a rule that has nothing to say about a sample gives `Reward::abstain`, whose `max` is 0",
        run: points,
    },
    Check {
        name: "the same samples get the same rewards",
        hint: "a rule holds no state and draws no random numbers",
        run: repeated,
    },
    Check {
        name: "a sample is worth what it is worth alone",
        hint: "a rule compares a sample with its facts, not with the other samples: groups are the optimizer's business",
        run: alone,
    },
    Check {
        name: "strange answers are scored",
        hint: "an empty answer, another alphabet and ten thousand words are answers, too",
        run: strange,
    },
];

/// A rule with samples of right and wrong answers, and drawings of what was asked for.
struct Subject<'a> {
    rule: &'a dyn RewardFunction,
    samples: Vec<Sample>,
    /// `[B,3,32,32]`.
    pixels: Tensor,
}

impl Subject<'_> {
    fn score(&self, samples: &[Sample], pixels: &Tensor) -> Result<Vec<Reward>> {
        self.rule.score(samples, self.rule.wants_pixels().then_some(pixels))
    }
}

/// Examines a reward rule on tasks of the drawn world. Nothing that it does ends the examination.
pub fn examine_reward(rule: &dyn RewardFunction, tasks: &[Task]) -> Result<Vec<Finding>> {
    let mut rng = crate::prompts::rng::Rng::new(1);
    let (mut samples, mut scenes) = (Vec::new(), Vec::new());
    for task in tasks {
        for answer in [task.reference_answer.as_str(), "nothing", "two purple stars"] {
            samples.push(Sample::new(task, answer));
            scenes.push(tiles::TileGrid::sample(&task.spec, &mut rng)?);
        }
    }
    let subject = Subject { rule, samples, pixels: tiles::render(&scenes) };
    let find = |check: &Check| found(check.name, check.hint, || (check.run)(&subject));
    Ok(ALL.iter().map(find).collect())
}

fn points(subject: &Subject<'_>) -> Result<Outcome> {
    let rewards = subject.score(&subject.samples, &subject.pixels)?;
    if rewards.len() != subject.samples.len() {
        return Ok(Outcome::Fails(format!(
            "{} rewards for {} samples",
            rewards.len(),
            subject.samples.len()
        )));
    }
    for (reward, sample) in rewards.iter().zip(&subject.samples) {
        let (score, max) = (reward.score, reward.max);
        if !(score.is_finite() && max.is_finite() && 0.0 <= score && score <= max) {
            return Ok(Outcome::Fails(format!("{score} of {max} points for `{}`", sample.answer)));
        }
    }
    let full = rewards.iter().filter(|reward| reward.passes()).count();
    let silent = rewards.iter().filter(|reward| reward.abstains()).count();
    Ok(Outcome::Holds(format!("{full} of {} get every point, about {silent} nothing is said", rewards.len())))
}

fn repeated(subject: &Subject<'_>) -> Result<Outcome> {
    let [one, other] = [
        subject.score(&subject.samples, &subject.pixels)?,
        subject.score(&subject.samples, &subject.pixels)?,
    ];
    Ok(compared(subject, &one, &other, "scored twice"))
}

fn alone(subject: &Subject<'_>) -> Result<Outcome> {
    let whole = subject.score(&subject.samples, &subject.pixels)?;
    let mut each = Vec::new();
    for (row, sample) in (0..).zip(&subject.samples) {
        each.extend(subject.score(std::slice::from_ref(sample), &subject.pixels.narrow(0, row, 1))?);
    }
    Ok(compared(subject, &whole, &each, "scored alone"))
}

fn compared(subject: &Subject<'_>, one: &[Reward], other: &[Reward], how: &str) -> Outcome {
    let differs = |((one, other), sample): ((&Reward, &Reward), &Sample)| {
        (one != other).then(|| format!("{} and, {how}, {} for `{}`", one.score, other.score, sample.answer))
    };
    match one.iter().zip(other).zip(&subject.samples).find_map(differs) {
        Some(difference) => Outcome::Fails(difference),
        None => Outcome::Holds(format!("{} samples", one.len())),
    }
}

fn strange(subject: &Subject<'_>) -> Result<Outcome> {
    let long = "a star and ".repeat(5_000);
    let answers = ["", " ", "\u{0}", "zwei Bänke", "两把长椅", "🪑🪑", "{\"count\": 2}", &long];
    let samples: Vec<Sample> = answers
        .iter()
        .map(|answer| Sample { answer: (*answer).into(), ..subject.samples[0].clone() })
        .collect();
    let rows = samples.len() as i64;
    let pixels = subject.pixels.narrow(0, 0, 1).expand([rows, -1, -1, -1], false).contiguous();
    let rewards = subject.score(&samples, &pixels)?;
    let none = subject.score(&[], &subject.pixels.narrow(0, 0, 0))?;
    if rewards.len() != samples.len() || !none.is_empty() {
        return Ok(Outcome::Fails(format!(
            "{} rewards for {} samples, {} for none",
            rewards.len(),
            rows,
            none.len()
        )));
    }
    Ok(Outcome::Holds(format!("{rows} of them, and an empty batch")))
}
