//! `unirl generate`.

use std::path::Path;

use tch::Tensor;
use unirl::error::{Context, Error, Result};
use unirl::model::{BatchSlice, ImageSampling};
use unirl_engine::config::RunConfig;
use unirl_engine::image_io;

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
            "`--out`: expected a directory or a file that ends in `.png`, got `.{other}`"
        )));
    }
    let one_file = ending.is_some();
    if one_file {
        io::check_output(&args.out)?;
    } else if args.out.is_file() {
        return Err(Error::usage(format!("`--out`: `{}` is a file", args.out.display()))
            .hint("name a directory, or a file that ends in `.png`"));
    }
    let settings = Settings::for_generation(&args.model, &args.generation)?;
    let mut plugins = args.model.search.plugins()?;
    let (mut model, config) = load::model_and_config(&settings, &mut plugins)?;
    let prompts: Vec<String> =
        args.prompt.iter().flat_map(|prompt| std::iter::repeat_n(prompt.clone(), args.count)).collect();

    let size = batch::size(&*model, &config, args.generation.batch, |footprint| footprint.generate)?;
    let bar = progress::bar("generate", prompts.len() as u64);
    let mut all_pixels: Vec<Tensor> = Vec::new();
    for (index, rows) in prompts.chunks(size).enumerate() {
        // The slice makes images independent of the batch size.
        let part = Some(BatchSlice { first: (index * size) as i64, of: prompts.len() as i64 });
        let seed = config.train.seed;
        let images = model.generate(rows, &ImageSampling { seed, part, ..config.rollout.images.clone() })?;
        let pixels = model.pixels(&images)?.to_device(tch::Device::Cpu);
        if one_file {
            all_pixels.push(pixels);
        } else {
            for row in 0..rows.len() {
                let at = index * size + row;
                let name = format!("{:05}-{:02}.png", at / args.count, at % args.count);
                let path = create_dir(&args.out)?.join(name);
                let metadata = metadata(&config, &prompts[at], (at, prompts.len()));
                image_io::write_grid(&pixels.narrow(0, row as i64, 1), 1, &path, &metadata)?;
            }
        }
        bar.inc(rows.len() as u64);
    }
    bar.finish_and_clear();
    if one_file {
        let metadata = metadata(&config, &args.prompt.join("\n"), (0, prompts.len()));
        image_io::write_grid(&Tensor::cat(&all_pixels, 0), args.count as i64, &args.out, &metadata)?;
    }
    println!("{}", args.out.display());
    Ok(())
}

fn create_dir(path: &Path) -> Result<&Path> {
    std::fs::create_dir_all(path).context(|| format!("cannot create `{}`", path.display()))?;
    Ok(path)
}

/// The PNG metadata of image `index` of `of`: what is needed to generate it again.
pub(crate) fn metadata(
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
