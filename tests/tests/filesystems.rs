//! Runs on file systems without symbolic links, locks or fsync, and runs copied between file systems.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests may panic and report what they skip")]

mod common;

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::unirl;

/// A run that takes about a second, with the drift monitor.
const SETTINGS: &str = "
[train]
sample_every = 0
[rollout]
prompts = 2
group = 2
images = { steps = 2 }
answers = { max_tokens = 4 }
[eval]
prompts = 0
every = 1
every_prompts = 1
[checkpoint]
every = 1
";

// Error numbers of Linux.
const EPERM: i32 = 1;
const EIO: i32 = 5;
const ENODEV: i32 = 19;
const EINVAL: i32 = 22;
const ENOLCK: i32 = 37;
const ENOSYS: i32 = 38;
const EOPNOTSUPP: i32 = 95;
const EDQUOT: i32 = 122;

/// The size of a sector in bytes.
const SECTOR: u32 = 512;

/// The arguments of a new run in `home`.
fn new_run(home: &Path, out: &str, steps: u64) -> Vec<String> {
    fs::write(home.join("settings.toml"), SETTINGS).unwrap();
    let arguments = format!(
        "--plugin showo --optimizer grpo --device cpu --config settings.toml --out {out} --steps {steps}"
    );
    arguments.split(' ').map(String::from).collect()
}

fn resume(run: &str, steps: u64) -> Vec<String> {
    format!("--resume {run} --steps {steps} --allow-change").split(' ').map(String::from).collect()
}

/// Runs the command in `home`; the shim makes each call in `lacks` fail with its error number.
fn run_with_shim(home: &Path, shim: &Path, lacks: &[(&str, i32)], arguments: &[String]) -> Output {
    let lacks = lacks.iter().map(|(call, errno)| (format!("SHIM_{call}"), errno.to_string()));
    unirl(arguments).current_dir(home).env("LD_PRELOAD", shim).envs(lacks).output().unwrap()
}

#[track_caller]
fn succeeded(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

#[track_caller]
fn run_ok(home: &Path, arguments: &[String]) -> String {
    succeeded(&unirl(arguments).current_dir(home).output().unwrap())
}

/// Compiles the library that makes system calls fail.
fn shim(home: &Path) -> PathBuf {
    let library = home.join("shim.so");
    compile(&["-shared", "-fPIC"], "shim.c", &library);
    library
}

fn compile(options: &[&str], source: &str, to: &Path) {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/filesystem"));
    let compiled = Command::new("cc").args(options).arg("-o").arg(to).arg(folder.join(source)).status();
    assert!(compiled.unwrap().success());
}

/// Checks that `--model` loads a checkpoint.
fn assert_loads(home: &Path, model: &str) {
    let arguments = [
        "generate",
        "--plugin",
        "showo",
        "--model",
        model,
        "--prompt",
        "a photo of a star",
        "--out",
        "image.png",
    ];
    run_ok(home, &arguments.map(String::from));
    fs::remove_file(home.join("image.png")).unwrap();
}

fn file_names(folder: &Path) -> Vec<String> {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

#[test]
fn run_without_symlinks_locks_and_fsync_trains_and_resumes() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let shim = shim(home);
    for (index, lacks) in [
        vec![("SYMLINK", EPERM), ("CHMOD", EPERM), ("FSYNC_FOLDER", EINVAL), ("FLOCK", EOPNOTSUPP)], // vfat, exFAT
        vec![("SYMLINK", EOPNOTSUPP), ("FLOCK", ENOLCK), ("FSYNC_FOLDER", EOPNOTSUPP)],              // CIFS
        vec![
            ("SYMLINK", ENOSYS),
            ("FLOCK", ENOSYS),
            ("FSYNC_FOLDER", ENOSYS),
            ("FSYNC_FILE", ENOSYS),
            ("MMAP", ENODEV),
        ], // FUSE
    ]
    .into_iter()
    .enumerate()
    {
        let run = format!("run-{index}");
        let checkpoints = home.join(&run).join("checkpoints");
        let text = succeeded(&run_with_shim(home, &shim, &lacks, &new_run(home, &run, 2)));
        for warning in ["the file system does not support locks", "cannot be synced"] {
            assert_eq!(text.matches(warning).count(), 1, "`{warning}` once: {text}");
        }
        assert_eq!(fs::read_to_string(checkpoints.join("latest")).unwrap(), "step-000002\n");
        // Two steps rarely improve a model, so `best` is set here.
        fs::write(checkpoints.join("best"), "step-000002\n").unwrap();
        assert_eq!(file_names(&checkpoints).iter().filter(|name| name.starts_with(".partial-")).count(), 0);

        succeeded(&run_with_shim(home, &shim, &lacks, &resume(&run, 3)));
        assert_eq!(fs::read_to_string(checkpoints.join("latest")).unwrap(), "step-000003\n");
        for name in ["", "/checkpoints/latest", "/checkpoints/best", "/checkpoints/step-000003"] {
            assert_loads(home, &format!("{run}{name}"));
        }

        // On a file system with symbolic links, the names become links again.
        run_ok(home, &resume(&run, 4));
        assert_eq!(fs::read_link(checkpoints.join("latest")).unwrap(), Path::new("step-000004"));
    }
}

#[test]
fn missing_filesystem_support_fails_before_the_first_step() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    let shim = shim(home);
    for (index, lacks) in
        [("FSYNC_FOLDER", EIO), ("FSYNC_FILE", EDQUOT), ("FLOCK", EIO)].into_iter().enumerate()
    {
        let run = format!("run-{index}");
        let output = run_with_shim(home, &shim, &[lacks], &new_run(home, &run, 1));
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("error: cannot "), "{text}");
        assert!(!home.join(&run).join("metrics.jsonl").exists(), "no step ran");
    }
}

#[test]
fn run_copied_with_followed_symlinks_resumes() {
    let home = tempfile::tempdir().unwrap();
    let home = home.path();
    run_ok(home, &new_run(home, "run", 2));
    let copy = |to: &str| {
        assert!(Command::new("cp").args(["-rL", "run", to]).current_dir(home).status().unwrap().success());
        home.join(to).join("checkpoints")
    };
    // A plain copy: `latest` and `best` are directories next to those of their steps.
    let checkpoints = copy("followed");
    assert!(checkpoints.join("latest").is_dir() && !checkpoints.join("latest").is_symlink());
    assert_loads(home, "followed/checkpoints/latest");
    run_ok(home, &resume("followed", 3));
    assert_eq!(fs::read_link(checkpoints.join("latest")).unwrap(), Path::new("step-000003"));

    // Only `latest` was copied.
    let checkpoints = copy("alone");
    for name in file_names(&checkpoints).iter().filter(|name| *name != "latest") {
        fs::remove_dir_all(checkpoints.join(name)).unwrap();
    }
    assert_loads(home, "alone");
    run_ok(home, &resume("alone", 3));
    assert!(checkpoints.join("step-000002").is_dir(), "it is renamed to its step");

    // A `latest` that differs from its step is left alone.
    let checkpoints = copy("changed");
    let state = checkpoints.join("latest/training/state.json");
    let text = fs::read_to_string(&state).unwrap();
    fs::write(&state, text + "\n").unwrap();
    let output = unirl(resume("changed", 3)).current_dir(home).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("are different checkpoints") && text.contains("hint: move"), "{text}");
    assert!(checkpoints.join("latest").is_dir());
}

/// Writes an empty FAT16 file system of 128 MB.
fn format_fat(image: &Path) {
    let (sectors, reserved, fats, fat_sectors) = (262_144u32, 1u32, 2u32, 256u32);
    let mut boot = [0u8; SECTOR as usize];
    boot[..11].copy_from_slice(b"\xeb\x3c\x90MSDOS5.0");
    boot[11..13].copy_from_slice(&(SECTOR as u16).to_le_bytes());
    boot[13] = 8; // sectors per cluster
    boot[14] = reserved as u8;
    boot[16] = fats as u8;
    boot[17..19].copy_from_slice(&512u16.to_le_bytes()); // entries of the root directory
    boot[21] = 0xF8;
    boot[22..24].copy_from_slice(&(fat_sectors as u16).to_le_bytes());
    boot[32..36].copy_from_slice(&sectors.to_le_bytes());
    boot[36..39].copy_from_slice(&[0x80, 0, 0x29]);
    boot[43..62].copy_from_slice(b"NO NAME    FAT16   ");
    boot[510..].copy_from_slice(b"\x55\xaa");
    let mut file = fs::File::create(image).unwrap();
    file.set_len(u64::from(SECTOR * sectors)).unwrap();
    file.write_all(&boot).unwrap();
    for fat in 0..fats {
        file.seek(SeekFrom::Start(u64::from((reserved + fat * fat_sectors) * SECTOR))).unwrap();
        file.write_all(b"\xf8\xff\xff\xff").unwrap();
    }
}

/// Trains, resumes and evaluates a run in `home/disk`, which `mount` mounts in a private namespace. Skipped if it cannot be
/// mounted.
fn on_a_mount(home: &Path, mount: &str, unshare: &str) {
    fs::create_dir(home.join("disk")).unwrap();
    let words = |arguments: Vec<String>| {
        let program = unirl(arguments);
        let words = [program.get_program()].into_iter().chain(program.get_args());
        words.map(|word| format!("'{}'", word.to_str().unwrap())).collect::<Vec<_>>().join(" ")
    };
    let eval = "eval --plugin showo --prompts 1 --json --model disk/run/checkpoints/latest";
    let script = format!(
        "{mount} || exit 77; {} && {} && {} && cat disk/run/checkpoints/latest; status=$?; umount disk; exit $status",
        words(new_run(home, "disk/run", 2)),
        words(resume("disk/run", 3)),
        words(eval.split(' ').map(String::from).collect()),
    );
    let mut command = Command::new("unshare");
    command.args([unshare, "sh", "-c", &script]).env("OMP_NUM_THREADS", "1").env("CUDA_VISIBLE_DEVICES", "");
    let output = command.current_dir(home).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(77) || text.contains("unshare failed") {
        println!("SKIPPED: cannot mount the file system: {text}");
        return;
    }
    assert!(output.status.success(), "{text}");
    assert!(String::from_utf8_lossy(&output.stdout).ends_with("step-000003\n"), "{output:?}");
}

#[test]
fn run_on_vfat_trains_and_resumes() {
    let home = tempfile::tempdir().unwrap();
    format_fat(&home.path().join("image"));
    on_a_mount(home.path(), "mount -o loop -t vfat image disk", "-m");
}

/// A FUSE file system without links, locks, permissions, fsync of directories and shared memory maps.
#[test]
fn run_on_limited_fuse_file_system_trains_and_resumes() {
    let home = tempfile::tempdir().unwrap();
    let program = home.path().join("poor");
    compile(&[], "poor.c", &program);
    fs::create_dir(home.path().join("backing")).unwrap();
    on_a_mount(home.path(), "./poor backing disk", "-rm");
}
