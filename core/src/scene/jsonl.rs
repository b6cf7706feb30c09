//! Tasks in files: one JSON object a line.

use std::fmt::Write as _;
use std::path::Path;

use super::{Category, Facts, Task};
use crate::error::{Context as _, Error, Result};

impl Facts {
    /// Refuses facts that their category does not allow: the wrong number of objects, a missing colour or relation.
    pub fn check(&self) -> Result<()> {
        let objects = match self.category {
            Category::SingleObject | Category::Counting | Category::Colors => 1,
            Category::TwoObject | Category::Position | Category::ColorAttr => 2,
        };
        let name = self.category.name();
        if self.objects.len() != objects {
            return Err(Error::usage(format!(
                "`{name}`: expected {objects} kinds of objects, got {}",
                self.objects.len()
            )));
        }
        if self.relation.is_some() != (self.category == Category::Position) {
            return Err(Error::usage(format!(
                "`{name}`: only `position` has a `relation`, and always has one"
            )));
        }
        let colored = matches!(self.category, Category::Colors | Category::ColorAttr);
        for object in &self.objects {
            if object.noun.is_empty() {
                return Err(Error::usage(format!("`{name}`: an object has an empty `noun`")));
            }
            if object.color.is_some() != colored {
                let wants = if colored { "a" } else { "no" };
                return Err(Error::usage(format!(
                    "`{name}`: expected {wants} `color` for `{}`",
                    object.noun
                )));
            }
            let count_fits =
                if self.category == Category::Counting { object.count > 0 } else { object.count == 1 };
            if !count_fits {
                return Err(Error::usage(format!("`{name}`: `count` of {} does not fit", object.count)));
            }
        }
        Ok(())
    }
}

/// Reads tasks, skipping empty lines; an error names file and line.
pub fn read_jsonl(path: &Path) -> Result<Vec<Task>> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Error::usage(format!("cannot read the tasks `{}`", path.display())).cause(error))?;
    let mut tasks = Vec::new();
    for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let at = || format!("`{}`, line {}: not a task", path.display(), index + 1);
        let task: Task = serde_json::from_str(line).context(at)?;
        task.facts.check().context(at)?;
        tasks.push(task);
    }
    Ok(tasks)
}

/// Writes tasks, replacing the file.
pub fn write_jsonl(path: &Path, tasks: &[Task]) -> Result<()> {
    let mut text = String::new();
    for task in tasks {
        let line = serde_json::to_string(task).context(|| "cannot write a task as JSON")?;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{line}");
    }
    std::fs::write(path, text).context(|| format!("cannot write `{}`", path.display()))
}

#[cfg(test)]
mod tests {
    use super::super::{Split, rng::Rng, sample_batch};
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tasks.jsonl");
        let list = crate::tiles::object_list();
        let tasks = sample_batch(&list, &[], Split::All, 60, &mut Rng::new(5)).unwrap();
        write_jsonl(&path, &tasks).unwrap();
        assert_eq!(read_jsonl(&path).unwrap(), tasks);
    }

    #[test]
    fn a_bad_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tasks.jsonl");
        let line = r#"{"facts":{"category":"position","objects":[]},"prompt":"","question":"","truth":""}"#;
        std::fs::write(&path, format!("\n{line}\n")).unwrap();
        let error = read_jsonl(&path).unwrap_err();
        assert!(error.message().ends_with("line 2: not a task"), "{error}");
        assert_eq!(error.causes(), ["`position`: expected 2 kinds of objects, got 0"]);
    }
}
