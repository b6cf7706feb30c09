//! The example `my-reward` with its own tests, as its author runs them with `cargo test`.

#[path = "../../examples/my-reward/src/lib.rs"]
mod plugin;
