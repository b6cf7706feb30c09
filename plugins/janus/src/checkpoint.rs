//! Loading and saving checkpoints: a folder in either layout, the embedded checkpoint, or fresh weights.
//!
//! A folder contains `config.json`, the weights in any file that [`Weights::find`] supports, `tokenizer.json`, and other
//! small files that are preserved. A checkpoint is saved in the layout that it was loaded from. The embedded checkpoint is
//! such a folder packed into one safetensors file: weights as f16, small files in its header.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tch::{Kind, Tensor};
use unirl::error::Context;
use unirl::model::{Checkpoint, ImageSampling, ModelSource};
use unirl::weights::{self, Expected, Store, Weights};
use unirl::{Error, Result};
use unirl_base::input;
use unirl_layers::checkpoint::{self, EMBEDDED, Packed, pretty, write_file};
use unirl_text::Text;

use crate::config::JanusConfig;
use crate::layout::Layout;
use crate::network::Network;
use crate::options::JanusOptions;
use crate::prompt::{Prompting, SPECIAL, SYSTEM};
use crate::vq::Vq;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const TOKENIZER: &str = "tokenizer.json";
const PROCESSOR: &str = "processor_config.json";
const PREPROCESSOR: &str = "preprocessor_config.json";
const GENERATION: &str = "generation_config.json";

/// Larger files of a folder are not settings.
const MAX_SMALL_FILE: u64 = 64 << 20;

/// The original's guidance, for checkpoints that do not set one.
const DEFAULT_GUIDANCE: f64 = 5.0;

/// A word of a fresh model's templates that its vocabulary must contain.
const COLON: &str = ":";

const BUILTIN: &[u8] = include_bytes!("../builtin/tiles.safetensors");

/// The small files of a checkpoint by name.
type Files = BTreeMap<String, Vec<u8>>;

/// Everything that a model is built from.
pub struct LoadedCheckpoint {
    /// Sizes.
    pub config: JanusConfig,
    /// Prompts, and the text tokenizer.
    pub prompting: Prompting,
    /// Default image sampling.
    pub sampling: ImageSampling,
    /// Mean and standard deviation of the pixels, by channel.
    pub normalisation: [[f64; 3]; 2],
    /// All weights.
    pub store: Store,
    /// What to save with the weights.
    pub saved: SavedFiles,
    /// The data type of the weights.
    pub precision: Kind,
    /// Gradient checkpointing.
    pub gradient_checkpointing: bool,
}

/// What a checkpoint contains in addition to the weights of the model.
pub struct SavedFiles {
    layout: Layout,
    files: Files,
    /// Unused weights.
    unused: Vec<(String, Tensor)>,
}

/// Loads the checkpoint that `source` selects.
pub fn load(options: &JanusOptions, source: &ModelSource) -> Result<LoadedCheckpoint> {
    checkpoint::check_architecture(source, options.architecture.as_ref())?;
    match &source.checkpoint {
        Checkpoint::Fresh => fresh(options, source),
        Checkpoint::Folder(folder) => open_folder(folder, options, source),
        Checkpoint::Builtin => unpack(BUILTIN, options, source),
    }
}

/// Opens a checkpoint folder. Checks every name and shape before reading a weight.
fn open_folder(folder: &Path, options: &JanusOptions, source: &ModelSource) -> Result<LoadedCheckpoint> {
    let mut files = small_files(folder)?;
    let named = options.text_tokenizer.as_deref().map(Path::new);
    let tokenizer_folder = named.unwrap_or(folder);
    if !Text::is_in(tokenizer_folder) {
        return Err(Error::failure(format!("no text tokenizer in `{}`", tokenizer_folder.display()))
            .cause(format!("no `{TOKENIZER}`"))
            .hint("pass the folder of a Janus tokenizer with `--set model.options.text_tokenizer=DIR`"));
    }
    files.insert(TOKENIZER.into(), Text::open_folder(tokenizer_folder)?.json().to_vec());
    let label = folder.display().to_string();
    load_files(&label, files, Weights::find(folder)?, options, source)
}

/// Opens the embedded checkpoint, or another one made by [`pack`].
pub fn unpack(
    bytes: &'static [u8],
    options: &JanusOptions,
    source: &ModelSource,
) -> Result<LoadedCheckpoint> {
    let Packed { weights, texts } = Packed::open(bytes)?;
    let files = texts.into_iter().map(|(name, text)| (name, text.into_bytes())).collect();
    load_files(EMBEDDED, files, weights, options, source)
}

fn load_files(
    label: &str,
    files: Files,
    mut weights: Weights,
    options: &JanusOptions,
    source: &ModelSource,
) -> Result<LoadedCheckpoint> {
    let layout = Layout::of(&weights)?;
    let json = read_file(label, &files, CONFIG)?;
    let shape = |name: &str| layout.shape(&weights, name);
    let config = JanusConfig::read(&json, &format!("{label}/{CONFIG}"), &shape)?;
    let unused = layout.open(&mut weights, &expected(&config)?)?;
    let contents = Contents { label, files, layout, weights: Some((weights, unused)) };
    assemble(contents, config, options, source)
}

fn fresh(options: &JanusOptions, source: &ModelSource) -> Result<LoadedCheckpoint> {
    let architecture = options.architecture.clone().unwrap_or_default();
    architecture.vq.check()?;
    let text = Text::fresh(&architecture.words, &[COLON], &SPECIAL)?;
    let config = architecture.sizes(text.vocabulary_size());
    config.check("model.options.architecture")?;
    let prompting = Prompting::new(text, "", config.image_tokens())?;
    let special = prompting.special;
    let pretty = |json: &Value| pretty(json).into_bytes();
    let files = Files::from([
        (CONFIG.into(), pretty(&config.to_json(special.image))),
        (TOKENIZER.into(), prompting.text().json().to_vec()),
        (
            PROCESSOR.into(),
            pretty(&json!({"processor_class": "JanusProcessor", "use_default_system_prompt": false})),
        ),
        (
            GENERATION.into(),
            pretty(&json!({
                "bos_token_id": special.bos,
                "eos_token_id": special.eos,
                "pad_token_id": special.pad,
                "guidance_scale": architecture.guidance,
                "temperature": architecture.temperature,
                "generation_kwargs": {"boi_token_id": special.boi},
            })),
        ),
    ]);
    tch::manual_seed(source.seed as i64);
    let contents = Contents { label: "the fresh model", files, layout: Layout::Transformers, weights: None };
    assemble(contents, config, options, source)
}

/// The weights of the network and the image tokenizer.
pub fn expected(config: &JanusConfig) -> Result<Vec<Expected>> {
    Ok([Network::expected(config)?, Vq::expected(&config.vq)?].concat())
}

/// The contents of a checkpoint.
struct Contents<'a> {
    label: &'a str,
    files: Files,
    layout: Layout,
    /// Weights by the network's names, and unused ones; `None` for fresh weights.
    weights: Option<(Weights, Vec<(String, Tensor)>)>,
}

fn assemble(
    contents: Contents<'_>,
    config: JanusConfig,
    options: &JanusOptions,
    source: &ModelSource,
) -> Result<LoadedCheckpoint> {
    let Contents { label, files, layout, weights } = contents;
    let processor = read_file(label, &files, PROCESSOR)?;
    let disabled = processor["use_default_system_prompt"] == json!(false);
    let system = options.system_prompt.as_deref().unwrap_or(if disabled { "" } else { SYSTEM });
    let path = format!("{label}/{TOKENIZER}");
    let text = Text::from_json(files.get(TOKENIZER).cloned().unwrap_or_default(), &path)?;
    let prompting = Prompting::new(text, system, config.image_tokens())
        .map_err(|error| error.context(format!("cannot use `{path}`")))?;
    let rows = config.language.vocab_size;
    let largest = prompting.text().vocabulary_size().max(prompting.special.image + 1);
    if largest > rows {
        return Err(Error::failure(format!(
            "`{path}`: expected at most {rows} tokens, the language model's `vocab_size`, got {largest}"
        )));
    }
    let generation = read_file(label, &files, GENERATION)?;
    let number = |key: &str, default: f64| generation[key].as_f64().unwrap_or(default);
    let precision = options.precision.kind(source.device);
    let (weights, unused) = weights.map_or((None, Vec::new()), |(weights, unused)| (Some(weights), unused));
    Ok(LoadedCheckpoint {
        sampling: ImageSampling {
            guidance: number("guidance_scale", DEFAULT_GUIDANCE),
            temperature: number("temperature", 1.0),
            ..ImageSampling::default()
        },
        normalisation: normalisation(&read_file(label, &files, PREPROCESSOR)?),
        store: Store::of_source(source, weights, precision),
        saved: SavedFiles { layout, files, unused },
        gradient_checkpointing: options.gradient_checkpointing,
        prompting,
        config,
        precision,
    })
}

/// Mean and standard deviation of pixels, 0.5 by default. An early `preprocessor_config.json` of Janus-1.3B disables
/// normalization, which its authors called a mistake; it is ignored.
fn normalisation(preprocessor: &Value) -> [[f64; 3]; 2] {
    ["image_mean", "image_std"].map(|key| {
        let channel = |at: usize| preprocessor[key][at].as_f64().unwrap_or(0.5);
        [channel(0), channel(1), channel(2)]
    })
}

/// Parses a JSON file of a checkpoint; null if it is missing.
fn read_file(label: &str, files: &Files, name: &str) -> Result<Value> {
    files.get(name).map_or(Ok(Value::Null), |bytes| {
        let file = format!("{label}/{name}");
        input::text(&file, bytes.clone())
            .and_then(|text| unirl_base::json::parse(&text))
            .context(|| format!("cannot read `{file}`"))
    })
}

/// The small files of a folder: chat templates, and JSON files except shard indices.
fn small_files(folder: &Path) -> Result<Files> {
    let reading = || format!("cannot read `{}`", folder.display());
    let mut files = Files::new();
    for entry in fs::read_dir(folder).context(reading)? {
        let path = entry.context(reading)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let wanted = !name.ends_with(".index.json")
            && path.extension().is_some_and(|ending| ending == "json" || ending == "jinja");
        if wanted && fs::metadata(&path).is_ok_and(|data| data.is_file() && data.len() <= MAX_SMALL_FILE) {
            let bytes = fs::read(&path).context(|| format!("cannot read `{}`", path.display()))?;
            files.insert(name, bytes);
        }
    }
    if files.contains_key(CONFIG) {
        return Ok(files);
    }
    Err(Error::failure(format!("no `{CONFIG}` in `{}`", folder.display()))
        .hint("pass the folder of a Janus checkpoint"))
}

impl SavedFiles {
    /// Writes a checkpoint folder; `weights` are those of the network, in its order.
    pub fn save(&self, folder: &Path, weights: &[(String, Tensor)]) -> Result<()> {
        for (name, bytes) in &self.files {
            write_file(&folder.join(name), bytes)?;
        }
        weights::write(&folder.join(WEIGHTS), &self.layout.save(weights, &self.unused), &[])
    }
}

/// Packs a checkpoint folder into one file for embedding, with weights as f16.
pub fn pack(folder: &Path, file: &Path) -> Result<()> {
    let weights = Weights::find(folder)?;
    let files = small_files(folder)?;
    let texts: Vec<(&str, std::borrow::Cow<'_, str>)> =
        files.iter().map(|(name, bytes)| (name.as_str(), String::from_utf8_lossy(bytes))).collect();
    let texts: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (*name, text.as_ref())).collect();
    checkpoint::pack(file, &[weights], |_| true, &texts)
}
