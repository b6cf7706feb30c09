//! `unirl` with a custom algorithm: REINFORCE with the mean reward of the batch as its baseline.
//!
//! ```text
//! L = −(1/B) Σ_i (r_i − r̄) · [ (1/N) Σ_n log π_θ(u_in | prompt_i)  +  answer_weight · (1/|a_i|) Σ_t log π_θ(a_it | u_i, q_i) ]
//! ```

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unirl::Result;
use unirl::model::{Masking, Policy};
use unirl::tch::Kind;
use unirl_engine::algorithms::metrics::{add, reward_metrics};
use unirl_engine::algorithms::objective::mean_per_sequence;
use unirl_engine::algorithms::{Algorithm, Decoupled, Iteration, Outcome, Scored, Stream, Terms, backward};
use unirl_engine::register_algorithm;

/// Options of `mean-baseline`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct MeanBaseline {
    /// Weight of the answers in the loss.
    #[schemars(range(min = 0.0))]
    answer_weight: f64,
}

impl Default for MeanBaseline {
    fn default() -> Self {
        Self { answer_weight: 1.0 }
    }
}

register_algorithm!(
    "mean-baseline",
    MeanBaseline,
    "REINFORCE on image and answer tokens, with the mean reward of the batch as the baseline",
    Decoupled::Trains,
    answer_rules: false,
);

impl Algorithm for MeanBaseline {
    fn accumulate(&self, iteration: &mut Iteration<'_>) -> Result<Outcome> {
        let generated = iteration.generate()?; // u [B,N]
        let answers = iteration.answer(&generated)?; // a [B,T]
        let Scored { rewards, scores } = iteration.score(&generated, &answers)?; // r [B]
        let mut metrics = BTreeMap::new();
        reward_metrics(&rewards, &scores, iteration.group(), &mut metrics);
        let advantages = &scores - scores.mean(Kind::Float); // r − r̄ [B]

        let (prompts, questions) = (iteration.prompts(), iteration.questions());
        for micro in iteration.micro_batches() {
            let (images, answers) =
                (generated.narrow(micro.first, micro.len), answers.narrow(micro.first, micro.len));
            let masking = Masking::remask(iteration.stream(Stream::Masking), micro.slice());
            let (prompts, questions) = (&prompts[micro.rows()], &questions[micro.rows()]);
            let image = iteration.model.image_logp(prompts, &images, Policy::Current, &masking)?;
            let answer = iteration.model.answer_logp(&images, questions, &answers, Policy::Current)?;
            let logp = mean_per_sequence(&image.logp, &image.mask)
                + mean_per_sequence(&answer.logp, &answer.mask) * self.answer_weight; // [b]
            let advantages = advantages.narrow(0, micro.first, micro.len);
            let loss = -(logp * advantages).mean(Kind::Float) * micro.share();
            add(&mut metrics, "loss/policy", &loss);
            backward(&loss, "loss/policy")?;
        }
        Ok(Outcome { metrics, images: generated, answers: answers.text, rewards })
    }

    fn terms(&self) -> Terms<'_> {
        Terms { image: None, answer: true, end_to_end: None, alternate: false }
    }
}

fn main() -> std::process::ExitCode {
    unirl_cli::main()
}
