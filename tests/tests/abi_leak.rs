//! Measures the resident memory of its process, and is therefore separate from the other tests of the ABI.
#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::fs;

use serde_json::json;
use tch::{Device, Kind, Tensor};
use unirl::Result;
use unirl::model::{Checkpoint, ModelSource};
use unirl_engine::plugin::Plugins;

/// Resident memory in KiB, assuming pages of 4 KiB.
fn resident_kib() -> i64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * 4
}

#[test]
fn tensor_handles_do_not_leak() -> Result<()> {
    let here = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let source = ModelSource { checkpoint: Checkpoint::Fresh, device: Device::Cpu, seed: 0, dry: false };
    let model = Plugins::new(&[here]).model("fixture/echo", &json!({}), &source)?;
    let pixels = Tensor::zeros([256, 3, 2, 2], (Kind::Float, Device::Cpu)); // returns 8 KiB of tokens
    for _ in 0..500 {
        model.encode(&pixels)?;
    }
    let before = resident_kib();
    for _ in 0..10_000 {
        model.encode(&pixels)?;
    }
    let growth = resident_kib() - before;
    assert!(growth < 4096, "{growth} KiB more after 10000 calls; leaked replies would take 80000");
    Ok(())
}
