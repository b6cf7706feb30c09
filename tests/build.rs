//! Linker arguments.

fn main() {
    // Every plugin exports the same two symbols. A bench that links two of them for their models looks up neither.
    println!("cargo::rustc-link-arg-benches=-Wl,--allow-multiple-definition");
    println!("cargo::rerun-if-changed=build.rs");
}
