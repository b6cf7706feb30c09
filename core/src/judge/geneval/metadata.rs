//! What a prompt asks for: a line of `evaluation_metadata.jsonl`.

use std::path::Path;

use serde::Deserialize;

use crate::detector::Detection;
use crate::error::{Context as _, Error, Result, nearest};
use crate::prompts::{Category, ObjectList, Relation, synonyms};
use crate::{input, json};

/// Classes of `GenEval`: the first of [`ObjectList::everyday`].
const CLASSES: usize = 80;

/// What classifiers call shades of `GenEval`'s ten colours: a hint alone, as none of them is the colour that was asked for.
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
    /// The colour that each must have, in lower case.
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
            *color = folded(color);
            if color.is_empty() {
                return Err(Error::usage(format!("`include[{index}].color` is empty"))
                    .hint("leave `color` out where none is asked for"));
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

/// A name without what spelling alone decides: case, and blanks around it and between its words.
fn folded(name: &str) -> String {
    name.split_whitespace().map(str::to_lowercase).collect::<Vec<_>>().join(" ")
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

    /// Gives class and colour of a detection the spelling of the prompts; case and blanks do not matter.
    ///
    /// Refuses a class that no prompt names and that is none of `GenEval`'s eighty, and, where a prompt asks for a colour, a
    /// colour that is none of those to choose from: they would never match, and the image would count as wrong.
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
        let wanted = folded(class);
        let same =
            known().find(|other| *other == class).or_else(|| known().find(|other| folded(other) == wanted));
        if let Some(same) = same {
            return Ok(same.into());
        }
        let error = Error::usage(format!("unknown class `{class}`"));
        let called = known().find(|other| synonyms(other).contains(&&*wanted));
        Err(match called.or_else(|| nearest(&wanted, known())) {
            Some(near) => error.hint(format!("did you mean `{near}`?")),
            None => error,
        }
        .hint("known are the classes of the prompts and GenEval's eighty, in its spelling"))
    }

    fn color(&self, color: &str) -> Result<String> {
        let wanted = folded(color);
        if wanted.is_empty() {
            return Err(
                Error::usage("`color` is empty").hint("leave `color` out where no classifier was asked")
            );
        }
        if self.colors.contains(&wanted) {
            return Ok(wanted);
        }
        let known = || self.colors.iter().map(String::as_str);
        let words = || wanted.split(|letter: char| !letter.is_alphanumeric());
        let named = words().find_map(|word| known().find(|color| *color == word));
        let shade = || {
            let of = |word: &str| {
                SHADES.iter().find(|(_, shades)| shades.contains(&word)).map(|(color, _)| *color)
            };
            words().find_map(of).filter(|color| known().any(|other| other == *color))
        };
        let error = Error::usage(format!("unknown color `{color}`"));
        Err(match named.or_else(shade).or_else(|| nearest(&wanted, known())) {
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
    fn classes_are_those_of_the_prompts_and_the_eighty() {
        let prompt = r#"{"tag": "colors", "include": [{"class": "square", "count": 1, "color": "teal"}], "prompt": ""}"#;
        let words = Vocabulary::of(&[Metadata::parse(prompt).unwrap()]);
        assert_eq!(words.classes, ["square"]);
        assert_eq!((words.colors.len(), words.colors[10].as_str()), (11, "teal"));
        // `ring` is the ninety-ninth of the everyday objects.
        assert!(words.class("ring").is_err());
        for known in ["square", "toothbrush", "Square", " hot  dog\n", "TEDDY BEAR"] {
            assert_eq!(words.class(known).unwrap(), folded(known));
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

    fn seen(color: &str) -> Detection {
        Detection { class: "square".into(), score: 0.9, bounds: [0.0; 4], color: Some(color.into()) }
    }

    #[test]
    fn colors_are_resolved_over_case_and_blanks() {
        let words = Vocabulary::of(&[teal_square()]);
        for color in ["teal", "Teal", " TEAL", "teal\t"] {
            let mut detection = seen(color);
            words.resolve(&mut detection).unwrap();
            assert_eq!((&*detection.class, detection.color.as_deref()), ("Square", Some("teal")));
        }
    }

    #[test]
    fn unknown_colors_are_refused_with_the_nearest() {
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
            let error = words.resolve(&mut seen(wrong)).unwrap_err();
            assert_eq!(error.message(), format!("unknown color `{wrong}`"));
            assert_eq!(error.hints()[0], format!("did you mean `{meant}`?"));
        }
        let error = words.resolve(&mut seen("[0.1, 0.9]")).unwrap_err();
        assert_eq!(
            error.hints(),
            ["`color` is one of: red, orange, yellow, green, blue, purple, pink, brown, black, white, teal"]
        );
        for empty in ["", "  "] {
            assert_eq!(words.resolve(&mut seen(empty)).unwrap_err().message(), "`color` is empty");
        }
    }

    #[test]
    fn colors_are_not_checked_where_no_prompt_asks_for_one() {
        let line = r#"{"tag": "single_object", "include": [{"class": "square", "count": 1}], "prompt": ""}"#;
        let words = Vocabulary::of(&[Metadata::parse(line).unwrap()]);
        assert!(words.resolve(&mut seen("crimson")).is_ok());
    }
}
