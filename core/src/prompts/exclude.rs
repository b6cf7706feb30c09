//! What must not be trained on: the prompts of an evaluation.

use std::collections::HashSet;

use super::lexicon::canonical;
use super::{Category, PromptSpec, Task};

/// Prompts that no generated one may equal, in words or in what they ask for.
#[derive(Debug, Clone, Default)]
pub struct Exclusion {
    prompts: HashSet<String>,
    scenes: HashSet<String>,
    nouns: HashSet<String>,
}

impl Exclusion {
    /// Excludes the prompts of `tasks`, and their objects from the category `single_object` (§4.4 of the paper: there,
    /// training and test share no object type).
    pub fn add(&mut self, tasks: &[Task]) {
        for task in tasks {
            self.prompts.insert(normal(&task.prompt));
            self.scenes.insert(scene(&task.spec));
            self.nouns.extend(task.spec.objects.iter().map(|object| canonical(&object.noun)));
        }
    }

    /// Whether a task asks for the scene of an excluded one, or has its prompt.
    pub fn repeats(&self, task: &Task) -> bool {
        self.prompts.contains(&normal(&task.prompt)) || self.scenes.contains(&scene(&task.spec))
    }

    /// Whether a task is excluded. Case, marks and articles do not tell prompts apart, nor do order, the side from which a
    /// position is told, and synonyms.
    pub fn holds(&self, task: &Task) -> bool {
        let known_type =
            || task.spec.objects.iter().any(|object| self.nouns.contains(&canonical(&object.noun)));
        self.repeats(task) || (task.spec.category == Category::SingleObject && known_type())
    }
}

fn normal(prompt: &str) -> String {
    let lower = prompt.to_lowercase();
    let words = lower.split(|letter: char| !letter.is_alphanumeric());
    words.filter(|word| !matches!(*word, "" | "a" | "an" | "the")).collect::<Vec<_>>().join(" ")
}

fn scene(spec: &PromptSpec) -> String {
    let mut spec = spec.clone();
    for object in &mut spec.objects {
        object.noun = canonical(&object.noun);
    }
    spec.key()
}

#[cfg(test)]
mod tests {
    use super::super::{Object, PromptTemplates, Relation};
    use super::*;

    #[test]
    fn rewording_is_no_way_around() {
        let task = |category, prompt: &str| {
            PromptTemplates::evaluation().task(PromptSpec::parse(category, prompt).unwrap())
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
        // Other words for facts that are not excluded, but the very text of an excluded prompt.
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
