//! The stamp: build information that is embedded in every plugin file at compile time.

/// The version of the layout in `component`; plugins with a different one are refused.
pub const ABI: u32 = 1;
/// The libtorch of this build.
pub const TORCH: &str = unirl_torch::libtorch::VERSION;
/// The version of this crate.
pub const UNIRL: &str = env!("CARGO_PKG_VERSION");
/// The compiler of this build.
pub const RUSTC: &str = env!("UNIRL_RUSTC");
/// The platform of this build.
pub const TARGET: &str = env!("UNIRL_TARGET");
/// The panic strategy of this build.
pub const PANIC: &str = if cfg!(panic = "unwind") { "unwind" } else { "abort" };
/// The release line of `abi_stable`.
pub const ABI_STABLE: &str = "0.11";

/// The first line of a stamp.
pub const MAGIC: &str = "unirl-plugin-stamp-1\n";
/// The size of a stamp in bytes, padded with zeros.
pub const SIZE: usize = 512;

const PREFIX: &str = "unirl_plugin_";

/// Builds the stamp of a plugin. Its name is the crate name without `unirl_plugin_`.
pub const fn stamp(crate_name: &str, version: &str) -> [u8; SIZE] {
    let mut out = ([0; SIZE], 0);
    out = push(out, MAGIC, 0);
    out = push(out, "abi=1\nunirl=", 0);
    out = push(out, UNIRL, 0);
    out = push(out, "\nplugin=", 0);
    out = push(out, crate_name, prefix(crate_name));
    out = push(out, "\nplugin_version=", 0);
    out = push(out, version, 0);
    out = push(out, "\ntorch=", 0);
    out = push(out, TORCH, 0);
    out = push(out, "\nrustc=", 0);
    out = push(out, RUSTC, 0);
    out = push(out, "\ntarget=", 0);
    out = push(out, TARGET, 0);
    out = push(out, "\npanic=", 0);
    out = push(out, PANIC, 0);
    out = push(out, "\nabi_stable=", 0);
    out = push(out, ABI_STABLE, 0);
    push(out, "\nfeatures=\n", 0).0
}

/// Appends `text[from..]`. A stamp that is too long fails to compile.
const fn push(mut out: ([u8; SIZE], usize), text: &str, from: usize) -> ([u8; SIZE], usize) {
    let mut index = from;
    while index < text.len() {
        out.0[out.1] = text.as_bytes()[index];
        out.1 += 1;
        index += 1;
    }
    out
}

const fn prefix(name: &str) -> usize {
    let (name, prefix) = (name.as_bytes(), PREFIX.as_bytes());
    let mut index = 0;
    while index < prefix.len() {
        if index >= name.len() || name[index] != prefix[index] {
            return 0;
        }
        index += 1;
    }
    index
}
