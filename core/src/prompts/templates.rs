//! From facts to prompt, question and truth: how the six kinds of tasks are worded (§3.2, Table 1).

use std::path::Path;
use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::english::{Plurals, number_word};
use super::template::{Place, Segment, Spelling, Template};
use super::{Category, PromptSpec, Relation, Task};
use crate::error::{Error, Result, unknown_name};
use crate::{config::layers, settings};

const SHIPPED: [(&str, &str); 3] = [
    ("paper", include_str!("templates/paper.toml")),
    ("evaluation", include_str!("templates/evaluation.toml")),
    ("tiles", include_str!("templates/tiles.toml")),
];

/// A file of wordings.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateFile {
    /// How `{objects}` is spelled.
    #[serde(default)]
    plurals: Plurals,
    /// How `{relation}` is spelled.
    #[serde(default)]
    relations: Relations,
    single_object: Sentences,
    two_object: Sentences,
    counting: Sentences,
    colors: Sentences,
    position: Sentences,
    color_attr: Sentences,
}

/// How the relations are spelled.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
struct Relations {
    left_of: String,
    right_of: String,
    above: String,
    below: String,
}

impl Default for Relations {
    fn default() -> Self {
        let words = |relation: Relation| relation.words().to_string();
        Self {
            left_of: words(Relation::LeftOf),
            right_of: words(Relation::RightOf),
            above: words(Relation::Above),
            below: words(Relation::Below),
        }
    }
}

/// The three sentences of a category, with places such as `{a object.1}`, `{count}`, `{objects}`, `{color}`, `{relation}`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Sentences {
    /// What the model draws from.
    prompt: String,
    /// What it is asked about the drawing.
    question: String,
    /// The right answer about a right drawing.
    #[serde(rename = "truth")]
    reference_answer: String,
}

/// How tasks are worded.
#[derive(Debug, Clone)]
pub struct PromptTemplates {
    plurals: Plurals,
    relations: Relations,
    sentences: Vec<[Template; 3]>,
}

impl PromptTemplates {
    /// `paper` (Table 1), `evaluation` (`GenEval`'s prompts with the questions that the authors released), `tiles` (what the
    /// embedded models were taught), or the path of a TOML file, which lies over `paper`.
    pub fn find(name_or_path: &str) -> Result<Self> {
        if let Some((_, text)) = SHIPPED.iter().find(|(name, _)| *name == name_or_path) {
            return Self::from_table(toml_table(text)?);
        }
        let path = Path::new(name_or_path);
        if !path.is_file() {
            let names = SHIPPED.map(|(name, _)| name);
            return Err(unknown_name("wording", name_or_path, &names).hint("or the path of a TOML file"));
        }
        let mut table = toml_table(SHIPPED[0].1)?;
        layers::merge(&mut table, layers::read(path)?);
        Self::from_table(table).map_err(|error| error.context(format!("wording `{}`", path.display())))
    }

    /// What the embedded models of the drawn world were taught.
    pub fn tiles() -> &'static Self {
        static TILES: LazyLock<PromptTemplates> = LazyLock::new(|| shipped("tiles"));
        &TILES
    }

    /// The paper's Table 1.
    pub fn paper() -> &'static Self {
        static PAPER: LazyLock<PromptTemplates> = LazyLock::new(|| shipped("paper"));
        &PAPER
    }

    /// `GenEval`'s own, with the released questions.
    pub fn evaluation() -> &'static Self {
        static EVALUATION: LazyLock<PromptTemplates> = LazyLock::new(|| shipped("evaluation"));
        &EVALUATION
    }

    fn from_table(table: toml::Table) -> Result<Self> {
        let file: TemplateFile = settings::read("", table)?;
        let sentences = Category::ALL.map(|category| {
            let sentences = match category {
                Category::SingleObject => &file.single_object,
                Category::TwoObject => &file.two_object,
                Category::Counting => &file.counting,
                Category::Colors => &file.colors,
                Category::Position => &file.position,
                Category::ColorAttr => &file.color_attr,
            };
            let template = |text: &String| -> Result<Template> {
                let template = Template::parse(text)?;
                template.check(category)?;
                if category.objects() > 1
                    && let Some(slot) =
                        template.slots().find(|slot| slot.index.is_none() && slot.place != Place::Relation)
                {
                    return Err(Error::usage(format!(
                        "`{{{0}}}` in `{1}`: expected `{{{0}.1}}` or `{{{0}.2}}`",
                        slot.name(),
                        category.name()
                    )));
                }
                Ok(template)
            };
            Ok([
                template(&sentences.prompt)?,
                template(&sentences.question)?,
                template(&sentences.reference_answer)?,
            ])
        });
        Ok(Self {
            plurals: file.plurals,
            relations: file.relations,
            sentences: sentences.into_iter().collect::<Result<_>>()?,
        })
    }

    /// The words that the sentences have themselves, whatever the facts.
    pub fn words(&self) -> Vec<String> {
        let parts = self.sentences.iter().flatten().flat_map(Template::parts);
        let texts = parts.filter_map(|part| match part {
            Segment::Text(text) => Some(text),
            Segment::Slot(_) => None,
        });
        texts.flat_map(|text| text.split_whitespace()).map(String::from).collect()
    }

    /// How a relation is spelled.
    fn relation(&self, relation: Relation) -> String {
        match relation {
            Relation::LeftOf => &self.relations.left_of,
            Relation::RightOf => &self.relations.right_of,
            Relation::Above => &self.relations.above,
            Relation::Below => &self.relations.below,
        }
        .clone()
    }

    /// The task of some facts, which must fit their category.
    pub fn task(&self, spec: PromptSpec) -> Task {
        let relation = |relation| self.relation(relation);
        let spelling = Spelling { plurals: self.plurals, relation: &relation };
        let [prompt, question, reference_answer] = &self.sentences[spec.category as usize];
        Task {
            prompt: prompt.fill(&spec, &spelling),
            question: question.fill(&spec, &spelling),
            reference_answer: reference_answer.fill(&spec, &spelling),
            keywords: self.keywords(&spec),
            spec,
        }
    }

    /// The key words of an answer, in the order of the paper's Table 2.
    fn keywords(&self, spec: &PromptSpec) -> Vec<String> {
        let mut keywords = Vec::new();
        for (index, object) in spec.objects.iter().enumerate() {
            if spec.category == Category::Counting {
                keywords.push(number_word(object.count));
            }
            keywords.extend(object.color.clone());
            if spec.category != Category::Colors {
                keywords.push(object.noun.clone());
            }
            if index == 0 {
                keywords.extend(spec.relation.map(|relation| self.relation(relation)));
            }
        }
        keywords
    }
}

fn toml_table(text: &str) -> Result<toml::Table> {
    text.parse().map_err(|error| Error::failure("a shipped wording is not TOML").cause(error))
}

fn shipped(name: &str) -> PromptTemplates {
    PromptTemplates::find(name).unwrap_or_else(|error| unreachable!("shipped wording: {error}"))
}

#[cfg(test)]
mod tests {
    use super::super::Object;
    use super::*;

    fn spec(category: Category, objects: &[(&str, u32, &str)], relation: Option<Relation>) -> PromptSpec {
        let object = |(noun, count, color): &(&str, u32, &str)| Object {
            count: *count,
            color: (!color.is_empty()).then(|| (*color).into()),
            ..Object::one(*noun)
        };
        PromptSpec { category, objects: objects.iter().map(object).collect(), relation }
    }

    /// Tables 1 and 2 of the paper.
    #[test]
    fn the_papers_tables() {
        let paper = PromptTemplates::find("paper").unwrap();
        let rows = [
            (
                spec(Category::SingleObject, &[("bench", 1, "")], None),
                ["a photo of a bench", "What is the main object of the image?", "Bench"],
                vec!["bench"],
            ),
            (
                spec(Category::TwoObject, &[("table", 1, ""), ("soccer", 1, "")], None),
                [
                    "a photo of a table and a soccer",
                    "What are two main objects of the image?",
                    "A table and a soccer",
                ],
                vec!["table", "soccer"],
            ),
            (
                spec(Category::Counting, &[("vase", 3, "")], None),
                ["a photo of three vases", "How many items in this image?", "Three vases"],
                vec!["three", "vase"],
            ),
            (
                spec(Category::Colors, &[("fork", 1, "green")], None),
                ["a photo of a green fork", "What is the color of the object?", "Green"],
                vec!["green"],
            ),
            (
                spec(Category::Position, &[("train", 1, ""), ("elephant", 1, "")], Some(Relation::Above)),
                [
                    "a photo of a train above of an elephant",
                    "What are two objects and what is position relationship between two main items?",
                    "The train is above of an elephant",
                ],
                vec!["train", "above of", "elephant"],
            ),
            (
                spec(Category::ColorAttr, &[("chair", 1, "blue"), ("umbrella", 1, "red")], None),
                [
                    "a photo of a blue chair and a red umbrella",
                    "What are two objects and the colors of two objects in the image?",
                    "The chair is blue and the umbrella is red",
                ],
                vec!["blue", "chair", "red", "umbrella"],
            ),
        ];
        for (spec, texts, keywords) in rows {
            let task = paper.task(spec);
            assert_eq!([&*task.prompt, &*task.question, &*task.reference_answer], texts);
            assert_eq!(task.keywords, keywords);
        }
    }

    #[test]
    fn articles_follow_the_next_word() {
        let task = PromptTemplates::tiles().task(spec(Category::Colors, &[("circle", 1, "orange")], None));
        assert_eq!(task.prompt, "a photo of an orange circle");
        assert_eq!(task.reference_answer, "the circle is orange");
    }

    fn of(text: &str) -> Result<PromptTemplates> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        PromptTemplates::find(file.path().to_str().unwrap())
    }

    #[test]
    fn a_file_lies_over_the_papers_wording() {
        let own = of("[counting]\nquestion = \"Count the {objects}.\"").unwrap();
        let task = own.task(spec(Category::Counting, &[("goose", 2, "")], None));
        assert_eq!(
            [&*task.prompt, &*task.question, &*task.reference_answer],
            ["a photo of two geese", "Count the geese.", "Two geese"]
        );
    }

    #[test]
    fn wrong_files_say_what_is_wrong() {
        let says = |text: &str, words: &str| {
            let error = of(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        says("[counting]\nqestion = \"?\"", "did you mean `counting.question`?");
        says("[counting]\nquestion = \"{cuont}?\"", "did you mean `{count}`?");
        says(
            "[colors]\nquestion = \"{count}?\"",
            "`{count}` in `colors`: the facts of this category have none",
        );
        says("[two_object]\ntruth = \"{object}\"", "expected `{object.1}` or `{object.2}`");
        says("[two_object]\ntruth = \"{object\"", "a `{` without its `}`");
        assert!(PromptTemplates::find("papr").unwrap_err().hints()[0].contains("`paper`"));
    }
}
