//! Alone in its process: it watches the memory of the whole process, which the other tests of the boundary move, too.
#![allow(clippy::unwrap_used, reason = "a test: a wrong value ends it")]

use std::fs;

use serde_json::json;
use tch::{Device, Kind, Tensor};
use unirl::Result;
use unirl::model::{Checkpoint, ModelSource};
use unirl::plugin::Plugins;

/// Resident memory in KiB, in pages of 4 KiB.
fn resident() -> i64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<i64>().unwrap() * 4
}

#[test]
fn tensor_handles_do_not_leak() -> Result<()> {
    let here = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    let source = ModelSource { checkpoint: Checkpoint::Fresh, device: Device::Cpu, seed: 0, dry: false };
    let model = Plugins::new(&[here]).model("fixture/echo", &json!({}), &source)?;
    let pixels = Tensor::zeros([256, 3, 2, 2], (Kind::Float, Device::Cpu)); // and 8 KiB of tokens back
    for _ in 0..500 {
        model.encode(&pixels)?;
    }
    let before = resident();
    for _ in 0..10_000 {
        model.encode(&pixels)?;
    }
    let grown = resident() - before;
    assert!(grown < 4096, "{grown} KiB more after 10000 calls: a leak of the replies would be 80000");
    Ok(())
}
