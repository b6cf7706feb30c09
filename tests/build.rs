//! Linker arguments.

fn main() {
    // Every plugin exports the same two symbols. A benchmark that links two plugins for their models uses neither symbol.
    println!("cargo::rustc-link-arg-benches=-Wl,--allow-multiple-definition");
    println!("cargo::rerun-if-changed=build.rs");
}
