//! What a run takes, measured from outside.

#![allow(clippy::unwrap_used, reason = "a test: a wrong value ends it")]

mod common;

use std::fs;
use std::process::Stdio;
use std::time::Duration;

/// The most that one step held resident, in MB.
fn peak(group: usize, micro_batch: usize) -> f64 {
    let home = tempfile::tempdir().unwrap();
    let mut child =
        common::unirl(["--plugin", "showo", "--optimizer", "grpo", "--preset", "paper", "--steps", "1"])
            .args(["--device", "cpu", "--set", "eval.prompts=0", "--set", "train.sample_every=0"])
            .args(["--set", "rollout.prompts=2", "--set", "rollout.images.steps=2"])
            .args(["--set", &format!("rollout.group={group}")])
            .args(["--set", &format!("rollout.micro_batch={micro_batch}")])
            .current_dir(home.path())
            .env("MALLOC_MMAP_THRESHOLD_", "131072") // what is freed goes back, and is not counted again
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
    let mut most = 0.0f64;
    let status = loop {
        let text = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        if let Some(kilobytes) =
            line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok())
        {
            most = most.max(kilobytes / 1e3);
        }
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert!(status.success());
    most
}

#[test]
fn the_size_of_a_group_does_not_change_the_peak() {
    let (few, many, at_once) = (peak(8, 8), peak(96, 8), peak(96, 0));
    // What grows with the group is a few hundred numbers an image, and small pieces that the heap keeps.
    assert!(many < few + 40.0, "{few} MB for groups of 8, {many} MB for groups of 96");
    // 437 against 239 where this was written.
    assert!(at_once > many + 150.0, "{at_once} MB for all at once: else the test shows nothing");
}
