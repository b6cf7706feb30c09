//! The questions that check the facts of a prompt, and every right answer to them.

use unirl::prompt::{Category, PromptSpec, Relation};

use super::{PromptTemplates, Task};

impl Task {
    /// Returns the answers that are right about a correct image: the reference answer and, for two objects, the same statement
    /// with the objects in the other order, such as `the ring is right of the star` for `the star is left of the ring`.
    ///
    /// Only the shipped templates have another order; a task from other templates has its reference answer.
    pub fn right_answers(&self) -> Vec<String> {
        let mut answers = vec![self.reference_answer.clone()];
        if let (Some(templates), Some(spec)) = (PromptTemplates::of(self), reordered(&self.spec)) {
            answers.push(templates.task(spec).reference_answer);
        }
        answers
    }

    /// Returns tasks that ask about the same image: this one, then the same question in other words, then questions about a part
    /// of the facts, such as the objects of a prompt that also names colours. At most `count`, fewer if there are not as many.
    ///
    /// A task that no shipped template gives has only its own question.
    pub fn questions(&self, count: usize) -> Vec<Self> {
        let mut tasks = vec![self.clone()];
        if let Some(templates) = PromptTemplates::of(self) {
            let asked = |spec: &PromptSpec| {
                let task = Self { prompt: self.prompt.clone(), ..templates.task(spec.clone()) };
                let with = move |question| Self { question, ..task.clone() };
                templates.questions(spec).into_iter().map(with)
            };
            tasks.extend(asked(&self.spec).filter(|task| task.question != self.question));
            tasks.extend(part(&self.spec).iter().flat_map(asked));
        }
        tasks.truncate(count.max(1));
        tasks
    }
}

/// The same facts with the two objects in the other order.
fn reordered(spec: &PromptSpec) -> Option<PromptSpec> {
    let [first, second] = spec.objects.as_slice() else { return None };
    let objects = vec![second.clone(), first.clone()];
    Some(PromptSpec { objects, relation: spec.relation.map(Relation::opposite), ..spec.clone() })
}

/// The objects without their colours or their relation.
fn part(spec: &PromptSpec) -> Option<PromptSpec> {
    let category = match spec.category {
        Category::Colors => Category::SingleObject,
        Category::Position | Category::ColorAttr => Category::TwoObject,
        Category::SingleObject | Category::TwoObject | Category::Counting => return None,
    };
    let mut objects = spec.objects.clone();
    for object in &mut objects {
        object.color = None;
    }
    Some(PromptSpec { category, objects, relation: None })
}

#[cfg(test)]
mod tests {
    use unirl::prompt::Object;

    use super::*;
    use crate::answer::match_answer;
    use crate::rng::Rng;
    use crate::{ObjectList, Split, sample};

    fn colored(noun: &str, color: &str) -> Object {
        Object { color: Some(color.into()), ..Object::one(noun) }
    }

    fn task(category: Category, objects: Vec<Object>, relation: Option<Relation>) -> Task {
        PromptTemplates::tiles().task(PromptSpec { category, objects, relation })
    }

    #[test]
    fn two_objects_are_right_in_either_order() {
        let star_and_ring = || vec![Object::one("star"), Object::one("ring")];
        let colors = vec![colored("star", "red"), colored("ring", "blue")];
        for (task, answers) in [
            (task(Category::TwoObject, star_and_ring(), None), ["a star and a ring", "a ring and a star"]),
            (
                task(Category::Position, star_and_ring(), Some(Relation::LeftOf)),
                ["the star is left of the ring", "the ring is right of the star"],
            ),
            (
                task(Category::ColorAttr, colors, None),
                ["the star is red and the ring is blue", "the ring is blue and the star is red"],
            ),
        ] {
            assert_eq!(task.right_answers(), answers);
        }
        let counting = Object { count: 2, ..Object::one("star") };
        assert_eq!(task(Category::Counting, vec![counting], None).right_answers(), ["two stars"]);
    }

    #[test]
    fn questions_ask_for_the_same_facts_and_for_parts_of_them() {
        let colors = vec![colored("star", "red"), colored("ring", "blue")];
        let asked = task(Category::ColorAttr, colors, None).questions(9);
        let texts: Vec<[&str; 2]> =
            asked.iter().map(|task| [&*task.question, &*task.reference_answer]).collect();
        let both = "the star is red and the ring is blue";
        assert_eq!(
            texts,
            [
                ["what are two objects and the colors of two objects in the image", both],
                ["what are the colors of two objects", both],
                ["what are two main objects of the image", "a star and a ring"],
                ["what two objects are in the image", "a star and a ring"],
            ]
        );
        assert!(asked.iter().all(|task| task.prompt == "a photo of a red star and a blue ring"));
        assert_eq!(asked[0].questions(0), asked[..1]);
        assert_eq!(asked[0].questions(2), asked[..2]);
    }

    #[test]
    fn a_task_of_other_templates_has_its_own_question_and_answer() {
        let objects = vec![Object::one("star"), Object::one("ring")];
        let own = Task { question: "?".into(), ..task(Category::TwoObject, objects, None) };
        assert_eq!(own.right_answers(), ["a star and a ring"]);
        assert_eq!(own.questions(5), std::slice::from_ref(&own));
    }

    /// For all shipped templates, every right answer to every question gets full points for the facts that it asks for.
    #[test]
    fn right_answers_are_correct_in_all_templates() {
        let (list, mut rng) = (ObjectList::everyday(), Rng::new(7));
        for templates in ["tiles", "paper", "evaluation"].map(|name| PromptTemplates::find(name).unwrap()) {
            for category in Category::ALL.into_iter().cycle().take(600) {
                let task = templates.task(sample(&list, category, Split::All, &mut rng).unwrap());
                let asked = task.questions(9);
                assert!(asked.len() >= 2, "{task:?}");
                for task in asked {
                    for answer in task.right_answers() {
                        let spec = &task.spec;
                        assert!(
                            match_answer(spec, &answer).is_correct(spec.category),
                            "{}: {answer}",
                            task.question
                        );
                    }
                }
            }
        }
    }
}
