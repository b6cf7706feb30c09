//! The images of a set, in the layout of `GenEval`'s generation scripts, and their detections.
//!
//! `IMG/00000/metadata.jsonl` is the prompt's line, `IMG/00000/samples/0000.png` its first image. Folders whose names are
//! digits, and pictures whose names are digits and `.png`, are read; a `grid.png` and whatever else is there is not.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use super::{Metadata, Vocabulary};
use crate::detector::Detection;
use crate::error::{Context as _, Error, Result};
use crate::{input, json};

/// A prompt and its images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The name of its folder.
    pub folder: String,
    /// What it asks for.
    pub metadata: Metadata,
    /// Its images by number, as they are called in every file: `00000/samples/0000.png`.
    pub images: Vec<String>,
}

/// The file in which the settings stand that a set was drawn with, beside the prompts' folders. `GenEval`'s scripts pass
/// over it.
pub const SETTINGS: &str = "draw.json";

/// What of it tells whether a set is complete.
#[derive(Deserialize)]
struct Drawn {
    prompts: usize,
    count: usize,
}

/// The folder of a prompt.
pub fn prompt_folder(prompt: usize) -> String {
    format!("{prompt:05}")
}

/// An image of a prompt, below the folder of the set.
pub fn image_path(prompt: usize, image: usize) -> String {
    format!("{}/samples/{image:04}.png", prompt_folder(prompt))
}

/// Reads the prompts of a set and the names of their images.
///
/// A set that is not complete is refused: a number without a folder, or a prompt with fewer images than another.
pub fn read_folder(root: &Path) -> Result<Vec<Prompt>> {
    if !root.is_dir() {
        return Err(Error::usage(format!("no folder of images at `{}`", root.display()))
            .hint("`unirl geneval draw` makes one, and so do GenEval's own scripts"));
    }
    let mut folders = numbered(root, "", Path::is_dir)?;
    folders.sort();
    if folders.is_empty() {
        return Err(Error::usage(format!("`{}` has no folders `00000`, `00001`, …", root.display())));
    }
    let drawn = settings(root)?;
    let numbers: BTreeSet<u64> = folders.iter().map(|(number, _)| *number).collect();
    let last = numbers.last().map_or(0, |last| last.saturating_add(1));
    let expected = drawn.as_ref().map_or(last, |drawn| last.max(drawn.prompts as u64));
    let missing: Vec<u64> = (0..expected).filter(|number| !numbers.contains(number)).take(2).collect();
    if let Some(first) = missing.first() {
        let count = expected - numbers.len() as u64;
        return Err(incomplete(root).cause(format!(
            "{count} of {expected} prompts have no folder, the first of them `{}`",
            prompt_folder(*first as usize)
        )));
    }
    let prompts: Vec<Prompt> =
        folders.into_iter().map(|(_, name)| read_prompt(root, &name)).collect::<Result<_>>()?;
    let most = prompts.iter().map(|prompt| prompt.images.len()).max().unwrap_or(0);
    let most = drawn.map_or(most, |drawn| most.max(drawn.count)).max(1);
    for prompt in &prompts {
        if prompt.images.len() < most {
            return Err(incomplete(root).cause(format!(
                "`{}/samples` has {} of {most} images",
                prompt.folder,
                prompt.images.len()
            )));
        }
    }
    Ok(prompts)
}

fn incomplete(root: &Path) -> Error {
    Error::usage(format!("the set `{}` is not complete", root.display()))
        .hint("`unirl geneval draw` with the same arguments draws what is missing")
}

fn settings(root: &Path) -> Result<Option<Drawn>> {
    let path = root.join(SETTINGS);
    if !path.is_file() {
        return Ok(None);
    }
    json::read(&path).map(Some)
}

/// What is in a folder under a number, with the ending `ending`.
fn numbered(folder: &Path, ending: &str, fits: impl Fn(&Path) -> bool) -> Result<Vec<(u64, String)>> {
    let place = || format!("cannot read the folder `{}`", folder.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).context(place)? {
        let entry = entry.context(place)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let digits = name.strip_suffix(ending).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        if let Some(Ok(number)) = digits.map(str::parse)
            && fits(&entry.path())
        {
            found.push((number, name));
        }
    }
    Ok(found)
}

fn read_prompt(root: &Path, name: &str) -> Result<Prompt> {
    let folder = root.join(name);
    let path = folder.join("metadata.jsonl");
    let metadata = Metadata::parse(&input::read_text(&path)?).context(|| format!("`{}`", path.display()))?;
    let samples = folder.join("samples");
    let mut images = if samples.is_dir() { numbered(&samples, ".png", Path::is_file)? } else { Vec::new() };
    images.sort();
    let images = images.into_iter().map(|(_, image)| format!("{name}/samples/{image}")).collect();
    Ok(Prompt { folder: name.into(), metadata, images })
}

/// A line of a file of detections; what else stands there is left alone.
#[derive(Deserialize)]
struct Line {
    filename: String,
    detections: Vec<Detection>,
}

/// Reads a file of detections, a line an image: `{"filename": "00000/samples/0000.png", "detections": [...]}`.
///
/// Every image of the prompts must have one line, and no other image may have any.
pub fn read_detections(path: &Path, prompts: &[Prompt]) -> Result<BTreeMap<String, Vec<Detection>>> {
    let text = input::read_text(path)?;
    let words = Vocabulary::of(prompts.iter().map(|prompt| &prompt.metadata));
    let images: BTreeSet<&str> =
        prompts.iter().flat_map(|prompt| &prompt.images).map(String::as_str).collect();
    let mut found = BTreeMap::new();
    for (number, line) in json::lines(&text) {
        let at = || format!("`{}`, line {number}", path.display());
        let Line { filename, detections } = json::parse_line(line).context(at)?;
        if !images.contains(filename.as_str()) {
            let error = Error::usage(format!("`filename`: there is no image `{filename}`"));
            let near = images.iter().find(|image| filename.ends_with(&format!("/{image}")));
            let example = near.or_else(|| images.first()).copied().unwrap_or_default();
            return Err(error
                .hint(format!("names are relative to the folder of images: `{example}`"))
                .context(at()));
        }
        for (number, detection) in detections.iter().enumerate() {
            let place = || format!("`detections[{number}]`");
            detection.check().context(place).context(at)?;
            words.check_class(&detection.class).context(place).context(at)?;
        }
        if found.insert(filename.clone(), detections).is_some() {
            return Err(Error::usage(format!("`{filename}` has a line already")).context(at()));
        }
    }
    let missing: Vec<&str> = images.into_iter().filter(|image| !found.contains_key(*image)).collect();
    if let Some(first) = missing.first() {
        return Err(Error::usage(format!(
            "`{}` has no line for {} of {} images, the first of them `{first}`",
            path.display(),
            missing.len(),
            missing.len() + found.len()
        ))
        .hint("an image in which nothing was found has a line with `\"detections\": []`"));
    }
    Ok(found)
}
