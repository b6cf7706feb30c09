//! `unirl replay-step DIR`: repeats a training step from its saved state.

use unirl::error::Result;
use unirl_base::layers;
use unirl_base::schema::schema;
use unirl_engine::checkpoint::TrainingState;
use unirl_engine::config::RunConfig;
use unirl_engine::{benchmark, train};

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
    let benchmark = benchmark::open(&config.benchmark, model.card(), &mut plugins)?;
    let mut session = TrainSession { model, rewards, benchmark };
    let step = state.step + 1;
    let setup = session.setup(&config);
    setup.check()?;
    let metrics =
        train::replay(setup, &state).map_err(|error| error.context(format!("step {step} failed again")))?;
    println!("step {step} succeeded\n");
    for (name, value) in metrics {
        println!("{name:<32}{value:>14.6}");
    }
    Ok(())
}
