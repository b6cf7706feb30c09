//! `--dry-run`: everything but the steps, from sizes alone.

use std::path::Path;

use unirl::error::{Error, Result};
use unirl::model::ModelSource;
use unirl_engine::algorithms;
use unirl_engine::config::RunConfig;
use unirl_engine::disk_plan::DiskPlan;
use unirl_engine::memory::MemoryPlan;
use unirl_engine::plugin::Plugins;

use crate::load;
use crate::settings::Settings;

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(
    settings: &Settings,
    early: &RunConfig,
    plugins: &mut Plugins,
    out: Option<&Path>,
) -> Result<()> {
    let source = ModelSource { dry: true, ..load::source(&early.model, early.train.seed)? };
    let model = load::construct(plugins, &early.model, &source)?;
    let config = settings.config(model.card())?;
    let entry = algorithms::find(&config.optimizer.name)?;
    algorithms::check_fits(entry, model.card())?;
    let algorithm = config.algorithm(entry)?;
    let memory = MemoryPlan::new(&*model, &*algorithm, &config, source.device)?;
    let disk = DiskPlan::new(&memory, &config, out.unwrap_or(Path::new("runs")));
    let (card, rollout) = (model.card(), &config.rollout);
    println!("{} of {} on {}\n", entry.name, card.name, load::device_name(source.device));
    println!("{:<20}{:>16}", "steps", config.train.steps);
    println!(
        "{:<20}{:>16}",
        "images per step",
        format!("{} × {}", rollout.prompts_per_step, rollout.group_size)
    );
    println!("{:<20}{:>16}", "resolution", format!("{0}×{0}", card.resolution));
    println!("{:<20}{:>16}\n", "image tokens", format!("{} of {}", card.image_tokens, card.codebook_size));
    print!("{}\n{}", memory.table(), disk.table());
    match memory.fitting() {
        Some(0) => Err(Error::failure("the run does not fit in memory, even with a micro-batch of one image").hint(format!(
            "use smaller images or a GPU with more memory; `unirl schema --plugin {}` lists the options of the model",
            early.model.plugin
        ))),
        Some(fitting) if fitting < memory.micro_batch => {
            Err(Error::failure(format!("a micro-batch of {} images does not fit in memory", memory.micro_batch))
                .hint(format!("`--set rollout.micro_batch={fitting}`")))
        }
        _ => disk.check(),
    }
}
