//! The weights of a checkpoint: safetensors, in one file or in shards, and torch pickles. Files are mapped into memory and
//! read tensor by tensor, so that loading needs little more memory than the weights themselves.
//!
//! A plugin writes one constructor over a [`Store`]: [`Store::plan`] records which weights it needs, [`Store::open`] loads them,
//! [`Store::fresh`] initializes them randomly.

mod map;
mod reference;
mod store;
mod wrappers;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use map::Bytes;
use safetensors::SafeTensorError;
use safetensors::tensor::{Dtype, Metadata, SafeTensors, View};
use tch::{Device, Kind, Tensor};

use crate::error::{Context, Error, Result};

pub use reference::ReferencePolicy;
pub use store::{Init, Store};
pub use unirl_base::json::read as read_json;

/// The names of weight files, without the extension `.safetensors`, `.safetensors.index.json`, `.bin`, `.bin.index.json` or
/// `.pt`.
const STEMS: [&str; 3] = ["model", "pytorch_model", "diffusion_pytorch_model"];

/// The maximum number of names that an error lists per kind.
const LISTED: usize = 20;

/// The supported types and their libtorch equivalents.
const TYPES: [(Dtype, Kind); 10] = [
    (Dtype::F32, Kind::Float),
    (Dtype::F16, Kind::Half),
    (Dtype::BF16, Kind::BFloat16),
    (Dtype::F64, Kind::Double),
    (Dtype::I64, Kind::Int64),
    (Dtype::I32, Kind::Int),
    (Dtype::I16, Kind::Int16),
    (Dtype::I8, Kind::Int8),
    (Dtype::U8, Kind::Uint8),
    (Dtype::BOOL, Kind::Bool),
];

/// A weight that a model needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Whether the checkpoint must have it; a buffer that the model computes is optional.
    pub required: bool,
}

impl Expected {
    /// The number of values.
    pub fn values(&self) -> i64 {
        self.shape.iter().product()
    }
}

struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<i64>,
    data: Range<usize>,
}

/// The named weights of a file or a set of shards. Opening reads only the headers.
pub struct Weights {
    label: String,
    files: Vec<Bytes>,
    entries: BTreeMap<String, Entry>,
}

impl Weights {
    /// Opens the weights in `folder` under their usual file names; safetensors are preferred to pickles.
    pub fn find(folder: &Path) -> Result<Self> {
        let endings = ["safetensors.index.json", "safetensors", "bin.index.json", "bin", "pt"];
        let named = |ending: &str| STEMS.map(|stem| folder.join(format!("{stem}.{ending}")));
        let found = endings.iter().flat_map(|ending| named(ending)).find(|path| path.is_file());
        let path = found.ok_or_else(|| {
            Error::failure(format!("no weights in `{}`", folder.display())).hint(format!(
                "expected `{}.safetensors`, its shards with `.safetensors.index.json`, or `.bin`",
                STEMS.join("`, `")
            ))
        })?;
        Self::open(&path)
    }

    /// Opens one file, or the shards of an index.
    pub fn open(path: &Path) -> Result<Self> {
        let label = path.display().to_string();
        let mut weights = Self { label, files: Vec::new(), entries: BTreeMap::new() };
        if path.to_string_lossy().ends_with(".index.json") {
            weights.add_shards(path)?;
        } else {
            weights.add_file(path)?;
        }
        weights.unwrap_names()?;
        Ok(weights)
    }

    /// Opens embedded safetensors and returns their metadata as well; errors call them `label`.
    pub fn embedded(label: &str, bytes: &'static [u8]) -> Result<(Self, HashMap<String, String>)> {
        let (table, texts) = read_table(bytes).map_err(|error| broken(label, error))?;
        let mut weights = Self { label: label.into(), files: Vec::new(), entries: BTreeMap::new() };
        weights.add(Bytes::Embedded(bytes), table)?;
        Ok((weights, texts))
    }

    fn add_shards(&mut self, index: &Path) -> Result<()> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: BTreeMap<String, String>,
        }
        let Index { weight_map } = read_json(index)?;
        let mut shards: Vec<&String> = weight_map.values().collect();
        shards.sort();
        shards.dedup();
        for shard in shards {
            if Path::new(shard).file_name().is_none_or(|name| name != shard.as_str()) {
                return Err(broken(
                    &self.label,
                    format!("`{shard}` is not a file name in the same directory"),
                ));
            }
            self.add_file(&index.with_file_name(shard))?;
        }
        match weight_map.iter().find(|(name, _)| !self.entries.contains_key(*name)) {
            None => Ok(()),
            Some((name, shard)) => Err(broken(&self.label, format!("no `{name}` in `{shard}`"))),
        }
    }

    fn add_file(&mut self, path: &Path) -> Result<()> {
        let label = path.display().to_string();
        let bytes = Bytes::open(path)?;
        let table = if path.extension().is_some_and(|ending| ending == "safetensors") {
            read_table(&bytes).map_err(|error| broken(&label, error))?.0
        } else {
            read_pickle(&label, &bytes)?
        };
        self.add(bytes, table)
    }

    fn add(&mut self, bytes: Bytes, table: Table) -> Result<()> {
        let file = self.files.len();
        self.files.push(bytes);
        for (name, dtype, shape, data) in table {
            let shape = shape.into_iter().map(|size| size as i64).collect();
            if self.entries.insert(name.clone(), Entry { file, dtype, shape, data }).is_some() {
                return Err(duplicate(&self.label, &name));
            }
        }
        Ok(())
    }

    /// Returns the name of the weights in errors.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// Returns all names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Returns the shape of a weight, if it exists.
    pub fn shape(&self, name: &str) -> Option<&[i64]> {
        self.entries.get(name).map(|entry| entry.shape.as_slice())
    }

    /// Drops the weights for which `keep` returns false.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.entries.retain(|name, _| keep(name));
    }

    /// Splits a weight along its rows into `parts`, names and shapes, which replace it. A single part renames and reshapes it.
    pub fn split(&mut self, name: &str, parts: &[(String, Vec<i64>)]) -> Result<()> {
        let entry = self.entries.remove(name).ok_or_else(|| no_weight(&self.label, name))?;
        let values = |shape: &[i64]| shape.iter().product::<i64>() as usize;
        let whole = values(&entry.shape);
        let expected: usize = parts.iter().map(|(_, shape)| values(shape)).sum();
        if whole != expected {
            let cause = format!(
                "weight `{name}`: expected {expected} values, got {whole}, of shape {:?}",
                entry.shape
            );
            return Err(broken(&self.label, cause));
        }
        let size = entry.data.len() / whole.max(1);
        let mut start = entry.data.start;
        for (part, shape) in parts {
            let data = start..start + values(shape) * size;
            start = data.end;
            let entry = Entry { file: entry.file, dtype: entry.dtype, shape: shape.clone(), data };
            if self.entries.insert(part.clone(), entry).is_some() {
                return Err(duplicate(&self.label, part));
            }
        }
        Ok(())
    }

    /// Errors if the weights are not exactly `expected`; the error lists all that are missing or unexpected or have the wrong
    /// shape or type. Reads no data.
    pub fn check(&self, expected: &[Expected]) -> Result<()> {
        let wanted: HashMap<&str, &Expected> = expected.iter().map(|e| (e.name.as_str(), e)).collect();
        let missing: Vec<String> = expected
            .iter()
            .filter(|e| e.required && !self.entries.contains_key(&e.name))
            .map(|e| format!("`{}`", e.name))
            .collect();
        let mut unexpected = Vec::new();
        let mut wrong_shape = Vec::new();
        let mut wrong_type = Vec::new();
        for (name, entry) in &self.entries {
            match wanted.get(name.as_str()) {
                None => unexpected.push(format!("`{name}`")),
                Some(e) if e.shape != entry.shape => {
                    wrong_shape.push(format!("`{name}` expected {:?}, got {:?}", e.shape, entry.shape));
                }
                Some(e) if e.required && !holds_weights(entry.dtype) => {
                    wrong_type
                        .push(format!("`{name}` expected f32, f16, bf16 or f64, got {:?}", entry.dtype));
                }
                Some(_) => {}
            }
        }
        let faults = [
            ("missing", missing),
            ("unexpected", unexpected),
            ("wrong shape", wrong_shape),
            ("wrong type", wrong_type),
        ];
        let counts: Vec<String> = faults
            .iter()
            .filter(|(_, names)| !names.is_empty())
            .map(|(fault, names)| format!("{} {fault}", names.len()))
            .collect();
        if counts.is_empty() {
            return Ok(());
        }
        let error = Error::failure(format!(
            "`{}`: the weights do not match the model: {}",
            self.label,
            counts.join(", ")
        ));
        let error =
            faults.iter().filter(|(_, names)| !names.is_empty()).fold(error, |error, (fault, names)| {
                let more = match names.len().saturating_sub(LISTED) {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                error.cause(format!("{fault}: {}{more}", names[..names.len().min(LISTED)].join(", ")))
            });
        Err(error
            .hint("check that the checkpoint is complete, of this model family, and has the sizes of its configuration"))
    }

    /// Copies a weight into CPU memory, in the type of the file.
    pub fn read(&self, name: &str) -> Result<Tensor> {
        let fail = |cause: String| broken(&self.label, cause);
        let entry = self.entries.get(name).ok_or_else(|| no_weight(&self.label, name))?;
        let file = &self.files[entry.file];
        let (_, kind) = TYPES
            .into_iter()
            .find(|(dtype, _)| *dtype == entry.dtype)
            .ok_or_else(|| fail(format!("weight `{name}`: type {:?} is not supported", entry.dtype)))?;
        let bytes = file.get(entry.data.clone()).ok_or_else(|| fail(format!("`{name}` is truncated")))?;
        let tensor = Tensor::f_from_data_size(bytes, &entry.shape, kind)?;
        file.release(&entry.data);
        Ok(tensor)
    }
}

fn holds_weights(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16 | Dtype::F64)
}

fn no_weight(label: &str, name: &str) -> Error {
    broken(label, format!("no weight `{name}`"))
}

fn duplicate(label: &str, name: &str) -> Error {
    broken(label, format!("duplicate weight `{name}`"))
}

fn broken(label: &str, cause: impl std::fmt::Display) -> Error {
    Error::failure(format!("cannot read weights `{label}`"))
        .cause(cause.to_string().lines().next().unwrap_or_default())
        .hint("if the file is truncated or damaged, download it again")
}

/// Name, type, shape and byte range of each tensor.
#[doc(hidden)]
pub type Table = Vec<(String, Dtype, Vec<usize>, Range<usize>)>;

/// Reads the tensors of a file of `torch.save`.
#[cfg(feature = "pickle")]
fn read_pickle(label: &str, bytes: &[u8]) -> Result<Table> {
    let entries = torch_pickle::read(bytes).map_err(|error| broken(label, error))?;
    Ok(entries.into_iter().map(|entry| (entry.name, entry.dtype, entry.shape, entry.data)).collect())
}

#[cfg(not(feature = "pickle"))]
fn read_pickle(label: &str, _: &[u8]) -> Result<Table> {
    Err(Error::failure(format!("cannot read weights `{label}`: expected `.safetensors`"))
        .hint("convert the file to safetensors, or build the plugin with the feature `pickle` of `unirl`"))
}

/// Reads the header of a safetensors file, checked against the length of the file, and its metadata.
#[doc(hidden)]
pub fn read_table(bytes: &[u8]) -> std::result::Result<(Table, HashMap<String, String>), String> {
    let (header, metadata): (usize, Metadata) =
        SafeTensors::read_metadata(bytes).map_err(|error| match error {
            SafeTensorError::MetadataIncompleteBuffer => {
                "the length of the file does not match its header".to_string()
            }
            other => format!("not safetensors: {other}"),
        })?;
    let start = header + 8; // the header and its length
    let table = metadata
        .tensors()
        .into_iter()
        .map(|(name, info)| {
            let (from, to) = info.data_offsets;
            (name, info.dtype, info.shape.clone(), start + from..start + to)
        })
        .collect();
    Ok((table, metadata.metadata().clone().unwrap_or_default()))
}

/// Writes weights as one safetensors file, tensor by tensor, with `texts` as metadata.
pub fn write(path: &Path, weights: &[(String, Tensor)], texts: &[(&str, &str)]) -> Result<()> {
    let place = || format!("cannot write `{}`", path.display());
    let views: Vec<(&str, Saved)> = weights
        .iter()
        .map(|(name, tensor)| {
            let kind = tensor.kind();
            let (dtype, _) = TYPES
                .into_iter()
                .find(|(_, known)| *known == kind)
                .ok_or_else(|| Error::failure(format!("weight `{name}`: {kind:?} cannot be saved")))?;
            let shape = tensor.size().iter().map(|size| *size as usize).collect();
            Ok((name.as_str(), Saved { tensor: tensor.detach(), dtype, shape }))
        })
        .collect::<Result<_>>()
        .context(place)?;
    // Python readers check this key.
    let texts = std::iter::once(&("format", "pt"))
        .chain(texts)
        .map(|(key, text)| ((*key).to_string(), (*text).to_string()))
        .collect();
    safetensors::serialize_to_file(views, Some(texts), path)
        .map_err(|error| Error::failure(place()).cause(error))
}

struct Saved {
    tensor: Tensor,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl View for Saved {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let tensor = self.tensor.to_device(Device::Cpu).contiguous();
        let mut bytes = vec![0; self.data_len()];
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

#[cfg(test)]
mod tests;
