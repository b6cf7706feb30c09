//! The memory of a device, and tuning of the CPU allocator.
#![allow(unsafe_code, reason = "a setting of the allocator")]

use tch::Device;
use unirl::model::{ImageSampling, TextSampling, UnifiedModel, Workload};
use unirl_torch::libtorch::cuda_memory;

/// Returns the memory of a device in bytes: the total of a GPU, the available memory of the machine for the CPU.
pub fn available(device: Device) -> Option<i64> {
    if let Device::Cuda(index) = device {
        return cuda_memory(index);
    }
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    let free = kilobytes * 1024;
    // The limit of a container may be lower.
    let limit = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    Some(limit.and_then(|text| text.trim().parse().ok()).map_or(free, |limit: i64| limit.min(free)))
}

/// Bytes of weights from which [`tune_malloc`] pays off.
const LARGE: i64 = 1 << 30;

/// Makes `malloc` map the tensors of a large model separately, so that freed memory returns to the system. By default glibc
/// raises its threshold for this to 32 MiB, and the heap fragments by a third of the peak. A small model is faster on the heap.
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
    // SAFETY: glibc allows the call at any time and from any thread.
    let set = unsafe { mallopt(M_MMAP_THRESHOLD, bytes) };
    if set == 0 {
        tracing::debug!("mallopt refused M_MMAP_THRESHOLD");
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn set_mmap_threshold(_bytes: i32) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_memory_is_known() {
        assert!(available(Device::Cpu).unwrap() > 1 << 28);
    }
}
