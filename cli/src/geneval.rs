//! `unirl geneval`: generates images for `GenEval`'s prompts and judges them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use serde_json::{Value, json};
use tch::Tensor;
use unirl::detector::Detection;
use unirl::error::{Context, Error, Result};
use unirl::model::{BatchSlice, ImageSampling};
use unirl_base::{layers, seed};
use unirl_benchmarks::geneval::{
    self, Metadata, Prompt, SETTINGS, Subset, Thresholds, Vocabulary, image_path, prompt_folder,
    read_detections, read_folder, read_metadata,
};
use unirl_engine::config::RunConfig;
use unirl_engine::{atomic_fs, image_io};

use crate::args::{GenevalCommand, GenevalGenerateArgs, GenevalJudgeArgs};
use crate::settings::Settings;
use crate::{batch, generate, io, load, progress};

/// Prompts that share a seed. An image depends on its position in the block and on nothing outside of it.
const BLOCK: usize = 32;

pub(crate) fn run(command: &GenevalCommand) -> Result<()> {
    match command {
        GenevalCommand::Generate(args) => generate_images(args),
        GenevalCommand::Judge(args) => judge(args),
    }
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn generate_images(args: &GenevalGenerateArgs) -> Result<()> {
    let GenevalGenerateArgs { out, count, .. } = args;
    let count = *count;
    if count == 0 {
        return Err(Error::usage("`--count`: expected at least 1, got 0"));
    }
    let prompts = read_metadata(&args.metadata)?;
    let settings = Settings::for_generation(&args.model, &args.generation)?;
    let mut plugins = args.model.search.plugins()?;
    let (mut model, config) = load::model_and_config(&settings, &mut plugins)?;
    let mut record = record(&config, prompts.len(), count)?;
    let existing = existing_record(out, &record)?;
    // The batch size changes rounding, so that a resumed command keeps the recorded one.
    let recorded = existing.as_ref().and_then(|existing| existing["batch"].as_u64()).filter(|size| *size > 0);
    let requested = args.generation.batch.or(recorded.map(|size| size as usize));
    let size = batch::size(&*model, &config, requested, |footprint| footprint.generate)?;
    if existing.is_none() {
        record["batch"] = size.into();
        write_record(out, &record)?;
    }
    let mut missing = Vec::new();
    for (index, prompt) in prompts.iter().enumerate() {
        if !is_complete(out, index, prompt, count)? {
            missing.push(index);
        }
    }
    if missing.len() < prompts.len() {
        let complete = prompts.len() - missing.len();
        progress::note(&format!("{complete} of {} prompts are already complete", prompts.len()));
    }
    let batches = batches(&missing, count, size, prompts.len() * count);
    let total: usize = batches.iter().map(ExactSizeIterator::len).sum();
    let bar = progress::bar("generate", total as u64);
    for images in batches {
        let block = images.start / (BLOCK * count);
        let first = (images.start % (BLOCK * count)) as i64;
        // The slice makes the random numbers independent of the batch size and of existing images.
        let part = Some(BatchSlice { first, of: (BLOCK * count) as i64 });
        let seed = seed::derive(config.train.seed, &[block as u64]);
        let texts: Vec<String> = images.clone().map(|image| prompts[image / count].prompt.clone()).collect();
        let generated =
            model.generate(&texts, &ImageSampling { seed, part, ..config.rollout.images.clone() })?;
        let pixels = model.pixels(&generated)?.to_device(tch::Device::Cpu);
        for (row, image) in images.clone().enumerate() {
            let prompt = image / count;
            if missing.binary_search(&prompt).is_err() {
                continue;
            }
            write_metadata(out, prompt, &prompts[prompt])?;
            let metadata = generate::metadata(&config, &texts[row], (image, prompts.len() * count));
            let path = out.join(image_path(prompt, image % count));
            image_io::write_grid(&pixels.narrow(0, row as i64, 1), 1, &path, &metadata)?;
        }
        bar.inc(images.len() as u64);
        tracing::info!("generated {} of {total} images", bar.position());
    }
    bar.finish_and_clear();
    println!("{}", out.display());
    Ok(())
}

/// The settings that determine the images. They do not depend on the working directory.
fn record(config: &RunConfig, prompts: usize, count: usize) -> Result<Value> {
    let checkpoint = match config.model.checkpoint.as_str() {
        "builtin" => "builtin".into(),
        dir => std::fs::canonicalize(dir)
            .context(|| format!("cannot resolve the model directory `{dir}`"))?
            .display()
            .to_string(),
    };
    let options = serde_json::to_value(&config.model.options)
        .map_err(|error| Error::usage("cannot convert `model.options` to JSON").cause(error))?;
    let images = &config.rollout.images;
    Ok(json!({
        "prompts": prompts,
        "count": count,
        "plugin": config.model.plugin,
        "model": checkpoint,
        "options": options,
        "guidance": images.guidance,
        "steps": images.steps,
        "temperature": images.temperature,
        "seed": config.train.seed,
    }))
}

/// The record of an existing directory; `None` if it is new. Errors if its settings differ from `record`.
fn existing_record(out: &Path, record: &Value) -> Result<Option<Value>> {
    let path = out.join(SETTINGS);
    if path.is_file() {
        let place = || format!("cannot read `{}`", path.display());
        let text = std::fs::read_to_string(&path).context(place)?;
        let before: Value = serde_json::from_str(&text).context(place)?;
        for (key, value) in record.as_object().into_iter().flatten() {
            let old = before.get(key).unwrap_or(&Value::Null);
            if old != value {
                return Err(Error::usage(format!("`{}` contains images of another command", out.display()))
                    .cause(format!("`{key}` in `{}`: expected {value}, got {old}", path.display()))
                    .hint("write to another directory, or repeat the settings of the existing images"));
            }
        }
        return Ok(Some(before));
    }
    let used = out.is_dir()
        && std::fs::read_dir(out).context(|| format!("cannot read `{}`", out.display()))?.next().is_some();
    if used {
        return Err(Error::usage(format!("`{}` was not written by `unirl geneval draw`", out.display()))
            .cause(format!("it is not empty and does not contain `{SETTINGS}`"))
            .hint("write to another directory"));
    }
    Ok(None)
}

fn write_record(out: &Path, record: &Value) -> Result<()> {
    std::fs::create_dir_all(out).context(|| format!("cannot create `{}`", out.display()))?;
    let text = serde_json::to_string_pretty(record).context(|| "cannot write the settings")?;
    atomic_fs::write(&out.join(SETTINGS), &format!("{text}\n"))
}

/// Whether metadata and images of a prompt are complete. Removes temporary files of interrupted processes.
fn is_complete(out: &Path, index: usize, prompt: &Metadata, count: usize) -> Result<bool> {
    let dir = out.join(prompt_folder(index));
    let path = dir.join("metadata.jsonl");
    if let Ok(line) = std::fs::read_to_string(&path)
        && line != prompt.line()
    {
        return Err(Error::usage(format!("`{}` contains images of another command", out.display()))
            .cause(format!("`{}` differs from the metadata of prompt {index}", path.display()))
            .hint("write to another directory, or use the metadata of the existing images"));
    }
    for dir in [dir.clone(), dir.join("samples")] {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(".partial-") {
                let place = || format!("cannot remove `{}`", entry.path().display());
                std::fs::remove_file(entry.path()).context(place)?;
            }
        }
    }
    Ok(path.is_file() && (0..count).all(|image| out.join(image_path(index, image)).is_file()))
}

/// The batches that contain images of `prompts`. Each block of `images` is split into batches of `size`. A batch is always
/// generated as a whole, so that its images are the same after an interruption.
fn batches(prompts: &[usize], count: usize, size: usize, images: usize) -> Vec<Range<usize>> {
    let block = BLOCK * count;
    let mut batches: Vec<Range<usize>> = Vec::new();
    for image in prompts.iter().flat_map(|prompt| prompt * count..(prompt + 1) * count) {
        if batches.last().is_none_or(|last| last.end <= image) {
            let start = image - image % block % size;
            let end = (image - image % block + block).min(images);
            batches.push(start..start.saturating_add(size).min(end));
        }
    }
    batches
}

/// Writes the metadata of a prompt unless they exist: verbatim and without a newline, as `GenEval`'s script does.
fn write_metadata(out: &Path, index: usize, prompt: &Metadata) -> Result<()> {
    let dir = out.join(prompt_folder(index));
    let path = dir.join("metadata.jsonl");
    if path.is_file() {
        return Ok(());
    }
    let samples = dir.join("samples");
    std::fs::create_dir_all(&samples).context(|| format!("cannot create `{}`", samples.display()))?;
    atomic_fs::write(&path, prompt.line())
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn judge(args: &GenevalJudgeArgs) -> Result<()> {
    if let Some(out) = &args.out {
        io::check_output(out)?;
    }
    let thresholds = Thresholds::new(args.thresholds.threshold, args.thresholds.counting_threshold)?;
    let subset: Option<Subset> = args.subset.as_deref().map(str::parse).transpose()?;
    let prompts = read_folder(&args.images, subset.as_ref())?;
    let detections = match (&args.found.detections, &args.found.detector) {
        (Some(path), _) => read_detections(path, &prompts, subset.is_some())?,
        (None, Some(name)) => detect(args, name, &prompts)?,
        (None, None) => return Err(Error::usage("expected `--detections` or `--detector`")),
    };
    let (lines, summary) = geneval::judge_all(&prompts, &detections, thresholds, subset.as_ref())?;
    for warning in summary.detections.warnings(&thresholds) {
        tracing::warn!("{warning}");
    }
    if let Some(out) = &args.out {
        let mut text = String::new();
        for line in &lines {
            text += &serde_json::to_string(line).context(|| "cannot serialize a result")?;
            text.push('\n');
        }
        atomic_fs::write(out, &text)?;
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&summary).context(|| "cannot serialize the figures")?);
    } else {
        println!("{}", geneval::table(&summary));
    }
    Ok(())
}

/// Runs a detector on every image, one prompt at a time.
fn detect(
    args: &GenevalJudgeArgs,
    name: &str,
    prompts: &[Prompt],
) -> Result<BTreeMap<String, Vec<Detection>>> {
    let mut options = toml::Table::new();
    for assignment in &args.sets {
        layers::set(&mut options, assignment, &serde_json::Value::Null)?;
    }
    let options = serde_json::to_value(&options)
        .map_err(|error| Error::usage("cannot convert the options of the detector to JSON").cause(error))?;
    // CUDA must be loaded before the first tensor is created.
    let device = load::device(args.device.as_deref().unwrap_or("auto"))?;
    let detector = args.search.plugins()?.detector(name, &options)?;
    let words = Vocabulary::of(prompts.iter().map(|prompt| &prompt.metadata));
    let images: usize = prompts.iter().map(|prompt| prompt.images.len()).sum();
    let bar = progress::bar("detect", images as u64);
    let mut all = BTreeMap::new();
    for prompt in prompts {
        let pixels: Vec<Tensor> = prompt
            .images
            .iter()
            .map(|image| image_io::read_unscaled(&args.images.join(image)))
            .collect::<Result<_>>()?;
        let mut found = Vec::new();
        for run in pixels.chunk_by(|one, other| one.size() == other.size()) {
            let pixels = Tensor::cat(run, 0).to_device(device); // [B,3,H,W]
            found.extend(detector.detect(&pixels, &words.classes, &words.colors)?);
        }
        for (image, mut detections) in prompt.images.iter().zip(found) {
            for detection in &mut detections {
                words.resolve(detection).context(|| format!("detector `{name}`, image `{image}`"))?;
            }
            all.insert(image.clone(), detections);
        }
        bar.inc(prompt.images.len() as u64);
    }
    bar.finish_and_clear();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::batches;

    #[test]
    fn batches_do_not_depend_on_missing_prompts() {
        let all = batches(&(0..40).collect::<Vec<_>>(), 2, 5, 80);
        assert_eq!(all[11..], [55..60, 60..64, 64..69, 69..74, 74..79, 79..80]);
        for missing in [vec![2], vec![0, 1, 7], vec![31, 32, 39]] {
            let some = batches(&missing, 2, 5, 80);
            assert!(some.iter().all(|batch| all.contains(batch)), "{some:?}");
            let images = missing.iter().flat_map(|prompt| [prompt * 2, prompt * 2 + 1]);
            assert!(images.into_iter().all(|image| some.iter().any(|batch| batch.contains(&image))));
        }
        assert!(batches(&[], 4, 8, 8).is_empty());
    }
}
