//! The conformance checks of rewards.

use tch::Tensor;
use unirl::error::Result;
use unirl::reward::{Reward, RewardFunction, Sample};
use unirl_benchmarks::tiles;
use unirl_prompts::Task;

use super::{Finding, Outcome, run_check};

struct Check {
    name: &'static str,
    hint: &'static str,
    run: fn(&Subject<'_>) -> Result<Outcome>,
}

const ALL: [Check; 4] = [
    Check {
        name: "rewards are in 0..=max",
        hint: "return `Reward::abstain`, whose `max` is 0, for a sample that the reward does not apply to",
        run: in_range,
    },
    Check {
        name: "the same samples get the same rewards",
        hint: "a reward must have no state and no randomness",
        run: deterministic,
    },
    Check {
        name: "samples are scored independently",
        hint: "compare a sample with its spec, not with other samples: the algorithm normalizes rewards within groups",
        run: independent,
    },
    Check {
        name: "unusual answers are scored",
        hint: "handle empty answers, other alphabets and ten thousand words",
        run: unusual_answers,
    },
];

/// A reward with samples of correct and incorrect answers, and images that show the prompts.
struct Subject<'a> {
    reward: &'a dyn RewardFunction,
    samples: Vec<Sample>,
    /// `[B,3,32,32]`.
    pixels: Tensor,
}

impl Subject<'_> {
    fn score(&self, samples: &[Sample], pixels: &Tensor) -> Result<Vec<Reward>> {
        self.reward.score(samples, self.reward.wants_pixels().then_some(pixels))
    }
}

/// Runs the checks of a reward on tasks of the tiles benchmark. An error or a panic of the reward fails the check and does not
/// end the run.
pub fn examine_reward(reward: &dyn RewardFunction, tasks: &[Task]) -> Result<Vec<Finding>> {
    let mut rng = unirl_prompts::rng::Rng::new(1);
    let (mut samples, mut grids) = (Vec::new(), Vec::new());
    for task in tasks {
        for answer in [task.reference_answer.as_str(), "nothing", "two purple stars"] {
            samples.push(task.sample(answer));
            grids.push(tiles::TileGrid::sample(&task.spec, &mut rng)?);
        }
    }
    let subject = Subject { reward, samples, pixels: tiles::render(&grids) };
    let run = |check: &Check| run_check(check.name, check.hint, || (check.run)(&subject));
    Ok(ALL.iter().map(run).collect())
}

fn in_range(subject: &Subject<'_>) -> Result<Outcome> {
    let rewards = subject.score(&subject.samples, &subject.pixels)?;
    if rewards.len() != subject.samples.len() {
        return Ok(Outcome::Fails(format!(
            "expected {} rewards, got {}",
            subject.samples.len(),
            rewards.len()
        )));
    }
    for (reward, sample) in rewards.iter().zip(&subject.samples) {
        let (score, max) = (reward.score, reward.max);
        if !(score.is_finite() && max.is_finite() && 0.0 <= score && score <= max) {
            return Ok(Outcome::Fails(format!("score {score}, max {max} for `{}`", sample.answer)));
        }
    }
    let full = rewards.iter().filter(|reward| reward.passes()).count();
    let abstained = rewards.iter().filter(|reward| reward.abstains()).count();
    Ok(Outcome::Holds(format!("{full} of {} get full points, {abstained} abstain", rewards.len())))
}

fn deterministic(subject: &Subject<'_>) -> Result<Outcome> {
    let [one, other] = [
        subject.score(&subject.samples, &subject.pixels)?,
        subject.score(&subject.samples, &subject.pixels)?,
    ];
    Ok(compare(subject, &one, &other, "scored again"))
}

fn independent(subject: &Subject<'_>) -> Result<Outcome> {
    let batch = subject.score(&subject.samples, &subject.pixels)?;
    let mut single = Vec::new();
    for (row, sample) in (0..).zip(&subject.samples) {
        single.extend(subject.score(std::slice::from_ref(sample), &subject.pixels.narrow(0, row, 1))?);
    }
    Ok(compare(subject, &batch, &single, "scored alone"))
}

fn compare(subject: &Subject<'_>, one: &[Reward], other: &[Reward], how: &str) -> Outcome {
    let differs = |((one, other), sample): ((&Reward, &Reward), &Sample)| {
        (one != other)
            .then(|| format!("{}, but {} when {how}, for `{}`", one.score, other.score, sample.answer))
    };
    match one.iter().zip(other).zip(&subject.samples).find_map(differs) {
        Some(difference) => Outcome::Fails(difference),
        None => Outcome::Holds(format!("{} samples", one.len())),
    }
}

fn unusual_answers(subject: &Subject<'_>) -> Result<Outcome> {
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
            "expected {rows} rewards for {rows} samples and 0 for an empty batch, got {} and {}",
            rewards.len(),
            none.len()
        )));
    }
    Ok(Outcome::Holds(format!("{rows} answers, and an empty batch")))
}
