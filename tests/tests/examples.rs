//! What `examples/` holds is what the code takes.

#![allow(clippy::unwrap_used, reason = "a test: a wrong value ends it")]

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use unirl::config::RunConfig;
use unirl::optimizer;
use unirl::scene::{Category, Wording, read_jsonl};
use unirl::table;

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

#[test]
fn every_run_configuration_is_valid() {
    for (family, name) in
        [("showo", "grpo"), ("showo", "grpo-lora"), ("showo", "sft"), ("janus", "grpo-split")]
    {
        let table = table::read(&Path::new(EXAMPLES).join(format!("{family}/{name}.toml"))).unwrap();
        let config = RunConfig::from_table(table).unwrap();
        let entry = optimizer::find(&config.optimizer.name).unwrap();
        (entry.build)(config.optimizer.table().unwrap()).unwrap();
        let tasks = Path::new(EXAMPLES).join("..").join(config.train.tasks.unwrap());
        assert!(tasks.is_file(), "{}", tasks.display());
        if config.model.options.is_empty() {
            continue;
        }
        // Of the plugins only one can be linked: each exports the same symbols.
        assert_eq!(family, "showo");
        let options = serde_json::to_value(&config.model.options).unwrap();
        serde_json::from_value::<unirl_plugin_showo::config::ShowoConfig>(options).unwrap();
    }
}

/// The prompts say what their facts say, each once, and none is a prompt of the benchmark.
#[test]
fn the_tasks_follow_from_their_facts() {
    let tasks = read_jsonl(&Path::new(EXAMPLES).join("tasks.jsonl")).unwrap();
    for category in Category::ALL {
        let count = tasks.iter().filter(|task| task.facts.category == category).count();
        assert_eq!(count, 60, "{}", category.name());
    }
    let mut seen = HashSet::new();
    for task in &tasks {
        assert_eq!(*task, Wording::paper().task(task.facts.clone()));
        assert!(seen.insert(normal(&task.prompt)), "`{}` stands there twice", task.prompt);
    }
    // The benchmark's own file is not part of a checkout.
    let benchmark = Path::new(EXAMPLES).join("../../shared/data/geneval/evaluation_metadata.jsonl");
    let Ok(text) = fs::read_to_string(benchmark) else { return };
    for line in text.lines() {
        let json: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(!seen.contains(&normal(json["prompt"].as_str().unwrap())), "{line}");
    }
}

fn normal(prompt: &str) -> String {
    prompt.to_lowercase().replace(" an ", " a ")
}
