//! Packs a checkpoint folder into the file that the plugin embeds:
//! `cargo run --release -p unirl-plugin-showo --example pack_showo -- DIR plugins/showo/builtin/tiles.safetensors`

use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, file] = arguments.as_slice() else {
        return Err("usage: pack DIR FILE".into());
    };
    Ok(unirl_plugin_showo::checkpoint::pack(Path::new(folder), Path::new(file))?)
}
