//! `unirl plugins new NAME`: creates a plugin crate from an example.

use std::fs;
use std::path::{Path, PathBuf};

use unirl::error::{Context, Error, Result};
use unirl_engine::atomic_fs;

use crate::args::{PluginKind, PluginsNewArgs};
use crate::io;

/// Names and code of the templates, the crates in `examples/`.
const MODEL: (&str, &str) = ("my-model", include_str!("../../../examples/my-model/src/lib.rs"));
const REWARD: (&str, &str) = ("my-reward", include_str!("../../../examples/my-reward/src/lib.rs"));

pub(super) fn run(args: &PluginsNewArgs) -> Result<()> {
    let name = &args.name;
    check_name(name)?;
    let dir = args.dir.clone().unwrap_or_else(|| PathBuf::from(name));
    let (template, code) = match args.kind {
        PluginKind::Model => MODEL,
        PluginKind::Reward => REWARD,
    };
    let manifest = manifest(name, args.kind, args.unirl.as_deref())?;
    let code = renamed(code, template, name);
    atomic_fs::create_dir(&dir, |partial| {
        fs::create_dir(partial.join("src")).context(|| "cannot create `src`")?;
        atomic_fs::write(&partial.join("Cargo.toml"), &manifest)?;
        atomic_fs::write(&partial.join("src/lib.rs"), &code)
    })
    .map_err(|error| error.hint("name another directory: `--dir DIR`"))?;
    io::print(&next_steps(args, &dir))
}

/// Errors unless `name` is valid for both a crate and a plugin.
fn check_name(name: &str) -> Result<()> {
    let letters =
        |text: &str| text.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit());
    let valid = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.split('-').all(|part| !part.is_empty() && letters(part));
    if valid {
        return Ok(());
    }
    Err(Error::usage(format!(
        "invalid plugin name `{name}`: expected lower-case words of letters and digits, joined by `-`"
    ))
    .hint("for example, `my-model`"))
}

/// The crate `unirl` that this program was built with.
const BUILT_WITH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../core");

fn manifest(name: &str, kind: PluginKind, unirl: Option<&Path>) -> Result<String> {
    let version = env!("CARGO_PKG_VERSION");
    let path = fs::canonicalize(unirl.unwrap_or(Path::new(BUILT_WITH))).unwrap_or_default();
    if !path.join("Cargo.toml").is_file() {
        let error = match unirl {
            Some(path) => format!("`--unirl {0}`: `{0}` is not a crate", path.display()),
            None => "the checkout that unirl was built from no longer exists".into(),
        };
        return Err(
            Error::usage(error).hint("name the directory `core` of a checkout: `--unirl ../unirl/core`")
        );
    }
    let path = path.display().to_string();
    if path.contains(['"', '\\']) {
        return Err(Error::usage(format!(
            "`--unirl {path}`: expected a path without quotes and backslashes"
        )));
    }
    let dependency = |name: &str, folder: &str| {
        format!("{name} = {{ version = \"{version}\", path = \"{path}{folder}\" }}")
    };
    let mut dependencies = vec![dependency("unirl", "")];
    if kind == PluginKind::Model {
        dependencies.push(dependency("unirl-benchmarks", "/benchmarks"));
    }
    Ok(format!(
        r#"[package]
name = "{name}"
version = "0.1.0"
edition = "2024"
license = "MIT OR Apache-2.0"
publish = false

[lib]
name = "unirl_plugin_{library}"
crate-type = ["cdylib"]

[dependencies]
{dependencies}
schemars = "1"
serde = {{ version = "1", features = ["derive"] }}

[dev-dependencies]
{testing}
"#,
        library = name.replace('-', "_"),
        dependencies = dependencies.join("\n"),
        testing = dependency("unirl-testing", "/testing"),
    ))
}

/// The code of a template with its name replaced in every spelling: `my-model`, `my_model` and `MyModel`.
fn renamed(code: &str, template: &str, name: &str) -> String {
    code.replace(&camel(template), &camel(name))
        .replace(template, name)
        .replace(&template.replace('-', "_"), &name.replace('-', "_"))
}

fn camel(name: &str) -> String {
    let word = |word: &str| word[..1].to_uppercase() + &word[1..];
    name.split('-').map(word).collect()
}

fn next_steps(args: &PluginsNewArgs, dir: &Path) -> String {
    let library = format!("target/release/libunirl_plugin_{}.so", args.name.replace('-', "_"));
    let mut text = format!("{}\n\n  cd {}\n", dir.display(), dir.display());
    if std::env::var_os("LIBTORCH").is_none() {
        text += "  export LIBTORCH=…             # the libtorch of unirl: `.libtorch` in its checkout after `./x setup`\n";
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
    fn plugin_names_are_crate_names() {
        for valid in ["a", "my-model", "show-o2"] {
            check_name(valid).unwrap();
        }
        for invalid in ["", "My-Model", "my_model", "-a", "a-", "a--b", "2a", "a/b", "größe"] {
            assert!(check_name(invalid).is_err(), "{invalid}");
        }
        assert_eq!(camel("show-o2-x"), "ShowO2X");
    }

    #[test]
    fn every_spelling_of_the_name_is_replaced() {
        let code = renamed(MODEL.1, MODEL.0, "other-one");
        assert!(code.contains("struct OtherOne") && code.contains("\"other-one\""));
        assert!(!code.contains("MyModel") && !code.contains("my-model"));
    }
}
