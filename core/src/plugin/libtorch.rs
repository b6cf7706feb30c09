//! The libtorch that the process has loaded.

use std::fs;
use std::path::{Path, PathBuf};

use libloading::os::unix::{RTLD_GLOBAL, RTLD_NOW};

use super::load;
use crate::abi::stamp;
use crate::error::{Error, Result};

/// Returns the version of the loaded libtorch; `None` if it is too old to report it.
pub fn mapped_version() -> Option<String> {
    let packed = load::call_u64("aoti_torch_abi_version")?;
    Some(format!("{}.{}.{}", packed >> 56, packed >> 48 & 0xff, packed >> 40 & 0xff))
}

/// Errors if the loaded libtorch is not the one of the build: the linker also accepts later versions.
pub(super) fn check_mapped() -> Result<()> {
    let mapped = mapped_version();
    if mapped.as_deref() == Some(stamp::TORCH) {
        return Ok(());
    }
    let mapped = mapped.unwrap_or_else(|| "of an unknown, old version".into());
    Err(Error::failure(format!(
        "libtorch version mismatch\n  built:  libtorch {}\n  loaded: libtorch {mapped}{}",
        stamp::TORCH,
        folder().map_or(String::new(), |dir| format!(" ({})", dir.display()))
    ))
    .hint("run `./x setup` and rebuild, and make sure that `LD_LIBRARY_PATH` has no other libtorch"))
}

/// Whether the machine has the CUDA driver, without which libtorch finds no GPU.
pub fn has_cuda_driver() -> bool {
    load::open(Path::new("libcuda.so.1"), RTLD_NOW).is_ok()
}

/// Returns the total memory of a GPU in bytes.
pub fn cuda_memory(index: usize) -> Option<i64> {
    has_cuda_driver().then(|| load::cuda_memory(index)).flatten()
}

/// Loads `libtorch_cuda.so`, which no binary links to. Must be called before the first tensor is created if a GPU is requested;
/// otherwise `tch::Cuda::is_available()` is false.
pub fn load_cuda() -> Result<()> {
    let name = Path::new("libtorch_cuda.so");
    let path = folder().map(|dir| dir.join(name)).filter(|path| path.is_file());
    load::open(path.as_deref().unwrap_or(name), RTLD_NOW | RTLD_GLOBAL).map_err(|reason| {
        Error::failure("cannot open the CUDA library of libtorch")
            .cause(reason)
            .hint("if this libtorch was built without CUDA, install one with CUDA or use `--device cpu`")
    })
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
        assert_eq!(mapped_version().as_deref(), Some(stamp::TORCH));
        check_mapped().unwrap();
        assert!(folder().is_some());
    }
}
