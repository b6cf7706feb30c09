//! Tests of rule files: answers with their expected points.

use unirl::prompt::Category;
use unirl::reward::Reward;
use unirl_prompts::PromptTemplates;

use super::RuleFile;

const COUNT: &str = "[[counting]]\nword = \"{count} {objects}\"\n";

fn score(rules: &str, category: Category, prompt: &str, answer: &str) -> Reward {
    let rules = RuleFile::parse(rules).unwrap().build().unwrap();
    let task = PromptTemplates::paper().task(unirl_prompts::parse_prompt(category, prompt).unwrap());
    let sample = task.sample(answer);
    rules.score(&[sample], None).unwrap().remove(0)
}

fn points(rules: &str, category: Category, prompt: &str, answers: &[(&str, f64)]) {
    for (answer, expected) in answers {
        let reward = score(rules, category, prompt, answer);
        assert!((reward.score - expected).abs() < 1e-12, "`{answer}`: {}", reward.why);
    }
}

/// The example in the documentation of [`RuleFile::parse`].
#[test]
fn documented_example_has_the_stated_reward() {
    let rules = r#"
        [penalties]
        extra = "all"
        [[counting]]
        word = "{object}"
        match = "bound"
        [[counting]]
        word = "{count}"
        match = "bound"
        points = 2
        [[example]]
        category = "counting"
        prompt = "a photo of three vases"
        answer = "There are 3 vases."
        reward = 3
    "#;
    let reward = score(rules, Category::Counting, "a photo of two cups", "three cups");
    assert_eq!((reward.score, reward.max), (1.0, 3.0));
    assert_eq!(reward.why, "1 of 3: has `cup`; lacks `two` at `cup`");
}

#[test]
fn phrase_matches_whole_words_in_order() {
    let prompt = "a photo of three knives";
    let answers = [
        ("There are THREE knives.", 1.0),
        ("3 knifes", 1.0),
        ("knives, three of them", 0.0),
        ("three sharp knives", 0.0),
        ("thirty-three knivesmen", 0.0),
        ("not three knives", 0.0),
        ("I do not see a fork, three knives", 1.0),
    ];
    points(COUNT, Category::Counting, prompt, &answers);
    let strict = format!("[reading]\nnumbers = false\nnegation = false\n{COUNT}");
    points(&strict, Category::Counting, prompt, &[("3 knives", 0.0), ("not three knives", 1.0)]);
}

#[test]
fn word_and_substring_match_anywhere() {
    let of = |how: &str| format!("[[two_object]]\nword = \"{{object}}\"\nmatch = \"{how}\"\n");
    let prompt = "a photo of a wine glass and a car";
    let apart = [("a glass of wine, a car", 2.0), ("a glass and carrots", 0.0), ("wine and glass", 1.0)];
    points(&of("word"), Category::TwoObject, prompt, &apart);
    let letters = [("carrots", 1.0), ("wine glasses", 1.0), ("a glass of red wine", 0.0)];
    points(&of("substring"), Category::TwoObject, prompt, &letters);
}

#[test]
fn order_matches_after_the_previous_keyword() {
    let rules = r#"
        [[position]]
        word = "{object.1}"
        match = "order"
        [[position]]
        word = "{relation}"
        match = "order"
        [[position]]
        word = "{object.2}"
        match = "order"
    "#;
    let answers = [
        ("the dog is to the left of the bench", 3.0),
        ("the dog is on the left side of the bench", 3.0),
        ("the bench is left of the dog", 1.0),
        ("the bench and the dog, left of it", 2.0),
    ];
    points(rules, Category::Position, "a photo of a dog left of a bench", &answers);
}

#[test]
fn keyword_without_number_applies_to_each_object() {
    let each = "[[color_attr]]\nword = \"{color} {object}\"\npoints = 2\npart = \"pair\"\n";
    let prompt = "a photo of a blue chair and a red umbrella";
    let reward = score(each, Category::ColorAttr, prompt, "a blue chair and a green umbrella");
    assert_eq!((reward.score, reward.max, reward.parts["pair"]), (2.0, 4.0, 2.0));
    let second = "[[color_attr]]\nword = \"{color.2} {object.2}\"\n";
    points(second, Category::ColorAttr, prompt, &[("a blue chair", 0.0), ("a red umbrella", 1.0)]);
    let fixed = "[[color_attr]]\nword = \"photo\"\n";
    points(fixed, Category::ColorAttr, prompt, &[("a photo", 1.0), ("photos", 0.0)]);
}

#[test]
fn synonyms_and_ignored_words_come_from_the_file() {
    let rules = r#"
        [reading]
        usual_synonyms = false
        synonyms = { couch = ["davenport"] }
        ignore = ["comfortable"]
        [[colors]]
        word = "{object}"
        match = "bound"
        part = "named"
    "#;
    let answers = [
        ("a red couch", 1.0),
        ("a comfortable red davenport", 1.0),
        ("a red sofa", 0.0), // a usual synonym, disabled in the file
        ("a lumpy red couch", 1.0),
        ("a red couch tree", 0.0),
    ];
    points(rules, Category::Colors, "a photo of a red couch", &answers);
    points(
        &rules.replace("false", "true"),
        Category::Colors,
        "a photo of a red couch",
        &[("a red sofa", 1.0)],
    );
}

/// Of 3 points: minus 1 for extra statements, all for more than five words, minus 2 for a repeated answer; clamped at 0.
#[test]
fn penalties_are_subtracted() {
    let rules = r#"
        penalties = { extra = 1, long = { words = 5, lose = "all" }, repeat = 2 }
        [[counting]]
        word = "{count}"
        points = 2
        [[counting]]
        word = "{object}"
    "#;
    let answers = [
        ("three stars", 3.0),
        ("three stars, a ring", 2.0),
        ("three stars, three stars", 0.0), // 3 - 1 - 2: two mentions also count as extra
        ("a ring and stars", 0.0),
        ("three stars and nothing else here", 0.0),
    ];
    points(rules, Category::Counting, "a photo of three stars", &answers);
    let why = score(rules, Category::Counting, "a photo of three stars", "three stars, three stars").why;
    assert_eq!(
        why,
        "0 of 3: has `three`, `star`; loses 1: names 2 objects; loses 2: states the reference answer 2 times"
    );
}

#[test]
fn pay_and_normalize_change_the_score() {
    let prompt = "a photo of three stars";
    let rules = "[[counting]]\nword = \"{count}\"\npoints = 3\n[[counting]]\nword = \"{object}\"\n";
    let shares = format!("normalize = \"max\"\n{rules}");
    let reward = score(&shares, Category::Counting, prompt, "three rings");
    assert_eq!((reward.score, reward.max, reward.parts["number"]), (0.75, 1.0, 0.75));
    let all = format!("pay = \"all\"\n{rules}");
    points(&all, Category::Counting, prompt, &[("three rings", 0.0), ("three stars", 1.0)]);
}

#[test]
fn category_without_keywords_abstains() {
    let reward = score(COUNT, Category::Colors, "a photo of a green fork", "green");
    assert!(reward.abstains() && !reward.passes());
    assert_eq!(reward.why, "no rules for `colors`");
}

/// Consecutive samples with the same spec share the prepared keywords; others do not.
#[test]
fn score_of_a_batch_equals_scores_of_samples() {
    let rules = RuleFile::parse(COUNT).unwrap().build().unwrap();
    let sample = |prompt: &str, answer: &str| {
        let task =
            PromptTemplates::paper().task(unirl_prompts::parse_prompt(Category::Counting, prompt).unwrap());
        task.sample(answer)
    };
    let three = "a photo of three stars";
    let batch = [
        sample(three, "three stars"),
        sample(three, "two stars"),
        sample("a photo of two stars", "two stars"),
        sample("a photo of two stars", "three stars"),
        sample(three, "three stars"),
    ];
    let together: Vec<f64> = rules.score(&batch, None).unwrap().iter().map(|reward| reward.score).collect();
    assert_eq!(together, [1.0, 0.0, 1.0, 0.0, 1.0]);
    assert!(rules.score(&[], None).unwrap().is_empty());
}
