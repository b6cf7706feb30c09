use std::fs;
use std::io::Write;
use std::time::{Duration, Instant};

use zip::write::FileOptions;

use super::*;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/pickle");

fn fixture(name: &str) -> Vec<u8> {
    fs::read(format!("{FIXTURES}/{name}")).unwrap()
}

/// Reads a file and checks that ranges are within it and that an error is one short line.
fn checked(file: &[u8]) -> Result<Vec<Entry>, String> {
    let read = read(file);
    match &read {
        Ok(entries) => {
            for entry in entries {
                let size = entry.shape.iter().product::<usize>() * entry.dtype.bitsize() / 8;
                assert_eq!(file.get(entry.data.clone()).map(<[u8]>::len), Some(size), "{entry:?}");
            }
        }
        Err(error) => assert!(!error.contains('\n') && error.len() < 1500, "{error}"),
    }
    read
}

/// An archive as torch writes it, with the given pickle and 40 bytes of storage `0`.
fn archive(pickle: &[u8]) -> Vec<u8> {
    packed(&[("a/data.pkl", pickle), ("a/byteorder", b"little"), ("a/data/0", &[7; 40])])
}

fn packed(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, data) in records {
        writer
            .start_file(*name, FileOptions::default().compression_method(zip::CompressionMethod::Stored))
            .unwrap();
        writer.write_all(data).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// The opcodes of a tensor in storage `0`; offset, shape and strides are given as opcodes.
fn tensor(elements: &[u8], offset: &[u8], shape: &[u8], strides: &[u8]) -> Vec<u8> {
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n((\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpu"
            .as_slice(),
        elements,
        b"tQ",
        offset,
        shape,
        strides,
        b"\x89}tR",
    ]
    .concat()
}

/// `{"w": VALUE}`.
fn dict(value: &[u8]) -> Vec<u8> {
    archive(&[b"\x80\x02}\x8c\x01w".as_slice(), value, b"s."].concat())
}

#[test]
fn valid_files_are_read_byte_equal() {
    let mut count = 0;
    for item in fs::read_dir(FIXTURES).unwrap() {
        let name = item.unwrap().file_name().into_string().unwrap();
        let Some(name) = name.strip_suffix(".pt").filter(|name| name.starts_with("good_")) else { continue };
        let (file, expected) = (fixture(&format!("{name}.pt")), fixture(&format!("{name}.safetensors")));
        let expected = safetensors::SafeTensors::deserialize(&expected).unwrap();
        let entries = checked(&file).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(entries.len(), expected.len(), "{name}");
        for entry in &entries {
            let tensor = expected.tensor(&entry.name).unwrap();
            assert_eq!((entry.dtype, entry.shape.as_slice()), (tensor.dtype(), tensor.shape()), "{name}");
            assert!(file[entry.data.clone()] == *tensor.data(), "{name}: {}", entry.name);
        }
        count += 1;
    }
    assert_eq!(count, 10);
}

#[test]
fn tensors_of_one_storage_share_a_range() {
    let file = fixture("good_nested.pt");
    let entries = read(&file).unwrap();
    let data =
        |entries: &[Entry], name| entries.iter().find(|entry| entry.name == name).unwrap().data.clone();
    assert_eq!(data(&entries, "embed.weight"), data(&entries, "head.weight"));
    let entries = read(&fixture("good_views.pt")).unwrap();
    assert_eq!(data(&entries, "high").start, data(&entries, "all").start + 30 * 4);
}

#[test]
fn bad_files_are_refused() {
    let mut names: Vec<String> = fs::read_dir(FIXTURES)
        .unwrap()
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .collect();
    names.retain(|name| name.starts_with("bad_"));
    names.sort();
    let mut refusals = String::new();
    for name in names {
        refusals += &format!("{name}: {}\n", checked(&fixture(&name)).unwrap_err());
    }
    assert!(!std::path::Path::new("/tmp/unirl-pickle-was-run").exists());
    insta::assert_snapshot!(refusals);
}

#[test]
fn crafted_pickles_are_refused() {
    let (zero, one, ten) = (b"K\x00".as_slice(), b"K\x01\x85".as_slice(), b"K\x0a\x85".as_slice());
    let small = |shape: &[u8], strides: &[u8]| dict(&tensor(b"K\x0a", zero, shape, strides));
    assert_eq!(checked(&small(ten, one)).unwrap()[0].shape, [10]);
    let huge = b"\x8a\x08\0\0\0\0\0\0\0\x40";
    let long = |bytes: &[u8]| [b"\x80\x02".as_slice(), bytes].concat();
    let name_twice = [b"}(\x8c\x01wN\x8c\x01w".as_slice(), &tensor(b"K\x0a", zero, ten, one), b"u."].concat();
    let cases = [
        ("shape of 2^62", small(&[huge.as_slice(), b"\x85"].concat(), one)),
        (
            "shape of 2^124",
            small(&[huge.as_slice(), huge, b"\x86"].concat(), &[huge.as_slice(), zero, b"\x86"].concat()),
        ),
        ("2^124 and none", small(&[huge.as_slice(), huge, zero, b"\x87"].concat(), b"K\x01K\x01K\x01\x87")),
        ("negative shape", small(b"J\xff\xff\xff\xff\x85", one)),
        ("negative stride", small(ten, b"J\xff\xff\xff\xff\x85")),
        ("stride of 0", small(ten, b"K\x00\x85")),
        ("two strides", small(ten, b"K\x0aK\x01\x86")),
        ("text for a shape", small(b"\x8c\x01a", one)),
        ("33 sizes", small(&[b"(".as_slice(), &b"K\x01".repeat(33), b"t"].concat(), one)),
        ("beyond its storage", dict(&tensor(b"K\x0a", b"K\x05", b"K\x06\x85", one))),
        ("negative offset", dict(&tensor(b"K\x0a", b"J\xff\xff\xff\xff", one, one))),
        ("offset of 2^62", dict(&tensor(b"K\x0a", huge, one, one))),
        ("storage of 2^62", dict(&tensor(huge, zero, one, one))),
        ("storage of -1", dict(&tensor(b"J\xff\xff\xff\xff", zero, one, one))),
        ("storage of 2^80", dict(&tensor(b"\x8a\x0b\0\0\0\0\0\0\0\0\0\0\x01", zero, one, one))),
        ("name twice", archive(&long(&name_twice))),
        ("no end", archive(b"\x80\x02}")),
        ("no value", archive(b"\x80\x02.")),
        ("two values", archive(b"\x80\x02}}.")),
        ("trailing bytes", archive(b"\x80\x02}..")),
        ("open mark", archive(b"\x80\x02(}.")),
        ("below a mark", archive(b"\x80\x02}(\x85.")),
        ("no mark", archive(b"\x80\x02}u.")),
        ("odd pairs", archive(b"\x80\x02}(NNNu.")),
        ("items of a tuple", archive(b"\x80\x02)NNs.")),
        ("append to a dict", archive(b"\x80\x02}Na.")),
        ("missing memo", archive(b"\x80\x02h\x07.")),
        ("long text", archive(b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.")),
        ("other text", archive(b"\x80\x02\x8c\x02\xff\xfe.")),
        ("protocol 0", archive(b"(dp0\n.")),
        ("protocol 9", archive(b"\x80\x09}.")),
        ("new object", archive(b"\x80\x02ctorch\nSize\n)\x81.")),
        ("a call of text", archive(b"\x80\x02\x8c\x02hi)R.")),
        ("a call without arguments", archive(b"\x80\x02ctorch\nSize\nNR.")),
        ("a call of a storage", archive(b"\x80\x02ctorch\nFloatStorage\n)R.")),
        ("ordered pairs", archive(b"\x80\x02ccollections\nOrderedDict\n]\x85R.")),
        ("stack global", archive(b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.")),
        ("stack global of numbers", archive(b"\x80\x04K\x01K\x02\x93.")),
        ("lines", archive(b"\x80\x02cos\x1b[31m\nsys\ttem\n.")),
        ("attributes of a list", archive(b"\x80\x02]}b.")),
        ("persistent id", archive(b"\x80\x02\x8c\x01aQ.")),
        ("empty pickle", archive(b"")),
        ("marks", archive(&long(&b"(".repeat(5000)))),
        ("stack", archive(&long(&b"N".repeat(2_000_000)))),
        ("memo", archive(&long(&[b"N".as_slice(), &b"\x94".repeat(5_000_000)].concat()))),
        ("dicts", archive(&long(&[b"]".as_slice(), &b"}NNsa".repeat(2_000_000)].concat()))),
        ("nesting", archive(&long(&[b")".as_slice(), &b"\x85".repeat(5_000_000)].concat()))),
        ("large pickle", archive(&vec![b'N'; MAX_PICKLE + 1])),
        ("no pickle", packed(&[("a/byteorder", b"little")])),
        ("two pickles", packed(&[("a/data.pkl", b"N."), ("b/data.pkl", b"N.")])),
        ("appended", [archive(b"N."), b"more".to_vec()].concat()),
        ("prepended", [b"PK\x03\x04".to_vec(), archive(b"N.")].concat()),
        ("safetensors", fixture("good_kinds.safetensors")),
        ("a pickle", b"\x80\x02N.".to_vec()),
        ("nothing", Vec::new()),
    ];
    let mut refusals = String::new();
    for (what, file) in cases {
        let start = Instant::now();
        refusals += &format!("{what}: {}\n", checked(&file).map(|_| ()).expect_err(what));
        assert!(start.elapsed() < Duration::from_secs(5), "{what}");
    }
    insta::assert_snapshot!(refusals);
}

#[test]
fn archive_with_too_large_record_count_is_refused() {
    let mut file = fixture("good_kinds.pt");
    // The count in the zip64 end record, which precedes its locator (20 bytes) and the end record (22).
    let at = file.len() - 42 - 56 + 32;
    file[at..at + 8].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    let error = checked(&file).unwrap_err();
    assert!(
        error.starts_with(
            "expected the zip directory right before its end record, found 1099511627776 records in"
        ),
        "{error}"
    );
}

#[test]
fn reference_bombs_are_refused_in_time() {
    // One large dict without tensors as the value of many wrappers, and one large tuple as the arguments of many calls.
    let large = [b"}(".as_slice(), &b"NN".repeat(400_000), b"u"].concat();
    let wrapped =
        [b"\x80\x02}(\x8c\x05model\x94".as_slice(), &large, b"\x94", &b"h\x00h\x01".repeat(400_000), b"u."];
    let calls = [
        b"\x80\x02ctorch\nSize\n\x94(".as_slice(),
        &b"N".repeat(900_000),
        b"t\x94(",
        &b"h\x00h\x01R".repeat(900_000),
        b"t\x86R.",
    ];
    let start = Instant::now();
    let error = checked(&archive(&wrapped.concat())).unwrap_err();
    assert!(error.contains("found neither among the keys: `model`, `model`"), "{error}");
    let error = checked(&archive(&calls.concat())).unwrap_err();
    assert_eq!(error, "expected a state dict, found a plain value");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[test]
fn truncated_file_is_refused_at_every_length() {
    let file = fixture("good_nested.pt");
    for length in 0..file.len() {
        checked(&file[..length]).unwrap_err();
    }
}
