//! A crate uses only crates on lower floors, and a module only modules on lower floors: an arrow that runs upwards, or a circle,
//! fails here.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The crates of the workspace, lowest floor first. A crate depends only on crates of lower floors; dev-dependencies do not count.
const CRATES: &[&[&str]] = &[
    &["torch-pickle", "unirl-base"],
    &["unirl-torch"],
    &["unirl"],
    &["unirl-prompts", "unirl-layers"],
    &["unirl-benchmarks", "unirl-keywords"],
    &["unirl-text", "unirl-engine", "unirl-plugin-rewards"],
    &["unirl-testing", "unirl-plugin-showo", "unirl-plugin-janus"],
    &["unirl-cli"],
    &[
        "my-model",
        "my-optimizer",
        "my-reward",
        "unirl-plugin-fixture",
        "unirl-plugin-mutants",
        "unirl-plugin-other",
        "unirl-tests",
    ],
];

/// The modules of the engine, lowest floor first. A module uses only modules of lower floors.
const ENGINE: &[&[&str]] = &[
    &["atomic_fs", "fingerprint", "home", "optim", "sealed", "signals"],
    &["image_io", "plugin", "rewards", "tensorboard"],
    &["algorithms", "metrics", "sample_grid"],
    &["config"],
    &["benchmark", "eval", "memory"],
    &["disk_plan", "drift", "pretrain"],
    &["checkpoint"],
    &["run_dir"],
    &["train"],
];

/// The folder and the manifest of each crate of the workspace, by name.
fn read_manifests() -> BTreeMap<String, (PathBuf, toml::Table)> {
    let read = |folder: &Path| -> toml::Table {
        fs::read_to_string(folder.join("Cargo.toml")).unwrap().parse().unwrap()
    };
    let root = read(Path::new(ROOT));
    let members = root["workspace"]["members"].as_array().unwrap();
    let manifest = |member: &toml::Value| {
        let folder = Path::new(ROOT).join(member.as_str().unwrap());
        let manifest = read(&folder);
        (manifest["package"]["name"].as_str().unwrap().to_string(), (folder, manifest))
    };
    members.iter().map(manifest).collect()
}

/// The floor of each name.
fn floors<'a>(list: &[&[&'a str]]) -> BTreeMap<&'a str, usize> {
    let floors =
        list.iter().enumerate().flat_map(|(floor, names)| names.iter().map(move |name| (*name, floor)));
    floors.collect()
}

#[test]
fn crate_dependencies_run_downwards() {
    let (manifests, floors) = (read_manifests(), floors(CRATES));
    let listed: BTreeSet<&str> = floors.keys().copied().collect();
    let members: BTreeSet<&str> = manifests.keys().map(String::as_str).collect();
    assert_eq!(listed, members, "`CRATES` lists every crate of the workspace once, with its floor");
    let mut wrong = String::new();
    for (name, (folder, manifest)) in &manifests {
        for table in ["dependencies", "build-dependencies"] {
            let used =
                manifest.get(table).and_then(toml::Value::as_table).into_iter().flat_map(toml::Table::keys);
            for used in used.filter(|used| members.contains(used.as_str())) {
                let [user, floor] = [name, used].map(|name| floors[name.as_str()]);
                if floor >= user {
                    let manifest = folder.strip_prefix(ROOT).unwrap().join("Cargo.toml");
                    writeln!(
                        wrong,
                        "`{name}` (floor {user}) depends on `{used}` (floor {floor}): {}",
                        manifest.display()
                    )
                    .unwrap();
                }
            }
        }
    }
    assert!(wrong.is_empty(), "a crate depends only on crates of lower floors (`CRATES`):\n{wrong}");
}

#[test]
fn modules_have_no_circles() {
    let mut found = String::new();
    for (name, (folder, _)) in
        read_manifests().into_iter().filter(|(_, (folder, _))| folder.join("src").is_dir())
    {
        let uses = Uses::read(&folder.join("src"));
        for circle in uses.circles() {
            writeln!(found, "crate `{name}`:").unwrap();
            for arrow in circle {
                writeln!(found, "  `{}` uses `{}`: {}", arrow.0, arrow.1, uses.arrows[&arrow].join(", "))
                    .unwrap();
            }
        }
    }
    assert!(
        found.is_empty(),
        "modules that use each other; move what both need to a module below them:\n{found}"
    );
}

#[test]
fn engine_modules_use_lower_floors() {
    let (manifests, floors) = (read_manifests(), floors(ENGINE));
    let uses = Uses::read(&manifests["unirl-engine"].0.join("src"));
    let names: BTreeSet<&str> = uses.modules.iter().map(String::as_str).collect();
    let listed: BTreeSet<&str> = floors.keys().copied().collect();
    assert_eq!(listed, names, "`ENGINE` lists every module of the engine once, with its floor");
    let mut wrong = String::new();
    for ((from, to), places) in &uses.arrows {
        let [user, used] = [from, to].map(|name| floors[name.as_str()]);
        if used >= user {
            writeln!(wrong, "`{from}` (floor {user}) uses `{to}` (floor {used}): {}", places.join(", "))
                .unwrap();
        }
    }
    assert!(wrong.is_empty(), "a module uses only modules of lower floors (`ENGINE`):\n{wrong}");
}

/// Which modules of a crate use which: the modules directly below its root, each with the modules below it.
struct Uses {
    modules: BTreeSet<String>,
    /// User and used, with the places in the source, such as `core/engine/src/train/mod.rs:3`.
    arrows: BTreeMap<(String, String), Vec<String>>,
}

impl Uses {
    /// Reads the files below the folder `src` of a crate, without tests.
    fn read(src: &Path) -> Self {
        let mut files = Vec::new();
        list_files(src, &mut files);
        files.retain(|file| !["main.rs", "tests.rs", "testing.rs"].iter().any(|name| file.ends_with(name)));
        let modules = files.iter().filter_map(|file| module_path(src, file).into_iter().next()).collect();
        let mut uses = Self { modules, arrows: BTreeMap::new() };
        let root = fs::read_to_string(src.join("lib.rs")).map(|text| tokens(&text)).unwrap_or_default();
        let exports = uses.exports(&root);
        for file in files {
            let text = fs::read_to_string(&file).unwrap();
            let file_name = fs::canonicalize(&file).unwrap();
            let file_name = file_name.strip_prefix(fs::canonicalize(ROOT).unwrap()).unwrap_or(&file_name);
            uses.add(&module_path(src, &file), &tokens(&text), &exports, &file_name.display().to_string());
        }
        uses
    }

    /// The items that the root of the crate exports from its modules, with these modules: `pub use error::Error`.
    fn exports(&self, root: &[Token]) -> BTreeMap<String, String> {
        let mut exports = BTreeMap::new();
        for at in (0..root.len()).filter(|at| root[*at].text == "use") {
            for (path, name, _) in leaves(root, at + 1) {
                let path = path.strip_prefix(&["crate".to_string()]).unwrap_or(&path);
                if let Some(module) = path.first().filter(|module| self.modules.contains(*module)) {
                    exports.insert(name, module.clone());
                }
            }
        }
        exports
    }

    /// Adds the paths of a file that start with `crate`, `super` or `self`.
    fn add(&mut self, module: &[String], tokens: &[Token], exports: &BTreeMap<String, String>, file: &str) {
        let Some(user) = module.first() else { return };
        let mut inner: Vec<(String, usize)> = Vec::new(); // inline modules with the depth of their braces
        let mut depth = 0;
        for (at, token) in tokens.iter().enumerate() {
            let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
            match token.text.as_str() {
                "{" => depth += 1,
                "}" => {
                    depth -= 1;
                    inner.pop_if(|(_, outside)| *outside == depth);
                }
                "mod" if text(at + 2) == "{" => inner.push((text(at + 1).to_string(), depth)),
                "crate" | "super" | "self"
                    if text(at + 1) == "::" && !(at > 0 && ["::", "$"].contains(&text(at - 1))) =>
                {
                    let here = module.iter().chain(inner.iter().map(|(name, _)| name));
                    let here: Vec<String> = here.cloned().collect();
                    for (path, _, line) in leaves(tokens, at) {
                        let Some(first) = top(&here, &path) else { continue };
                        let used = exports.get(&first).unwrap_or(&first);
                        if used != user && self.modules.contains(used) {
                            let places = self.arrows.entry((user.clone(), used.clone())).or_default();
                            let place = format!("{file}:{line}");
                            if !places.contains(&place) {
                                places.push(place);
                            }
                        }
                    }
                }
                _ => {}
            }
        }
    }

    /// The shortest circle through each arrow that is part of one.
    fn circles(&self) -> BTreeSet<Vec<(String, String)>> {
        let circle = |(from, to): &(String, String)| {
            let mut modules = self.way(to, from)?;
            let first = (0..modules.len()).min_by_key(|at| &modules[*at])?;
            modules.rotate_left(first);
            let next = modules.iter().cycle().skip(1);
            Some(modules.iter().cloned().zip(next.cloned()).collect())
        };
        self.arrows.keys().filter_map(circle).collect()
    }

    /// The modules of the shortest way from one module to another, both included.
    fn way(&self, from: &str, to: &str) -> Option<Vec<String>> {
        let mut ways = vec![vec![from.to_string()]];
        let mut seen = BTreeSet::from([from.to_string()]);
        while !ways.is_empty() {
            if let Some(way) = ways.iter().find(|way| way.last().is_some_and(|last| last == to)) {
                return Some(way.clone());
            }
            let mut longer = Vec::new();
            for way in &ways {
                for (user, used) in self.arrows.keys() {
                    if way.last() == Some(user) && seen.insert(used.clone()) {
                        longer.push([way.as_slice(), std::slice::from_ref(used)].concat());
                    }
                }
            }
            ways = longer;
        }
        None
    }
}

/// Lists the Rust files below a folder, sorted.
fn list_files(folder: &Path, files: &mut Vec<PathBuf>) {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            list_files(&path, files);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            files.push(path);
        }
    }
}

/// The path of the module of a file: `[]` for `lib.rs`, `[a]` for `a.rs` and `a/mod.rs`.
fn module_path(src: &Path, file: &Path) -> Vec<String> {
    let path = file.strip_prefix(src).unwrap().with_extension("");
    let mut names: Vec<String> = path.iter().map(|name| name.to_str().unwrap().to_string()).collect();
    names.pop_if(|name| ["lib", "mod"].contains(&name.as_str()));
    names
}

/// The module or item below the root of the crate that a path leads to, from module `here`.
fn top(here: &[String], path: &[String]) -> Option<String> {
    let supers = path.iter().take_while(|name| *name == "super").count();
    let (base, rest) = match path.first()?.as_str() {
        "crate" => (&here[..0], &path[1..]),
        "super" => (&here[..here.len().checked_sub(supers)?], &path[supers..]),
        _ => (here, &path[1..]),
    };
    base.iter().chain(rest).next().cloned()
}

/// A word, `::`, or another character of Rust source, with its line.
struct Token {
    text: String,
    line: usize,
}

/// The tokens of a Rust source file, without comments, the contents of strings, and items for tests.
fn tokens(source: &str) -> Vec<Token> {
    let letters: Vec<char> = source.chars().collect();
    let is_at = |at: usize, text: &str| {
        text.chars().enumerate().all(|(i, letter)| letters.get(at + i) == Some(&letter))
    };
    let is_word = |letter: char| letter.is_alphanumeric() || letter == '_';
    let (mut tokens, mut at, mut line) = (Vec::new(), 0, 1);
    while at < letters.len() {
        let start = at;
        let mut text = String::new();
        if is_at(at, "//") {
            while at < letters.len() && letters[at] != '\n' {
                at += 1;
            }
        } else if is_at(at, "/*") {
            let mut depth = 0;
            while at < letters.len() {
                let (change, step) = if is_at(at, "/*") {
                    (1, 2)
                } else if is_at(at, "*/") {
                    (-1, 2)
                } else {
                    (0, 1)
                };
                depth += change;
                at += step;
                if depth == 0 {
                    break;
                }
            }
        } else if letters[at] == '"' || is_at(at, "'\\") || (letters[at] == '\'' && is_at(at + 2, "'")) {
            let quote = letters[at];
            at += 1;
            while at < letters.len() && letters[at] != quote {
                at += if letters[at] == '\\' { 2 } else { 1 };
            }
            at += 1;
        } else if is_word(letters[at]) {
            while at < letters.len() && is_word(letters[at]) {
                at += 1;
            }
            text = letters[start..at].iter().collect();
            let hashes = letters[at..].iter().take_while(|letter| **letter == '#').count();
            if ["r", "br", "cr"].contains(&text.as_str()) && is_at(at + hashes, "\"") {
                let end = format!("\"{}", "#".repeat(hashes));
                at += hashes + 1;
                while at < letters.len() && !is_at(at, &end) {
                    at += 1;
                }
                at += end.len();
                text.clear();
            }
        } else if is_at(at, "::") {
            at += 2;
            text = "::".into();
        } else {
            at += 1;
            text = letters[start].to_string();
        }
        if !text.trim().is_empty() {
            tokens.push(Token { text, line });
        }
        line += letters[start..at.min(letters.len())].iter().filter(|letter| **letter == '\n').count();
    }
    without_tests(tokens)
}

/// Removes each item after `#[cfg(test)]`: up to its `;` or its closing brace.
fn without_tests(tokens: Vec<Token>) -> Vec<Token> {
    let attribute = ["#", "[", "cfg", "(", "test", ")", "]"];
    let (mut kept, mut rest) = (Vec::new(), tokens.into_iter().peekable());
    while let Some(token) = rest.next() {
        kept.push(token);
        let start = kept.len().saturating_sub(attribute.len());
        if !kept[start..].iter().map(|token: &Token| token.text.as_str()).eq(attribute) {
            continue;
        }
        kept.truncate(start);
        let mut depth = 0;
        for token in rest.by_ref() {
            match token.text.as_str() {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 && [";", "}"].contains(&token.text.as_str()) {
                break;
            }
        }
    }
    kept
}

/// The paths that start at a token, one for each leaf of a tree such as `a::{b, c as d}`: the path, the name that it imports, and
/// its line.
fn leaves(tokens: &[Token], start: usize) -> Vec<(Vec<String>, String, usize)> {
    let (mut found, mut at) = (Vec::new(), start);
    add_leaves(tokens, &mut at, &[], &mut found);
    found
}

fn add_leaves(
    tokens: &[Token],
    at: &mut usize,
    before: &[String],
    found: &mut Vec<(Vec<String>, String, usize)>,
) {
    let mut path = before.to_vec();
    let text = |at: usize| tokens.get(at).map_or("", |token| token.text.as_str());
    while !text(*at).is_empty() {
        if text(*at) == "{" {
            *at += 1;
            while !["}", ""].contains(&text(*at)) {
                let before = *at;
                add_leaves(tokens, at, &path, found);
                // A comma, or what cannot be part of a path.
                *at += usize::from(text(*at) == "," || *at == before);
            }
            *at += 1;
            return;
        }
        if text(*at) == "<" {
            break; // `crate::a::<T>`
        }
        path.push(text(*at).to_string());
        *at += 1;
        if text(*at) != "::" {
            break;
        }
        *at += 1;
    }
    let line = tokens[*at - 1].line;
    if path.last().is_some_and(|last| last == "self") && path.len() > 1 {
        path.pop();
    }
    let mut name = path.last().cloned().unwrap_or_default();
    if text(*at) == "as" {
        name = text(*at + 1).to_string();
        *at += 2;
    }
    found.push((path, name, line));
}

/// Reads the modules of a crate given as its files.
fn uses_of(files: &[(&str, &str)]) -> Uses {
    let src = tempfile::tempdir().unwrap();
    for (file, text) in files {
        let path = src.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    Uses::read(src.path())
}

#[test]
fn every_form_of_a_path_is_an_arrow() {
    let uses = uses_of(&[
        ("lib.rs", "pub mod a;\npub mod b;\nmod c;\nmod d;\npub mod e;\npub use e::{Error as Fault, other};"),
        ("a/mod.rs", "use crate::{b::{self, X}, c};\nmod part;"),
        ("a/part.rs", "use super::super::d;\nmod inner {\n    use super::super::own;\n}"),
        ("b.rs", "fn f() {\n    super::c::g(crate::d::H::<u8>::new())\n}"),
        (
            "c.rs",
            "// crate::a\n/* crate::a */ const T: &str = \"crate::a\"; const R: &str = r#\"\" crate::a\"#;\n\
                  const Q: char = '\"'; fn f<'a>(_: &'a u8) -> crate::Fault { $crate::a::f() }\n\
                  #[cfg(test)]\nmod tests { use crate::a; }\n#[cfg(test)]\nuse crate::b;",
        ),
        ("d.rs", "pub(crate) struct H; pub(super) use self::own;"),
        ("d/tests.rs", "use crate::a;"),
        ("e.rs", ""),
    ]);
    let arrows: Vec<String> = uses
        .arrows
        .iter()
        .map(|((from, to), places)| {
            let lines: Vec<&str> =
                places.iter().map(|place| place.rsplit(['/', ':']).next().unwrap()).collect();
            format!("{from} {to} {}", lines.join(" "))
        })
        .collect();
    assert_eq!(arrows, ["a b 1", "a c 1", "a d 1", "b c 2", "b d 2", "c e 3"]);
    assert_eq!(uses.circles().len(), 0);
}

#[test]
fn a_circle_is_found_once() {
    let uses = uses_of(&[
        ("lib.rs", ""),
        ("a.rs", "use crate::b;"),
        ("b.rs", "use crate::c;"),
        ("c.rs", "use crate::a;\nuse crate::d;"),
        ("d.rs", ""),
    ]);
    let circles: Vec<_> = uses.circles().into_iter().collect();
    let arrow = |from: &str, to: &str| (from.to_string(), to.to_string());
    assert_eq!(circles, [[arrow("a", "b"), arrow("b", "c"), arrow("c", "a")]]);
}
