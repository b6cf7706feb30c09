//! `unirl doctor`: versions, devices and plugins of this installation, and the conformance checks of a model.

use serde_json::json;
use tch::{Cuda, Device};
use unirl::error::{Context, Error, Result};
use unirl_benchmarks::conformance_tasks;
use unirl_engine::memory;
use unirl_engine::plugin::{Plugins, built_with};
use unirl_testing::{Extent, Finding, check_all_passed, examine, format_findings};
use unirl_torch::cuda_graph;
use unirl_torch::libtorch::{has_cuda_driver, load_cuda, mapped_version};

use crate::args::{DoctorArgs, ModelArgs};
use crate::settings::Settings;
use crate::{io, load, plugins};

pub(crate) fn run(args: &DoctorArgs) -> Result<()> {
    if args.prompts == 0 {
        return Err(Error::usage("`--prompts`: expected at least 1, got 0"));
    }
    let mut found = args.model.search.plugins()?;
    if let Some(plugin) = &args.model.plugin {
        found.load(plugin)?; // before the search finds another plugin of the same name
    }
    let about = about();
    let listed = if args.json { plugins::describe(&mut found) } else { plugins::list(&mut found).into() };
    let findings = match &args.model.plugin {
        Some(_) => Some(findings(&args.model, args.prompts, &mut found)?),
        None => None,
    };
    if args.json {
        let about: serde_json::Map<_, _> =
            about.into_iter().map(|(name, value)| (name.to_string(), value.into())).collect();
        let all = json!({ "about": about, "plugins": listed, "findings": findings });
        let text = serde_json::to_string_pretty(&all).context(|| "cannot write the findings")?;
        io::print(&(text + "\n"))?;
    } else {
        io::print(&text(&about, listed.as_str().unwrap_or_default(), findings.as_deref()))?;
    }
    check_all_passed(findings.as_deref().unwrap_or_default())
}

/// Names and values that describe the installation.
fn about() -> Vec<(&'static str, String)> {
    let mut about = built_with().to_vec();
    about.push(("libtorch loaded", mapped_version().unwrap_or_else(|| "unknown version".into())));
    about.push(("threads", tch::get_num_threads().to_string()));
    let size = |bytes: Option<i64>| {
        bytes.map_or_else(|| "unknown".into(), |bytes| format!("{:.1} GB", bytes as f64 / 1e9))
    };
    about.push(("memory free", size(memory::available(Device::Cpu))));
    about.push(("GPU", gpu(size)));
    let graphs = cuda_graph::support().map_or_else(|why| format!("none: {why}"), |()| "compiled in".into());
    about.push(("CUDA graphs", graphs));
    about
}

fn gpu(size: impl Fn(Option<i64>) -> String) -> String {
    if !has_cuda_driver() {
        return "none: no driver found".into();
    }
    if let Err(error) = load_cuda() {
        return format!("driver found, but libtorch cannot use it: {}", error.message());
    }
    let count = Cuda::device_count();
    let each = (0..count as usize).map(|index| size(memory::available(Device::Cuda(index))));
    format!("{count}, with {}", each.collect::<Vec<_>>().join(", "))
}

/// Runs the conformance checks of a model on `prompts` prompts per category.
pub(crate) fn findings(args: &ModelArgs, prompts: usize, plugins: &mut Plugins) -> Result<Vec<Finding>> {
    let settings = Settings::new(args, None)?;
    let (mut model, config) = load::model_and_config(&settings, plugins)?;
    let tasks = conformance_tasks(model.card(), prompts, config.eval.seed)?;
    Ok(examine(&mut *model, &tasks, &config.rollout, Extent::Training, None))
}

fn text(about: &[(&str, String)], plugins: &str, findings: Option<&[Finding]>) -> String {
    let mut text = String::new();
    for (name, value) in about {
        text += &format!("{name:<16} {value}\n");
    }
    text += &format!("\n{plugins}");
    text + &format_findings(findings.unwrap_or_default())
}
