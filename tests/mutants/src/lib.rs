//! Mutants of `examples/my-model/`, a module each: `build.rs` makes them.

#![allow(warnings, clippy::all, clippy::pedantic, reason = "bugs, on purpose")]

include!(concat!(env!("OUT_DIR"), "/mutants.rs"));

unirl::export_plugin!();
