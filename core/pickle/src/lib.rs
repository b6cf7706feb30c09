//! Reads the tensors of a checkpoint written by `torch.save` without executing anything.
//!
//! The file is a zip archive with one pickle, `data.pkl`, and one record of raw bytes per storage. A pickle is a program for a
//! stack machine that may call any Python function. The machine here implements what a state dict needs and refuses
//! everything else.

mod archive;
mod machine;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ops::Range;

use machine::{Machine, Pair, Value, kinds};
use safetensors::tensor::Dtype;

/// Limits far above those of any checkpoint, which keep a malicious file from exhausting memory.
const MAX_PICKLE: usize = 64 << 20;
const MAX_RANK: usize = 32;
const MAX_TENSORS: usize = 1 << 18;

/// The keys under which training scripts save the state dict along with other data.
const WRAPPERS: [&str; 4] = ["state_dict", "model", "module", "model_state_dict"];

/// A tensor of a state dict and its byte range in the file, which may be unaligned.
#[derive(Debug)]
pub struct Entry {
    /// Its name in the state dict.
    pub name: String,
    /// Its type.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its bytes in the file.
    pub data: Range<usize>,
}

/// Reads the entries of a torch checkpoint from the bytes of the file. Tied tensors have the same range. An error is one line:
/// what was expected and what was found.
pub fn read(file: &[u8]) -> Result<Vec<Entry>, String> {
    if !file.starts_with(b"PK\x03\x04") {
        return Err(not_an_archive(file));
    }
    let records = archive::records(file)?;
    let folders: Vec<&str> = records.keys().filter_map(|name| name.strip_suffix("/data.pkl")).collect();
    let [folder] = folders[..] else {
        return Err(format!("expected one `data.pkl` in the archive of torch.save, found {}", folders.len()));
    };
    let record =
        |name: &str| records.get(&format!("{folder}/{name}")).and_then(|range| file.get(range.clone()));
    // Archives from before torch 2.1 have no byte order; it is assumed to be little-endian.
    let order = record("byteorder").unwrap_or(b"little");
    if order != b"little" {
        let order = String::from_utf8_lossy(order.get(..16).unwrap_or(order));
        return Err(format!("expected little-endian data, found byte order {}", quoted(&order)));
    }
    let input = record("data.pkl").unwrap_or_default();
    if input.len() > MAX_PICKLE {
        return Err(format!(
            "expected a pickle of at most {MAX_PICKLE} bytes, found {} in `data.pkl`",
            input.len()
        ));
    }
    let mut machine = Machine::new(input);
    let top = machine.run()?;
    let record = |key: &str| records.get(&format!("{folder}/data/{key}")).cloned();
    let (mut names, mut entries) = (HashSet::new(), Vec::new());
    for (key, value) in state_dict(&machine, top)? {
        let Value::Text(name) = key else {
            if matches!(value, Value::Tensor(..)) {
                return Err(format!("expected the name of a tensor, found {}", key.kind()));
            }
            continue;
        };
        if !names.insert(*name) {
            return Err(format!("expected unique names, found {} twice", quoted(name)));
        }
        if matches!(value, Value::Tensor(..)) {
            let refused = |error| format!("tensor {}: {error}", quoted(name));
            entries.push(entry(&machine, name, machine.items(*value), record).map_err(refused)?);
        } else if machine.holds_tensors(*value) {
            return Err(format!("expected one level of names, found tensors in the dict {}", quoted(name)));
        }
        if entries.len() > MAX_TENSORS {
            return Err(format!("expected at most {MAX_TENSORS} tensors, found more"));
        }
    }
    Ok(entries)
}

/// Describes a file that is not a zip archive.
fn not_an_archive(file: &[u8]) -> String {
    // A file of the legacy format starts with this number as a pickle.
    let magic = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";
    if file.first() == Some(&0x80) && file.get(2..).is_some_and(|rest| rest.starts_with(magic)) {
        return "expected the zip format of torch.save, found its legacy format from before torch 1.6: load it with a \
                newer torch and save it again"
            .into();
    }
    let start = file.get(..4).unwrap_or(file);
    format!("expected the zip archive of torch.save, found a file that starts with the bytes {start:02x?}")
}

/// Returns the dict with the tensors: the value of one of [`WRAPPERS`], otherwise the outermost dict.
fn state_dict<'m, 'a>(machine: &'m Machine<'a>, top: Value<'a>) -> Result<&'m [Pair<'a>], String> {
    let Value::Dict(_) = top else { return Err(format!("expected a state dict, found {}", top.kind())) };
    let pairs = machine.pairs(top);
    let named = || {
        pairs.iter().filter_map(|(key, value)| match key {
            Value::Text(name) => Some((*name, *value)),
            _ => None,
        })
    };
    let wrapped = named().filter(|(name, value)| WRAPPERS.contains(name) && machine.holds_tensors(*value));
    match wrapped.take(2).collect::<Vec<_>>()[..] {
        [(_, dict)] => Ok(machine.pairs(dict)),
        [(first, _), (second, _), ..] => {
            Err(format!("expected one state dict, found tensors in both `{first}` and `{second}`"))
        }
        [] if machine.holds_tensors(top) => Ok(pairs),
        [] => Err(format!(
            "expected tensors under their names, or in one of {}, found neither among the keys: {}",
            WRAPPERS.map(quoted).join(", "),
            named().take(8).map(|(name, _)| quoted(name)).collect::<Vec<_>>().join(", ")
        )),
    }
}

/// Computes the entry of a tensor from the arguments of `_rebuild_tensor_v2`.
fn entry(
    machine: &Machine,
    name: &str,
    arguments: &[Value],
    record: impl Fn(&str) -> Option<Range<usize>>,
) -> Result<Entry, String> {
    // Further arguments change the meaning of the bytes: negation, conjugation.
    let [Value::Storage(dtype, key, elements), Value::Int(offset), shape, strides, _, _] = arguments else {
        return Err(format!(
            "expected a plain tensor of storage, offset, shape, strides, requires_grad and hooks, found {}",
            kinds(arguments)
        ));
    };
    let (Some(shape), Some(strides)) = (sizes(machine, *shape), sizes(machine, *strides)) else {
        return Err(format!(
            "expected shape and strides of up to {MAX_RANK} non-negative integers, found other values"
        ));
    };
    let count = shape.iter().try_fold(1_usize, |product, size| product.checked_mul(*size));
    let count = count.ok_or_else(|| format!("expected a shape that fits in memory, found {shape:?}"))?;
    if shape.len() != strides.len() || !(count == 0 || is_contiguous(&shape, &strides)) {
        return Err(format!(
            "expected a contiguous tensor, found shape {shape:?} with strides {strides:?}: save it again after \
             `.contiguous()`"
        ));
    }
    let record = record(key).ok_or_else(|| format!("storage {} is missing", quoted(key)))?;
    let size = dtype.bitsize() / 8;
    let bytes = usize::try_from(*elements).ok().and_then(|elements| elements.checked_mul(size));
    let bytes = bytes.filter(|bytes| *bytes <= record.len()).ok_or_else(|| {
        let (key, found) = (quoted(key), record.len());
        format!("expected {elements} elements of {dtype} in storage {key}, found {found} bytes")
    })?;
    let data = usize::try_from(*offset).ok().and_then(|offset| {
        let (from, to) = (offset.checked_mul(size)?, offset.checked_add(count)?.checked_mul(size)?);
        (to <= bytes).then_some(record.start.checked_add(from)?..record.start.checked_add(to)?)
    });
    let data = data.ok_or_else(|| {
        format!(
            "expected {count} elements from offset {offset} in storage {}, found {elements} in total",
            quoted(key)
        )
    })?;
    Ok(Entry { name: name.to_owned(), dtype: *dtype, shape, data })
}

fn sizes<'a>(machine: &Machine<'a>, tuple: Value<'a>) -> Option<Vec<usize>> {
    let Value::Tuple(..) = tuple else { return None };
    let size = |item: &Value| match item {
        Value::Int(size) => usize::try_from(*size).ok(),
        _ => None,
    };
    Some(machine.items(tuple)).filter(|items| items.len() <= MAX_RANK)?.iter().map(size).collect()
}

fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    let mut expected = 1;
    shape.iter().zip(strides).rev().all(|(size, stride)| {
        let fits = *size == 1 || *stride == expected;
        expected *= size;
        fits
    })
}

/// Quotes a name of the file, shortened and escaped to fit one line.
fn quoted(name: &str) -> String {
    let short: String = name.chars().take(80).collect();
    let dots = if short.len() < name.len() { "…" } else { "" };
    format!("`{}{dots}`", short.escape_debug())
}
