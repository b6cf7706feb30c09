//! Prompts: their specifications, and the prompts, questions and reference answers made from them (§3.2, Table 1).

pub mod answer;
mod english;
mod exclude;
mod generate;
mod jsonl;
mod lexicon;
mod objects;
mod parse;
mod questions;
pub mod rng;
mod template;
mod templates;

use unirl::prompt::PromptSpec;
use unirl::reward::Sample;

pub use english::{Plurals, article, number_word, plural};
pub use exclude::Exclusion;
pub use generate::{Mix, Split, generate, sample};
pub use jsonl::{Record, read_jsonl, read_records, write_jsonl};
pub use lexicon::synonyms;
pub use objects::ObjectList;
pub use parse::parse_prompt;
pub use template::{Place, Segment, Slot, Template};
pub use templates::{PromptTemplates, TemplateFile};

/// A spec with its prompt, question and reference answer, made by [`PromptTemplates`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// The spec of the prompt.
    pub spec: PromptSpec,
    /// The text that the model generates an image from.
    pub prompt: String,
    /// The question about the generated image.
    pub question: String,
    /// The correct answer to `question` about a correct image.
    pub reference_answer: String,
    /// The keywords of the answer (Table 2 of the paper).
    pub keywords: Vec<String>,
}

impl Task {
    /// Returns the input of a reward: an answer to the question of the task.
    pub fn sample(&self, answer: impl Into<String>) -> Sample {
        Sample {
            spec: self.spec.clone(),
            prompt: self.prompt.clone(),
            question: self.question.clone(),
            reference_answer: self.reference_answer.clone(),
            answer: answer.into(),
        }
    }
}
