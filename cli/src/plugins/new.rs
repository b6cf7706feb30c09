//! `unirl plugins new NAME`: a crate that builds, loads and trains, to be changed from the inside.

use std::fs;
use std::path::{Path, PathBuf};

use unirl::atomic_fs;
use unirl::error::{Context, Error, Result};

use crate::args::{PluginKind, PluginsNewArgs};
use crate::io;

/// The crates of `examples/`, which these names stand for.
const MODEL: (&str, &str) = ("my-model", include_str!("../../../examples/my-model/src/lib.rs"));
const REWARD: (&str, &str) = ("my-reward", include_str!("../../../examples/my-reward/src/lib.rs"));

pub(super) fn run(args: &PluginsNewArgs) -> Result<()> {
    let name = &args.name;
    check(name)?;
    let folder = args.dir.clone().unwrap_or_else(|| PathBuf::from(name));
    let (template, code) = match args.kind {
        PluginKind::Model => MODEL,
        PluginKind::Reward => REWARD,
    };
    let manifest = manifest(name, args.unirl.as_deref())?;
    let code = renamed(code, template, name);
    atomic_fs::folder(&folder, |partial| {
        fs::create_dir(partial.join("src")).context(|| "cannot create `src`")?;
        atomic_fs::write(&partial.join("Cargo.toml"), &manifest)?;
        atomic_fs::write(&partial.join("src/lib.rs"), &code)
    })
    .map_err(|error| error.hint("name another folder: `--dir D`"))?;
    io::print(&next(args, &folder))
}

/// A crate's name that is also a plugin's.
fn check(name: &str) -> Result<()> {
    let letters =
        |text: &str| text.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit());
    let fits = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.split('-').all(|part| !part.is_empty() && letters(part));
    if fits {
        return Ok(());
    }
    Err(Error::usage(format!(
        "plugin name `{name}`: expected lower-case words of letters and digits, joined by `-`"
    ))
    .hint("for example `my-model`"))
}

/// The crate `unirl` that this program was built with.
const OWN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../core");

fn manifest(name: &str, unirl: Option<&Path>) -> Result<String> {
    let version = env!("CARGO_PKG_VERSION");
    let path = fs::canonicalize(unirl.unwrap_or(Path::new(OWN))).unwrap_or_default();
    if !path.join("Cargo.toml").is_file() {
        let error = match unirl {
            Some(path) => format!("`--unirl {0}`: no crate at `{0}`", path.display()),
            None => "`--unirl`: the checkout that this program was built from is gone".into(),
        };
        return Err(Error::usage(error)
            .hint("name the folder `core` of a checkout of unirl, such as `--unirl ../unirl/core`"));
    }
    let path = path.display().to_string();
    if path.contains(['"', '\\']) {
        return Err(Error::usage(format!("`--unirl {path}`: expected a path without quotes")));
    }
    let unirl = format!("{{ version = \"{version}\", path = \"{path}\" }}");
    Ok(format!(
        r#"[package]
name = "{name}"
version = "0.1.0"
edition = "2024"
license = "MIT OR Apache-2.0"
publish = false

[lib]
name = "unirl_plugin_{}"
crate-type = ["cdylib"]

[dependencies]
unirl = {unirl}
schemars = "1"
serde = {{ version = "1", features = ["derive"] }}
"#,
        name.replace('-', "_")
    ))
}

/// The code of a template under another name, in each of the ways in which a name is written.
fn renamed(code: &str, template: &str, name: &str) -> String {
    code.replace(&camel(template), &camel(name))
        .replace(template, name)
        .replace(&template.replace('-', "_"), &name.replace('-', "_"))
}

fn camel(name: &str) -> String {
    let word = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('-').map(word).collect()
}

fn next(args: &PluginsNewArgs, folder: &Path) -> String {
    let library = format!("target/release/libunirl_plugin_{}.so", args.name.replace('-', "_"));
    let mut text = format!("{}\n\n  cd {}\n", folder.display(), folder.display());
    if std::env::var_os("LIBTORCH").is_none() {
        text += "  export LIBTORCH=…             # libtorch of this unirl: `.libtorch` of its checkout, after `./x setup`\n";
    }
    text += "  cargo build --release\n";
    text += &format!("  unirl plugins check {library}\n");
    text += &match args.kind {
        PluginKind::Model => format!(
            "  unirl pretrain --plugin {library} --set joint.steps=600 --set joint.update.learning_rate=5e-3 --out base\n  unirl --plugin {library} --model base --optimizer grpo\n"
        ),
        PluginKind::Reward => format!("  unirl --plugin showo --optimizer grpo --reward {library}\n"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_crates() {
        for right in ["a", "my-model", "show-o2"] {
            check(right).unwrap();
        }
        for wrong in ["", "My-Model", "my_model", "-a", "a-", "a--b", "2a", "a/b", "größe"] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
        assert_eq!(camel("show-o2-x"), "ShowO2X");
    }

    #[test]
    fn every_spelling_of_the_name_is_another() {
        let code = renamed(MODEL.1, MODEL.0, "other-one");
        assert!(code.contains("struct OtherOne") && code.contains("\"other-one\""));
        assert!(!code.contains("MyModel") && !code.contains("my-model"));
    }
}
