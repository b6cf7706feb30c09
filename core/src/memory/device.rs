//! The memory of a device, and the settings of the allocator.
#![allow(unsafe_code, reason = "a setting of the allocator")]

use tch::Device;

use crate::model::{ImageSampling, TextSampling, UnifiedModel, Workload};
use crate::plugin::cuda_memory;

/// The memory of a device in bytes: all of a GPU's, what is free of the machine's.
pub fn available(device: Device) -> Option<i64> {
    if let Device::Cuda(index) = device {
        return cuda_memory(index);
    }
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let free = kilobytes * 1024;
    // A container may be given less than the machine has.
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    Some(limit.and_then(|text| text.trim().parse().ok()).map_or(free, |limit: i64| limit.min(free)))
}

/// Weights from which [`tune_malloc`] pays.
const LARGE: i64 = 1 << 30;

/// Gives large tensors of a large model memory of their own on the CPU, which goes back when they are gone. By itself
/// glibc raises the size from which it does so to 32 MiB as the program runs, and activations of less then leave holes
/// that cost a third of the peak; a small model is faster on the heap.
pub fn tune_malloc(model: &dyn UnifiedModel) {
    let workload = Workload { images: ImageSampling::default(), answers: TextSampling::default(), states: 1 };
    if model.footprint(&workload).is_ok_and(|footprint| footprint.weights >= LARGE) {
        set_mmap_threshold(1 << 20);
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn set_mmap_threshold(bytes: i32) {
    const M_MMAP_THRESHOLD: i32 = -3;
    unsafe extern "C" {
        fn mallopt(parameter: i32, value: i32) -> i32;
    }
    // SAFETY: glibc takes the setting at any time and from any thread.
    let set = unsafe { mallopt(M_MMAP_THRESHOLD, bytes) };
    if set == 0 {
        tracing::debug!("the allocator keeps its own settings");
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn set_mmap_threshold(_bytes: i32) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_tells_its_memory() {
        assert!(available(Device::Cpu).unwrap() > 1 << 28);
    }
}
