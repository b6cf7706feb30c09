//! What the documentation shows is what the program takes: its commands, configurations, rule files and prompts.
//!
//! A fenced block says what it is by its info string: `toml` a configuration, `toml rules` a rule file, `jsonl` prompts,
//! `jsonl detections` detections, `json`, `python`, `mermaid`, `text` commands and anything else. `rust` blocks are doc tests of
//! the crate `unirl`.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests may panic and report what they skip")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use clap::error::ErrorKind;
use serde_json::Value;
use tch::Device;
use unirl::model::{Checkpoint, ModelSource};
use unirl_engine::plugin::Plugins;

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Pages that are compared with what they are generated from, or that show what not to write.
const OTHERS: [&str; 6] = ["cli.md", "config.md", "metrics.md", "glossary.md", "style.md", "SUMMARY.md"];

/// README.md and the pages of `docs/` by their path.
fn pages() -> Vec<(String, String)> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for item in fs::read_dir(folder).unwrap() {
            let path = item.unwrap().path();
            match path.is_dir() {
                true => collect(&path, found),
                false => found.push(path),
            }
        }
    }
    let mut paths = vec![Path::new(ROOT).join("README.md"), Path::new(ROOT).join("CONTRIBUTING.md")];
    collect(&Path::new(ROOT).join("docs"), &mut paths);
    paths.retain(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        path.extension().is_some_and(|extension| extension == "md") && !OTHERS.contains(&name)
    });
    paths.sort();
    let page = |path: PathBuf| {
        (path.strip_prefix(ROOT).unwrap().display().to_string(), fs::read_to_string(&path).unwrap())
    };
    paths.into_iter().map(page).collect()
}

struct Block {
    /// Page and line, for messages.
    place: String,
    info: String,
    text: String,
}

/// The fenced blocks of a page, and what stands between them.
fn blocks(page: &str, markdown: &str) -> (Vec<Block>, String) {
    let (mut blocks, mut prose, mut open): (Vec<Block>, String, Option<Block>) = Default::default();
    for (number, line) in markdown.lines().enumerate() {
        match (line.trim_start().strip_prefix("```"), &mut open) {
            (Some(info), None) => {
                let place = format!("{page}:{}", number + 1);
                open = Some(Block { place, info: info.into(), text: String::new() });
            }
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.text += &format!("{line}\n"),
            (None, None) => prose += &format!("{line}\n"),
        }
    }
    assert!(open.is_none(), "{page}: a block has no end");
    (blocks, prose)
}

/// The words of a command line as a shell splits them, up to the first redirection.
fn words(line: &str) -> Vec<String> {
    let words = shlex::split(line).unwrap_or_default();
    words.into_iter().take_while(|word| !["<", ">", "|", "&&"].contains(&word.as_str())).collect()
}

/// Of a line that calls `unirl`, the arguments.
fn arguments(line: &str) -> Option<Vec<String>> {
    let words = words(line);
    let (program, rest) = words.split_first()?;
    ["unirl", "target/release/unirl"].contains(&program.as_str()).then(|| rest.to_vec())
}

/// The directory of a reader who follows the guides: a checkout, checkpoints, plugins that were built, prompts.
struct Reader {
    folder: tempfile::TempDir,
    /// The keys of every configuration, of `reference/config.md`.
    keys: BTreeSet<String>,
    /// The commands of `./x`.
    scripts: String,
}

impl Reader {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(ROOT).unwrap();
        symlink(root.join("examples"), folder.path().join("examples")).unwrap();
        symlink(root.join("examples/tasks.jsonl"), folder.path().join("tasks.jsonl")).unwrap();
        fs::create_dir_all(folder.path().join("target/release")).unwrap();
        for plugin in ["my_model", "my_reward"] {
            let file = format!("libunirl_plugin_{plugin}.so");
            symlink(common::plugin_dir().join(&file), folder.path().join("target/release").join(&file))
                .unwrap();
        }
        let page = fs::read_to_string(root.join("docs/reference/config.md")).unwrap();
        let key = |line: &str| Some(line.strip_prefix("| `")?.split_once('`')?.0.to_owned());
        let keys: BTreeSet<String> = page.lines().filter_map(key).collect();
        assert!(keys.len() > 80, "{}", keys.len());
        let script = Command::new("./x").arg("help").current_dir(&root).output().unwrap();
        Self { folder, keys, scripts: String::from_utf8(script.stdout).unwrap() }
    }

    /// Models as they are published, but small: the names in the guides, and where the weights come from.
    fn with_models(self) -> Self {
        let mut plugins = Plugins::new(&[common::plugin_dir()]);
        for (plugin, checkpoint, name) in [
            ("showo", Checkpoint::Builtin, "show-o-512x512"),
            ("janus", Checkpoint::Builtin, "Janus-Pro-1B"),
            ("my_model", Checkpoint::Fresh, "base"),
        ] {
            let source = ModelSource { checkpoint, device: Device::Cpu, seed: 1, dry: false };
            let model = plugins.model(plugin, &Value::Null, &source).unwrap();
            let folder = self.folder.path().join(name);
            fs::create_dir(&folder).unwrap();
            model.save(&folder).unwrap();
        }
        self
    }

    fn run(&self, arguments: &[String], stdin: &str) -> Output {
        let mut child = common::unirl(arguments)
            .current_dir(self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Who does not read is no fault here.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// Runs, and says what is wrong if that fails.
    fn fault(&self, arguments: &[&str], stdin: &str) -> Option<String> {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).into()).collect();
        let output = self.run(&arguments, stdin);
        (!output.status.success())
            .then(|| format!("`unirl {}`: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr)))
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// What is wrong on a page.
    fn faults(&self, page: &str, markdown: &str) -> Vec<String> {
        let (blocks, prose) = blocks(page, markdown);
        let mut faults = Vec::new();
        for block in &blocks {
            let found = self.faults_in(block);
            faults.extend(found.into_iter().map(|fault| format!("{}: {fault}", block.place)));
        }
        for span in prose.split('`').skip(1).step_by(2) {
            faults.extend(self.fault_in_span(span).map(|fault| format!("{page}: {fault}")));
        }
        faults
    }

    fn faults_in(&self, block: &Block) -> Vec<String> {
        let text = block.text.as_str();
        let one = match block.info.as_str() {
            "text" | "sh" => {
                return text
                    .replace("\\\n", " ")
                    .lines()
                    .filter_map(|line| self.fault_in_line(line))
                    .collect();
            }
            "toml" => {
                let file = self.write("block.toml", text);
                self.fault(&["--plugin", "showo", "--config", &file, "--dry-run"], "")
            }
            "toml rules" => {
                let sample =
                    r#"{"category": "colors", "prompt": "a photo of a green fork", "answer": "green"}"#;
                self.fault(&["reward", "score", "--reward", &self.write("block.toml", text)], sample)
            }
            "jsonl" => {
                let file = self.write("block.jsonl", text);
                unirl_prompts::read_jsonl(Path::new(&file)).err().map(|error| error.to_string())
            }
            "jsonl detections" => {
                let prompt = r#"{"tag": "colors", "include": [{"class": "bench", "count": 1, "color": "red"}], "prompt": "a photo of a red bench"}"#;
                self.write("IMG/00000/metadata.jsonl", prompt);
                let image = self.folder.path().join("IMG/00000/samples/0000.png");
                fs::create_dir_all(image.parent().unwrap()).unwrap();
                image::RgbImage::new(512, 512).save(image).unwrap();
                let file = self.write("block.jsonl", text);
                self.fault(&["geneval", "judge", "--images", "IMG", "--detections", &file], "")
            }
            "json" => serde_json::from_str::<Value>(text).err().map(|error| error.to_string()),
            "python" => python(&["-c", "import ast, sys; ast.parse(sys.stdin.read())"], text),
            info if info.starts_with("rust") => {
                let page = block.place.split(':').next().unwrap();
                let library = fs::read_to_string(Path::new(ROOT).join("core/src/lib.rs")).unwrap();
                (!library.contains(&format!("include_str!(\"../../{page}\")")))
                    .then(|| "the page is not among the doc tests of `core/src/lib.rs`".into())
            }
            "mermaid" => None,
            other => Some(format!("a block of unknown kind `{other}`")),
        };
        one.into_iter().collect()
    }

    /// A line of a block: a command that is known here has to be right, anything else is let be.
    fn fault_in_line(&self, line: &str) -> Option<String> {
        if let Some(arguments) = arguments(line) {
            return self.fault_in_arguments(&arguments, false).map(|fault| format!("`{line}`: {fault}"));
        }
        match words(line).as_slice() {
            [script, command, ..] if script == "./x" => (!self.scripts.contains(&format!("\n  {command} ")))
                .then(|| format!("`./x help` does not have `{command}`")),
            [python, file, ..] if python == "python3" && !file.starts_with('-') => {
                (!Path::new(ROOT).join(file).is_file()).then(|| format!("no file `{file}`"))
            }
            _ => None,
        }
    }

    /// A span of code in a sentence: a command may lack what is required, or be `--set KEY=VALUE` alone.
    fn fault_in_span(&self, span: &str) -> Option<String> {
        let span = span.split_whitespace().collect::<Vec<_>>().join(" ");
        let fault = match arguments(&span) {
            Some(arguments) => self.fault_in_arguments(&arguments, true),
            None if span.starts_with("--set ") => self.fault_in_keys(&words(&span)),
            None if span.starts_with("./x ") => self.fault_in_line(&span),
            None => None,
        };
        fault.map(|fault| format!("`{span}`: {fault}"))
    }

    fn fault_in_arguments(&self, arguments: &[String], partial: bool) -> Option<String> {
        let line: Vec<OsString> =
            std::iter::once("unirl".into()).chain(arguments.iter().map(Into::into)).collect();
        match unirl_cli::check_arguments(&line) {
            Err(error) if partial && error.kind() == ErrorKind::MissingRequiredArgument => None,
            Err(error) if error.use_stderr() => Some(error.to_string()),
            // A detector has its own options.
            _ if arguments.first().is_some_and(|command| command == "geneval") => None,
            _ => self.fault_in_keys(arguments),
        }
    }

    fn fault_in_keys(&self, arguments: &[String]) -> Option<String> {
        let sets = arguments.windows(2).filter(|pair| pair[0] == "--set");
        let mut keys = sets.map(|pair| pair[1].split('=').next().unwrap_or_default());
        let known = |key: &str| {
            let table = format!("{key}.");
            self.keys.iter().any(|known| known == key || known.starts_with(&table))
        };
        keys.find(|key| !known(key)).map(|key| format!("`{key}` is no key of docs/reference/config.md"))
    }
}

/// Runs `python3`, and says what is wrong if that fails.
fn python(arguments: &[&str], stdin: &str) -> Option<String> {
    let spawned = Command::new("python3")
        .args(arguments)
        .current_dir(ROOT)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = spawned else {
        println!("SKIPPED: there is no `python3`");
        return None;
    };
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn generated_pages_are_those_of_the_program() {
    let fault =
        python(&["docs/generate.py", "--check", "--unirl", env!("CARGO_BIN_EXE_unirl-under-test")], "");
    assert_eq!(fault, None);
}

#[test]
fn snippets_are_understood() {
    let reader = Reader::new();
    let (mut faults, mut commands) = (Vec::new(), 0);
    for (page, markdown) in pages() {
        faults.extend(reader.faults(&page, &markdown));
        let (blocks, _) = blocks(&page, &markdown);
        commands += blocks.iter().flat_map(|block| block.text.lines()).filter_map(arguments).count();
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    assert!(commands > 50, "{commands}");
}

/// Every command that trains, with `--dry-run`: presets, configurations, settings, rewards and prompts are resolved.
#[test]
fn training_commands_resolve() {
    let reader = Reader::new().with_models();
    let mut commands = BTreeMap::new();
    for (page, markdown) in pages() {
        for block in blocks(&page, &markdown).0 {
            for arguments in block.text.lines().filter_map(arguments) {
                let trains = arguments.first().is_some_and(|first| first.starts_with("--"));
                if trains && !arguments.contains(&"--resume".into()) {
                    commands.insert(arguments, block.place.clone());
                }
            }
        }
    }
    assert!(commands.len() > 12, "{}", commands.len());
    let mut faults = Vec::new();
    for (mut arguments, place) in commands {
        if !arguments.contains(&"--dry-run".into()) {
            arguments.push("--dry-run".into());
        }
        let output = reader.run(&arguments, "");
        let said = String::from_utf8_lossy(&output.stderr);
        // The last thing that it does, and what a model need not know.
        if !output.status.success() && !said.contains("failed in `footprint`") {
            faults.push(format!("{place}: `unirl {}`: {said}", arguments.join(" ")));
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn wrong_snippets_are_faults() {
    let reader = Reader::new();
    for (markdown, expected) in [
        ("```text\nunirl --plugin showo --optimzer grpo\n```", "unexpected argument '--optimzer'"),
        ("```text\ntarget/release/unirl generate --plugin showo # a comment\n```", "required arguments"),
        ("```text\nunirl repot runs/a\n```", "unrecognized subcommand 'repot'"),
        ("```text\nunirl --plugin showo --set rollout.gruop=4\n```", "`rollout.gruop` is no key"),
        ("Run `unirl prompts --cuont 3` first.", "unexpected argument '--cuont'"),
        ("Add `--set train.shufle_rewards=true`.", "`train.shufle_rewards` is no key"),
        ("```text\n./x dmeo\n```", "does not have `dmeo`"),
        ("```text\npython3 examples/to_wndb.py RUN\n```", "no file `examples/to_wndb.py`"),
        ("```toml\n[rollout]\ngruop = 3\n```", "rollout.gruop"),
        ("```toml rules\n[[colours]]\nword = \"{color}\"\n```", "colours"),
        ("```jsonl\n{\"category\": \"colours\", \"prompt\": \"a photo of a green fork\"}\n```", "category"),
        ("```jsonl detections\n{\"filename\": \"00000/samples/0000.png\"}\n```", "detections"),
        ("```json\n{\"a\": 1,}\n```", "trailing comma"),
        ("```rust\nfn main() {}\n```", "not among the doc tests"),
        ("```yaml\na: 1\n```", "unknown kind `yaml`"),
    ] {
        let faults = reader.faults("page.md", markdown).join("\n");
        assert!(faults.contains(expected), "{markdown}: {faults:?}");
    }
    if Command::new("python3").arg("--version").output().is_ok() {
        let faults = reader.faults("page.md", "```python\nprint(\n```").join("\n");
        assert!(faults.contains("SyntaxError"), "{faults:?}");
    }
}
