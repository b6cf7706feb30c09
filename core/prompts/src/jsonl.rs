//! Tasks as JSON lines: our own format, the metadata of `GenEval`, or just a category and a prompt.

use std::fmt::Write as _;
use std::path::Path;

use serde::ser::SerializeStruct as _;
use serde::{Deserialize, Serialize, Serializer};
use unirl::error::{Context as _, Error, Result};
use unirl::prompt::{Category, Object, PromptSpec, Relation};
use unirl::reward::Sample;
use unirl_base::{input, json};

use super::{PromptTemplates, Task};

/// A line of a file. Unknown keys are ignored.
#[derive(Debug, Clone, Deserialize)]
pub struct Record {
    /// The category; `tag` in the files of `GenEval`. It can also be in `facts`.
    #[serde(alias = "tag")]
    category: Option<Category>,
    prompt: String,
    #[serde(rename = "facts")]
    spec: Option<SpecRecord>,
    /// The spec in the format of `GenEval`.
    include: Option<Vec<Included>>,
    question: Option<String>,
    #[serde(rename = "truth")]
    reference_answer: Option<String>,
    /// The reference answer in the format of `GenEval`; otherwise the answer of a model.
    answer: Option<String>,
    keywords: Option<Vec<String>>,
    reward: Option<serde_json::Value>,
}

#[derive(Debug, Clone, Deserialize)]
struct SpecRecord {
    category: Option<Category>,
    objects: Vec<Object>,
    relation: Option<Relation>,
}

/// An object in the format of `GenEval`; `position` is a relation to the object with the given index.
#[derive(Debug, Clone, Deserialize)]
struct Included {
    class: String,
    count: u32,
    color: Option<String>,
    position: Option<(String, usize)>,
}

impl Record {
    /// Returns the task of the line. A missing spec is parsed from the prompt. A missing question or reference answer comes
    /// from the templates `evaluation` in the format of `GenEval`, and from `paper` otherwise.
    pub fn task(&self) -> Result<Task> {
        let spec = self.spec()?;
        let templates = match &self.include {
            Some(_) => PromptTemplates::evaluation(),
            None => PromptTemplates::paper(),
        };
        let default = templates.task(spec);
        let reference_answer =
            self.reference_answer.clone().or_else(|| self.answer.clone().filter(|_| self.include.is_some()));
        Ok(Task {
            prompt: self.prompt.clone(),
            question: self.question.clone().unwrap_or(default.question),
            reference_answer: reference_answer.unwrap_or(default.reference_answer),
            keywords: self.keywords.clone().unwrap_or(default.keywords),
            spec: default.spec,
        })
    }

    /// Returns the answer of a model; `None` in the format of `GenEval`, where `answer` is the reference answer.
    pub fn answer(&self) -> Option<&str> {
        self.answer.as_deref().filter(|_| self.include.is_none())
    }

    /// Returns the input of a reward. Errors if the record has no answer.
    pub fn sample(&self) -> Result<Sample> {
        let answer = self.answer().ok_or_else(|| Error::usage("missing field `answer`"))?;
        Ok(self.task()?.sample(answer))
    }

    /// Returns the reward that a run recorded for the answer.
    pub fn reward(&self) -> Option<&serde_json::Value> {
        self.reward.as_ref()
    }

    fn spec(&self) -> Result<PromptSpec> {
        let inner = self.spec.as_ref().and_then(|spec| spec.category);
        let category = match (self.category, inner) {
            (Some(outer), Some(inner)) if outer != inner => {
                return Err(Error::usage(format!(
                    "`category` is `{}`, `facts.category` is `{}`",
                    outer.name(),
                    inner.name()
                )));
            }
            (outer, inner) => outer.or(inner).ok_or_else(|| Error::usage("`category`: missing"))?,
        };
        let spec = match (&self.spec, &self.include) {
            (Some(spec), _) => {
                PromptSpec { category, objects: spec.objects.clone(), relation: spec.relation }
            }
            (None, Some(include)) => included(category, include)?,
            (None, None) => return crate::parse_prompt(category, &self.prompt),
        };
        spec.check()?;
        Ok(spec)
    }
}

/// Converts a spec from the format of `GenEval`, where the object with a position is second in the file and first in the
/// prompt.
fn included(category: Category, include: &[Included]) -> Result<PromptSpec> {
    let mut relation = None;
    let mut objects: Vec<Object> = Vec::new();
    for (index, object) in include.iter().enumerate() {
        objects.push(Object { noun: object.class.clone(), count: object.count, color: object.color.clone() });
        if let Some((words, target)) = &object.position {
            let known = Relation::ALL.into_iter().find(|relation| relation.words() == words);
            if index != 1 || *target != 0 || known.is_none() {
                return Err(Error::usage(format!(
                    "`include[{index}].position`: expected `[RELATION, 0]` for the second object only, got `[\"{words}\", {target}]`"
                ))
                .hint("relations: left of, right of, above, below"));
            }
            relation = known;
        }
    }
    if relation.is_some() {
        objects.reverse();
    }
    Ok(PromptSpec { category, objects, relation })
}

impl Serialize for Task {
    /// Writes `category`, `prompt`, `facts` (objects and relation), `question`, `truth`, `keywords`.
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Inner<'a> {
            objects: &'a [Object],
            #[serde(skip_serializing_if = "Option::is_none")]
            relation: Option<Relation>,
        }
        let mut line = serializer.serialize_struct("Task", 6)?;
        line.serialize_field("category", &self.spec.category)?;
        line.serialize_field("prompt", &self.prompt)?;
        let inner = Inner { objects: &self.spec.objects, relation: self.spec.relation };
        line.serialize_field("facts", &inner)?;
        line.serialize_field("question", &self.question)?;
        line.serialize_field("truth", &self.reference_answer)?;
        line.serialize_field("keywords", &self.keywords)?;
        line.end()
    }
}

/// Reads the non-empty lines of a text and converts each with `read`. An error names `name`, the line and the field.
pub fn read_records<T>(name: &str, text: &str, read: impl Fn(&Record) -> Result<T>) -> Result<Vec<T>> {
    json::lines(text)
        .map(|(number, line)| {
            let record = json::parse_line::<Record>(line);
            record.and_then(|record| read(&record)).context(|| format!("`{name}`, line {number}"))
        })
        .collect()
}

/// Reads the tasks of a file. Errors if it has none.
pub fn read_jsonl(path: &Path) -> Result<Vec<Task>> {
    let tasks = read_records(&path.display().to_string(), &input::read_text(path)?, Record::task)?;
    if tasks.is_empty() {
        return Err(Error::usage(format!("`{}` contains no tasks", path.display())).hint(
            "write one task per line, such as `{\"category\": \"counting\", \"prompt\": \"a photo of two dogs\"}`",
        ));
    }
    Ok(tasks)
}

/// Writes the tasks as JSON lines.
pub fn write_jsonl(tasks: &[Task]) -> Result<String> {
    let mut text = String::new();
    for task in tasks {
        let line = serde_json::to_string(task).context(|| "cannot serialize a task")?;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::{Exclusion, Mix, ObjectList, Split, generate};
    use super::*;

    fn read(text: &str) -> Result<Vec<Task>> {
        read_records("tasks.jsonl", text, Record::task)
    }

    #[test]
    fn write_and_read_round_trip() {
        for templates in [PromptTemplates::paper(), PromptTemplates::evaluation(), PromptTemplates::tiles()] {
            let list = ObjectList::everyday();
            let tasks =
                generate(&list, templates, Mix::default(), (Split::All, &Exclusion::default()), 60, 5)
                    .unwrap()
                    .tasks;
            assert_eq!(read(&write_jsonl(&tasks).unwrap()).unwrap(), tasks);
        }
    }

    #[test]
    fn geneval_metadata_is_read() {
        let lines = [
            r#"{"tag": "position", "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}], "prompt": "a photo of a dog right of a teddy bear"}"#,
            r#"{"tag": "counting", "include": [{"class": "bench", "count": 4}], "exclude": [{"class": "bench", "count": 5}], "prompt": "a photo of four benchs", "question": "How many?", "answer": "four of them"}"#,
        ];
        let tasks = read(&lines.join("\n")).unwrap();
        assert_eq!(tasks[0].spec, crate::parse_prompt(Category::Position, &tasks[0].prompt).unwrap());
        assert_eq!(tasks[0].spec.objects[0].noun, "dog");
        assert_eq!(tasks[0].reference_answer, "The dog is right of the teddy bear");
        assert_eq!([&*tasks[1].question, &*tasks[1].reference_answer], ["How many?", "four of them"]);
    }

    #[test]
    fn category_and_prompt_are_sufficient() {
        let tasks = read(r#"{"category": "colors", "prompt": "a photo of a green fork"}"#).unwrap();
        assert_eq!(
            [&*tasks[0].question, &*tasks[0].reference_answer],
            ["What is the color of the object?", "Green"]
        );
    }

    #[test]
    fn invalid_line_error_names_line_and_field() {
        for (line, words) in [
            (r#"{"category":"position","prompt":"","facts":{"objects":[]}}"#, "`facts.objects`: expected 2"),
            (
                r#"{"category":"counting","prompt":"","facts":{"objects":[{"noun":"a","count":"3"}]}}"#,
                "`facts.objects[0].count`: expected a whole number of at least 0, got the string",
            ),
            (r#"{"category":"count","prompt":""}"#, "`category`: expected one of `single_object`"),
            (r#"{"prompt":"a photo of a dog"}"#, "`category`: missing"),
            (
                r#"{"category":"colors","prompt":"a photo of a green fork","facts":{"category":"counting","objects":[]}}"#,
                "`facts.category` is `counting`",
            ),
            (r#"{"category":"colors"}"#, "`prompt`: missing"),
            (
                r#"{"tag":"position","prompt":"","include":[{"class":"a","count":1},{"class":"b","count":1,"position":["near",0]}]}"#,
                "`include[1].position`",
            ),
            ("nonsense", "expected one JSON object per line, got `nonsense`"),
            (r#"{"category":"colors""#, "does not end on its line"),
        ] {
            let error = read(&format!("\n{line}\n")).unwrap_err();
            assert_eq!(error.message(), "`tasks.jsonl`, line 2", "{line}");
            assert!(error.causes()[0].contains(words), "{error}");
        }
    }
}
