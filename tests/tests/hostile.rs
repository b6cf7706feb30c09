//! A plugin directory of broken and malicious files: each is reported, and none stops a run that does not use it.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::{format_output, plugin_dir, program};
use serde_json::Value;

const MAGIC: &[u8] = b"unirl-plugin-stamp-1\n";
/// The size of a stamp in bytes.
const STAMP: usize = 512;

fn valid_plugin() -> Vec<u8> {
    fs::read(plugin_dir().join("libunirl_plugin_other.so")).unwrap()
}

/// The offset of the stamp of a library. The magic alone also occurs among its constants.
fn stamp_offset(bytes: &[u8]) -> usize {
    let is_stamp =
        |at: &usize| bytes[*at..].starts_with(MAGIC) && bytes[at + MAGIC.len()..].starts_with(b"abi=");
    (0..bytes.len() - STAMP).find(is_stamp).unwrap()
}

/// The valid plugin with `from` replaced by `to` in its stamp.
fn restamped(from: &str, to: &str) -> Vec<u8> {
    let mut bytes = valid_plugin();
    let at = stamp_offset(&bytes);
    let text = String::from_utf8(bytes[at..at + STAMP].to_vec()).unwrap();
    assert!(text.contains(from), "{text}");
    let mut changed = text.trim_end_matches('\0').replace(from, to).into_bytes();
    changed.resize(STAMP, 0);
    bytes[at..at + STAMP].copy_from_slice(&changed);
    bytes
}

fn patched(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = valid_plugin();
    change(&mut bytes);
    bytes
}

/// Compiles C code into a library with a valid stamp.
fn compile(folder: &Path, name: &str, code: &str) {
    let bytes = valid_plugin();
    let at = stamp_offset(&bytes);
    let stamp: Vec<String> = bytes[at..at + STAMP].iter().map(u8::to_string).collect();
    let source = folder.join(format!("{name}.c"));
    let text =
        format!("const unsigned char UNIRL_PLUGIN_STAMP[{STAMP}] = {{{}}};\n{code}\n", stamp.join(","));
    fs::write(&source, text.replace("NAME", name)).unwrap();
    let out = folder.join(format!("libunirl_plugin_{name}.so"));
    let done = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&out, &source]).status().unwrap();
    assert!(done.success());
}

/// Each file with a part of its error; `None` if it is ignored.
const CASES: [(&str, Option<&str>); 22] = [
    ("empty", Some("it is not a shared library")),
    ("text", Some("it is not a shared library")),
    ("script", Some("it is not a shared library")),
    ("header", Some("the file is truncated")),
    ("half", Some("the file is truncated")),
    ("cut", Some("the file is truncated")),
    ("foreign", Some("it has no stamp")),
    ("unstamped", Some("it has no stamp")),
    ("garbage", Some("it has no stamp")),
    ("incomplete", Some("it has no stamp")),
    ("abi", Some("a different plugin ABI")),
    ("torch", Some("a different libtorch")),
    ("release", Some("a different release of unirl")),
    ("layout", Some("a different abi_stable")),
    ("panics", Some("a different panic strategy")),
    ("platform", Some("a different platform")),
    ("machine", Some("")),
    ("aborts", Some("with signal 6")),
    ("crashes", Some("with signal 11")),
    ("rootless", Some("")),
    ("loop", None),
    ("folder", None),
];

/// Writes every case, and ten thousand files that are not plugins.
fn write_cases(folder: &Path) {
    let file = |name: &str| folder.join(format!("libunirl_plugin_{name}.so"));
    let write = |name: &str, bytes: &[u8]| fs::write(file(name), bytes).unwrap();
    let valid = valid_plugin();
    write("empty", b"");
    write("text", b"not a library\n");
    write("script", b"#!/bin/sh\nexit 0\n");
    write("header", &valid[..40]);
    write("half", &valid[..valid.len() / 2]);
    write("cut", &valid[..valid.len() - 1]);
    compile(folder, "foreign", "int plugin(void) { return 1; }");
    let stampless = fs::read(file("foreign")).unwrap();
    let at = stamp_offset(&stampless);
    write("foreign", &[&stampless[..at], &[0; STAMP], &stampless[at + STAMP..]].concat());
    let overwrite = |text: &[u8]| {
        patched(|bytes| {
            let at = stamp_offset(bytes);
            bytes[at..at + STAMP].fill(0);
            bytes[at..at + text.len()].copy_from_slice(text);
        })
    };
    write("unstamped", &overwrite(b""));
    write("garbage", &overwrite(&[MAGIC, &[0xff; STAMP - 21]].concat()));
    write("incomplete", &overwrite(&[MAGIC, b"abi=1\nunirl=0.1.0\n"].concat()));
    write("abi", &restamped("abi=1\n", "abi=999\n"));
    write("torch", &restamped("torch=2.", "torch=1."));
    write("release", &restamped("unirl=0.1.", "unirl=0.9."));
    write("layout", &restamped("abi_stable=0.11", "abi_stable=0.10"));
    write("panics", &restamped("panic=unwind", "panic=abort"));
    write("platform", &restamped("target=x86_64", "target=riscv64"));
    write("machine", &patched(|bytes| bytes[0x12] = 0xf3)); // ELF's e_machine: RISC-V
    compile(
        folder,
        "aborts",
        "#include <stdlib.h>\n__attribute__((constructor)) void begin(void) { abort(); }",
    );
    compile(folder, "crashes", "__attribute__((constructor)) void begin(void) { *(volatile int *)0 = 1; }");
    compile(folder, "rootless", "int nothing;");
    symlink(file("loop"), file("loop")).unwrap();
    fs::create_dir(file("folder")).unwrap();
    for number in 0..10_000 {
        fs::write(folder.join(format!("{number}.so")), "").unwrap();
    }
}

#[test]
fn hostile_plugin_files_are_reported_and_stop_no_run() {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("plugins");
    fs::create_dir(&folder).unwrap();
    write_cases(&folder);
    let path = std::env::join_paths([folder.clone(), plugin_dir()]).unwrap();

    let output = program(["plugins", "list", "--json"]).env("UNIRL_PLUGIN_PATH", &path).output().unwrap();
    let printed = format_output(&output);
    assert!(printed.starts_with("exit: 0"), "{printed}");
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    let states: BTreeMap<&str, &Value> = json["plugins"]
        .as_array()
        .unwrap()
        .iter()
        .map(|plugin| (plugin["name"].as_str().unwrap(), &plugin["refused"]))
        .collect();
    for (name, reason) in CASES {
        match (states.get(name), reason) {
            (None, None) => {}
            (Some(Value::String(refused)), Some(reason)) => {
                assert!(refused.contains(reason), "{name}: {refused}");
            }
            (state, _) => panic!("{name}: {state:?}"),
        }
    }
    let built = |name: &str| {
        let plugins = json["plugins"].as_array().unwrap();
        plugins.iter().find(|plugin| plugin["name"] == name).unwrap()["built"].clone()
    };
    assert_eq!(built("abi")["abi"], "999");
    assert_eq!(built("showo")["libtorch"], json["libtorch"]);
    for good in ["rewards", "showo", "janus"] {
        assert_eq!(states[good], &Value::Null, "{good}");
    }

    // A reward by name and a model load only their own plugins.
    let samples = "{\"category\":\"counting\",\"prompt\":\"a photo of two stars\",\"truth\":\"two stars\",\"answer\":\"two stars\"}\n";
    let mut child = program(["reward", "score", "--reward", "exact"])
        .env("UNIRL_PLUGIN_PATH", &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(samples.as_bytes()).unwrap();
    let printed = format_output(&child.wait_with_output().unwrap());
    assert!(printed.starts_with("exit: 0") && printed.contains("\"reward\":1.0"), "{printed}");
    let out = home.path().join("star.png");
    let generate =
        ["generate", "--plugin", "showo", "--device", "cpu", "--prompt", "a photo of a star", "--out"];
    let printed =
        format_output(&program(generate).arg(&out).env("UNIRL_PLUGIN_PATH", &path).output().unwrap());
    assert!(printed.starts_with("exit: 0") && out.is_file(), "{printed}");
}

/// If two plugins have one name, the first directory of the search path wins.
#[test]
fn duplicate_plugin_name_first_on_search_path_wins() {
    let home = tempfile::tempdir().unwrap();
    let [one, two]: [PathBuf; 2] = ["one", "two"].map(|name| home.path().join(name));
    for folder in [&one, &two] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("libunirl_plugin_other.so"), valid_plugin()).unwrap();
    }
    let output = program(["plugins", "list", "--json", "--plugin-dir"])
        .args([&one])
        .arg("--plugin-dir")
        .arg(&two)
        .output();
    let json: Value = serde_json::from_slice(&output.unwrap().stdout).unwrap();
    let found: Vec<&Value> =
        json["plugins"].as_array().unwrap().iter().filter(|plugin| plugin["name"] == "other").collect();
    assert_eq!(found.len(), 1);
    assert!(found[0]["path"].as_str().unwrap().contains("/one/"), "{found:?}");
}
