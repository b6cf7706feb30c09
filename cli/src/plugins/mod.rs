//! `unirl plugins`: lists, creates and checks plugins.

mod check;
mod new;

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use unirl::error::{Context, Error, Result};
use unirl_engine::plugin::{PluginState, Plugins};
use unirl_torch::libtorch::mapped_version;

use crate::args::{PluginsArgs, PluginsCommand, PluginsListArgs};

pub(crate) fn run(args: &PluginsArgs) -> Result<()> {
    match &args.command {
        None => show(&args.list),
        Some(PluginsCommand::List(args)) => show(args),
        Some(PluginsCommand::New(args)) => new::run(args),
        Some(PluginsCommand::Check(args)) => check::run(args),
        Some(PluginsCommand::Probe { file }) => Plugins::new(&[]).load(file).map(drop),
    }
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn show(args: &PluginsListArgs) -> Result<()> {
    let mut plugins = args.search.plugins()?;
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&describe(&mut plugins)).context(|| "cannot serialize the list")?
        );
        return Ok(());
    }
    println!("libtorch {}", mapped_version().unwrap_or_else(|| "unknown version".into()));
    print!("{}", list(&mut plugins));
    Ok(())
}

/// The searched directories and the plugins in them, as text.
pub(crate) fn list(plugins: &mut Plugins) -> String {
    let mut text = String::from("searched:\n");
    for dir in plugins.search_path() {
        text += &format!("  {}\n", dir.display());
    }
    for report in plugins.discover_if(&mut probe).to_vec() {
        let plugin = plugins.loaded().iter().find(|plugin| plugin.path == report.path);
        let built = report.built.as_ref().map_or_else(String::new, |built| {
            format!(" {} (abi {}, libtorch {})", built.version, built.abi, built.libtorch)
        });
        text += &format!("\n{}{built}  {}\n", report.name, report.path.display());
        match &report.state {
            PluginState::Refused(error) => text += &format!("  refused: {error}\n"),
            PluginState::Loaded => {
                for entry in plugin.map(|plugin| plugin.entries.as_slice()).unwrap_or_default() {
                    text += &format!("  {} `{}`\n", entry.kind, entry.name);
                }
            }
        }
    }
    text
}

/// Opens a plugin in a separate process, so that a crash does not end this one.
fn probe(path: &Path) -> Result<()> {
    let place = || "cannot start a process to open the plugin";
    let program = std::env::current_exe().context(place)?;
    let mut command = Command::new(program);
    command
        .args(["plugins", "probe"])
        .arg(path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let status = command.status().context(place)?;
    match status.signal() {
        None => Ok(()), // other errors are reported when it is opened in this process
        Some(signal) => {
            Err(Error::failure(format!("opening the plugin ends the process with signal {signal}"))
                .hint("check the code that runs when the library is loaded, such as constructors"))
        }
    }
}

/// The searched directories and the plugins in them, as JSON.
pub(crate) fn describe(plugins: &mut Plugins) -> Value {
    let reports = plugins.discover_if(&mut probe).to_vec();
    let list: Vec<Value> = reports
        .iter()
        .map(|report| {
            let refused = match &report.state {
                PluginState::Loaded => None,
                PluginState::Refused(error) => Some(error.to_string()),
            };
            let entries: Vec<Value> = plugins
                .loaded()
                .iter()
                .filter(|plugin| plugin.path == report.path)
                .flat_map(|plugin| &plugin.entries)
                .map(|entry| json!({"kind": entry.kind.to_string(), "name": entry.name}))
                .collect();
            let built = report
                .built
                .as_ref()
                .map(|built| json!({"version": built.version, "abi": built.abi, "libtorch": built.libtorch}));
            json!({
                "name": report.name,
                "path": report.path,
                "built": built,
                "refused": refused,
                "entries": entries,
            })
        })
        .collect();
    json!({"libtorch": mapped_version(), "searched": plugins.search_path(), "plugins": list})
}
