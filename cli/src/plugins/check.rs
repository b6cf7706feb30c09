//! `unirl plugins check FILE`: runs the conformance checks of every model and reward of a plugin.

use serde_json::json;
use unirl::error::Result;
use unirl_engine::plugin::{Entry, EntryKind, Plugins};
use unirl_testing::{Finding, check_all_passed, format_findings, run_model_checks, run_reward_checks};

use crate::args::{ModelArgs, PluginsCheckArgs};
use crate::settings::Settings;
use crate::{io, load};

pub(super) fn run(args: &PluginsCheckArgs) -> Result<()> {
    let mut plugins = args.search.plugins()?;
    let plugin = plugins.load(&args.plugin)?;
    let (name, entries) = (plugin.name.clone(), plugin.entries.clone());
    io::print(&format!("plugin {name} {}\n", plugin.version))?;
    let mut all = Vec::new();
    for entry in &entries {
        let findings = match entry.kind {
            EntryKind::Model => model(args, &format!("{name}/{}", entry.name), &mut plugins)?,
            EntryKind::Reward => reward(entry, &mut plugins)?,
            EntryKind::Detector => continue, // every call checks the form of its output
        };
        io::print(&format!("\n{} `{}`\n{}", entry.kind, entry.name, format_findings(&findings)))?;
        all.extend(findings);
    }
    check_all_passed(&all)
}

fn model(args: &PluginsCheckArgs, name: &str, plugins: &mut Plugins) -> Result<Vec<Finding>> {
    let settings = Settings::new(&ModelArgs::for_entry(args, name), None)?;
    let (mut model, config) = load::model_and_config(&settings, plugins)?;
    let device = load::device(&config.model.device)?;
    run_model_checks(&mut *model, &json!({}), device, &mut |options, source| {
        plugins.model(name, options, source)
    })
}

fn reward(entry: &Entry, plugins: &mut Plugins) -> Result<Vec<Finding>> {
    run_reward_checks(&json!({}), &mut |options| plugins.reward(&entry.name, options))
}
