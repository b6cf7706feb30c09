//! The self-reward: the reader's answers about generated images, or its probability of the right ones.

use std::time::Instant;

use tch::{Kind, Tensor};
use unirl::error::Result;
use unirl::model::{Answers, Images, Policy, TextSampling, UnifiedModel};
use unirl::reward::{Reward, Sample};
use unirl_base::seed;
use unirl_prompts::Task;

use super::right_answers::{RightAnswer, RightAnswers};
use super::rollout::{Scored, Stream};
use super::{Iteration, pixels};
use crate::rewards::{Reader, RewardKind, View};

/// The reader's judgement of generated images.
#[derive(Debug)]
pub struct Reading {
    /// The answer about each image; with `reward.kind = "likelihood"` the right answer.
    pub answers: Vec<String>,
    /// The answers as tokens, if they are those that the current policy gives about the images as they were generated.
    pub sampled: Option<Answers>,
    /// The rewards of the images.
    pub scored: Scored,
}

impl Reading {
    /// The same reading, without the sampled answers.
    pub(super) fn shallow_clone(&self) -> Self {
        let Scored { rewards, scores } = &self.scored;
        let scored = Scored { rewards: rewards.clone(), scores: scores.shallow_clone() };
        Self { answers: self.answers.clone(), sampled: None, scored }
    }
}

impl Iteration<'_> {
    /// Rewards generated images: `reward.reader` sees the `reward.view` of each and is asked `reward.questions`; `reward.kind`
    /// says what is scored. The reward of an image is the worst of its questions.
    pub fn read(&mut self, generated: &Images) -> Result<Reading> {
        let started = Instant::now();
        let images = self.viewed(generated)?;
        let questions: Vec<Vec<Task>> =
            self.tasks.iter().map(|task| task.questions(self.reward.questions)).collect();
        self.phases.answer += started.elapsed();

        let (mut answered, mut sampled) = (Vec::new(), None);
        let mut worst: Vec<Reward> = Vec::new();
        let most = questions.iter().map(Vec::len).max().unwrap_or(0);
        for number in 0..most {
            // A task with fewer questions is asked its first one again, which changes nothing.
            let asked: Vec<Task> =
                questions.iter().map(|of| of.get(number).unwrap_or(&of[0]).clone()).collect();
            let (answers, rewards) = match self.reward.kind {
                RewardKind::Rules => {
                    let (answers, rewards) = self.read_rules(&images, &asked, number)?;
                    (Some(answers), rewards)
                }
                RewardKind::Likelihood => (None, self.read_likelihood(&images, &asked)?),
            };
            if number == 0 {
                worst = rewards;
                answered = match &answers {
                    Some(answers) => answers.text.clone(),
                    None => asked.into_iter().map(|task| task.reference_answer).collect(),
                };
                let of_the_policy = self.reward.reader == Reader::Current && self.reward.view == View::Tokens;
                sampled = answers.filter(|_| of_the_policy);
                continue;
            }
            for (worst, reward) in worst.iter_mut().zip(rewards) {
                if !reward.abstains() && (worst.abstains() || share(&reward) < share(worst)) {
                    *worst = reward;
                }
            }
        }
        let started = Instant::now();
        let scored = self.scored(worst, generated.tokens.device())?;
        self.phases.score += started.elapsed();
        Ok(Reading { answers: answered, sampled, scored })
    }

    /// The images as the reader sees them.
    pub(super) fn viewed(&self, images: &Images) -> Result<Images> {
        match self.reward.view {
            View::Tokens => Ok(images.narrow(0, images.len())),
            View::Pixels => {
                let pixels = pixels(&*self.model, images, self.rollout)?;
                let bytes = (pixels.clamp(0.0, 1.0) * 255.0).round() / 255.0;
                let parts = self.rollout.parts(images.len() as usize).into_iter().map(|rows| {
                    let bytes = bytes.narrow(0, rows.start as i64, rows.len() as i64);
                    tch::no_grad(|| self.model.encode(&bytes))
                });
                Ok(Images::cat(parts.collect::<Result<_>>()?))
            }
        }
    }

    fn read_rules(
        &mut self,
        images: &Images,
        asked: &[Task],
        number: usize,
    ) -> Result<(Answers, Vec<Reward>)> {
        let questions: Vec<String> = asked.iter().map(|task| task.question.clone()).collect();
        let seed = match number {
            0 => self.stream(Stream::Answer),
            _ => seed::derive(self.stream(Stream::Answer), &[number as u64]),
        };
        let answers = self.as_reader(|iteration| iteration.answer_to(images, &questions, seed))?;
        let started = Instant::now();
        let samples: Vec<Sample> =
            asked.iter().zip(&answers.text).map(|(task, answer)| task.sample(answer)).collect();
        let rewards = self.score_samples(self.rules, images, &samples)?;
        self.phases.score += started.elapsed();
        Ok((answers, rewards))
    }

    fn read_likelihood(&mut self, images: &Images, asked: &[Task]) -> Result<Vec<Reward>> {
        let started = Instant::now();
        let mut rewards = Vec::with_capacity(asked.len());
        let micro_batches = self.micro_batches();
        self.as_reader(|iteration| {
            for micro in micro_batches {
                let model = &*iteration.model;
                let right = RightAnswers::new(model, &asked[micro.rows()])?;
                let images = images.narrow(micro.first, micro.len);
                let scored = tch::no_grad(|| right.score(model, &images, Policy::Current))?;
                let probability = right.logp(&scored, RightAnswer::Any).exp().clamp_max(1.0);
                // From ½ on, the right answer is the likeliest.
                let reward =
                    |probability: f64| Reward { pass_at: Some(0.5), ..Reward::new(probability, 1.0) };
                rewards
                    .extend(Vec::<f64>::try_from(probability.to_kind(Kind::Double))?.into_iter().map(reward));
            }
            Ok(())
        })?;
        self.phases.answer += started.elapsed();
        Ok(rewards)
    }

    /// Answers questions about images, without gradient.
    pub(super) fn answer_to(&mut self, images: &Images, questions: &[String], seed: u64) -> Result<Answers> {
        let started = Instant::now();
        let mut answers = Vec::new();
        for micro in self.micro_batches() {
            let part = micro.slice();
            let sampling = TextSampling { seed, part, ..self.rollout.answers.clone() };
            let images = images.narrow(micro.first, micro.len);
            answers.push(tch::no_grad(|| self.model.answer(&images, &questions[micro.rows()], &sampling))?);
        }
        self.phases.answer += started.elapsed();
        Ok(Answers::cat(answers))
    }

    /// Returns the value of `loss` about images under the weights of the reader, and its gradient with respect to the one-hot image
    /// tokens, `[b,N,K]`. No graph of the policy may be alive.
    pub(super) fn token_gradient(
        &mut self,
        images: &Images,
        loss: impl FnOnce(&dyn UnifiedModel, &Images) -> Result<Tensor>,
    ) -> Result<(Tensor, Tensor)> {
        let images = self.viewed(images)?;
        let codes = self.model.card().codebook_size;
        self.as_reader(|iteration| {
            let relaxed = images.tokens.one_hot(codes).to_kind(Kind::Float).set_requires_grad(true);
            let read = Images {
                relaxed: Some(relaxed.shallow_clone()),
                ..Images::from_tokens(images.tokens.shallow_clone())
            };
            let loss = loss(&*iteration.model, &read)?;
            loss.f_backward()?;
            Ok((loss.detach(), relaxed.grad()))
        })
    }
}

fn share(reward: &Reward) -> f64 {
    reward.score / reward.max
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tch::Tensor;

    use super::*;
    use crate::algorithms::testing::{Halves, TestStep, two_groups};
    use crate::algorithms::{Algorithm, Outcome, Terms};
    use crate::rewards::RewardOptions;

    /// Reads generated images once before and once after 8 is added to the logit of word 0.
    struct ReadTwice;

    impl Algorithm for ReadTwice {
        fn accumulate(&self, iteration: &mut Iteration<'_>) -> Result<Outcome> {
            let generated = iteration.generate()?;
            iteration.read(&generated)?;
            let parameters = iteration.model.parameters()?;
            let added = Tensor::from_slice(&[8.0f32, 0.0]);
            let _ = tch::no_grad(|| parameters[1].tensor.shallow_clone().g_add_(&added));
            let Reading { answers, scored, .. } = iteration.read(&generated)?;
            assert!(parameters[1].tensor.requires_grad(), "the policy is trained after reading");
            let metrics = BTreeMap::new();
            Ok(Outcome { metrics, images: generated, answers, rewards: scored.rewards })
        }

        fn terms(&self) -> Terms<'_> {
            Terms { image: None, answer: false, end_to_end: None, alternate: false }
        }
    }

    fn rewards(reward: RewardOptions, micro_batch: usize) -> Vec<f64> {
        let mut model = Halves::shared([[0.0; 2]; 2], [[0.0; 2]; 2]);
        let batch = TestStep { micro_batch, reward, ..two_groups() };
        batch.accumulate(&ReadTwice, &mut model).rewards.iter().map(|reward| reward.score).collect()
    }

    /// About the codes 0 1 0 | 1 0 1, with the reference answers 0 0 0 | 11 11 11: the reader gives the word of the code ¾ per token
    /// before the change, and after it word 0 almost always.
    #[test]
    fn likelihood_is_the_probability_of_the_right_answer_under_the_reader() {
        let of = |reader| RewardOptions { kind: RewardKind::Likelihood, reader, ..RewardOptions::default() };
        for micro_batch in [0, 1, 4] {
            let base = rewards(of(Reader::Reference), micro_batch);
            let expected = [0.75, 0.25, 0.75, 0.5625, 0.0625, 0.5625];
            assert!(base.iter().zip(expected).all(|(got, e)| (got - e).abs() < 1e-6), "{base:?}");
            let now = rewards(of(Reader::Current), micro_batch);
            assert!(now[..3].iter().all(|p| *p > 0.99) && now[3..].iter().all(|p| *p < 1e-4), "{now:?}");
        }
    }

    #[test]
    fn rules_score_the_answers_of_the_reader() {
        assert_eq!(rewards(RewardOptions::default(), 0), [1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
    }
}
