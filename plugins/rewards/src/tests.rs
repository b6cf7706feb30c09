//! One table per rule set and category, and what holds for every task.

use std::collections::BTreeMap;

use unirl::judge::answer_is_right;
use unirl::reward::{Reward, RewardFunction, Sample};
use unirl::scene::rng::Rng;
use unirl::scene::{Category, Facts, Object, Relation, Split, Task, sample};
use unirl::tiles::{Scene, object_list, truth};

use super::{BoundConfig, ExactConfig, PaperConfig, bound, exact, paper};

fn rules() -> [(&'static str, Box<dyn RewardFunction>); 3] {
    [
        ("paper", paper::new(PaperConfig {}).unwrap()),
        ("bound", bound::new(BoundConfig {}).unwrap()),
        ("exact", exact::new(ExactConfig {}).unwrap()),
    ]
}

fn score(rule: &dyn RewardFunction, task: &Task, answer: &str) -> Reward {
    let Task { facts, prompt, question, truth } = task.clone();
    rule.score(&[Sample { facts, prompt, question, truth, answer: answer.into() }]).unwrap().remove(0)
}

fn object(noun: &str, count: u32, color: Option<&str>) -> Object {
    Object { noun: noun.into(), count, color: color.map(Into::into) }
}

/// A snapshot per rule: answer, then points of maximum and parts.
fn tables(category: Category, objects: Vec<Object>, relation: Option<Relation>, answers: &[&str]) {
    let task = Task::new(Facts { category, objects, relation });
    for (name, rule) in rules() {
        let rows: Vec<BTreeMap<&str, String>> = answers
            .iter()
            .map(|answer| {
                let reward = score(&*rule, &task, answer);
                let parts: Vec<String> = reward.parts.iter().map(|(part, n)| format!("{part} {n}")).collect();
                BTreeMap::from([(
                    *answer,
                    format!("{} of {}: {}", reward.score, reward.max, parts.join(", ")),
                )])
            })
            .collect();
        insta::with_settings!({ description => task.prompt.clone(), prepend_module_to_snapshot => false }, {
            insta::assert_yaml_snapshot!(format!("{name}_{}", category.name()), rows);
        });
    }
}

#[test]
fn single_object() {
    let answers =
        ["Bench", "a bench", "BENCHES", "a table", "a bench and a table", "two benches", "no bench", ""];
    tables(Category::SingleObject, vec![object("bench", 1, None)], None, &answers);
}

#[test]
fn two_object() {
    let objects = vec![object("table", 1, None), object("soccer", 1, None)];
    let answers = [
        "A table and a soccer",
        "a soccer, a table",
        "a table",
        "a table and a chair",
        "a table and a soccer and a chair",
        "a table and a table",
        "two tables and a soccer",
        "a table and a soccer and more",
        "nothing",
    ];
    tables(Category::TwoObject, objects, None, &answers);
}

#[test]
fn counting() {
    let answers = [
        "Two chairs",
        "Three bowls",
        "Four bowls",
        "4 bowls",
        "There are four bowls in this image.",
        "four",
        "bowls",
        "four chairs",
        "three bowls four bowls",
        "three bowls and four bowls",
        "four bowls and one chair",
        "one chair and four bowls",
    ];
    tables(Category::Counting, vec![object("bowl", 4, None)], None, &answers);
}

#[test]
fn colors() {
    let answers = [
        "Green",
        "the fork is green",
        "a green fork",
        "The color of the object is green.",
        "the spoon is green",
        "fork",
        "red",
        "the fork is not green",
        "green and red",
        "the fork is green and red",
        "the fork is green and the spoon is red",
        "red orange yellow green blue",
    ];
    tables(Category::Colors, vec![object("fork", 1, Some("green"))], None, &answers);
}

#[test]
fn position() {
    let objects = vec![object("train", 1, None), object("elephant", 1, None)];
    let answers = [
        "The train is above of the elephant",
        "the elephant is below the train",
        "the elephant is above the train",
        "the train is below the elephant",
        "the train is left of the elephant",
        "the train is diagonal to the elephant",
        "a train and an elephant",
        "the train is above the cat",
        "the train is above and below the elephant",
        "the train is above the elephant and the cat",
        "above",
    ];
    tables(Category::Position, objects, Some(Relation::Above), &answers);
}

#[test]
fn color_attr() {
    let objects = vec![object("chair", 1, Some("blue")), object("umbrella", 1, Some("red"))];
    let answers = [
        "The chair is blue and the umbrella is red",
        "a red umbrella and a blue chair",
        "the chair is red and the umbrella is blue",
        "the chair is blue and the umbrella is green",
        "the chair is blue and red and the umbrella is red",
        "a chair and an umbrella",
        "the chair is blue",
        "blue and red",
        "the table is blue and the umbrella is red",
        "the chair is blue and the umbrella is red and the table is green",
    ];
    tables(Category::ColorAttr, objects, None, &answers);
}

#[test]
fn the_truth_has_full_marks_and_a_wrong_drawing_has_not() {
    let mut rng = Rng::new(17);
    let [(_, paper), (_, bound), _] = rules();
    for category in Category::ALL {
        for _ in 0..2000 {
            let task = sample(&object_list(), category, Split::All, &mut rng).unwrap();
            assert!(score(&*paper, &task, &task.truth).passes(), "{task:?}");
            assert!(score(&*bound, &task, &task.truth).passes(), "{task:?}");
            assert!(answer_is_right(&task.facts, &task.truth), "{task:?}");
            let right = truth(category, &Scene::draw(&task.facts, &mut rng).unwrap());
            assert!(score(&*bound, &task, &right).passes(), "{}: {right}", task.prompt);
            let wrong = truth(category, &Scene::with_mistake(&task.facts, &mut rng).unwrap());
            assert!(!score(&*bound, &task, &wrong).passes(), "{}: {wrong}", task.prompt);
        }
    }
}
