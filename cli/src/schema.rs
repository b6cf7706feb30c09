//! `unirl schema`.

use schemars::SchemaGenerator;
use serde_json::json;
use unirl::error::{Context, Result, unknown_name};
use unirl_engine::config::RunConfig;
use unirl_engine::pretrain::PretrainConfig;
use unirl_engine::{algorithms, metrics};
use unirl_keywords::RuleFile;
use unirl_prompts::TemplateFile;

use crate::args::SchemaArgs;

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &SchemaArgs) -> Result<()> {
    let schema = match &args.plugin {
        None => core_schema(&args.what)?,
        Some(name) => {
            let mut plugins = args.search.plugins()?;
            let plugin = plugins.load(name)?;
            let entries = plugin.entries.iter().map(|entry| (entry.name.clone(), entry.schema.clone()));
            serde_json::Value::Object(entries.collect())
        }
    };
    println!("{}", serde_json::to_string_pretty(&schema).context(|| "cannot serialize the schema")?);
    Ok(())
}

/// The JSON Schema of a file format of unirl, or of the options of an algorithm.
pub(crate) fn core_schema(what: &str) -> Result<serde_json::Value> {
    Ok(match what {
        "run" => json!(schema_of::<RunConfig>()),
        "pretrain" => json!(schema_of::<PretrainConfig>()),
        "rules" => json!(schema_of::<RuleFile>()),
        "wording" => json!(schema_of::<TemplateFile>()),
        "metrics" => metrics::schema(),
        name => {
            let entries = algorithms::all();
            let entry = entries.iter().find(|entry| entry.name == name).ok_or_else(|| {
                let mut known = vec!["run", "pretrain", "rules", "wording", "metrics"];
                known.extend(entries.iter().map(|entry| entry.name));
                unknown_name("schema", name, &known)
            })?;
            json!((entry.schema)(&mut SchemaGenerator::default()))
        }
    })
}

fn schema_of<T: schemars::JsonSchema>() -> schemars::Schema {
    schemars::schema_for!(T)
}
