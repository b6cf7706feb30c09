//! `unirl plugins`.

use unirl::error::{Context, Result};
use unirl::plugin::Plugins;

use crate::args::PluginsArgs;

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &PluginsArgs) -> Result<()> {
    let mut plugins = Plugins::new(&args.search.plugin_dir);
    let reports = plugins.discover();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&reports).context(|| "cannot write the list")?);
        return Ok(());
    }
    for report in reports {
        println!("{report}");
    }
    Ok(())
}
