//! The libtorch that the process has loaded, and the libraries that are opened at run time: those of CUDA and of plugins.
#![allow(
    unsafe_code,
    reason = "opening a library runs its constructors, and calling into it trusts its symbols"
)]

use std::ffi::{c_int, c_uint};
use std::fs;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use unirl_base::error::{Error, Result};

/// The version of the libtorch that this crate was built with.
pub const VERSION: &str = env!("UNIRL_TORCH");

/// Returns the version of the loaded libtorch; `None` if it is too old to report it.
pub fn mapped_version() -> Option<String> {
    let packed = call_u64("aoti_torch_abi_version")?;
    Some(format!("{}.{}.{}", packed >> 56, packed >> 48 & 0xff, packed >> 40 & 0xff))
}

/// Errors if the loaded libtorch is not the one of the build: the linker also accepts later versions.
pub fn check_mapped() -> Result<()> {
    let mapped = mapped_version();
    if mapped.as_deref() == Some(VERSION) {
        return Ok(());
    }
    let mapped = mapped.unwrap_or_else(|| "of an unknown, old version".into());
    Err(Error::failure(format!(
        "libtorch version mismatch\n  built:  libtorch {}\n  loaded: libtorch {mapped}{}",
        VERSION,
        folder().map_or(String::new(), |dir| format!(" ({})", dir.display()))
    ))
    .hint("run `./x setup` and rebuild, and make sure that `LD_LIBRARY_PATH` has no other libtorch"))
}

/// Whether the machine has the CUDA driver, without which libtorch finds no GPU.
pub fn has_cuda_driver() -> bool {
    open(Path::new("libcuda.so.1"), RTLD_NOW).is_ok()
}

/// Returns the total memory of a GPU in bytes.
pub fn cuda_memory(index: usize) -> Option<i64> {
    has_cuda_driver().then(|| driver_memory(index)).flatten()
}

/// Loads `libtorch_cuda.so`, which no binary links to. Must be called before the first tensor is created if a GPU is requested;
/// otherwise `tch::Cuda::is_available()` is false.
pub fn load_cuda() -> Result<()> {
    let name = Path::new("libtorch_cuda.so");
    let path = folder().map(|dir| dir.join(name)).filter(|path| path.is_file());
    open(path.as_deref().unwrap_or(name), RTLD_NOW | RTLD_GLOBAL).map_err(|reason| {
        Error::failure("cannot open the CUDA library of libtorch")
            .cause(reason)
            .hint("if this libtorch was built without CUDA, install one with CUDA or use `--device cpu`")
    })
}

/// Opens a library and never closes it.
pub fn open(path: &Path, flags: i32) -> Result<(), String> {
    // SAFETY: the constructors of a plugin link nodes of `inventory`, those of libtorch are libtorch's.
    let library = unsafe { Library::open(Some(path), flags) }.map_err(|error| {
        // The source of libloading's error is the message of the linker, which names the symbol or library.
        std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
    })?;
    std::mem::forget(library); // objects, tensors and log records point into it until the process ends
    Ok(())
}

/// Calls the function `uint64_t name(void)` of the process, if it exists.
fn call_u64(name: &str) -> Option<u64> {
    // SAFETY: called only for a function of libtorch that has always had this signature.
    unsafe { Library::this().get::<unsafe extern "C" fn() -> u64>(name).ok().map(|function| function()) }
}

/// Queries the CUDA driver, which is open, for the total memory of a GPU.
fn driver_memory(index: usize) -> Option<i64> {
    type Init = unsafe extern "C" fn(c_uint) -> c_int;
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Total = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
    // SAFETY: the signatures are those of the CUDA driver API, unchanged since version 4, and the outputs outlive the calls.
    unsafe {
        let driver = Library::new("libcuda.so.1").ok()?;
        let init = driver.get::<Init>("cuInit").ok()?;
        let get = driver.get::<Get>("cuDeviceGet").ok()?;
        let total = driver.get::<Total>("cuDeviceTotalMem_v2").ok()?;
        let (mut device, mut bytes) = (0, 0);
        let worked = init(0) == 0
            && get(&raw mut device, c_int::try_from(index).ok()?) == 0
            && total(&raw mut bytes, device) == 0;
        worked.then_some(bytes as i64)
    }
}

/// Returns the directory of the loaded libtorch.
fn folder() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("/libtorch_cpu.so"))?;
    Path::new(&line[line.find('/')?..]).parent().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loaded_libtorch_is_that_of_the_build() {
        let _ = tch::Tensor::from_slice(&[0f32]); // keeps libtorch linked
        assert_eq!(mapped_version().as_deref(), Some(VERSION));
        check_mapped().unwrap();
        assert!(folder().is_some());
    }
}
