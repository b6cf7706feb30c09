//! Readers of foreign bytes, on valid files and on seeded mutations of them. `fuzz/` runs the same functions under libFuzzer.
//!
//! `FUZZ_SEEDS=1` writes the valid files to `fuzz/corpus/`, from where `cargo fuzz` starts.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests may panic and report what they skip")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use unirl_prompts::rng::Rng;

#[path = "../../fuzz/targets.rs"]
mod targets;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Bytes that numbers, texts and nesting trip over.
#[rustfmt::skip]
const EXTREMES: [&[u8]; 20] = [
    b"\xff\xff\xff\xff\xff\xff\xff\xff", b"\0\0\0\0\0\0\0\x80", b"\xff\xff\xff\xff\xff\xff\xff\x7f", b"\0\0\0\0\0\0\0\x40", b"\xff\xff\xff\x7f",
    b"\0", b"\xff\xfe", b"\xf0\x9f\xaa\x91", "n\u{2019}t\u{130}".as_bytes(), b"null", b"-1", b"1e999", b"18446744073709551616", b"99999999999999999999999",
    b"\"", b"\\", b"{\"a\":", b"[[[[[[[[[[[[[[[[", b"((((((((((((((((", b"\n",
];

/// The most bytes that a reader may hold beside its input: some hundred for each byte, the cost of a value of a pickle, and what a
/// few tables take.
fn most_memory(input: usize) -> usize {
    (4 << 20) + 300 * input
}

/// Far above the slowest input; a quadratic reader would exceed it.
const MOST_TIME: Duration = Duration::from_secs(5);

struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[allow(unsafe_code, reason = "an allocator is unsafe to implement")]
// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.get().wrapping_add(layout.size());
        HELD.set(held);
        PEAK.set(PEAK.get().max(held));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.set(HELD.get().saturating_sub(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Reads within the limits of time and memory.
fn read(target: fn(&[u8]) -> bool, input: &[u8]) -> bool {
    let (before, start) = (HELD.get(), Instant::now());
    PEAK.set(before);
    let accepted = target(input);
    let (took, held) = (start.elapsed(), PEAK.get() - before);
    assert!(took < MOST_TIME, "{took:?} for {} bytes", input.len());
    assert!(held < most_memory(input.len()), "{held} bytes for {}", input.len());
    accepted
}

/// A place in `0..length`, as often near the ends, where formats have their tables, as anywhere.
fn place(rng: &mut Rng, length: usize) -> usize {
    match rng.below(3) {
        0 => rng.below(length),
        1 => rng.below(length.min(2048)),
        _ => length - 1 - rng.below(length.min(1400)),
    }
}

fn mutate(rng: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[rng.below(seeds.len())].clone();
    for _ in 0..if rng.chance(0.5) { 1 } else { 2 + rng.below(7) } {
        if bytes.is_empty() {
            break;
        }
        let at = place(rng, bytes.len());
        let end = (at + 1 + rng.below(40)).min(bytes.len());
        match rng.below(12) {
            0..=2 => bytes[at] ^= 1 << rng.below(8),
            3 | 4 => bytes[at] = rng.below(256) as u8,
            5 => drop(bytes.drain(at..end)),
            6 => {
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            7 | 8 => {
                let extreme = EXTREMES[rng.below(EXTREMES.len())];
                bytes.splice(at..at, extreme.iter().copied());
            }
            9 => {
                let extreme = EXTREMES[rng.below(EXTREMES.len())];
                let end = (at + extreme.len()).min(bytes.len());
                bytes.splice(at..end, extreme.iter().copied());
            }
            10 => {
                // The rest of another valid file.
                let other = &seeds[rng.below(seeds.len())];
                let from = place(rng, other.len());
                bytes.truncate(at);
                bytes.extend_from_slice(&other[from..]);
            }
            _ if rng.chance(0.2) => {
                let copy = bytes[at..end].repeat(1 + rng.below(2000));
                bytes.splice(at..at, copy);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// Holds that `target` accepts every seed, and that it reads each of `rounds` mutations of them within the limits. It must accept
/// some of the mutations and refuse some, else they are too weak or too strong to find anything.
fn smoke(name: &str, target: fn(&[u8]) -> bool, seeds: &[Vec<u8>], rounds: usize) {
    assert!(!seeds.is_empty());
    let corpus = Path::new(ROOT).join("fuzz/corpus").join(name);
    for (index, seed) in seeds.iter().enumerate() {
        target(seed); // what is made once and kept does not count
        assert!(read(target, seed), "{name}: seed {index} is refused: {}", String::from_utf8_lossy(seed));
        if std::env::var_os("FUZZ_SEEDS").is_some() {
            fs::create_dir_all(&corpus).unwrap();
            fs::write(corpus.join(format!("seed-{index}")), seed).unwrap();
        }
    }
    let mut rng = Rng::new(seeds.len() as u64);
    let accepted = (0..rounds).filter(|_| read(target, &mutate(&mut rng, seeds))).count();
    println!("{name}: {accepted} of {rounds} mutations are accepted");
    assert!((rounds / 100..rounds - rounds / 100).contains(&accepted), "{accepted} of {rounds}");
}

fn files(folder: &str, start: &str, end: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> =
        fs::read_dir(Path::new(ROOT).join(folder)).unwrap().map(|item| item.unwrap().path()).collect();
    paths.retain(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with(start) && name.ends_with(end)
    });
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn pickle_mutated_is_read_or_refused() {
    smoke("pickle", targets::pickle, &files("tests/fixtures/pickle", "good_", ".pt"), 20_000);
}

#[test]
fn safetensors_mutated_is_read_or_refused() {
    let seeds = files("tests/fixtures/pickle", "good_", ".safetensors");
    smoke("safetensors", targets::safetensors, &seeds, 20_000);
}

/// The header of a plugin that was built, without its table of sections, and its stamp.
#[test]
fn stamp_mutated_is_read_or_refused() {
    let plugin = fs::read(common::plugin_dir().join("libunirl_plugin_fixture.so")).unwrap();
    assert!(targets::stamp(&plugin));
    let magic = b"unirl-plugin-stamp-1\nabi=";
    let at = plugin.windows(magic.len()).position(|window| window == magic).unwrap();
    let mut seed = plugin[..64].to_vec();
    seed[0x28..0x30].fill(0);
    seed[0x3c..0x3e].fill(0);
    seed.extend_from_slice(&plugin[at..at + 512]);
    smoke("stamp", targets::stamp, &[seed], 20_000);
}

#[test]
fn wire_mutated_is_read_or_refused() {
    let golden = fs::read_to_string(Path::new(ROOT).join("core/src/abi/wire.golden.txt")).unwrap();
    let seeds: Vec<Vec<u8>> = golden.lines().map(|line| line.as_bytes().to_vec()).collect();
    assert!(seeds.len() >= 30);
    smoke("wire", targets::wire, &seeds, 20_000);
}

#[test]
fn rules_mutated_are_read_or_refused() {
    let mut seeds = files("plugins/rewards/rules", "", ".toml");
    seeds.extend(files("examples/my-rules", "", ".toml"));
    smoke("rules", targets::rules, &seeds, 3_000);
}

/// The answers that a person judged correct.
#[test]
fn answers_mutated_are_matched() {
    let mut seeds = Vec::new();
    for text in files("tests/fixtures/cases", "answers", ".jsonl") {
        for line in String::from_utf8(text).unwrap().lines() {
            let case: serde_json::Value = serde_json::from_str(line).unwrap();
            if case["want"] == 1 {
                let of = |key: &str| case[key].as_str().unwrap().to_owned();
                let seed = format!("{}: {}\n{}", of("category"), of("prompt"), of("answer"));
                // The reader is stricter than the person now and then: `plugins/rewards` counts how often.
                if targets::answers(seed.as_bytes()) {
                    seeds.push(seed.into_bytes());
                }
            }
        }
    }
    assert!(seeds.len() > 200, "{}", seeds.len());
    smoke("answers", targets::answers, &seeds, 10_000);
}
