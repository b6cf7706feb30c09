//! Sets the environment variables of the plugin stamp: compiler and platform.

use std::{env, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-env=UNIRL_RUSTC={}", rustc_version());
    println!("cargo:rustc-env=UNIRL_TARGET={}", env::var("TARGET").unwrap_or_default());
}

fn rustc_version() -> String {
    let rustc = env::var("RUSTC").unwrap_or_else(|_| "rustc".into());
    let output = Command::new(rustc).arg("--version").output();
    let text =
        output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    text.strip_prefix("rustc ").unwrap_or(&text).to_owned()
}
