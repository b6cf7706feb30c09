//! `unirl ask`.

use unirl::error::{Error, Result};
use unirl::picture;
use unirl::plugin::Plugins;

use crate::args::AskArgs;
use crate::build;

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &AskArgs) -> Result<()> {
    if !args.image.is_file() {
        return Err(Error::usage(format!("no picture at `{}`", args.image.display())));
    }
    let config = build::inference(&args.model)?;
    let mut plugins = Plugins::new(&args.model.search.plugin_dir);
    let mut model = build::model(&mut plugins, &config.model, false, config.train.seed)?;
    let pixels = picture::read(&args.image, model.card().resolution)?;
    let images = model.encode(&pixels)?;
    let answers = model.answer(&images, std::slice::from_ref(&args.question), &config.rollout.answers)?;
    println!("{}", answers.text.join("\n"));
    Ok(())
}
