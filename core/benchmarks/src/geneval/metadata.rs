//! The content of a prompt: a line of `evaluation_metadata.jsonl`.

use std::path::Path;

use serde::Deserialize;
use unirl::detector::Detection;
use unirl::error::{Context as _, Error, Result, nearest};
use unirl::prompt::{Category, Object, PromptSpec, Relation};
use unirl_base::{input, json};
use unirl_prompts::{ObjectList, Task, synonyms};

/// The number of classes of `GenEval`, which are the first of [`ObjectList::everyday`].
const CLASSES: usize = 80;

/// Shades of the ten colours of `GenEval`, for hints only: a shade never matches a colour.
const SHADES: [(&str, &[&str]); 8] = [
    ("red", &["burgundy", "cherry", "crimson", "maroon", "ruby", "scarlet"]),
    ("orange", &["amber", "apricot", "coral", "peach", "tangerine"]),
    ("yellow", &["gold", "golden", "lemon", "mustard"]),
    ("green", &["emerald", "jade", "khaki", "lime", "mint", "olive"]),
    ("blue", &["aqua", "azure", "cobalt", "cyan", "indigo", "navy", "sapphire", "teal", "turquoise"]),
    ("purple", &["lavender", "lilac", "mauve", "plum", "violet"]),
    ("pink", &["fuchsia", "magenta", "rose", "salmon"]),
    ("brown", &["beige", "bronze", "chestnut", "chocolate", "copper", "tan"]),
];

/// A prompt with the clauses that its image must satisfy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// The category.
    pub tag: Category,
    /// Objects that must be in the image.
    pub include: Vec<Include>,
    /// Objects that must not be in the image.
    pub exclude: Vec<Exclude>,
    /// The prompt.
    pub prompt: String,
    line: String,
}

/// A clause: at least `count` objects of a class, optionally with a colour and a position.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Include {
    /// The class.
    pub class: String,
    /// The required number; more objects satisfy the clause.
    pub count: usize,
    /// The required colour of each object, in lower case.
    pub color: Option<String>,
    /// The required position of each object.
    pub position: Option<Position>,
}

/// A relation to every object of an earlier clause; `["right of", 0]` in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "(String, usize)")]
pub struct Position {
    /// The relation of the objects to those of the other clause.
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
            None => Err(format!("unknown relation `{words}`, expected one of: {}", known.join(", "))),
        }
    }
}

/// A clause: fewer objects of a class than `count`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Exclude {
    /// The class.
    pub class: String,
    /// The smallest number that violates the clause.
    pub count: usize,
}

/// The line as JSON. Other keys, such as `question` and `answer`, are ignored.
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
    /// Parses one line.
    pub fn parse(line: &str) -> Result<Self> {
        let line = line.trim();
        let Line { tag, mut include, exclude, prompt } = json::parse_line(line)?;
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
        for (index, clause) in include.iter_mut().enumerate() {
            let Some(color) = &mut clause.color else { continue };
            *color = normalized(color);
            if color.is_empty() {
                return Err(Error::usage(format!("`include[{index}].color` is empty"))
                    .hint("leave `color` out if the prompt names none"));
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

    /// Returns the clauses of a task, as `GenEval` writes them for a prompt of its category.
    pub fn of(task: &Task) -> Self {
        let PromptSpec { category: tag, objects, relation } = &task.spec;
        let clause = |object: &Object| Include {
            class: object.noun.clone(),
            count: object.count as usize,
            color: object.color.clone(),
            position: None,
        };
        let mut include: Vec<Include> = objects.iter().map(clause).collect();
        if let Some(relation) = relation {
            include.reverse(); // the position of an object is relative to an earlier clause
            if let Some(last) = include.last_mut() {
                last.position = Some(Position { relation: *relation, target: 0 });
            }
        }
        let too_many = |clause: &Include| Exclude { class: clause.class.clone(), count: clause.count + 1 };
        let exclude =
            if *tag == Category::Counting { include.iter().map(too_many).collect() } else { Vec::new() };
        Self { tag: *tag, include, exclude, prompt: task.prompt.clone(), line: String::new() }
    }

    /// Returns the original line without its line end; empty for the clauses of a task.
    pub fn line(&self) -> &str {
        &self.line
    }
}

/// Reads the prompts of a file, one per line. Empty lines are skipped.
pub fn read_metadata(path: &Path) -> Result<Vec<Metadata>> {
    let text = input::read_text(path).map_err(|error| {
        error.hint("the file is `prompts/evaluation_metadata.jsonl` in the GenEval repository")
    })?;
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

/// Returns a name in lower case with normalized whitespace.
fn normalized(name: &str) -> String {
    name.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>().join(" ")
}

/// The classes and colours of a set of prompts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vocabulary {
    /// The classes of all clauses, in the order of the prompts.
    pub classes: Vec<String>,
    /// The colours to classify: the ten of `GenEval` and those of the prompts; empty if no prompt names a colour.
    pub colors: Vec<String>,
    everyday: Vec<String>,
}

impl Vocabulary {
    /// Collects the classes and colours of prompts.
    pub fn of<'a>(prompts: impl IntoIterator<Item = &'a Metadata>) -> Self {
        let ObjectList { mut nouns, colors: ten } = ObjectList::everyday();
        nouns.truncate(CLASSES);
        let (mut classes, mut prompt_colors) = (Vec::new(), Vec::new());
        let add = |list: &mut Vec<String>, word: &String| {
            if !list.contains(word) {
                list.push(word.clone());
            }
        };
        for prompt in prompts {
            for clause in &prompt.include {
                add(&mut classes, &clause.class);
                if let Some(color) = &clause.color {
                    add(&mut prompt_colors, color);
                }
            }
            for clause in &prompt.exclude {
                add(&mut classes, &clause.class);
            }
        }
        let mut colors = if prompt_colors.is_empty() { Vec::new() } else { ten };
        for color in &prompt_colors {
            add(&mut colors, color);
        }
        Self { classes, colors, everyday: nouns }
    }

    /// Normalizes the class and the colour of a detection to the spelling of the prompts.
    ///
    /// Errors for a class that is neither in the prompts nor among the 80 classes of `GenEval`, and, if any prompt names a
    /// colour, for an unknown colour: neither could ever match.
    pub fn resolve(&self, detection: &mut Detection) -> Result<()> {
        detection.class = self.class(&detection.class)?;
        if let Some(color) = &mut detection.color
            && !self.colors.is_empty()
        {
            *color = self.color(color)?;
        }
        Ok(())
    }

    fn class(&self, class: &str) -> Result<String> {
        let known = || self.classes.iter().chain(&self.everyday).map(String::as_str);
        let name = normalized(class);
        let same =
            known().find(|other| *other == class).or_else(|| known().find(|other| normalized(other) == name));
        if let Some(same) = same {
            return Ok(same.into());
        }
        let error = Error::usage(format!("unknown class `{class}`"));
        let synonym = known().find(|other| synonyms(other).contains(&&*name));
        Err(match synonym.or_else(|| nearest(&name, known())) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error,
        }
        .hint("valid are the classes of the prompts and the 80 classes of GenEval, in its spelling"))
    }

    fn color(&self, color: &str) -> Result<String> {
        let name = normalized(color);
        if name.is_empty() {
            return Err(Error::usage("`color` is empty").hint("leave `color` out if no classifier was run"));
        }
        if self.colors.contains(&name) {
            return Ok(name);
        }
        let known = || self.colors.iter().map(String::as_str);
        let words = || name.split(|letter: char| !letter.is_alphanumeric());
        let named = words().find_map(|word| known().find(|color| *color == word));
        let shade = || {
            let of = |word: &str| {
                SHADES.iter().find(|(_, shades)| shades.contains(&word)).map(|(color, _)| *color)
            };
            words().find_map(of).filter(|color| known().any(|other| other == *color))
        };
        let error = Error::usage(format!("unknown color `{color}`"));
        Err(match named.or_else(shade).or_else(|| nearest(&name, known())) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error,
        }
        .hint(format!("`color` is one of: {}", self.colors.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_reads_the_line_and_keeps_it() {
        let line = r#"{"tag": "position", "include": [{"class": "teddy bear", "count": 1}, {"class": "dog", "count": 2, "color": "red", "position": ["right of", 0]}], "exclude": [{"class": "dog", "count": 3}], "prompt": "a photo", "question": "what?"}"#;
        let read = Metadata::parse(&format!("{line}\n")).unwrap();
        assert_eq!(read.line(), line);
        assert_eq!((read.tag, &*read.prompt), (Category::Position, "a photo"));
        let position = Some(Position { relation: Relation::RightOf, target: 0 });
        let dog = Include { class: "dog".into(), count: 2, color: Some("red".into()), position };
        assert_eq!(read.include[1], dog);
        assert_eq!(read.exclude, [Exclude { class: "dog".into(), count: 3 }]);
    }

    /// A line of every category, as the generator of `GenEval` writes it.
    #[test]
    fn clauses_of_a_task_are_those_of_its_line() {
        for line in [
            r#"{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}"#,
            r#"{"tag": "two_object", "include": [{"class": "bench", "count": 1}, {"class": "cow", "count": 1}], "prompt": "a photo of a bench and a cow"}"#,
            r#"{"tag": "counting", "include": [{"class": "fork", "count": 3}], "exclude": [{"class": "fork", "count": 4}], "prompt": "a photo of three forks"}"#,
            r#"{"tag": "colors", "include": [{"class": "cow", "count": 1, "color": "red"}], "prompt": "a photo of a red cow"}"#,
            r#"{"tag": "position", "include": [{"class": "bench", "count": 1}, {"class": "dog", "count": 1, "position": ["right of", 0]}], "prompt": "a photo of a dog right of a bench"}"#,
            r#"{"tag": "color_attr", "include": [{"class": "cow", "count": 1, "color": "red"}, {"class": "cup", "count": 1, "color": "blue"}], "prompt": "a photo of a red cow and a blue cup"}"#,
        ] {
            let read = Metadata::parse(line).unwrap();
            let records = unirl_prompts::read_records("test", line, unirl_prompts::Record::task).unwrap();
            assert_eq!(Metadata { line: line.into(), ..Metadata::of(&records[0]) }, read);
        }
    }

    #[test]
    fn parse_invalid_line_error_names_the_field() {
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
                r#"{"tag": "colors", "prompt": "", "include": [{"class": "dog", "count": 1, "color": " "}]}"#,
                "`include[0].color` is empty",
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
    fn class_accepts_prompts_and_geneval_classes() {
        let prompt = r#"{"tag": "colors", "include": [{"class": "square", "count": 1, "color": "teal"}], "prompt": ""}"#;
        let words = Vocabulary::of(&[Metadata::parse(prompt).unwrap()]);
        assert_eq!(words.classes, ["square"]);
        assert_eq!((words.colors.len(), words.colors[10].as_str()), (11, "teal"));
        // `ring` is the ninety-ninth of the everyday objects.
        assert!(words.class("ring").is_err());
        for known in ["square", "toothbrush", "Square", " hot  dog\n", "TEDDY BEAR"] {
            assert_eq!(words.class(known).unwrap(), normalized(known));
        }
        for (wrong, meant) in [
            ("mouse", "computer mouse"),
            ("Mouse", "computer mouse"),
            ("remote", "tv remote"),
            ("sqare", "square"),
        ] {
            let error = words.class(wrong).unwrap_err();
            assert_eq!(error.hints()[0], format!("did you mean `{meant}`?"));
        }
    }

    fn teal_square() -> Metadata {
        let line = r#"{"tag": "colors", "include": [{"class": "Square", "count": 1, "color": "Teal"}], "prompt": ""}"#;
        Metadata::parse(line).unwrap()
    }

    fn detection(color: &str) -> Detection {
        Detection { class: "square".into(), score: 0.9, bounds: [0.0; 4], color: Some(color.into()) }
    }

    #[test]
    fn resolve_ignores_case_and_whitespace() {
        let words = Vocabulary::of(&[teal_square()]);
        for color in ["teal", "Teal", " TEAL", "teal\t"] {
            let mut detection = detection(color);
            words.resolve(&mut detection).unwrap();
            assert_eq!((&*detection.class, detection.color.as_deref()), ("Square", Some("teal")));
        }
    }

    #[test]
    fn resolve_unknown_color_suggests_the_nearest() {
        let words = Vocabulary::of(&[teal_square()]);
        for (wrong, meant) in [
            ("red fork", "red"),
            ("a photo of a red fork", "red"),
            ("a photo of a Blue-colored vase", "blue"),
            ("dark green", "green"),
            ("gren", "green"),
            ("crimson", "red"),
            ("navy", "blue"),
            ("light olive", "green"),
            ("blue/green", "blue"),
        ] {
            let error = words.resolve(&mut detection(wrong)).unwrap_err();
            assert_eq!(error.message(), format!("unknown color `{wrong}`"));
            assert_eq!(error.hints()[0], format!("did you mean `{meant}`?"));
        }
        let error = words.resolve(&mut detection("[0.1, 0.9]")).unwrap_err();
        assert_eq!(
            error.hints(),
            ["`color` is one of: red, orange, yellow, green, blue, purple, pink, brown, black, white, teal"]
        );
        for empty in ["", "  "] {
            assert_eq!(words.resolve(&mut detection(empty)).unwrap_err().message(), "`color` is empty");
        }
    }

    #[test]
    fn resolve_ignores_colors_if_no_prompt_names_one() {
        let line = r#"{"tag": "single_object", "include": [{"class": "square", "count": 1}], "prompt": ""}"#;
        let words = Vocabulary::of(&[Metadata::parse(line).unwrap()]);
        assert!(words.resolve(&mut detection("crimson")).is_ok());
    }
}
