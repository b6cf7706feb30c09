//! The configuration of a run: TOML sections with defaults. Unknown keys are errors.
//!
//! Later sources override earlier ones: defaults, preset, `--config FILE`, `--set key=value`, command-line flags.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use unirl::error::{Context, Error, Result, unknown_name};
use unirl_base::settings;
use unirl_benchmarks::geneval;

use crate::algorithms::{self, Algorithm, AlgorithmEntry};
use crate::home;
use crate::optim::UpdateOptions;

pub use crate::algorithms::Rollout;
pub use crate::rewards::RewardOptions;

/// The configuration of a post-training run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// The model.
    pub model: ModelOptions,
    /// The benchmark: prompts, and the judge of generated images.
    #[serde(skip_serializing_if = "BenchmarkOptions::is_default")]
    pub benchmark: BenchmarkOptions,
    /// The training loop.
    pub train: TrainOptions,
    /// Generation of images and answers.
    pub rollout: Rollout,
    /// The reward.
    pub reward: RewardOptions,
    /// The algorithm and its options.
    pub optimizer: OptimizerOptions,
    /// AdamW, learning rate and gradient clipping.
    pub update: UpdateOptions,
    /// Evaluation before, during and after training.
    pub eval: EvalOptions,
    /// When checkpoints are saved.
    pub checkpoint: CheckpointOptions,
}

/// The model and where it comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelOptions {
    /// The name of a plugin, or the path of its file.
    pub plugin: String,
    /// `builtin`, a directory in the checkpoint layout of the family, or a run directory.
    pub checkpoint: String,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Options of the plugin; `unirl schema --plugin NAME` lists them.
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub options: toml::Table,
}

impl Default for ModelOptions {
    fn default() -> Self {
        Self {
            plugin: "showo".into(),
            checkpoint: "builtin".into(),
            device: "auto".into(),
            options: toml::Table::new(),
        }
    }
}

/// The benchmark: where prompts come from, and how generated images are judged.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BenchmarkOptions {
    /// `tiles` or `geneval`. Default: that of the model, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The prompts of `geneval`: `evaluation_metadata.jsonl`, or a file in its format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<String>,
    /// The detector of `geneval`: a name, or the path of a plugin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detector: Option<String>,
    /// The score above which a detection counts (`GenEval`: 0.3).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f32>,
    /// The same for prompts of the category `counting` (`GenEval`: 0.9).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counting_threshold: Option<f32>,
    /// A directory of images of these prompts, written by `unirl geneval draw`: the model is asked about the correct ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub references: Option<String>,
    /// The output of `unirl geneval judge --out`, which says which of the reference images are correct.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub results: Option<String>,
}

impl BenchmarkOptions {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Errors for an unknown benchmark, and for options that belong to another benchmark or lack others.
    fn check(&self) -> Result<()> {
        let name = self.name.as_deref();
        if let Some(name) = name.filter(|name| !unirl_benchmarks::NAMES.contains(name)) {
            return Err(unknown_name("benchmark", name, &unirl_benchmarks::NAMES));
        }
        if name == Some(geneval::NAME) {
            for (key, value, what) in [
                ("metadata", &self.metadata, "evaluation_metadata.jsonl"),
                ("detector", &self.detector, "PLUGIN"),
            ] {
                if value.is_none() {
                    return Err(Error::usage(format!(
                        "benchmark `{}` needs `benchmark.{key}`",
                        geneval::NAME
                    ))
                    .hint(format!("set it: `--set benchmark.{key}={what}`")));
                }
            }
            if self.references.is_some() != self.results.is_some() {
                return Err(Error::usage("`benchmark.references` and `benchmark.results` need each other"));
            }
            return Ok(());
        }
        if *self != (Self { name: self.name.clone(), ..Self::default() }) {
            return Err(Error::usage(
                "`benchmark`: metadata, detector, thresholds and references are options of `geneval`",
            )
            .hint("choose it: `--benchmark geneval`"));
        }
        Ok(())
    }
}

/// The training loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainOptions {
    /// Training steps; each is one rollout and one update of the weights.
    #[schemars(range(min = 1))]
    pub steps: u64,
    /// The seed of every random number of the run.
    pub seed: u64,
    /// A JSONL file of prompts. Without it, prompts of the benchmark are generated.
    #[serde(alias = "tasks", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-former-names" = ["tasks"]))]
    pub prompts_file: Option<String>,
    /// Assigns rewards to random samples of the batch: a control run that must not learn.
    pub shuffle_rewards: bool,
    /// Saves sample images every this many steps, generated as in the evaluation; 0 disables it.
    pub sample_every: u64,
    /// Uses only deterministic algorithms of libtorch (slower on a GPU). On a CPU, results are reproducible for a fixed number of
    /// threads without it.
    pub deterministic: bool,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            steps: 100,
            seed: 1,
            prompts_file: None,
            shuffle_rewards: false,
            sample_every: 20,
            deterministic: false,
        }
    }
}

/// The algorithm and its options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub struct OptimizerOptions {
    /// `sft`, `grpo` or `grpo-split`.
    pub name: String,
    /// Options of each algorithm, in a table of its name.
    #[serde(flatten)]
    #[schemars(schema_with = "algorithm_tables")]
    pub options: toml::Table,
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        Self { name: "grpo".into(), options: toml::Table::new() }
    }
}

/// The schema of the option tables.
fn algorithm_tables(generator: &mut SchemaGenerator) -> Schema {
    let mut tables = serde_json::Map::new();
    for entry in algorithms::all() {
        let mut schema = (entry.schema)(generator);
        // The root schema has the definitions.
        for of_the_root in ["$schema", "$defs", "title"] {
            schema.remove(of_the_root);
        }
        tables.insert(entry.name.into(), schema.to_value());
    }
    json_schema!({ "type": "object", "properties": tables })
}

impl OptimizerOptions {
    /// Writes out every default of the chosen algorithm.
    pub fn resolve(&mut self) -> Result<()> {
        let resolved = (algorithms::find(&self.name)?.resolve)(self.table()?)?;
        self.options.insert(self.name.clone(), toml::Value::Table(resolved));
        Ok(())
    }

    /// The options of the chosen algorithm.
    pub fn table(&self) -> Result<toml::Table> {
        self.table_of(&self.name)
    }

    fn table_of(&self, algorithm: &str) -> Result<toml::Table> {
        match self.options.get(algorithm) {
            None => Ok(toml::Table::new()),
            Some(toml::Value::Table(table)) => Ok(table.clone()),
            Some(other) => {
                Err(Error::usage(format!("`optimizer.{algorithm}`: expected a table, got `{other}`")))
            }
        }
    }

    /// Checks the options of every algorithm, not only of the chosen one.
    fn check(&self) -> Result<()> {
        algorithms::all()
            .into_iter()
            .try_for_each(|entry| (entry.build)(self.table_of(entry.name)?).map(drop))
    }
}

/// The figures by which the best checkpoint can be chosen.
pub(crate) const DRIFT_FIGURES: [&str; 4] = ["t2i", "mmu", "t2i_to_mmu", "mmu_to_t2i"];

/// The reaction of the drift monitor to a regression or a gamed reward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RegressionAction {
    /// Log a warning.
    #[default]
    Warn,
    /// End the run.
    Stop,
    /// Restore the weights of the best step and reset the moments of AdamW; end the run after three rollbacks.
    Rollback,
}

/// Evaluation before, during and after training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalOptions {
    /// Prompts per category, before and after training; 0 disables the evaluation.
    pub prompts: usize,
    /// Prompts per batch.
    #[schemars(range(min = 1))]
    pub batch: usize,
    /// The seed of the evaluation, independent of `train.seed`.
    pub seed: u64,
    /// Images per prompt in the sample images of a run (`samples/`); 0 disables them.
    #[serde(alias = "pictures")]
    #[schemars(extend("x-former-names" = ["pictures"]))]
    pub samples_per_prompt: usize,
    /// The drift monitor evaluates a small fixed set of training prompts every this many steps; 0 disables it.
    pub every: u64,
    /// Prompts per category of the drift monitor.
    #[serde(alias = "every_prompts")]
    #[schemars(range(min = 1), extend("x-former-names" = ["every_prompts"]))]
    pub monitor_prompts: usize,
    /// The figure of the drift monitor by which the best checkpoint is kept: `t2i`, `mmu`, `t2i_to_mmu` or `mmu_to_t2i`.
    pub best: String,
    /// The reaction to a category whose T2I or MMU drops below the confidence interval of the base model, and to a gamed reward:
    /// more answers pass while the judge accepts fewer images.
    #[serde(alias = "guard")]
    #[schemars(extend("x-former-names" = ["guard"]))]
    pub on_regression: RegressionAction,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self {
            prompts: 100,
            batch: 100,
            seed: 2505,
            samples_per_prompt: 8,
            every: 0,
            monitor_prompts: 20,
            best: "t2i".into(),
            on_regression: RegressionAction::Warn,
        }
    }
}

/// When checkpoints are saved.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointOptions {
    /// Save a checkpoint every this many steps; 0 saves only the last. A killed run loses at most this many steps.
    pub every: u64,
    /// How many of the latest checkpoints are kept, in addition to the best; 0 keeps every one.
    pub keep: usize,
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        Self { every: 100, keep: 2 }
    }
}

const PRESETS: [(&str, &str); 3] = [
    ("tiles", include_str!("../../presets/tiles.toml")),
    ("tiles-split", include_str!("../../presets/tiles-split.toml")),
    ("paper", include_str!("../../presets/paper.toml")),
];

/// The settings of a preset. Errors name the nearest known preset.
pub fn preset(name: &str) -> Result<toml::Table> {
    let (_, text) = PRESETS
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| unknown_name("preset", name, &PRESETS.map(|(known, _)| known)))?;
    text.parse::<toml::Table>().context(|| format!("preset `{name}`"))
}

impl RunConfig {
    /// Reads the merged settings.
    pub fn from_table(mut table: toml::Table) -> Result<Self> {
        home::expand_table(&mut table);
        let config: Self = settings::read("", table)?;
        config.optimizer.check()?;
        config.benchmark.check()?;
        if !DRIFT_FIGURES.contains(&config.eval.best.as_str()) {
            return Err(unknown_name("figure in `eval.best`", &config.eval.best, &DRIFT_FIGURES));
        }
        Ok(config)
    }

    /// Builds the algorithm of the run from its options.
    ///
    /// Errors if the configuration has `reward.answer_rules` and the algorithm has no separate answer term.
    pub fn algorithm(&self, entry: &AlgorithmEntry) -> Result<Box<dyn Algorithm>> {
        if self.reward.answer_rules.is_some() && !entry.answer_rules {
            return Err(Error::usage(format!(
                "`reward.answer_rules` needs an optimizer with a separate answer term, got `{}`",
                entry.name
            ))
            .hint("use `--optimizer grpo-split`, or remove `reward.answer_rules`"));
        }
        (entry.build)(self.optimizer.table()?)
    }

    /// The settings as a table that [`Self::from_table`] reads.
    pub fn to_table(&self) -> Result<toml::Table> {
        toml::Table::try_from(self).context(|| "cannot write the configuration")
    }

    /// The settings as the text of a TOML file.
    pub fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context(|| "cannot write the configuration")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The paper optimizes sampled answers (eq. 5).
    #[test]
    fn preset_paper_samples_answers() {
        let config = RunConfig::from_table(preset("paper").unwrap()).unwrap();
        assert!((config.rollout.answers.temperature - 1.0).abs() < f64::EPSILON);
    }

    #[test]
    fn presets_are_valid() {
        for (name, _) in PRESETS {
            let config = RunConfig::from_table(preset(name).unwrap()).unwrap();
            let entry = crate::algorithms::find(&config.optimizer.name).unwrap();
            (entry.build)(config.optimizer.table().unwrap()).unwrap();
        }
    }

    #[test]
    fn former_keys_are_read_and_written_under_their_current_names() {
        let former = "[update]\nclip = 2.0\nwarmup = 3\nfinal_rate = 0.5\n[optimizer]\nname = 'grpo'\n\
                      grpo = { weight_temperature = 0.5, answer_coefficient = 0.25 }\n[train]\ntasks = 'a.jsonl'\n[rollout]\nprompts = 2\ngroup = 5\n[eval]\npictures = 3\nevery_prompts = 4\n\
                      guard = 'stop'";
        let config = RunConfig::from_table(former.parse().unwrap()).unwrap();
        let table = unirl_base::layers::flat(&config.to_table().unwrap());
        for (key, value) in [
            ("update.max_grad_norm", "2.0"),
            ("update.warmup_steps", "3"),
            ("update.min_lr_ratio", "0.5"),
            ("optimizer.grpo.reward_temperature", "0.5"),
            ("optimizer.grpo.answer_weight", "0.25"),
            ("train.prompts_file", "\"a.jsonl\""),
            ("rollout.prompts_per_step", "2"),
            ("rollout.group_size", "5"),
            ("eval.samples_per_prompt", "3"),
            ("eval.monitor_prompts", "4"),
            ("eval.on_regression", "\"stop\""),
        ] {
            assert_eq!(table[key].to_string(), value, "{key}");
        }
        assert!(refused("[rollout]\ngruop = 2").contains("did you mean `rollout.group_size`?"));
    }

    #[test]
    fn unknown_key_hint_is_nearest_full_key() {
        let table = "[train]\nstpes = 3".parse().unwrap();
        let error = RunConfig::from_table(table).unwrap_err();
        assert_eq!(error.message(), "unknown key `train.stpes`");
        assert_eq!(error.hints()[0], "did you mean `train.steps`?");
    }

    fn refused(text: &str) -> String {
        RunConfig::from_table(text.parse().unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn options_of_unchosen_algorithms_are_checked() {
        for (text, expected) in [
            ("name = \"grpo\"\nbeta = 99", "did you mean `optimizer.grpo.beta`?"),
            ("name = \"grpo-split\"\nbeta = 99", "did you mean `optimizer.grpo-split.beta`?"),
            ("name = \"grpo\"\nschedule = \"joint\"", "did you mean `optimizer.grpo-split.schedule`?"),
            ("name = \"grpo\"\ngpro.beta = 1", "unknown key `optimizer.gpro.beta`"),
            ("name = \"grpo\"\nsft.xyz = 1", "unknown key `optimizer.sft.xyz`"),
            ("name = \"grpo\"\nsft = 3", "`optimizer.sft`: expected a table, got `3`"),
            ("name = \"sft\"\ngrpo.image.beta = \"x\"", "`optimizer.grpo.image.beta`: expected a number"),
            (
                "name = \"sft\"\ngrpo.weighting = \"sum\"",
                "expected one of `softmax`, `advantage`, `reward`, got `sum`",
            ),
        ] {
            let message = refused(&format!("[optimizer]\n{text}"));
            assert!(message.contains(expected), "{text}: {message}");
        }
    }

    /// Values just outside the range of every numeric setting that affects training.
    #[test]
    fn value_out_of_range_is_refused() {
        for (key, values) in [
            ("train.steps", &["0", "-1"][..]),
            ("rollout.prompts_per_step", &["0"]),
            ("rollout.group_size", &["0"]),
            ("rollout.micro_batch", &["-1"]),
            ("rollout.images.guidance", &["-0.1", "nan"]),
            ("rollout.images.steps", &["0"]),
            ("rollout.images.temperature", &["-1e-9", "inf"]),
            ("rollout.answers.temperature", &["-1.0"]),
            ("rollout.answers.top_k", &["-1"]),
            ("rollout.answers.max_tokens", &["0"]),
            ("update.learning_rate", &["-1e-5", "nan", "inf"]),
            ("update.beta1", &["-0.1", "1.0", "2"]),
            ("update.beta2", &["-0.1", "1", "nan"]),
            ("update.epsilon", &["0", "-1e-8"]),
            ("update.weight_decay", &["-1"]),
            ("update.max_grad_norm", &["-1"]),
            ("update.warmup_steps", &["-1"]),
            ("update.min_lr_ratio", &["-3", "1.1"]),
            ("optimizer.grpo.beta", &["-5"]),
            ("optimizer.grpo.reward_temperature", &["0", "-1"]),
            ("optimizer.grpo.gumbel_temperature", &["0.0"]),
            ("optimizer.grpo.answer_weight", &["-1"]),
            ("optimizer.grpo.image.coefficient", &["-1"]),
            ("optimizer.grpo.image.beta", &["-1"]),
            ("optimizer.grpo.image.reveal_steps", &["-1"]),
            ("optimizer.grpo-split.reward_temperature", &["0"]),
            ("optimizer.grpo-split.beta", &["-1", "nan"]),
            ("optimizer.sft.gumbel_temperature", &["0"]),
            ("eval.prompts", &["-1"]),
            ("eval.batch", &["0"]),
            ("eval.monitor_prompts", &["0"]),
            ("checkpoint.keep", &["-1"]),
        ] {
            for value in values {
                let mut table: toml::Table = "[optimizer]\nname = \"grpo\"".parse().unwrap();
                unirl_base::layers::set(
                    &mut table,
                    &format!("{key}={value}"),
                    &unirl_base::schema::schema::<RunConfig>(),
                )
                .unwrap();
                let error = RunConfig::from_table(table).unwrap_err();
                assert!(
                    error.message().starts_with(&format!("`{key}`: expected a ")),
                    "{key}={value}: {error}"
                );
            }
        }
    }
}
