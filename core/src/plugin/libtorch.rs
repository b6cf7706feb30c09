//! Which libtorch this process really runs on.

use std::fs;
use std::path::{Path, PathBuf};

use libloading::os::unix::{RTLD_GLOBAL, RTLD_NOW};

use super::load;
use crate::abi::stamp;
use crate::error::{Error, Result};

/// The version of the mapped libtorch; none if it is too old to say.
pub fn mapped_version() -> Option<String> {
    let packed = load::number_of_symbol("aoti_torch_abi_version")?;
    Some(format!("{}.{}.{}", packed >> 56, packed >> 48 & 0xff, packed >> 40 & 0xff))
}

/// Refuses a libtorch that this program was not built with: a later one loads without a word.
pub(super) fn check_mapped() -> Result<()> {
    let mapped = mapped_version();
    if mapped.as_deref() == Some(stamp::TORCH) {
        return Ok(());
    }
    let mapped = mapped.unwrap_or_else(|| "of an unknown, old version".into());
    Err(Error::failure(format!(
        "unirl runs on another libtorch than it was built with\n  built:  libtorch {}\n  loaded: libtorch {mapped}{}",
        stamp::TORCH,
        folder().map_or(String::new(), |dir| format!(" ({})", dir.display()))
    ))
    .hint("run `./x setup` and build again, and see that `LD_LIBRARY_PATH` names no other libtorch"))
}

/// Whether this machine has the driver of an NVIDIA GPU: without it no libtorch finds one.
pub fn has_cuda_driver() -> bool {
    load::open(Path::new("libcuda.so.1"), RTLD_NOW).is_ok()
}

/// All memory of a GPU in bytes, as its driver tells it.
pub fn cuda_memory(index: usize) -> Option<i64> {
    has_cuda_driver().then(|| load::cuda_memory(index)).flatten()
}

/// Opens `libtorch_cuda.so`, to which nothing is linked, for the whole process. To be called before the first
/// tensor is made, when a GPU is asked for; without it `tch::Cuda::is_available()` is false.
pub fn load_cuda() -> Result<()> {
    let name = Path::new("libtorch_cuda.so");
    let path = folder().map(|dir| dir.join(name)).filter(|path| path.is_file());
    load::open(path.as_deref().unwrap_or(name), RTLD_NOW | RTLD_GLOBAL).map_err(|reason| {
        Error::failure("libtorch's CUDA library cannot be opened")
            .cause(reason)
            .hint("this libtorch may be the one without CUDA: install one with it, or use `--device cpu`")
    })
}

/// Where the mapped libtorch lies.
fn folder() -> Option<PathBuf> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with("/libtorch_cpu.so"))?;
    Path::new(&line[line.find('/')?..]).parent().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mapped_libtorch_is_the_one_of_the_build() {
        let _ = tch::Tensor::from_slice(&[0f32]); // keeps libtorch linked
        assert_eq!(mapped_version().as_deref(), Some(stamp::TORCH));
        check_mapped().unwrap();
        assert!(folder().is_some());
    }
}
