//! The files in `examples/` are valid.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use unirl::prompt::Category;
use unirl_base::layers;
use unirl_engine::algorithms;
use unirl_engine::config::RunConfig;
use unirl_prompts::{Exclusion, Mix, ObjectList, PromptTemplates, Split, generate, read_jsonl, write_jsonl};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");

#[test]
fn example_configurations_are_valid() {
    for (family, name) in
        [("showo", "grpo"), ("showo", "grpo-lora"), ("showo", "sft"), ("janus", "grpo-split")]
    {
        let table = layers::read(&Path::new(EXAMPLES).join(format!("{family}/{name}.toml"))).unwrap();
        let config = RunConfig::from_table(table).unwrap();
        let entry = algorithms::find(&config.optimizer.name).unwrap();
        (entry.build)(config.optimizer.table().unwrap()).unwrap();
        let tasks = Path::new(EXAMPLES).join("..").join(config.train.prompts_file.unwrap());
        assert!(tasks.is_file(), "{}", tasks.display());
        if config.model.options.is_empty() {
            continue;
        }
        // Only one plugin can be linked, because all export the same symbols.
        assert_eq!(family, "showo");
        let options = serde_json::to_value(&config.model.options).unwrap();
        serde_json::from_value::<unirl_plugin_showo::config::ShowoConfig>(options).unwrap();
    }
}

/// The example is the output of `unirl prompts --count 360 --exclude evaluation_metadata.jsonl` with `GenEval`'s metadata.
#[test]
fn example_prompts_equal_command_output() {
    let path = Path::new(EXAMPLES).join("tasks.jsonl");
    let tasks = read_jsonl(&path).unwrap();
    for category in Category::ALL {
        let count = tasks.iter().filter(|task| task.spec.category == category).count();
        assert_eq!(count, 60, "{}", category.name());
    }
    let mut seen = HashSet::new();
    for task in &tasks {
        assert_eq!(*task, PromptTemplates::paper().task(task.spec.clone()));
        assert!(seen.insert(&task.prompt), "`{}` is repeated", task.prompt);
    }
    // GenEval's file is not part of a checkout.
    let benchmark = Path::new(EXAMPLES).join("../../shared/data/geneval/evaluation_metadata.jsonl");
    if !benchmark.is_file() {
        return;
    }
    let mut exclusion = Exclusion::default();
    exclusion.add(&read_jsonl(&benchmark).unwrap());
    let made = generate(
        &ObjectList::everyday(),
        PromptTemplates::paper(),
        Mix::default(),
        (Split::All, &exclusion),
        360,
        1,
    )
    .unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), write_jsonl(&made.tasks).unwrap());
}
