//! `unirl generate`.

use std::path::Path;

use tch::Tensor;
use unirl::config::RunConfig;
use unirl::error::{Context, Error, Result};
use unirl::image_io;
use unirl::model::{BatchSlice, ImageSampling};

use crate::args::GenerateArgs;
use crate::settings::Settings;
use crate::{batch, io, load, progress};

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &GenerateArgs) -> Result<()> {
    if args.count == 0 {
        return Err(Error::usage("`--count`: expected at least 1, got 0"));
    }
    let ending = args.out.extension();
    if let Some(other) = ending.filter(|ending| !ending.eq_ignore_ascii_case("png")) {
        let other = other.display();
        return Err(Error::usage(format!(
            "`--out`: expected a name that ends in `.png`, or a folder, got `.{other}`"
        )));
    }
    let one_file = ending.is_some();
    if one_file {
        io::check_output(&args.out)?;
    } else if args.out.is_file() {
        return Err(Error::usage(format!("`--out`: `{}` is a file", args.out.display()))
            .hint("name a folder, or a file that ends in `.png`"));
    }
    let settings = Settings::drawing(&args.model, &args.drawing)?;
    let mut plugins = args.model.search.plugins()?;
    let (mut model, config) = load::inference(&settings, &mut plugins)?;
    let prompts: Vec<String> =
        args.prompt.iter().flat_map(|prompt| std::iter::repeat_n(prompt.clone(), args.count)).collect();

    let size = batch::size(&*model, &config, args.drawing.batch, |footprint| footprint.generate)?;
    let bar = progress::bar("draw", prompts.len() as u64);
    let mut pictures: Vec<Tensor> = Vec::new();
    for (index, rows) in prompts.chunks(size).enumerate() {
        // The same pictures whatever fits at once.
        let part = Some(BatchSlice { first: (index * size) as i64, of: prompts.len() as i64 });
        let seed = config.train.seed;
        let images = model.generate(rows, &ImageSampling { seed, part, ..config.rollout.images.clone() })?;
        let pixels = model.pixels(&images)?.to_device(tch::Device::Cpu);
        if one_file {
            pictures.push(pixels);
        } else {
            for row in 0..rows.len() {
                let at = index * size + row;
                let name = format!("{:05}-{:02}.png", at / args.count, at % args.count);
                let path = folder(&args.out)?.join(name);
                let texts = texts(&config, &prompts[at], (at, prompts.len()));
                image_io::write_grid(&pixels.narrow(0, row as i64, 1), 1, &path, &texts)?;
            }
        }
        bar.inc(rows.len() as u64);
    }
    bar.finish_and_clear();
    if one_file {
        let texts = texts(&config, &args.prompt.join("\n"), (0, prompts.len()));
        image_io::write_grid(&Tensor::cat(&pictures, 0), args.count as i64, &args.out, &texts)?;
    }
    println!("{}", args.out.display());
    Ok(())
}

fn folder(path: &Path) -> Result<&Path> {
    std::fs::create_dir_all(path).context(|| format!("cannot create `{}`", path.display()))?;
    Ok(path)
}

/// What goes into the metadata of a picture, one of so many: enough to draw it again.
pub(crate) fn texts(
    config: &RunConfig,
    prompt: &str,
    (index, of): (usize, usize),
) -> Vec<(&'static str, String)> {
    let images = &config.rollout.images;
    vec![
        ("prompt", prompt.to_string()),
        ("plugin", config.model.plugin.clone()),
        ("model", config.model.checkpoint.clone()),
        ("guidance", images.guidance.to_string()),
        ("steps", images.steps.to_string()),
        ("temperature", images.temperature.to_string()),
        ("seed", config.train.seed.to_string()),
        ("index", format!("{index} of {of}")),
        ("Software", format!("unirl {}", env!("CARGO_PKG_VERSION"))),
    ]
}
