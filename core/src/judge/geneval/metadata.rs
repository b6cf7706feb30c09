//! What a prompt asks for: a line of `evaluation_metadata.jsonl`.

use std::path::Path;

use serde::Deserialize;

use crate::error::{Context as _, Error, Result, nearest};
use crate::scene::{Category, ObjectList, Relation, synonyms};
use crate::{input, json};

/// Classes of `GenEval`: the first of [`ObjectList::everyday`].
const CLASSES: usize = 80;

/// A prompt with the clauses that an image of it has to satisfy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// The kind of prompt.
    pub tag: Category,
    /// What must be there.
    pub include: Vec<Include>,
    /// What must not be there.
    pub exclude: Vec<Exclude>,
    /// The prompt.
    pub prompt: String,
    line: String,
}

/// So many objects of a class, perhaps of a colour, perhaps in a place.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Include {
    /// The class.
    pub class: String,
    /// How many; more are no fault of this clause.
    pub count: usize,
    /// The colour that each must have.
    pub color: Option<String>,
    /// Where each must lie.
    pub position: Option<Position>,
}

/// A relation to every object of an earlier clause; `["right of", 0]` in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "(String, usize)")]
pub struct Position {
    /// Where the objects lie, seen from those of the other clause.
    pub relation: Relation,
    /// The index of the other clause.
    pub target: usize,
}

impl TryFrom<(String, usize)> for Position {
    type Error = String;

    fn try_from((words, target): (String, usize)) -> std::result::Result<Self, String> {
        let known = Relation::ALL.map(Relation::words);
        match Relation::ALL.into_iter().find(|relation| relation.words() == words) {
            Some(relation) => Ok(Self { relation, target }),
            None => Err(format!("unknown relation `{words}`, known: {}", known.join(", "))),
        }
    }
}

/// Fewer objects of a class than `count`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Exclude {
    /// The class.
    pub class: String,
    /// So many are too many.
    pub count: usize,
}

/// The line as it is read; other keys, as `question` and `answer`, are left alone.
#[derive(Deserialize)]
struct Line {
    tag: Category,
    #[serde(default)]
    include: Vec<Include>,
    #[serde(default)]
    exclude: Vec<Exclude>,
    prompt: String,
}

impl Metadata {
    /// Reads one line.
    pub fn parse(line: &str) -> Result<Self> {
        let line = line.trim();
        let Line { tag, include, exclude, prompt } = json::parse_line(line)?;
        let clauses = include.iter().map(|clause| (&clause.class, clause.count, "include"));
        let clauses = clauses
            .enumerate()
            .chain(exclude.iter().map(|clause| (&clause.class, clause.count, "exclude")).enumerate());
        for (index, (class, count, kind)) in clauses {
            if class.is_empty() {
                return Err(Error::usage(format!("`{kind}[{index}].class` is empty")));
            }
            if count == 0 {
                return Err(Error::usage(format!("`{kind}[{index}].count`: expected at least 1, got 0")));
            }
        }
        for (index, position) in include.iter().map(|clause| clause.position).enumerate() {
            if let Some(Position { target, .. }) = position
                && target >= index
            {
                return Err(Error::usage(format!(
                    "`include[{index}].position`: expected the index of an earlier clause, got {target}"
                )));
            }
        }
        Ok(Self { tag, include, exclude, prompt, line: line.into() })
    }

    /// The line to the letter, without its end.
    pub fn line(&self) -> &str {
        &self.line
    }
}

/// Reads the prompts of a file, a line each; empty lines are skipped.
pub fn read_metadata(path: &Path) -> Result<Vec<Metadata>> {
    let text = input::read_text(path)
        .map_err(|error| error.hint("GenEval's repository has it as `prompts/evaluation_metadata.jsonl`"))?;
    let prompts: Vec<Metadata> = json::lines(&text)
        .map(|(number, line)| {
            Metadata::parse(line).context(|| format!("`{}`, line {number}", path.display()))
        })
        .collect::<Result<_>>()?;
    if prompts.is_empty() {
        return Err(Error::usage(format!("`{}` has no prompts", path.display())));
    }
    Ok(prompts)
}

/// The classes and colours that some prompts speak of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// The classes of all clauses, in the order of the prompts.
    pub classes: Vec<String>,
    /// The colours to choose from: `GenEval`'s ten and whatever else is asked for; none if no prompt asks for one.
    pub colors: Vec<String>,
    everyday: Vec<String>,
}

impl Vocabulary {
    /// Collects them.
    pub fn of<'a>(prompts: impl IntoIterator<Item = &'a Metadata>) -> Self {
        let ObjectList { mut nouns, colors: ten } = ObjectList::everyday();
        nouns.truncate(CLASSES);
        let (mut classes, mut asked) = (Vec::new(), Vec::new());
        let add = |list: &mut Vec<String>, word: &String| {
            if !list.contains(word) {
                list.push(word.clone());
            }
        };
        for prompt in prompts {
            for clause in &prompt.include {
                add(&mut classes, &clause.class);
                if let Some(color) = &clause.color {
                    add(&mut asked, color);
                }
            }
            for clause in &prompt.exclude {
                add(&mut classes, &clause.class);
            }
        }
        let mut colors = if asked.is_empty() { Vec::new() } else { ten };
        for color in &asked {
            add(&mut colors, color);
        }
        Self { classes, colors, everyday: nouns }
    }

    /// Refuses a class that no prompt names and that is none of `GenEval`'s eighty: most likely another spelling, of which
    /// nothing would ever be found.
    pub fn check_class(&self, class: &str) -> Result<()> {
        let known = || self.classes.iter().chain(&self.everyday).map(String::as_str);
        if known().any(|other| other == class) {
            return Ok(());
        }
        let error = Error::usage(format!("unknown class `{class}`"));
        let called = known().find(|other| synonyms(other).contains(&class));
        Err(match called.or_else(|| nearest(class, known())) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error,
        }
        .hint("known are the classes of the prompts and GenEval's eighty, in its spelling"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_and_kept_to_the_letter() {
        let line = r#"{"tag": "position", "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 2, "color": "red", "position": ["right of", 0]}], "exclude": [{"class": "dog", "count": 3}], "prompt": "a photo", "question": "what?"}"#;
        let read = Metadata::parse(&format!("{line}\n")).unwrap();
        assert_eq!(read.line(), line);
        assert_eq!((read.tag, &*read.prompt), (Category::Position, "a photo"));
        let position = Some(Position { relation: Relation::RightOf, target: 0 });
        let dog = Include { class: "dog".into(), count: 2, color: Some("red".into()), position };
        assert_eq!(read.include[1], dog);
        assert_eq!(read.exclude, [Exclude { class: "dog".into(), count: 3 }]);
    }

    #[test]
    fn bad_lines_are_refused_by_field() {
        for (line, words) in [
            ("{\"tag\": \"single_object\"", "does not end on its line"),
            (r#"{"tag": "singel", "prompt": ""}"#, "column 16: `tag`: expected one of"),
            (r#"{"tag": "colors"}"#, "`prompt`: missing"),
            (r#"{"tag": "colors", "prompt": ""} {}"#, "not JSON: trailing characters"),
            (
                r#"{"tag": "colors", "prompt": "", "include": [{"class": "dog"}]}"#,
                "`include[0].count`: missing",
            ),
            (
                r#"{"tag": "colors", "prompt": "", "exclude": [{"class": "dog", "count": 0}]}"#,
                "`exclude[0].count`: expected at least 1",
            ),
            (
                r#"{"tag": "colors", "prompt": "", "include": [{"class": "", "count": 1}]}"#,
                "`include[0].class` is empty",
            ),
            (
                r#"{"tag": "position", "prompt": "", "include": [{"class": "dog", "count": 1, "position": ["near", 0]}]}"#,
                "`include[0].position`: unknown relation `near`",
            ),
            (
                r#"{"tag": "position", "prompt": "", "include": [{"class": "dog", "count": 1, "position": ["above", 0]}]}"#,
                "expected the index of an earlier clause, got 0",
            ),
        ] {
            let error = Metadata::parse(line).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn classes_are_those_of_the_prompts_and_the_eighty() {
        let prompt = r#"{"tag": "colors", "include": [{"class": "square", "count": 1, "color": "teal"}], "prompt": ""}"#;
        let words = Vocabulary::of(&[Metadata::parse(prompt).unwrap()]);
        assert_eq!(words.classes, ["square"]);
        assert_eq!((words.colors.len(), words.colors[10].as_str()), (11, "teal"));
        assert!(words.check_class("square").is_ok() && words.check_class("toothbrush").is_ok());
        // The ninety-ninth of the everyday objects.
        assert!(words.check_class("ring").is_err());
        for (wrong, meant) in [("mouse", "computer mouse"), ("remote", "tv remote"), ("sqare", "square")] {
            let error = words.check_class(wrong).unwrap_err();
            assert_eq!(error.hints()[0], format!("did you mean `{meant}`?"));
        }
    }
}
