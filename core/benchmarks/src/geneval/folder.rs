//! The images of a set, in the layout of the generation scripts of `GenEval`, and their detections.
//!
//! `IMG/00000/metadata.jsonl` is the line of the prompt, `IMG/00000/samples/0000.png` its first image. Only directories with
//! numeric names and images with numeric names and the extension `.png`, `.jpg` or `.jpeg` are read; other files, such as
//! `grid.png`, are ignored.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;

use serde::Deserialize;
use unirl::detector::Detection;
use unirl::error::{Context as _, Error, Result};
use unirl::prompt::Category;
use unirl_base::{input, json};

use super::{Metadata, Vocabulary};

/// A prompt and its images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The name of its directory.
    pub folder: String,
    /// The content of the prompt.
    pub metadata: Metadata,
    /// The images by number, as paths below the set: `00000/samples/0000.png`.
    pub images: Vec<String>,
}

/// The file with the settings that a set was generated with, next to the prompt directories. The scripts of `GenEval` ignore
/// it.
pub const SETTINGS: &str = "draw.json";

/// The settings that determine whether a set is complete.
#[derive(Deserialize)]
struct Settings {
    prompts: usize,
    count: usize,
}

/// The extensions of images.
const EXTENSIONS: [&str; 3] = ["png", "jpg", "jpeg"];

/// A selection of the prompts of a set, by tags, by numbers, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subset {
    tags: Vec<Category>,
    numbers: Vec<RangeInclusive<u64>>,
    text: String,
}

impl FromStr for Subset {
    type Err = Error;

    /// Parses a selection: `counting,colors` selects two tags, `0-99,200` selects 101 numbers, and `colors,0-99` the prompts
    /// of a tag among these numbers.
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
                        "subset `{text}`: expected a tag or prompt numbers, got `{part}`"
                    ))
                    .hint(format!("tags: {}", Category::ALL.map(Category::name).join(", ")))
                    .hint("prompt numbers: such as `7` or `0-99`"));
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

/// Returns the directory name of a prompt.
pub fn prompt_folder(prompt: usize) -> String {
    format!("{prompt:05}")
}

/// Returns the path of an image below the directory of the set.
pub fn image_path(prompt: usize, image: usize) -> String {
    format!("{}/samples/{image:04}.png", prompt_folder(prompt))
}

/// Reads the prompts of a set or subset, and the names of their images.
///
/// Errors if the set is incomplete: if a prompt directory is missing, or a prompt has fewer images than another. For a subset by
/// numbers, only these prompts must exist.
pub fn read_folder(root: &Path, subset: Option<&Subset>) -> Result<Vec<Prompt>> {
    if !root.is_dir() {
        return Err(Error::usage(format!("no image directory at `{}`", root.display()))
            .hint("create one with `unirl geneval draw` or the scripts of GenEval"));
    }
    let mut folders = numbered(root, Path::is_dir, |name| Some(name))?;
    folders.sort();
    let Some((last, _)) = folders.last() else {
        return Err(Error::usage(format!("`{}` has no directories `00000`, `00001`, …", root.display())));
    };
    let settings = read_settings(root)?;
    let numbers: BTreeSet<u64> = folders.iter().map(|(number, _)| *number).collect();
    let selected: Vec<RangeInclusive<u64>> = match subset {
        Some(subset) if !subset.numbers.is_empty() => subset.numbers.clone(),
        _ => vec![0..=(*last).max(settings.as_ref().map_or(0, |set| set.prompts as u64).saturating_sub(1))],
    };
    let present = |range: &RangeInclusive<u64>| numbers.range(range.clone()).count() as u64;
    let expected: u64 = selected.iter().map(|range| (range.end() - range.start()).saturating_add(1)).sum();
    let missing = expected - selected.iter().map(present).sum::<u64>();
    if missing > 0 {
        let first = selected.into_iter().flatten().find(|number| !numbers.contains(number)).unwrap_or(0);
        return Err(incomplete(root).cause(format!(
            "{missing} of {expected} prompts have no directory; the first is `{}`",
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
        return Err(Error::usage(format!("`{}` has no prompts in the subset `{subset}`", root.display())));
    }
    let count = prompts.iter().map(|prompt| prompt.images.len()).max().unwrap_or(0);
    let count = settings.map_or(count, |settings| count.max(settings.count)).max(1);
    for prompt in &prompts {
        if prompt.images.len() < count {
            let error = incomplete(root).cause(format!(
                "`{}/samples` has {} of {count} images",
                prompt.folder,
                prompt.images.len()
            ));
            return Err(match prompt.images.len() {
                0 => error.hint("name the images `0000.png`, `0000.jpg` or `0000.jpeg`, `0001.png`, …"),
                _ => error,
            });
        }
    }
    Ok(prompts)
}

fn incomplete(root: &Path) -> Error {
    Error::usage(format!("the image set `{}` is incomplete", root.display()))
        .hint("run `unirl geneval draw` with the same arguments to generate the missing images")
}

fn read_settings(root: &Path) -> Result<Option<Settings>> {
    let path = root.join(SETTINGS);
    if !path.is_file() {
        return Ok(None);
    }
    json::read(&path).map(Some)
}

/// Returns the entries of a directory with numeric names. `digits` extracts the number from a name.
fn numbered(
    folder: &Path,
    fits: fn(&Path) -> bool,
    digits: fn(&str) -> Option<&str>,
) -> Result<Vec<(u64, String)>> {
    let place = || format!("cannot read the directory `{}`", folder.display());
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

/// Returns the number in the name of an image.
fn image_number(name: &str) -> Option<&str> {
    let (number, extension) = name.rsplit_once('.')?;
    EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known)).then_some(number)
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
        return Err(Error::usage(format!("duplicate image number in `{}`", samples.display()))
            .cause(format!("`{one}` and `{other}` have the same number"))
            .hint("remove one of them"));
    }
    let images = images.into_iter().map(|(_, image)| format!("{name}/samples/{image}")).collect();
    Ok(Prompt { folder: name.into(), metadata, images })
}

/// A line of a detections file. Unknown keys are ignored.
#[derive(Deserialize)]
struct Line {
    filename: String,
    detections: Vec<Detection>,
}

/// Reads a detections file with one line per image: `{"filename": "00000/samples/0000.png", "detections": [...]}`.
///
/// Every image of the prompts must have exactly one line. Lines about other images are an error, unless `part` is set, which
/// means that the prompts are a subset; then lines about other prompts are skipped.
pub fn read_detections(
    path: &Path,
    prompts: &[Prompt],
    part: bool,
) -> Result<BTreeMap<String, Vec<Detection>>> {
    let text = input::read_text(path)?;
    let vocabulary = Vocabulary::of(prompts.iter().map(|prompt| &prompt.metadata));
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
            let error = Error::usage(format!("`filename`: no image `{filename}`"));
            let near = images.iter().find(|image| filename.ends_with(&format!("/{image}")));
            let example = near.or_else(|| images.first()).copied().unwrap_or_default();
            return Err(error
                .hint(format!("names are relative to the image directory: `{example}`"))
                .context(at()));
        }
        for (number, detection) in detections.iter_mut().enumerate() {
            let place = || format!("`detections[{number}]`");
            detection.check().context(place).context(at)?;
            vocabulary.resolve(detection).context(place).context(at)?;
        }
        if found.insert(filename.clone(), detections).is_some() {
            return Err(Error::usage(format!("duplicate line for `{filename}`")).context(at()));
        }
    }
    let missing: Vec<&str> = images.into_iter().filter(|image| !found.contains_key(*image)).collect();
    if let Some(first) = missing.first() {
        return Err(Error::usage(format!(
            "`{}` has no line for {} of {} images; the first is `{first}`",
            path.display(),
            missing.len(),
            missing.len() + found.len()
        ))
        .hint("write `\"detections\": []` for an image without detections"));
    }
    Ok(found)
}
