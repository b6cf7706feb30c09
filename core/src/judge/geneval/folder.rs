//! The images of a set, in the layout of `GenEval`'s generation scripts, and their detections.
//!
//! `IMG/00000/metadata.jsonl` is the prompt's line, `IMG/00000/samples/0000.png` its first image. Folders whose names are
//! digits, and pictures whose names are digits and `.png`, `.jpg` or `.jpeg`, are read; a `grid.png` and whatever else is
//! there is not.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use serde::Deserialize;

use super::{Metadata, Vocabulary};
use crate::detector::Detection;
use crate::error::{Context as _, Error, Result};
use crate::prompts::Category;
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

/// The endings of images.
const ENDINGS: [&str; 3] = ["png", "jpg", "jpeg"];

/// Which prompts of a set are judged: those of some tags, those of some numbers, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subset {
    tags: Vec<Category>,
    numbers: Vec<RangeInclusive<u64>>,
    text: String,
}

impl FromStr for Subset {
    type Err = Error;

    /// `counting,colors` are the prompts of two tags, `0-99,200` those of 101 numbers, `colors,0-99` the prompts of the tag
    /// among these.
    fn from_str(text: &str) -> Result<Self> {
        let mut subset = Self { tags: Vec::new(), numbers: Vec::new(), text: text.into() };
        for part in text.split(',').map(str::trim) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let tag = Category::ALL.into_iter().find(|tag| tag.name() == part);
            match (tag, first.parse::<u64>(), last.parse::<u64>()) {
                (Some(tag), ..) => subset.tags.push(tag),
                (None, Ok(first), Ok(last)) if first <= last => subset.numbers.push(first..=last),
                _ => {
                    return Err(Error::usage(format!(
                        "subset `{text}`: `{part}` is neither a tag nor numbers"
                    ))
                    .hint(format!("tags: {}", Category::ALL.map(Category::name).join(", ")))
                    .hint("numbers of prompts: e.g. `7` or `0-99`"));
                }
            }
        }
        Ok(subset)
    }
}

impl std::fmt::Display for Subset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl Subset {
    fn has_number(&self, number: u64) -> bool {
        self.numbers.is_empty() || self.numbers.iter().any(|range| range.contains(&number))
    }

    fn has_tag(&self, tag: Category) -> bool {
        self.tags.is_empty() || self.tags.contains(&tag)
    }
}

/// The folder of a prompt.
pub fn prompt_folder(prompt: usize) -> String {
    format!("{prompt:05}")
}

/// An image of a prompt, below the folder of the set.
pub fn image_path(prompt: usize, image: usize) -> String {
    format!("{}/samples/{image:04}.png", prompt_folder(prompt))
}

/// Reads the prompts of a set, or of a part of it, and the names of their images.
///
/// A set that is not complete is refused: a number without a folder, or a prompt with fewer images than another. Of a part
/// that is chosen by numbers only these need to be there.
pub fn read_folder(root: &Path, subset: Option<&Subset>) -> Result<Vec<Prompt>> {
    if !root.is_dir() {
        return Err(Error::usage(format!("no folder of images at `{}`", root.display()))
            .hint("`unirl geneval draw` makes one, and so do GenEval's own scripts"));
    }
    let mut folders = numbered(root, Path::is_dir, |name| Some(name))?;
    folders.sort();
    let Some((last, _)) = folders.last() else {
        return Err(Error::usage(format!("`{}` has no folders `00000`, `00001`, …", root.display())));
    };
    let drawn = settings(root)?;
    let numbers: BTreeSet<u64> = folders.iter().map(|(number, _)| *number).collect();
    let wanted: Vec<RangeInclusive<u64>> = match subset {
        Some(subset) if !subset.numbers.is_empty() => subset.numbers.clone(),
        _ => vec![0..=(*last).max(drawn.as_ref().map_or(0, |drawn| drawn.prompts as u64).saturating_sub(1))],
    };
    let present = |range: &RangeInclusive<u64>| numbers.range(range.clone()).count() as u64;
    let expected: u64 = wanted.iter().map(|range| (range.end() - range.start()).saturating_add(1)).sum();
    let missing = expected - wanted.iter().map(present).sum::<u64>();
    if missing > 0 {
        let first = wanted.into_iter().flatten().find(|number| !numbers.contains(number)).unwrap_or(0);
        return Err(incomplete(root).cause(format!(
            "{missing} of {expected} prompts have no folder, the first of them `{}`",
            prompt_folder(first as usize)
        )));
    }
    let mut prompts = Vec::new();
    for (number, name) in folders {
        if subset.is_none_or(|subset| subset.has_number(number)) {
            let prompt = read_prompt(root, &name)?;
            if subset.is_none_or(|subset| subset.has_tag(prompt.metadata.tag)) {
                prompts.push(prompt);
            }
        }
    }
    if let Some(subset) = subset
        && prompts.is_empty()
    {
        return Err(Error::usage(format!("`{}` has no prompts of the subset `{subset}`", root.display())));
    }
    let most = prompts.iter().map(|prompt| prompt.images.len()).max().unwrap_or(0);
    let most = drawn.map_or(most, |drawn| most.max(drawn.count)).max(1);
    for prompt in &prompts {
        if prompt.images.len() < most {
            let error = incomplete(root).cause(format!(
                "`{}/samples` has {} of {most} images",
                prompt.folder,
                prompt.images.len()
            ));
            return Err(match prompt.images.len() {
                0 => error.hint("images are called `0000.png`, `0000.jpg` or `0000.jpeg`, `0001.png`, …"),
                _ => error,
            });
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

/// What is in a folder under a number; `digits` takes it out of a name, if the name is of the right form.
fn numbered(
    folder: &Path,
    fits: fn(&Path) -> bool,
    digits: fn(&str) -> Option<&str>,
) -> Result<Vec<(u64, String)>> {
    let place = || format!("cannot read the folder `{}`", folder.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).context(place)? {
        let entry = entry.context(place)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let number = digits(&name).filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
        if let Some(Ok(number)) = number.map(str::parse)
            && fits(&entry.path())
        {
            found.push((number, name));
        }
    }
    Ok(found)
}

/// The number of an image, as it stands in its name.
fn image_number(name: &str) -> Option<&str> {
    let (number, ending) = name.rsplit_once('.')?;
    ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known)).then_some(number)
}

fn read_prompt(root: &Path, name: &str) -> Result<Prompt> {
    let folder = root.join(name);
    let path = folder.join("metadata.jsonl");
    let metadata = Metadata::parse(&input::read_text(&path)?).context(|| format!("`{}`", path.display()))?;
    let samples = folder.join("samples");
    let mut images =
        if samples.is_dir() { numbered(&samples, Path::is_file, image_number)? } else { Vec::new() };
    images.sort();
    if let Some([(_, one), (_, other)]) = images.array_windows().find(|[one, other]| one.0 == other.0) {
        return Err(Error::usage(format!("`{}` has one image twice", samples.display()))
            .cause(format!("`{one}` and `{other}` have the same number"))
            .hint("remove one of them"));
    }
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
/// Every image of the prompts must have one line, and no other image may have any; but where the prompts are a part of a
/// set, lines about the others are skipped.
pub fn read_detections(
    path: &Path,
    prompts: &[Prompt],
    part: bool,
) -> Result<BTreeMap<String, Vec<Detection>>> {
    let text = input::read_text(path)?;
    let words = Vocabulary::of(prompts.iter().map(|prompt| &prompt.metadata));
    let images: BTreeSet<&str> =
        prompts.iter().flat_map(|prompt| &prompt.images).map(String::as_str).collect();
    let mut found = BTreeMap::new();
    for (number, line) in json::lines(&text) {
        let at = || format!("`{}`, line {number}", path.display());
        let Line { filename, mut detections } = json::parse_line(line).context(at)?;
        let folder = filename.split('/').next().unwrap_or_default();
        if part && !folder.is_empty() && prompts.iter().all(|prompt| prompt.folder != folder) {
            continue;
        }
        if !images.contains(filename.as_str()) {
            let error = Error::usage(format!("`filename`: there is no image `{filename}`"));
            let near = images.iter().find(|image| filename.ends_with(&format!("/{image}")));
            let example = near.or_else(|| images.first()).copied().unwrap_or_default();
            return Err(error
                .hint(format!("names are relative to the folder of images: `{example}`"))
                .context(at()));
        }
        for (number, detection) in detections.iter_mut().enumerate() {
            let place = || format!("`detections[{number}]`");
            detection.check().context(place).context(at)?;
            words.resolve(detection).context(place).context(at)?;
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
