//! `unirl plugins check FILE`: runs the conformance checks of every model and reward of a plugin.

use std::path::Path;

use serde_json::json;
use unirl::error::{Code, Result};
use unirl::model::{Checkpoint, ModelSource, UnifiedModel};
use unirl_engine::eval;
use unirl_engine::plugin::{Entry, EntryKind, Plugins};
use unirl_testing::{Extent, Finding, Outcome, check_all_passed, examine, examine_reward, format_findings};

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
    let tasks = eval::tasks(1, config.eval.seed)?;
    let dry = |plugins: &mut Plugins, options: &serde_json::Value| {
        let source = ModelSource { checkpoint: Checkpoint::Fresh, device, seed: 1, dry: true };
        plugins.model(name, options, &source).map(drop)
    };
    let mut findings = vec![unknown_option(|options| dry(plugins, options))];
    let mut load = |dir: &Path| -> Result<Box<dyn UnifiedModel>> {
        let checkpoint = Checkpoint::Folder(dir.into());
        plugins.model(name, &json!({}), &ModelSource { checkpoint, device, seed: 2, dry: false })
    };
    findings.extend(examine(&mut *model, &tasks, &config.rollout, Extent::Full, Some(&mut load)));
    Ok(findings)
}

fn reward(entry: &Entry, plugins: &mut Plugins) -> Result<Vec<Finding>> {
    let mut findings = vec![unknown_option(|options| plugins.reward(&entry.name, options).map(drop))];
    let reward = plugins.reward(&entry.name, &json!({}))?;
    findings.extend(examine_reward(&*reward, &eval::tasks(2, 1)?)?);
    Ok(findings)
}

/// Checks that an unknown option is refused.
fn unknown_option(mut make: impl FnMut(&serde_json::Value) -> Result<()>) -> Finding {
    let outcome = match make(&json!({ "surely_no_option": 1 })) {
        Err(error) if error.code() == Code::Usage => Outcome::Holds("an unknown option is refused".into()),
        Err(error) => Outcome::Fails(error.to_string()),
        Ok(()) => Outcome::Fails("an unknown option is accepted".into()),
    };
    Finding {
        name: "unknown options are refused",
        outcome,
        hint: "derive `JsonSchema` for the options, without `#[serde(flatten)]`, which accepts any key",
    }
}
