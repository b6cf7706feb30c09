//! Exclusion of the prompts of an evaluation from training.

use std::collections::HashSet;

use unirl::prompt::{Category, PromptSpec};

use super::Task;
use super::lexicon::canonical;

/// Excluded prompts, by their text and by their spec.
#[derive(Debug, Clone, Default)]
pub struct Exclusion {
    prompts: HashSet<String>,
    specs: HashSet<String>,
    nouns: HashSet<String>,
}

impl Exclusion {
    /// Excludes the prompts of `tasks`, and their objects from the category `single_object`: in §4.4 of the paper, training
    /// and test share no object type.
    pub fn add(&mut self, tasks: &[Task]) {
        for task in tasks {
            self.prompts.insert(normalized(&task.prompt));
            self.specs.insert(key(&task.spec));
            self.nouns.extend(task.spec.objects.iter().map(|object| canonical(&object.noun)));
        }
    }

    /// Whether a task has the prompt or the spec of an excluded task.
    pub fn repeats(&self, task: &Task) -> bool {
        self.prompts.contains(&normalized(&task.prompt)) || self.specs.contains(&key(&task.spec))
    }

    /// Whether a task is excluded. Prompts are equal if they differ only in case, punctuation, articles, the order of
    /// objects, the direction of a relation, or synonyms.
    pub fn holds(&self, task: &Task) -> bool {
        let excluded_noun =
            || task.spec.objects.iter().any(|object| self.nouns.contains(&canonical(&object.noun)));
        self.repeats(task) || (task.spec.category == Category::SingleObject && excluded_noun())
    }
}

fn normalized(prompt: &str) -> String {
    let lower = prompt.to_lowercase();
    let words = lower.split(|letter: char| !letter.is_alphanumeric());
    words.filter(|word| !matches!(*word, "" | "a" | "an" | "the")).collect::<Vec<_>>().join(" ")
}

fn key(spec: &PromptSpec) -> String {
    let mut spec = spec.clone();
    for object in &mut spec.objects {
        object.noun = canonical(&object.noun);
    }
    spec.key()
}

#[cfg(test)]
mod tests {
    use unirl::prompt::{Object, Relation};

    use super::super::PromptTemplates;
    use super::*;

    #[test]
    fn holds_detects_reworded_prompts() {
        let task = |category, prompt: &str| {
            PromptTemplates::evaluation().task(crate::parse_prompt(category, prompt).unwrap())
        };
        let mut exclusion = Exclusion::default();
        exclusion.add(&[
            task(Category::Position, "a photo of a couch left of a dog"),
            task(Category::TwoObject, "a photo of a cat and a bus"),
            task(Category::Counting, "a photo of two knifes"),
        ]);
        for (category, prompt) in [
            (Category::Position, "a photo of a couch left of a dog"),
            (Category::Position, "a photo of a dog right of a sofa"),
            (Category::TwoObject, "a photo of a bus and a cat"),
            (Category::Counting, "a photo of two knives"),
            (Category::SingleObject, "a photo of a sofa"),
            (Category::SingleObject, "a photo of a knife"),
        ] {
            assert!(exclusion.holds(&task(category, prompt)), "{prompt}");
        }
        for (category, prompt) in [
            (Category::Position, "a photo of a dog left of a couch"),
            (Category::TwoObject, "a photo of a bus and a dog"),
            (Category::Counting, "a photo of three knives"),
            (Category::SingleObject, "a photo of a fork"),
        ] {
            assert!(!exclusion.holds(&task(category, prompt)), "{prompt}");
        }
        // A spec that is not excluded, with the text of an excluded prompt.
        let spec = PromptSpec {
            category: Category::Position,
            objects: vec![Object::one("x"), Object::one("y")],
            relation: Some(Relation::Above),
        };
        let reworded =
            Task { prompt: "A photo of the cat, and the bus!".into(), ..PromptTemplates::tiles().task(spec) };
        assert!(exclusion.holds(&reworded));
    }
}
