//! Locates the records in the zip archive of `torch.save`, which are stored uncompressed.

use std::collections::HashMap;
use std::io::Cursor;
use std::ops::Range;

use zip::{CompressionMethod, ZipArchive};

use super::quoted;

/// Limits far above those of any checkpoint, which keep a malicious file from exhausting memory.
const MAX_DIRECTORY: u64 = 64 << 20;
const MAX_RECORDS: u64 = 1 << 19;

const SCRIPT: &str =
    "expected a state dict, found a TorchScript archive: save the `state_dict()` of the module instead";

/// Returns the byte range of every record of the archive.
pub(super) fn records(file: &[u8]) -> Result<HashMap<String, Range<usize>>, String> {
    check_end(file)?;
    let broken = |error| format!("expected a zip archive, found a damaged one: {error}");
    let mut archive = ZipArchive::new(Cursor::new(file)).map_err(broken)?;
    let mut records = HashMap::with_capacity(archive.len());
    for index in 0..archive.len() {
        // An encrypted record is larger than its content and therefore refused below.
        let record = archive.by_index_raw(index).map_err(broken)?;
        let name = record.name();
        if name.ends_with("/constants.pkl") || name.contains("/code/") {
            return Err(SCRIPT.into());
        }
        if record.compression() != CompressionMethod::Stored || record.size() != record.compressed_size() {
            return Err(format!(
                "expected uncompressed records, found {} compressed or encrypted",
                quoted(name)
            ));
        }
        let range = usize::try_from(record.data_start()).ok().and_then(|start| {
            let end = start.checked_add(usize::try_from(record.size()).ok()?)?;
            (end <= file.len()).then_some(start..end)
        });
        let range =
            range.ok_or_else(|| format!("record {} reaches beyond the end of the file", quoted(name)))?;
        if records.insert(name.to_owned(), range).is_some() {
            return Err(format!("expected unique records, found {} twice", quoted(name)));
        }
    }
    Ok(records)
}

/// Checks the end records of the archive before `zip` allocates memory for the number of records that they claim. torch writes
/// the directory right before them and nothing after them, so a file that fails here is truncated or was modified.
fn check_end(file: &[u8]) -> Result<(), String> {
    let number = |at: usize, size: usize| {
        let bytes = file.get(at..at.checked_add(size)?)?;
        Some(bytes.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    // Number of entries, size, start and expected end of the directory.
    let directory = || {
        let end = file.len().checked_sub(22).filter(|end| number(*end, 4) == Some(0x0605_4b50))?;
        let locator = end.checked_sub(20).filter(|at| number(*at, 4) == Some(0x0706_4b50));
        let Some(locator) = locator else {
            return Some((number(end + 8, 2)?, number(end + 12, 4)?, number(end + 16, 4)?, end));
        };
        let end = usize::try_from(number(locator + 8, 8)?).ok()?;
        let end = Some(end).filter(|end| number(*end, 4) == Some(0x0606_4b50))?;
        Some((number(end + 32, 8)?, number(end + 40, 8)?, number(end + 48, 8)?, end))
    };
    let (count, size, start, end) = directory().ok_or(
        "the file does not end with the end record of a zip archive: it is truncated or was modified",
    )?;
    // An entry of the directory takes 46 bytes and its name.
    if start.checked_add(size) != Some(end as u64) || count > size / 46 {
        return Err(format!(
            "expected the zip directory right before its end record, found {count} records in {size} bytes at \
             {start}: the file is truncated or was modified"
        ));
    }
    if size > MAX_DIRECTORY || count > MAX_RECORDS {
        return Err(format!("expected at most {MAX_RECORDS} records in the archive, found {count}"));
    }
    Ok(())
}
