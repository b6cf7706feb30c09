//! TensorBoard event files: records of protocol buffers with checksums.
//!
//! A record is the length of its data (8 bytes, little-endian), the masked CRC-32C of the length, the data, and their masked
//! CRC-32C. The data are an `Event`, here with the four fields that scalars need.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crc::{CRC_32_ISCSI, Crc};
use prost::Message;
use unirl::error::{Context, Result};

use crate::atomic_fs;

/// TensorBoard finds event files by `tfevents` in the name.
const NAME: &str = "events.out.tfevents.unirl";
const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);

#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    /// `brain.Event:2` in the first event.
    #[prost(string, optional, tag = "3")]
    file_version: Option<String>,
    #[prost(message, optional, tag = "5")]
    summary: Option<Summary>,
}

#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<Scalar>,
}

#[derive(Clone, PartialEq, Message)]
struct Scalar {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, tag = "2")]
    simple_value: f32,
}

/// The event file of a run.
pub(crate) struct EventFile {
    file: File,
    path: PathBuf,
}

impl EventFile {
    /// Opens the file in `folder` and removes the events after `step`.
    pub(crate) fn open(folder: &Path, step: u64) -> Result<Self> {
        let path = folder.join(NAME);
        let known = if path.is_file() {
            fs::read(&path).context(|| format!("cannot read `{}`", path.display()))?
        } else {
            Vec::new()
        };
        let mut kept = kept(&known, step).to_vec();
        if kept.is_empty() {
            let version = Some("brain.Event:2".into());
            kept = record(&Event { wall_time: now(), file_version: version, ..Event::default() });
        }
        atomic_fs::write_with(&path, |file| file.write_all(&kept).context(|| "no event was written"))?;
        let file = File::options().append(true).open(&path);
        let file = file.context(|| format!("cannot open `{}`", path.display()))?;
        Ok(Self { file, path })
    }

    /// Appends the scalars of a step.
    pub(crate) fn append(&mut self, step: u64, metrics: &BTreeMap<String, f64>) -> Result<()> {
        let value = metrics
            .iter()
            .map(|(tag, value)| Scalar { tag: tag.clone(), simple_value: *value as f32 })
            .collect();
        let summary = Some(Summary { value });
        let event = Event { wall_time: now(), step: step as i64, summary, file_version: None };
        self.file.write_all(&record(&event)).context(|| format!("cannot write `{}`", self.path.display()))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

fn masked(bytes: &[u8]) -> [u8; 4] {
    let crc = CRC32C.checksum(bytes);
    crc.rotate_right(15).wrapping_add(0xA282_EAD8).to_le_bytes()
}

fn record(event: &Event) -> Vec<u8> {
    let data = event.encode_to_vec();
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), &data, &masked(&data)].concat()
}

/// Returns the leading complete records up to `step`.
fn kept(bytes: &[u8], step: u64) -> &[u8] {
    let mut end = 0;
    while let Some((event, length)) = read(&bytes[end..]) {
        if event.step > step as i64 {
            break;
        }
        end += length;
    }
    &bytes[..end]
}

/// Returns the first record and its length in bytes, if it is complete.
fn read(bytes: &[u8]) -> Option<(Event, usize)> {
    let (length, rest) = bytes.split_first_chunk::<8>()?;
    let (check, rest) = rest.split_first_chunk::<4>()?;
    let count = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let data = rest.get(..count)?;
    let tail = rest.get(count..count.checked_add(4)?)?;
    let whole = *check == masked(length) && tail == masked(data);
    Some((Event::decode(data).ok().filter(|_| whole)?, 16 + count))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masked_crc_matches_known_values() {
        assert_eq!(CRC32C.checksum(b"123456789"), 0xE306_9283);
        // Every event file begins with the record `brain.Event:2`: a length of 24 bytes, followed by these four.
        assert_eq!(masked(&24u64.to_le_bytes()), [0xA3, 0x7F, 0x4B, 0x22]);
    }

    #[test]
    fn event_encoding_matches_its_definition() {
        let value = vec![Scalar { tag: "a".into(), simple_value: 1.0 }];
        let event = Event { wall_time: 1.0, step: 2, summary: Some(Summary { value }), file_version: None };
        let expected = [
            &[0x09, 0, 0, 0, 0, 0, 0, 0xF0, 0x3F][..], // field 1, 8 bytes: 1.0
            &[0x10, 0x02],                             // field 2: 2
            &[0x2A, 0x0A],                             // field 5, 10 bytes
            &[0x0A, 0x08],                             // its field 1, 8 bytes
            &[0x0A, 0x01, b'a'],                       // tag
            &[0x15, 0, 0, 0x80, 0x3F],                 // 4 bytes: 1.0
        ];
        assert_eq!(event.encode_to_vec(), expected.concat());
    }

    #[test]
    fn resume_drops_later_steps_and_incomplete_records() {
        let dir = tempfile::tempdir().unwrap();
        let metrics = BTreeMap::from([("reward/mean".to_string(), 0.5)]);
        let mut file = EventFile::open(dir.path(), 0).unwrap();
        (1..=5).for_each(|step| file.append(step, &metrics).unwrap());
        let path = dir.path().join(NAME);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, &whole[..whole.len() - 3]).unwrap();
        let mut file = EventFile::open(dir.path(), 3).unwrap();
        file.append(4, &metrics).unwrap();
        let bytes = fs::read(&path).unwrap();
        let (mut steps, mut at) = (Vec::new(), 0);
        while let Some((event, length)) = read(&bytes[at..]) {
            steps.push(event.step);
            at += length;
        }
        assert_eq!((steps, at), (vec![0, 1, 2, 3, 4], bytes.len()));
    }
}
