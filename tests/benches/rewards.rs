//! Samples per second through the plugin boundary, on one core, in batches: `cargo bench -p unirl-tests --bench rewards`.
//! The required minimum is 200,000 per second.

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use serde_json::json;
use unirl::reward::{RewardFunction, Sample};
use unirl_engine::plugin::Plugins;
use unirl_keywords::RuleFile;
use unirl_prompts::rng::Rng;
use unirl_prompts::{Exclusion, Mix, ObjectList, PromptTemplates, Split, generate};

const BATCH: usize = 4096;
const GROUP: usize = 8;

/// One group per prompt, of every category. A third of the answers is correct, a third wrong, a third verbose.
fn samples() -> Vec<Sample> {
    let (list, wording) = (ObjectList::everyday(), PromptTemplates::paper());
    let tasks =
        generate(&list, wording, Mix::default(), (Split::All, &Exclusion::default()), BATCH / GROUP, 1);
    let tasks = tasks.expect("tasks").tasks;
    let mut rng = Rng::new(2);
    let mut samples = Vec::with_capacity(BATCH);
    for task in &tasks {
        for _ in 0..GROUP {
            let answer = match rng.below(3) {
                0 => task.reference_answer.clone(),
                1 => tasks[rng.below(tasks.len())].reference_answer.clone(),
                _ => format!(
                    "In this image there is a large room, and {} is what I see.",
                    task.reference_answer
                ),
            };
            samples.push(task.sample(answer));
        }
    }
    samples
}

fn main() {
    let samples = samples();
    let folder = std::env::current_exe().expect("a path").parent().expect("a folder").to_owned();
    let mut plugins = Plugins::new(&[folder]);
    let mut rules: Vec<(String, Box<dyn RewardFunction>)> = ["paper", "bound", "exact"]
        .map(|name| (format!("plugin/{name}"), plugins.reward(name, &json!({})).expect("a shipped rule set")))
        .into();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/my-rules/my-rules.toml");
    let own = RuleFile::read(file.as_ref()).and_then(RuleFile::build).expect("the example");
    rules.push(("file/my-rules".into(), own));

    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("reward");
    group.throughput(Throughput::Elements(samples.len() as u64));
    for (name, rules) in &rules {
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(rules.score(black_box(&samples), None).expect("rewards")));
        });
    }
    group.finish();
    criterion.final_summary();
}
