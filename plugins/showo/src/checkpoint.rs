//! Loading and saving checkpoints: a folder in Show-o's layout, LoRA adapters, the embedded checkpoint, or fresh weights.
//!
//! A folder contains `config.json` and the transformer's weights (`pytorch_model.safetensors` or any other file that
//! [`Weights::find`] supports). The image tokenizer `magvitv2` and the text tokenizer's files are in the folder or next to
//! it. A saved checkpoint is complete. The embedded checkpoint is such a folder packed into one safetensors file: weights
//! as f16, JSON files in its header.

use std::fs;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tch::{Kind, Tensor};
use unirl::error::Context;
use unirl::model::{Checkpoint, ModelSource};
use unirl::weights::{self, Store, Weights, read_json};
use unirl::{Error, Result};
use unirl_base::{json, links};
use unirl_layers::checkpoint::{self, Packed, pretty, write_file};
use unirl_layers::lora::LoraConfig;
use unirl_text::Text;

use crate::clip::{Clip, ClipConfig};
use crate::config::{CheckpointConfig, MagvitConfig, PhiConfig, ShowoConfig};
use crate::magvit::Magvit;
use crate::maskgit::Schedule;
use crate::phi::{self, Phi};
use crate::prompt::SYSTEM;

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "pytorch_model.safetensors";
const MAGVIT: &str = "magvitv2";
const TOKENIZER: &str = "tokenizer.json";
const PHI: &str = "phi-1_5";
const CLIP: &str = "clip-vit-large-patch14-336";
const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER_WEIGHTS: &str = "adapter_model.safetensors";
/// PEFT's file name before safetensors.
const ADAPTER_WEIGHTS_BIN: &str = "adapter_model.bin";
const EMBEDDED: &str = "builtin";

/// The token that begins, ends and separates texts.
const END: &str = "<|endoftext|>";

/// The vocabulary size of Phi-1.5's tokenizer, and the number of tokens it gives the system prompt.
const PHI_VOCABULARY: i64 = 50_295;
const SYSTEM_TOKENS: usize = 28;

const BUILTIN: &[u8] = include_bytes!("../builtin/tiles.safetensors");

/// Everything that a model is built from.
pub struct LoadedCheckpoint {
    /// Sizes and special tokens.
    pub config: CheckpointConfig,
    /// Sizes of the image tokenizer.
    pub magvit_config: MagvitConfig,
    /// Configuration files to save with the weights.
    pub files: Files,
    /// The text tokenizer.
    pub text: Text,
    /// Weights of the transformer.
    pub phi_store: Store,
    /// Weights of the image tokenizer.
    pub magvit_store: Store,
    /// The vision encoder and its folder, in a `w_clip_vit` checkpoint.
    pub clip: Option<(ClipConfig, Store, PathBuf)>,
    /// The LoRA adapters.
    pub adapters: Option<(LoraConfig, Store)>,
    /// Gradient checkpointing.
    pub gradient_checkpointing: bool,
    /// The mask schedule of generation and training.
    pub schedule: Schedule,
    /// The data type of the transformer's weights.
    pub precision: Kind,
}

/// The configuration files of a checkpoint, with every key preserved, and their origin.
#[derive(Debug, Clone)]
pub struct Files {
    /// `config.json`.
    pub config: Value,
    /// `magvitv2/config.json`.
    pub magvit: Value,
    /// The folder, or `builtin`: the base model of adapters.
    pub origin: String,
}

/// Loads the checkpoint that `source` selects.
pub fn load(options: &ShowoConfig, source: &ModelSource) -> Result<LoadedCheckpoint> {
    checkpoint::check_architecture(source, options.architecture.as_ref())?;
    let adapters = match &source.checkpoint {
        Checkpoint::Folder(folder) if folder.join(ADAPTER_CONFIG).is_file() => Some(folder),
        _ => None,
    };
    let mut parts = match (&source.checkpoint, adapters) {
        (_, Some(folder)) => open_adapters(folder, options, source)?,
        (Checkpoint::Fresh, _) => fresh(options, source)?,
        (Checkpoint::Folder(folder), _) => open_folder(folder, options, source)?,
        (Checkpoint::Builtin, _) => unpack(BUILTIN, options, source)?,
    };
    if let Some(schedule) = &options.mask_schedule {
        parts.schedule = Schedule::parse(schedule).context(|| "`model.options.mask_schedule`")?;
    }
    if let Some(length) = options.max_text_len {
        parts.config.max_text_len = length;
        parts.files.config["max_text_len"] = length.into();
    }
    if let (Some(lora), None) = (&options.lora, &parts.adapters) {
        lora.check(&Phi::take(&mut Store::plan(), &parts.config)?.modules(), &phi::TARGETS)?;
        tch::manual_seed(source.seed as i64);
        parts.adapters = Some((lora.clone(), Store::of_source(source, None, parts.precision)));
    }
    if parts.adapters.is_some() {
        parts.phi_store = parts.phi_store.frozen();
        parts.magvit_store = parts.magvit_store.frozen();
    }
    Ok(parts)
}

/// Opens a checkpoint folder. Checks every name and shape before reading a weight.
fn open_folder(folder: &Path, options: &ShowoConfig, source: &ModelSource) -> Result<LoadedCheckpoint> {
    let path = folder.join(CONFIG);
    let json: Value = read_json(&path)?;
    if let Some(class) = json.get("_class_name").and_then(Value::as_str).filter(|class| *class != "Showo") {
        return Err(Error::failure(format!(
            "`{}`: `_class_name`: expected `Showo`, got `{class}`",
            path.display()
        ))
        .hint("supported checkpoints are `showlab/show-o` and its variants; Show-o2 is a different model"));
    }
    let weights = Weights::find(folder)?;
    let config = checkpoint_config(&json, &path.display().to_string(), &weights)?;

    let folders = candidate_folders(folder, ("tokenizer", options.tokenizer.as_deref()), MAGVIT)?;
    let magvit_folder = folders.iter().find(|folder| folder.is_dir()).ok_or_else(|| {
        Error::failure(format!("no image tokenizer found for `{}`", folder.display()))
            .cause(format!("searched {}", join_paths(&folders)))
            .hint("pass the folder of `showlab/magvitv2` with `--image-tokenizer DIR`")
    })?;
    let path = magvit_folder.join(CONFIG);
    let magvit_json: Value =
        if path.is_file() { read_json(&path)? } else { Value::Object(serde_json::Map::new()) };
    let magvit_weights = Weights::find(magvit_folder)?;
    let magvit_config = magvit_config(&magvit_json, &path.display().to_string(), &magvit_weights)?;

    let text = text_tokenizer(folder, options, &config)?;
    let files = Files { config: json, magvit: magvit_json, origin: absolute(folder) };
    let clip = if config.w_clip_vit { Some(vision_encoder(folder, options, &config, source)?) } else { None };
    let weights = Some([weights, magvit_weights]);
    let parts = assemble(Contents { config, magvit_config, files, text, weights }, options, source)?;
    Ok(LoadedCheckpoint { clip, ..parts })
}

/// Opens the embedded checkpoint, or another one made by [`pack`].
pub fn unpack(bytes: &'static [u8], options: &ShowoConfig, source: &ModelSource) -> Result<LoadedCheckpoint> {
    let [mut packed, mut magvit] = [Packed::open(bytes)?, Packed::open(bytes)?];
    packed.weights.retain(|name| name.starts_with("showo."));
    magvit.weights.retain(|name| !name.starts_with("showo."));
    let magvit_name = format!("{MAGVIT}/{CONFIG}");
    let (json, magvit_json) = (packed.json(CONFIG)?, packed.json(&magvit_name)?);
    let text = Text::from_json(packed.text(TOKENIZER)?.as_bytes().to_vec(), TOKENIZER)?;
    let (weights, magvit_weights) = (packed.weights, magvit.weights);
    let files = Files { config: json, magvit: magvit_json, origin: EMBEDDED.into() };
    let config = checkpoint_config(&files.config, CONFIG, &weights)?;
    let magvit_config = magvit_config(&files.magvit, &magvit_name, &magvit_weights)?;
    let weights = Some([weights, magvit_weights]);
    assemble(Contents { config, magvit_config, files, text, weights }, options, source)
}

fn fresh(options: &ShowoConfig, source: &ModelSource) -> Result<LoadedCheckpoint> {
    let architecture = options.architecture.clone().unwrap_or_default();
    architecture.magvit.check()?;
    let text = Text::fresh(&architecture.words, &[], &[END])?;
    let config = CheckpointConfig::fresh(&architecture, text.vocabulary_size());
    config.check("model.options.architecture")?;
    let magvit_config = architecture.magvit;
    let write = |value: serde_json::Result<Value>, class: &str| {
        let mut json = value.context(|| "cannot write the configuration")?;
        json["_class_name"] = class.into();
        Ok::<_, Error>(json)
    };
    let files = Files {
        config: write(serde_json::to_value(&config), "Showo")?,
        magvit: write(serde_json::to_value(&magvit_config), "MAGVITv2")?,
        origin: "fresh".into(),
    };
    tch::manual_seed(source.seed as i64);
    assemble(Contents { config, magvit_config, files, text, weights: None }, options, source)
}

/// Opens a folder of LoRA adapters and their base model.
fn open_adapters(folder: &Path, options: &ShowoConfig, source: &ModelSource) -> Result<LoadedCheckpoint> {
    let path = folder.join(ADAPTER_CONFIG);
    let json = fs::read_to_string(&path).context(|| format!("cannot read `{}`", path.display()))?;
    let unusable = || format!("cannot use `{}`", path.display());
    let (mut lora, base) = LoraConfig::from_peft(&json).context(unusable)?;
    if let Some(wanted) = &options.lora {
        let of_checkpoint = LoraConfig { merge: wanted.merge, ..lora };
        let default = LoraConfig { merge: wanted.merge, ..LoraConfig::default() };
        if *wanted != of_checkpoint && *wanted != default {
            return Err(Error::usage(format!(
                "`model.options.lora` conflicts with `{}`, which has rank {}, alpha {} and targets {}",
                folder.display(),
                of_checkpoint.rank,
                of_checkpoint.alpha,
                serde_json::json!(of_checkpoint.targets)
            ))
            .hint("set only `merge`, or merge the adapters first to train new ones"));
        }
        lora = of_checkpoint;
    }
    let mut parts = if base == EMBEDDED {
        unpack(BUILTIN, options, source)?
    } else {
        let base = folder.join(&base); // an absolute path replaces `folder`
        if !base.is_dir() {
            return Err(Error::failure(format!(
                "`{}`: no base model at `{}`",
                path.display(),
                base.display()
            ))
            .hint("set `base_model_name_or_path` in that file to the folder of the base model"));
        }
        open_folder(&base, options, source)?
    };
    let expected = Phi::expected_adapters(&parts.config, &lora).context(unusable)?;
    let older = folder.join(ADAPTER_WEIGHTS_BIN);
    let newer = folder.join(ADAPTER_WEIGHTS);
    let weights = Weights::open(if newer.is_file() || !older.is_file() { &newer } else { &older })?;
    weights.check(&expected)?;
    parts.adapters = Some((lora, Store::of_source(source, Some(weights), parts.precision)));
    Ok(parts)
}

/// The contents of a checkpoint.
struct Contents {
    config: CheckpointConfig,
    magvit_config: MagvitConfig,
    files: Files,
    text: Text,
    /// Of the transformer and of the image tokenizer; `None` for fresh weights.
    weights: Option<[Weights; 2]>,
}

fn assemble(contents: Contents, options: &ShowoConfig, source: &ModelSource) -> Result<LoadedCheckpoint> {
    let Contents { config, magvit_config, files, text, weights } = contents;
    let precision = options.precision.kind(source.device);
    let [weights, magvit_weights] = match weights {
        Some([weights, magvit_weights]) => {
            weights.check(&Phi::expected(&config)?)?;
            magvit_weights.check(&Magvit::expected(&magvit_config)?)?;
            [Some(weights), Some(magvit_weights)]
        }
        None => [None, None],
    };
    Ok(LoadedCheckpoint {
        config,
        magvit_config,
        files,
        text,
        phi_store: Store::of_source(source, weights, precision),
        magvit_store: Store::of_source(source, magvit_weights, Kind::Float), // as in the original
        clip: None,
        adapters: None,
        gradient_checkpointing: options.gradient_checkpointing,
        schedule: Schedule::Cosine,
        precision,
    })
}

fn vision_encoder(
    folder: &Path,
    options: &ShowoConfig,
    config: &CheckpointConfig,
    source: &ModelSource,
) -> Result<(ClipConfig, Store, PathBuf)> {
    let folders = candidate_folders(folder, ("clip", options.clip.as_deref()), CLIP)?;
    let folder = folders.iter().find(|folder| folder.is_dir()).ok_or_else(|| {
        Error::failure(format!("no CLIP vision encoder found for `{}`", folder.display()))
            .cause(format!("searched {}", join_paths(&folders)))
            .hint(format!("pass the folder of `openai/{CLIP}` with `--set model.options.clip=DIR`"))
    })?;
    let path = folder.join(CONFIG);
    let clip = ClipConfig::read(&path)?;
    if clip.hidden_size != config.clip_width {
        return Err(Error::failure(format!(
            "`{}`: `hidden_size`: expected {}, the input width of the projector, got {}",
            path.display(),
            config.clip_width,
            clip.hidden_size
        )));
    }
    let mut weights = Weights::find(folder)?;
    let expected = Clip::expected(&clip)?;
    // The file also contains the text encoder and the unused last layer.
    weights.retain(|name| expected.iter().any(|wanted| wanted.name == name));
    weights.check(&expected)?;
    let store = Store::of_source(source, Some(weights), Kind::Float).frozen();
    Ok((clip, store, folder.canonicalize().unwrap_or_else(|_| folder.clone())))
}

fn text_tokenizer(folder: &Path, options: &ShowoConfig, config: &CheckpointConfig) -> Result<Text> {
    let named = options.text_tokenizer.as_deref();
    let mut folders = candidate_folders(folder, ("text_tokenizer", named), PHI)?;
    if named.is_none() {
        folders.insert(0, folder.to_owned());
    }
    let folder = folders.iter().find(|folder| Text::is_in(folder)).ok_or_else(|| {
        Error::failure(format!("no text tokenizer found for `{}`", folder.display()))
            .cause(format!(
                "searched for `{TOKENIZER}`, or `vocab.json` and `merges.txt`, in {}",
                join_paths(&folders)
            ))
            .hint("pass the folder of `microsoft/phi-1_5` with `--set model.options.text_tokenizer=DIR`")
    })?;
    let text = Text::open_folder(folder)?;
    check_vocabulary(&text, config)
        .context(|| format!("cannot use the text tokenizer in `{}`", folder.display()))?;
    Ok(text)
}

/// Errors unless the tokenizer and the configuration agree on vocabulary size and special tokens.
fn check_vocabulary(text: &Text, config: &CheckpointConfig) -> Result<()> {
    let hint = "use the tokenizer of `microsoft/phi-1_5`, including its added tokens";
    let special = config.special();
    let (base, all) = (config.llm_vocab_size, special.image);
    let got = text.vocabulary_size();
    if got != base && got != all {
        return Err(Error::failure(format!(
            "expected {base} tokens (`llm_vocab_size`), or {all} including Show-o's special tokens, got {got}"
        ))
        .hint(hint));
    }
    let own = [
        ("[PAD]", special.pad),
        ("<|soi|>", special.soi),
        ("<|eoi|>", special.eoi),
        ("<|t2i|>", special.t2i),
        ("<|mmu|>", special.mmu),
    ];
    let tokens = [(END, special.eos)].into_iter().chain(own.into_iter().filter(|_| got == all));
    for (token, expected) in tokens {
        let got = text.id(token);
        if got != Some(expected) {
            let got = got.map_or("none".into(), |id| id.to_string());
            return Err(
                Error::failure(format!("token `{token}`: expected id {expected}, got {got}")).hint(hint)
            );
        }
    }
    let length = text.encode(SYSTEM)?.len();
    if config.w_clip_vit && base == PHI_VOCABULARY && length != SYSTEM_TOKENS {
        return Err(Error::failure(format!(
            "the system prompt: expected {SYSTEM_TOKENS} tokens, got {length}"
        ))
        .hint(hint));
    }
    Ok(())
}

fn checkpoint_config(json: &Value, file: &str, weights: &Weights) -> Result<CheckpointConfig> {
    let mut config: CheckpointConfig = read_value(json, file)?;
    if json.get("phi").is_none() {
        config.phi = PhiConfig::of(weights);
    }
    if let Some([_, width]) = weights.shape("mm_projector.0.weight") {
        config.clip_width = *width;
    }
    config.check(file)?;
    Ok(config)
}

fn magvit_config(json: &Value, file: &str, weights: &Weights) -> Result<MagvitConfig> {
    let config: MagvitConfig = match json.get("encoder") {
        Some(_) => read_value(json, file)?,
        None => MagvitConfig::of(weights),
    };
    config.check().context(|| format!("cannot use `{file}`"))?;
    Ok(config)
}

fn read_value<T: DeserializeOwned>(json: &Value, file: &str) -> Result<T> {
    json::from_value(json).context(|| format!("cannot read `{file}`"))
}

/// Where to search for a component of the checkpoint: the folder that the user names, or `name` in the checkpoint's folder or
/// next to it.
fn candidate_folders(
    folder: &Path,
    (option, named): (&str, Option<&str>),
    name: &str,
) -> Result<Vec<PathBuf>> {
    match named {
        Some(path) if !Path::new(path).is_dir() => {
            Err(Error::usage(format!("`model.options.{option}`: no such folder: `{path}`")))
        }
        Some(path) => Ok(vec![path.into()]),
        None => Ok(vec![links::follow(&folder.join(name)), folder.join("..").join(name)]),
    }
}

fn join_paths(folders: &[PathBuf]) -> String {
    folders.iter().map(|place| format!("`{}`", place.display())).collect::<Vec<_>>().join(", ")
}

fn absolute(folder: &Path) -> String {
    folder.canonicalize().unwrap_or_else(|_| folder.to_owned()).display().to_string()
}

/// Writes a complete checkpoint folder. The vision encoder never changes, so it is linked instead of copied.
pub fn save(
    folder: &Path,
    files: &Files,
    text: &Text,
    phi: &[(String, Tensor)],
    magvit: &[(String, Tensor)],
    clip: Option<&Path>,
) -> Result<()> {
    let magvit_folder = folder.join(MAGVIT);
    fs::create_dir_all(&magvit_folder).context(|| format!("cannot create `{}`", magvit_folder.display()))?;
    write_file(&folder.join(CONFIG), pretty(&files.config))?;
    write_file(&magvit_folder.join(CONFIG), pretty(&files.magvit))?;
    write_file(&folder.join(TOKENIZER), text.json())?;
    if let Some(clip) = clip {
        links::link(clip, &folder.join(CLIP))?;
    }
    weights::write(&folder.join(WEIGHTS), phi, &[])?;
    weights::write(&magvit_folder.join(WEIGHTS), magvit, &[])
}

/// Writes LoRA adapters in PEFT's layout.
pub fn save_adapters(
    folder: &Path,
    files: &Files,
    lora: &LoraConfig,
    adapters: &[(String, Tensor)],
) -> Result<()> {
    write_file(&folder.join(ADAPTER_CONFIG), pretty(&lora.to_peft(&files.origin)))?;
    weights::write(&folder.join(ADAPTER_WEIGHTS), adapters, &[])
}

/// Packs a checkpoint folder into one file for embedding, with weights as f16.
pub fn pack(folder: &Path, file: &Path) -> Result<()> {
    let magvit = folder.join(MAGVIT);
    let read =
        |path: PathBuf| fs::read_to_string(&path).context(|| format!("cannot read `{}`", path.display()));
    let (config, magvit_config, tokenizer) =
        (read(folder.join(CONFIG))?, read(magvit.join(CONFIG))?, read(folder.join(TOKENIZER))?);
    let weights = [Weights::find(folder)?, Weights::find(&magvit)?];
    let keep = |name: &str| !name.starts_with("quantize."); // computed
    let magvit_name = format!("{MAGVIT}/{CONFIG}");
    let texts = [(CONFIG, &*config), (&magvit_name, &magvit_config), (TOKENIZER, &tokenizer)];
    checkpoint::pack(file, &weights, keep, &texts)
}
