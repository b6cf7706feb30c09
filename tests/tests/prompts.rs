//! `unirl prompts`, and `GenEval`'s prompts if the shared data exist.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Output;

use insta::assert_snapshot;
use unirl::prompt::Category;
use unirl_prompts::{
    Exclusion, Mix, ObjectList, PromptTemplates, Split, Task, generate, read_jsonl, write_jsonl,
};

/// A file of `GenEval`, which is not part of a checkout.
fn geneval(file: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/geneval").join(file);
    path.is_file().then_some(path)
}

fn unirl(folder: &Path, arguments: &[&str]) -> Output {
    common::program([&["prompts"], arguments].concat()).current_dir(folder).output().unwrap()
}

fn printed(folder: &Path, arguments: &[&str]) -> String {
    let output = unirl(folder, arguments);
    common::format_output(&output)
}

#[test]
fn prompts_in_each_category_and_template() {
    let home = tempfile::tempdir().unwrap();
    let templates = ["paper", "evaluation", "tiles"];
    let texts = templates.map(|name| printed(home.path(), &["--count", "6", "--wording", name]));
    assert_snapshot!(texts.join("\n"));
}

#[test]
fn prompts_with_custom_objects_and_templates() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("objects.txt"), "goose\nhourglass\nunicorn\n").unwrap();
    std::fs::write(
        home.path().join("words.toml"),
        "[counting]\nquestion = \"Count the {objects}.\"\n[single_object]\ntruth = \"I see {a object}\"",
    )
    .unwrap();
    let arguments =
        ["--objects", "objects.txt", "--wording", "words.toml", "--mix", "count=1,single=1", "--count", "6"];
    assert_snapshot!(printed(home.path(), &arguments));
}

#[test]
fn prompts_invalid_arguments_are_refused() {
    let home = tempfile::tempdir().unwrap();
    std::fs::write(home.path().join("bad.jsonl"), "\n{\"category\":\"counting\",\"prompt\":\"\",\"facts\":{\"objects\":[{\"noun\":\"cat\",\"count\":\"two\"}]}}\n").unwrap();
    std::fs::write(home.path().join("words.toml"), "[counting]\nquestion = \"{colour}?\"").unwrap();
    std::fs::write(home.path().join("one.txt"), "cat\n").unwrap();
    let all = [
        vec!["--mix", "colours=1"],
        vec!["--count", "0"],
        vec!["--objects", "nowhere.txt"],
        vec!["--objects", "one.txt"],
        vec!["--wording", "papr"],
        vec!["--wording", "words.toml"],
        vec!["--exclude", "bad.jsonl"],
        vec!["--out", "no/such/folder.jsonl"],
    ];
    let texts = all.map(|arguments| format!("{arguments:?}\n{}", printed(home.path(), &arguments)));
    assert_snapshot!(texts.join("\n"));
    assert!(!home.path().join("no").exists());
}

/// The command writes all prompts to the file and nothing to stdout.
#[test]
fn prompts_file_round_trips_and_can_be_excluded() {
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("tasks.jsonl");
    let output = unirl(home.path(), &["--count", "120", "--out", "tasks.jsonl"]);
    assert!(output.status.success() && output.stdout.is_empty());
    let tasks = read_jsonl(&file).unwrap();
    assert_eq!(tasks.len(), 120);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), write_jsonl(&tasks).unwrap());
    let output = unirl(home.path(), &["--count", "120", "--exclude", "tasks.jsonl"]);
    let other: HashSet<String> =
        String::from_utf8(output.stdout).unwrap().lines().map(String::from).collect();
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(other.len() == 120 && text.lines().all(|line| !other.contains(line)));
}

#[test]
fn geneval_prompts_parse_and_print_verbatim() {
    let (Some(plain), Some(asked)) =
        (geneval("evaluation_metadata.jsonl"), geneval("evaluation_metadata_qa.jsonl"))
    else {
        return;
    };
    let tasks = read_jsonl(&asked).unwrap();
    assert_eq!(tasks.len(), 553);
    // Questions and answers that the metadata lack are those of the released file.
    assert_eq!(read_jsonl(&plain).unwrap(), tasks);
    for task in &tasks {
        assert_eq!(
            unirl_prompts::parse_prompt(task.spec.category, &task.prompt).unwrap(),
            task.spec,
            "{}",
            task.prompt
        );
        assert_eq!(PromptTemplates::evaluation().task(task.spec.clone()), *task);
    }
}

#[test]
fn generated_prompts_never_contain_geneval_prompts() {
    let Some(path) = geneval("evaluation_metadata.jsonl") else { return };
    let benchmark = read_jsonl(&path).unwrap();
    let mut exclusion = Exclusion::default();
    exclusion.add(&benchmark);
    let words = |task: &Task| {
        let lower = task.prompt.to_lowercase();
        lower
            .split_whitespace()
            .filter(|word| !matches!(*word, "a" | "an" | "of"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let prompts: HashSet<String> = benchmark.iter().map(words).collect();
    let types: HashSet<&str> =
        benchmark.iter().flat_map(|task| &task.spec.objects).map(|object| object.noun.as_str()).collect();
    assert_eq!(types.len(), 80);
    let list = ObjectList::everyday();
    assert!(types.iter().all(|noun| list.nouns[..80].iter().any(|known| known == noun)));
    let generated =
        generate(&list, PromptTemplates::evaluation(), Mix::default(), (Split::All, &exclusion), 100_000, 7)
            .unwrap();
    assert_eq!(generated.tasks.len(), 100_000);
    for task in &generated.tasks {
        assert!(!prompts.contains(&words(task)), "{}", task.prompt);
        let single = task.spec.category == Category::SingleObject;
        assert!(!(single && types.contains(task.spec.objects[0].noun.as_str())), "{}", task.prompt);
    }
}
