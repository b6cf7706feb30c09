//! Makes what the plugin stamp states about this build known to the compiler: libtorch, rustc and target. Compiles the
//! C++: what is needed of libtorch beside tch.

use std::{env, fs, path::PathBuf, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=UNIRL_TORCH={}", torch_version());
    println!("cargo:rustc-env=UNIRL_RUSTC={}", rustc_version());
    println!("cargo:rustc-env=UNIRL_TARGET={}", env::var("TARGET").unwrap_or_default());
    compile(&["src/autograd/autograd.cpp", "src/ops/ops.cpp"]);
}

/// Where the libraries lie that torch-sys links to.
fn libtorch() -> PathBuf {
    env::var_os("DEP_TCH_LIBTORCH_LIB")
        .unwrap_or_else(|| panic!("torch-sys did not say where libtorch lies"))
        .into()
}

fn compile(sources: &[&str]) {
    for source in sources {
        println!("cargo:rerun-if-changed={source}");
    }
    let include = libtorch().join("../include");
    cc::Build::new()
        .cpp(true)
        .pic(true)
        .warnings(false) // of libtorch's headers
        .std("c++17")
        .define("_GLIBCXX_USE_CXX11_ABI", env::var("LIBTORCH_CXX11_ABI").as_deref().unwrap_or("1"))
        .include(include.join("torch/csrc/api/include"))
        .include(include)
        .files(sources)
        .compile("unirl_libtorch");
}

/// The version in the headers beside the libtorch that torch-sys links to.
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

fn rustc_version() -> String {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let output = Command::new(rustc).arg("--version").output();
    let text =
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    text.strip_prefix("rustc ").unwrap_or(&text).to_owned()
}
