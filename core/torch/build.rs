//! Compiles the C++ sources: functions of libtorch that tch lacks and, if the CUDA headers are found, CUDA graphs.

use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=UNIRL_TORCH={}", torch_version());
    cpp(&["src/autograd/autograd.cpp", "src/ops/ops.cpp"]).compile("unirl_libtorch");
    println!("cargo:rustc-check-cfg=cfg(cuda_graphs)");
    match cuda_headers() {
        Ok(include) => {
            println!("cargo:rustc-cfg=cuda_graphs");
            shared_object("src/cuda_graph/graph.cpp", &include, "graph.so");
        }
        Err(missing) => println!("cargo:rustc-env=UNIRL_NO_CUDA_GRAPHS={missing}"),
    }
}

/// Returns the directory of the libraries that torch-sys links to.
fn libtorch() -> PathBuf {
    env::var_os("DEP_TCH_LIBTORCH_LIB")
        .unwrap_or_else(|| panic!("torch-sys did not set DEP_TCH_LIBTORCH_LIB"))
        .into()
}

/// Configures the compiler for sources that include libtorch.
fn cpp(sources: &[&str]) -> cc::Build {
    for source in sources.iter().chain(&["src/ffi_error.h"]) {
        println!("cargo:rerun-if-changed={source}");
    }
    let include = libtorch().join("../include");
    let mut build = cc::Build::new();
    build
        .cpp(true)
        .pic(true)
        .warnings(false) // the headers of libtorch cause many
        .std("c++17")
        .define("_GLIBCXX_USE_CXX11_ABI", env::var("LIBTORCH_CXX11_ABI").as_deref().unwrap_or("1"))
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .files(sources);
    build
}

/// Compiles a source into a separate shared library. Symbols of CUDA and libtorch stay undefined: the process has them when it
/// opens the library.
fn shared_object(source: &str, include: &Path, name: &str) {
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_else(|| panic!("cargo did not set OUT_DIR")))
        .join(name);
    let compiler = cpp(&[source]).include(include).debug(false).get_compiler();
    let mut command = compiler.to_command();
    command.args(["-shared", "-Wl,--strip-all", "-o"]).arg(&out).arg(source);
    let status = command.status().unwrap_or_else(|error| panic!("{}: {error}", compiler.path().display()));
    assert!(status.success(), "failed to compile {source} with the headers in {}", include.display());
}

/// Returns the directory of the CUDA headers, or the reason why CUDA graphs cannot be compiled.
fn cuda_headers() -> Result<PathBuf, String> {
    const NEEDED: [&str; 2] = ["cuda_runtime_api.h", "crt/host_config.h"];
    println!("cargo:rerun-if-env-changed=CUDA_HOME");
    if !libtorch().join("libtorch_cuda.so").is_file() {
        return Err("libtorch was built without CUDA".into());
    }
    let mut folders = vec![libtorch().join("../../nvidia/cu13/include")];
    folders.extend(env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("include")));
    folders.push("/usr/local/cuda/include".into());
    let mut found = 0;
    for folder in folders.into_iter().filter(|folder| folder.is_dir()) {
        // Headers added later change the directory. A path that does not exist would cause a rebuild every time.
        println!("cargo:rerun-if-changed={}", folder.display());
        match NEEDED.iter().position(|header| !folder.join(header).is_file()) {
            None => return Ok(folder),
            Some(missing) => found = found.max(missing),
        }
    }
    Err(format!("unirl was built without the CUDA header `{}`", NEEDED[found]))
}

/// Returns the version in the headers of the libtorch that torch-sys links to.
fn torch_version() -> String {
    let header = libtorch().join("../include/torch/headeronly/version.h");
    println!("cargo:rerun-if-changed={}", header.display());
    let text = fs::read_to_string(&header).unwrap_or_else(|error| panic!("{}: {error}", header.display()));
    let number = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix("#define ")?.strip_prefix(name));
        line.map_or_else(|| panic!("{}: no {name}", header.display()), |rest| rest.trim().to_owned())
    };
    format!(
        "{}.{}.{}",
        number("TORCH_VERSION_MAJOR"),
        number("TORCH_VERSION_MINOR"),
        number("TORCH_VERSION_PATCH")
    )
}
