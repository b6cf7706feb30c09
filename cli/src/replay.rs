//! `unirl replay-step DIR`: repeats a training step from its saved state.

use unirl::checkpoint::TrainingState;
use unirl::config::RunConfig;
use unirl::error::Result;
use unirl::{config::layers, train};

use crate::args::ReplayStepArgs;
use crate::load;
use crate::train::{TrainSession, prepare};

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &ReplayStepArgs) -> Result<()> {
    let state = TrainingState::read(&args.dir)?;
    let mut settings = state.config.to_table()?;
    for assignment in &args.sets {
        layers::set(&mut settings, assignment)?;
    }
    let config = RunConfig::from_table(settings)?;
    prepare(&config);
    let mut plugins = args.search.plugins()?;
    let model = load::model(&mut plugins, &config.model, config.train.seed)?;
    let mut session = TrainSession::new(model, &config, &mut plugins)?;
    let (model, answer_rules) = (&mut *session.model, session.answer_rules.as_ref());
    let step = state.step + 1;
    let metrics = train::replay(model, &session.rules, answer_rules, &config, &state)
        .map_err(|error| error.context(format!("step {step} failed again")))?;
    println!("step {step} succeeded\n");
    for (name, value) in metrics {
        println!("{name:<32}{value:>14.6}");
    }
    Ok(())
}
