//! `unirl ask`.

use tch::Tensor;
use unirl::error::{Error, Result};
use unirl::model::{BatchSlice, TextSampling};
use unirl_engine::image_io;

use crate::args::AskArgs;
use crate::settings::Settings;
use crate::{batch, load, progress};

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &AskArgs) -> Result<()> {
    if let Some(missing) = args.image.iter().find(|path| !path.is_file()) {
        let what = if missing.is_dir() { "is a directory, expected an image file" } else { "does not exist" };
        return Err(Error::usage(format!("image `{}` {what}", missing.display()))
            .hint("pass PNG or JPEG files: `--image a.png b.jpg`"));
    }
    let mut settings = Settings::new(&args.model, None)?;
    if let Some(temperature) = args.temperature {
        settings.put("rollout.answers.temperature", temperature)?;
    }
    if let Some(top_k) = args.top_k {
        settings.put("rollout.answers.top_k", top_k)?;
    }
    if let Some(max_tokens) = args.max_tokens {
        settings.put("rollout.answers.max_tokens", max_tokens)?;
    }
    let mut plugins = args.model.search.plugins()?;
    let (mut model, config) = load::model_and_config(&settings, &mut plugins)?;
    let read = image_io::reader(model.card());

    let size = batch::size(&*model, &config, args.batch, |footprint| footprint.answer)?;
    let bar = progress::bar("answer", args.image.len() as u64);
    let mut answers = Vec::new();
    for (index, paths) in args.image.chunks(size).enumerate() {
        let pixels: Vec<Tensor> = paths.iter().map(|path| read(path)).collect::<Result<_>>()?;
        let images = model.encode(&Tensor::cat(&pixels, 0))?;
        let questions = vec![args.question.clone(); paths.len()];
        let part = Some(BatchSlice { first: (index * size) as i64, of: args.image.len() as i64 });
        let seed = config.train.seed;
        let sampling = TextSampling { seed, part, ..config.rollout.answers.clone() };
        answers.extend(model.answer(&images, &questions, &sampling)?.text);
        bar.inc(paths.len() as u64);
    }
    bar.finish_and_clear();
    for (path, answer) in args.image.iter().zip(answers) {
        match args.image.len() {
            1 => println!("{answer}"),
            _ => println!("{}: {answer}", path.display()),
        }
    }
    Ok(())
}
