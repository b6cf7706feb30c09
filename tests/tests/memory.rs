//! The memory of a run, measured from another process.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::fs;
use std::process::{Child, Stdio};
use std::time::Duration;

/// A field of `/proc/PID/status` in MB; `None` after the process has ended.
fn megabytes(child: &Child, field: &str) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? / 1e3)
}

/// The peak resident memory of one step in MB.
fn peak(group: usize, micro_batch: usize) -> f64 {
    let home = tempfile::tempdir().unwrap();
    let mut child =
        common::unirl(["--plugin", "showo", "--optimizer", "grpo", "--preset", "paper", "--steps", "1"])
            .args(["--device", "cpu", "--set", "eval.prompts=0", "--set", "train.sample_every=0"])
            .args(["--set", "rollout.prompts_per_step=2", "--set", "rollout.images.steps=2"])
            .args(["--set", &format!("rollout.group_size={group}")])
            .args(["--set", &format!("rollout.micro_batch={micro_batch}")])
            .current_dir(home.path())
            .env("MALLOC_MMAP_THRESHOLD_", "131072") // freed memory is returned to the system
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
    let mut most = 0.0f64;
    let status = loop {
        most = most.max(megabytes(&child, "VmHWM:").unwrap_or(0.0));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success());
    most
}

#[test]
fn peak_memory_does_not_depend_on_group_size() {
    let (few, many, at_once) = (peak(8, 8), peak(96, 8), peak(96, 0));
    // A larger group adds only a few hundred numbers per image, and small blocks that the heap keeps.
    assert!(many < few + 40.0, "{few} MB for groups of 8, {many} MB for groups of 96");
    // Measured: 437 MB against 239 MB.
    assert!(at_once > many + 150.0, "{at_once} MB for all at once, {many} MB in micro-batches");
}

/// Minimal steps with every term of the objective, the drift monitor, sample images and checkpoints do not accumulate memory after
/// step 500.
#[test]
fn memory_does_not_grow_over_ten_thousand_steps() {
    const STEPS: usize = 10_000;
    let home = tempfile::tempdir().unwrap();
    let settings = home.path().join("settings.toml");
    let text = format!(
        r"
        train = {{ steps = {STEPS}, sample_every = 400 }}
        rollout = {{ prompts = 1, group = 2, images = {{ steps = 1 }}, answers = {{ max_tokens = 2 }} }}
        eval = {{ prompts = 0, pictures = 1, every = 400, every_prompts = 1, guard = 'warn' }}
        checkpoint = {{ every = 400 }}
        "
    );
    fs::write(&settings, text).unwrap();
    let mut child = common::unirl(["--plugin", "showo", "--optimizer", "grpo", "--device", "cpu"])
        .args(["--config", settings.to_str().unwrap(), "--out", "run"])
        .current_dir(home.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let metrics = home.path().join("run/metrics.jsonl");
    let mut resident = Vec::new();
    let status = loop {
        std::thread::sleep(Duration::from_millis(500));
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        let step = fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
        resident.extend(megabytes(&child, "VmRSS:").map(|size| (step, size)));
    };
    assert!(status.success());
    let most = |from: usize, to: usize| {
        let between = resident.iter().filter(|(step, _)| (from..to).contains(step));
        between.map(|(_, size)| *size).fold(0.0, f64::max)
    };
    let (early, late) = (most(250, 750), most(STEPS - 500, STEPS));
    assert!(early > 100.0 && late > 100.0, "{early} MB, {late} MB: not measured");
    assert!(late < early * 1.02, "{early} MB around step 500, {late} MB at the end");
}
