//! The example `my-model` with its own tests, as its author runs them with `cargo test`.

#[path = "../../examples/my-model/src/lib.rs"]
mod plugin;
