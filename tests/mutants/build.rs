//! Writes a copy of the example's source for each planted bug.

use std::{env, fs, path::Path};

/// The name of a mutant, the source text that its bug replaces, and the replacement.
const BUGS: [(&str, &str, &str); 18] = [
    ("no-shift", "constant_pad_nd([0, 0, 1, -1])", "constant_pad_nd([0, 0, 0, 0])"),
    ("no-mask", "ids.ne(PAD).to_kind", "ids.ge(PAD).to_kind"),
    (
        "shared-reference",
        "|store| Network::take(store,",
        "|_| Network::take(&mut Store::of_tensors(\"shared\", self.weights.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))),",
    ),
    (
        "drawing-ignores-the-seed",
        "tch::manual_seed(sampling.seed as i64);\n        let context = self.network.question(&self.ids(prompts));",
        "let context = self.network.question(&self.ids(prompts));",
    ),
    (
        "answering-ignores-the-seed",
        "tch::manual_seed(sampling.seed as i64);\n        let context = self.network.question(&self.ids(questions))",
        "let context = self.network.question(&self.ids(questions))",
    ),
    ("detached-image", "relaxed.matmul(table)", "relaxed.detach().matmul(table)"),
    ("part-ignored", "(sampling.temperature, 0, sampling.part)", "(sampling.temperature, 0, None)"),
    ("heated-logp", "gather_logp(&logits, &class)", "gather_logp(&(&logits * 1.5), &class)"),
    (
        "image-not-scored",
        "network.question(&self.ids(questions)) + network.image(images)",
        "network.question(&self.ids(questions))",
    ),
    (
        "reference-not-used",
        "self.reference.run(policy, &self.network, |network| {",
        "self.reference.run(policy, &self.network, |_| { let network = &self.network;",
    ),
    (
        "parameters-are-copies",
        "Parameter::list(&self.weights,",
        "Parameter::list(&self.weights.iter().map(|(name, tensor)| (name.clone(), tensor.detach().copy().set_requires_grad(true))).collect::<Vec<_>>(),",
    ),
    ("saves-too-little", "&self.weights, &[])", "&self.weights[1..], &[])"),
    (
        "loads-nothing",
        "Checkpoint::Folder(folder) => Some(Weights::find(folder)?)",
        "Checkpoint::Folder(_) => None",
    ),
    ("no-end-token", "format!(\"{text} .\")", "format!(\"{text}\")"),
    ("wrong-group", "ParameterGroup::Shared", "ParameterGroup::Tokenizer"),
    (
        "leaks",
        "sampling.check(prompts.len())?;",
        "sampling.check(prompts.len())?; std::mem::forget(Tensor::ones([200_000], (Kind::Float, Device::Cpu)));",
    ),
    ("checks-nothing", "images.check(&self.card, \"questions\", questions.len())?;", ""),
    ("pixels-around-zero", "codec::decode(&images.tokens)", "codec::decode(&images.tokens) * 2.0 - 1.0"),
];

fn main() {
    let example = Path::new("../../examples/my-model/src/lib.rs");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed={}", example.display());
    let source = fs::read_to_string(example).unwrap_or_else(|error| panic!("{}: {error}", example.display()));
    // A module cannot have inner documentation here, the crate exports one plugin, and the tests are those of the example.
    let source: String = source
        .lines()
        .take_while(|line| *line != "#[cfg(test)]")
        .filter(|line| !line.starts_with("//!") && !line.starts_with("unirl::export_plugin!"))
        .map(|line| format!("{line}\n"))
        .collect();
    let mut text = String::new();
    for (name, from, to) in BUGS {
        assert!(source.contains(from), "mutant `{name}`: the example does not contain `{from}`");
        let mutant = source
            .replace(from, to)
            .replace("register_model!(\"my-model\"", &format!("register_model!(\"{name}\""));
        text += &format!("mod {} {{\n{mutant}\n}}\n", name.replace('-', "_"));
    }
    let out = env::var("OUT_DIR").unwrap_or_default();
    fs::write(Path::new(&out).join("mutants.rs"), text).unwrap_or_else(|error| panic!("{out}: {error}"));
}
