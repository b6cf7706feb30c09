//! `unirl plugins check FILE`: whether what a plugin makes keeps its promises.

use std::path::Path;

use serde_json::json;
use unirl::conformance::{Extent, Finding, Outcome, examine, examine_reward};
use unirl::error::{Code, Error, Result};
use unirl::eval;
use unirl::model::{Checkpoint, ModelSource, UnifiedModel};
use unirl::plugin::{Entry, EntryKind, Plugins};

use crate::args::{ModelArgs, PluginsCheckArgs};
use crate::build::{self, Settings};
use crate::doctor;

pub(super) fn run(args: &PluginsCheckArgs) -> Result<()> {
    let mut plugins = args.search.plugins()?;
    let plugin = plugins.load(&args.plugin)?;
    let (name, entries) = (plugin.name.clone(), plugin.entries.clone());
    build::print(&format!("plugin {name} {}\n", plugin.version))?;
    let mut failed = 0;
    for entry in &entries {
        let findings = match entry.kind {
            EntryKind::Model => model(args, &format!("{name}/{}", entry.name), &mut plugins)?,
            EntryKind::Reward => reward(entry, &mut plugins)?,
            EntryKind::Detector => continue, // it promises nothing but its form, which every call checks
        };
        build::print(&format!("\n{} `{}`\n{}", entry.kind, entry.name, doctor::listed(&findings)))?;
        failed += doctor::failed(&findings);
    }
    if failed > 0 {
        return Err(Error::failure(format!("{failed} promises are not kept")));
    }
    Ok(())
}

fn model(args: &PluginsCheckArgs, name: &str, plugins: &mut Plugins) -> Result<Vec<Finding>> {
    let settings = Settings::new(&ModelArgs::of_entry(args, name), None)?;
    let (mut model, config) = build::inference(&settings, plugins)?;
    let device = build::device(&config.model.device)?;
    let tasks = eval::tasks(1, config.eval.seed)?;
    let dry = |plugins: &mut Plugins, options: &serde_json::Value| {
        let source = ModelSource { checkpoint: Checkpoint::Fresh, device, seed: 1, dry: true };
        plugins.model(name, options, &source).map(drop)
    };
    let mut findings = vec![unknown_option(|options| dry(plugins, options))];
    let mut load = |folder: &Path| -> Result<Box<dyn UnifiedModel>> {
        let checkpoint = Checkpoint::Folder(folder.into());
        plugins.model(name, &json!({}), &ModelSource { checkpoint, device, seed: 2, dry: false })
    };
    findings.extend(examine(&mut *model, &tasks, &config.rollout, Extent::Full, Some(&mut load)));
    Ok(findings)
}

fn reward(entry: &Entry, plugins: &mut Plugins) -> Result<Vec<Finding>> {
    let mut findings = vec![unknown_option(|options| plugins.reward(&entry.name, options).map(drop))];
    let rule = plugins.reward(&entry.name, &json!({}))?;
    findings.extend(examine_reward(&*rule, &eval::tasks(2, 1)?)?);
    Ok(findings)
}

/// Whether a misspelt option is told.
fn unknown_option(mut make: impl FnMut(&serde_json::Value) -> Result<()>) -> Finding {
    let outcome = match make(&json!({ "surely_no_option": 1 })) {
        Err(error) if error.code() == Code::Usage => Outcome::Holds("an unknown one is refused".into()),
        Err(error) => Outcome::Fails(error.to_string()),
        Ok(()) => Outcome::Fails("an unknown one is taken as if it meant something".into()),
    };
    Finding {
        name: "options are those of the schema",
        outcome,
        hint: "derive `JsonSchema` for the options; with `#[serde(flatten)]` any key would be one",
    }
}
