//! `unirl generate`.

use unirl::error::{Error, Result};
use unirl::model::ImageSampling;
use unirl::picture;
use unirl::plugin::Plugins;

use crate::args::GenerateArgs;
use crate::build;

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    if args.count == 0 {
        return Err(Error::usage("`--count`: expected at least 1, got 0"));
    }
    build::check_parent(&args.out)?;
    let config = build::inference(&args.model)?;
    let mut plugins = Plugins::new(&args.model.search.plugin_dir);
    let mut model = build::model(&mut plugins, &config.model, false, config.train.seed)?;
    let prompts: Vec<String> =
        args.prompt.iter().flat_map(|prompt| std::iter::repeat_n(prompt.clone(), args.count)).collect();
    let sampling = ImageSampling { seed: config.train.seed, ..config.rollout.images };
    let images = model.generate(&prompts, &sampling)?;
    picture::write_grid(&model.pixels(&images)?, args.count as i64, &args.out)?;
    println!("{}", args.out.display());
    Ok(())
}
