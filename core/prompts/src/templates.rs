//! Prompt templates: turn a spec into a prompt, a question and a reference answer (§3.2, Table 1).

use std::path::Path;
use std::sync::LazyLock;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use unirl::error::{Error, Result, unknown_name};
use unirl::prompt::{Category, PromptSpec, Relation};
use unirl_base::{layers, settings};

use super::Task;
use super::english::{Plurals, number_word};
use super::template::{Place, Segment, Spelling, Template};

const SHIPPED: [(&str, &str); 3] = [
    ("paper", include_str!("templates/paper.toml")),
    ("evaluation", include_str!("templates/evaluation.toml")),
    ("tiles", include_str!("templates/tiles.toml")),
];

/// A file of prompt templates.
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

/// The words of each relation.
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

/// The templates of a category, with placeholders such as `{a object.1}`, `{count}`, `{objects}`, `{color}`, `{relation}`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Sentences {
    /// The prompt.
    prompt: String,
    /// The question about the generated image.
    question: String,
    /// The reference answer.
    #[serde(rename = "truth")]
    reference_answer: String,
    /// The same question in other words, for `reward.questions`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    paraphrases: Vec<String>,
}

/// The parsed templates of a category.
#[derive(Debug, Clone)]
struct CategoryTemplates {
    prompt: Template,
    question: Template,
    reference_answer: Template,
    paraphrases: Vec<Template>,
}

/// The prompt templates of all categories.
#[derive(Debug, Clone)]
pub struct PromptTemplates {
    plurals: Plurals,
    relations: Relations,
    sentences: Vec<CategoryTemplates>,
}

impl PromptTemplates {
    /// Returns shipped templates by name, or those of a TOML file, whose keys override those of `paper`. Shipped are `paper`
    /// (Table 1), `evaluation` (the prompts of `GenEval` with the questions released by the authors of the paper) and `tiles`
    /// (those of the embedded models).
    pub fn find(name_or_path: &str) -> Result<Self> {
        if let Some((_, text)) = SHIPPED.iter().find(|(name, _)| *name == name_or_path) {
            return Self::from_table(toml_table(text)?);
        }
        let path = Path::new(name_or_path);
        if !path.is_file() {
            let names = SHIPPED.map(|(name, _)| name);
            return Err(unknown_name("wording", name_or_path, &names).hint("or give the path of a TOML file"));
        }
        let mut table = toml_table(SHIPPED[0].1)?;
        layers::merge(&mut table, layers::read(path)?);
        Self::from_table(table)
            .map_err(|error| error.context(format!("prompt templates `{}`", path.display())))
    }

    /// Returns the templates of the tiles benchmark, on which the embedded models are trained.
    pub fn tiles() -> &'static Self {
        static TILES: LazyLock<PromptTemplates> = LazyLock::new(|| shipped("tiles"));
        &TILES
    }

    /// Returns the templates of Table 1 of the paper.
    pub fn paper() -> &'static Self {
        static PAPER: LazyLock<PromptTemplates> = LazyLock::new(|| shipped("paper"));
        &PAPER
    }

    /// Returns the templates of `GenEval`, with the questions released by the authors of the paper.
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
                        "placeholder `{{{0}}}` in `{1}`: expected `{{{0}.1}}` or `{{{0}.2}}`",
                        slot.name(),
                        category.name()
                    )));
                }
                Ok(template)
            };
            Ok(CategoryTemplates {
                prompt: template(&sentences.prompt)?,
                question: template(&sentences.question)?,
                reference_answer: template(&sentences.reference_answer)?,
                paraphrases: sentences.paraphrases.iter().map(template).collect::<Result<_>>()?,
            })
        });
        Ok(Self {
            plurals: file.plurals,
            relations: file.relations,
            sentences: sentences.into_iter().collect::<Result<_>>()?,
        })
    }

    /// Returns the words of the templates outside of placeholders.
    pub fn words(&self) -> Vec<String> {
        let templates = self.sentences.iter().flat_map(|sentences| {
            let CategoryTemplates { prompt, question, reference_answer, paraphrases } = sentences;
            [prompt, question, reference_answer].into_iter().chain(paraphrases)
        });
        let segments = templates.flat_map(Template::segments);
        let texts = segments.filter_map(|segment| match segment {
            Segment::Text(text) => Some(text),
            Segment::Slot(_) => None,
        });
        texts.flat_map(|text| text.split_whitespace()).map(String::from).collect()
    }

    /// Returns the words of a relation.
    fn relation(&self, relation: Relation) -> String {
        match relation {
            Relation::LeftOf => &self.relations.left_of,
            Relation::RightOf => &self.relations.right_of,
            Relation::Above => &self.relations.above,
            Relation::Below => &self.relations.below,
        }
        .clone()
    }

    /// Returns the task of a spec, which must be valid for its category.
    pub fn task(&self, spec: PromptSpec) -> Task {
        let sentences = &self.sentences[spec.category as usize];
        Task {
            prompt: self.fill(&sentences.prompt, &spec),
            question: self.fill(&sentences.question, &spec),
            reference_answer: self.fill(&sentences.reference_answer, &spec),
            keywords: self.keywords(&spec),
            spec,
        }
    }

    /// Returns the question about a spec, then its paraphrases.
    pub fn questions(&self, spec: &PromptSpec) -> Vec<String> {
        let sentences = &self.sentences[spec.category as usize];
        let questions = std::iter::once(&sentences.question).chain(&sentences.paraphrases);
        questions.map(|question| self.fill(question, spec)).collect()
    }

    /// Returns the shipped templates that the question and the reference answer of a task come from, if any.
    pub fn of(task: &Task) -> Option<&'static Self> {
        task.spec.check().ok()?;
        [Self::tiles(), Self::paper(), Self::evaluation()].into_iter().find(|templates| {
            let reference_answer = &templates.sentences[task.spec.category as usize].reference_answer;
            templates.questions(&task.spec).contains(&task.question)
                && templates.fill(reference_answer, &task.spec) == task.reference_answer
        })
    }

    fn fill(&self, template: &Template, spec: &PromptSpec) -> String {
        let relation = |relation| self.relation(relation);
        template.fill(spec, &Spelling { plurals: self.plurals, relation: &relation })
    }

    /// Returns the keywords of an answer, in the order of Table 2 of the paper.
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
    text.parse().map_err(|error| Error::failure("a shipped template file is not valid TOML").cause(error))
}

fn shipped(name: &str) -> PromptTemplates {
    PromptTemplates::find(name).unwrap_or_else(|error| unreachable!("shipped templates: {error}"))
}

#[cfg(test)]
mod tests {
    use unirl::prompt::Object;

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
    fn paper_templates_match_the_tables_of_the_paper() {
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
    fn file_overrides_the_paper_templates() {
        let templates = of("[counting]\nquestion = \"Count the {objects}.\"").unwrap();
        let task = templates.task(spec(Category::Counting, &[("goose", 2, "")], None));
        assert_eq!(
            [&*task.prompt, &*task.question, &*task.reference_answer],
            ["a photo of two geese", "Count the geese.", "Two geese"]
        );
    }

    #[test]
    fn invalid_files_are_refused() {
        let refused = |text: &str, message: &str| {
            let error = of(text).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        };
        refused("[counting]\nqestion = \"?\"", "did you mean `counting.question`?");
        refused("[counting]\nquestion = \"{cuont}?\"", "did you mean `{count}`?");
        refused("[colors]\nquestion = \"{count}?\"", "placeholder `{count}`: not available in `colors`");
        refused("[two_object]\ntruth = \"{object}\"", "expected `{object.1}` or `{object.2}`");
        refused("[two_object]\ntruth = \"{object\"", "unclosed `{`");
        assert!(PromptTemplates::find("papr").unwrap_err().hints()[0].contains("`paper`"));
    }
}
