//! `unirl plugins check FILE`: whether what a plugin makes keeps its promises.

use unirl::error::{Error, Result};
use unirl::plugin::{EntryKind, Plugins};

use crate::args::{ModelArgs, PluginsCheckArgs};
use crate::{build, doctor};

pub(super) fn run(args: &PluginsCheckArgs) -> Result<()> {
    let mut plugins = Plugins::new(&args.search.plugin_dir);
    let plugin = plugins.load(&args.plugin)?;
    let (name, entries) = (plugin.name.clone(), plugin.entries.clone());
    build::print(&format!("plugin {name} {}\n", plugin.version))?;
    let mut failed = 0;
    for entry in entries.iter().filter(|entry| entry.kind == EntryKind::Model) {
        let model = ModelArgs::of_entry(args, &format!("{name}/{}", entry.name));
        let findings = doctor::findings(&model, 1, &mut plugins)?;
        build::print(&format!("\n{} `{}`\n{}", entry.kind, entry.name, doctor::listed(&findings)))?;
        failed += doctor::failed(&findings);
    }
    if failed > 0 {
        return Err(Error::failure(format!("{failed} promises are not kept")));
    }
    Ok(())
}
