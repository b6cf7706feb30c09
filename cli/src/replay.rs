//! `unirl replay-step DIR`: repeats a training step from its saved state.

use unirl::error::Result;
use unirl_base::layers;
use unirl_base::schema::schema;
use unirl_engine::checkpoint::TrainingState;
use unirl_engine::config::RunConfig;
use unirl_engine::train;

use crate::args::ReplayStepArgs;
use crate::load;
use crate::train::{Rewards, TrainSession, prepare};

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &ReplayStepArgs) -> Result<()> {
    let state = TrainingState::read(&args.dir)?;
    let mut table = state.config.to_table()?;
    for assignment in &args.sets {
        layers::set(&mut table, assignment, &schema::<RunConfig>())?;
    }
    let config = RunConfig::from_table(table)?;
    prepare(&config);
    let mut plugins = args.search.plugins()?;
    let model = load::model(&mut plugins, &config.model, config.train.seed)?;
    let rewards = Rewards::load(&mut plugins, &config.reward)?;
    let mut session = TrainSession::new(model, &config, rewards)?;
    let Rewards { rules, answer_rules } = &session.rewards;
    let step = state.step + 1;
    let metrics = train::replay(&mut *session.model, rules, answer_rules.as_ref(), &config, &state)
        .map_err(|error| error.context(format!("step {step} failed again")))?;
    println!("step {step} succeeded\n");
    for (name, value) in metrics {
        println!("{name:<32}{value:>14.6}");
    }
    Ok(())
}
