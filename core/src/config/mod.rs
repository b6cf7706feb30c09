//! The configuration of a run: a TOML table of sections, each with defaults and no unknown keys.
//!
//! Later sources win: the defaults, a preset, `--config FILE`, `--set key=value`, the flags of the command line.

pub mod layers;

use std::ops::Range;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::algorithms;
use crate::error::{Context, Error, Result, unknown_name};
use crate::home;
use crate::model::{ImageSampling, TextSampling};
use crate::optim::UpdateOptions;
use crate::reward::WeightedReward;
use crate::settings;

/// Everything that decides a post-training run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RunConfig {
    /// Which model, from where.
    pub model: ModelOptions,
    /// How the run goes.
    pub train: TrainOptions,
    /// How images and answers are drawn.
    pub rollout: Rollout,
    /// What answers are worth.
    pub reward: RewardOptions,
    /// The algorithm, and a table of options for each by name.
    pub optimizer: OptimizerOptions,
    /// The weight update.
    pub update: UpdateOptions,
    /// How the model is evaluated before and after.
    pub eval: EvalOptions,
    /// When weights are written.
    pub checkpoint: CheckpointOptions,
}

/// Which model, from where.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelOptions {
    /// The plugin's name, or the path of its file.
    pub plugin: String,
    /// `builtin` or a folder in the family's own layout.
    pub checkpoint: String,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: String,
    /// Options of the plugin; `unirl schema --plugin NAME` shows them.
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

/// How the run goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainOptions {
    /// Updates of the weights.
    #[schemars(range(min = 1))]
    pub steps: u64,
    /// The seed of everything random.
    pub seed: u64,
    /// A JSONL file of tasks (`facts` a line) instead of generated ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<String>,
    /// Permutes the rewards over the batch: the control run that must learn nothing.
    pub shuffle_rewards: bool,
    /// Draws the pictures of `eval.pictures` every so many steps, by the settings of the evaluation; 0 never does.
    pub sample_every: u64,
    /// Only operations of libtorch that answer the same each time. On a CPU they do so in any case, and with the same number
    /// of threads.
    pub deterministic: bool,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            steps: 100,
            seed: 1,
            tasks: None,
            shuffle_rewards: false,
            sample_every: 20,
            deterministic: false,
        }
    }
}

/// How images and answers are drawn in training and evaluation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rollout {
    /// Prompts an iteration.
    #[schemars(range(min = 1))]
    pub prompts: usize,
    /// `G`, images a prompt.
    #[schemars(range(min = 1))]
    pub group: usize,
    /// Images that go through the model at once; 0 for all of an iteration. Fewer take less memory, and, where the
    /// gradient passes through images (`sft`, `grpo`), one more forward pass; the result is the same.
    pub micro_batch: usize,
    /// How images are drawn.
    pub images: ImageSampling,
    /// How answers are drawn.
    pub answers: TextSampling,
}

impl Rollout {
    /// The rows of a batch that go through the model at once, part by part.
    pub fn parts(&self, batch: usize) -> Vec<Range<usize>> {
        let size = if self.micro_batch == 0 { batch } else { self.micro_batch };
        (0..batch).step_by(size.max(1)).map(|first| first..(first + size).min(batch)).collect()
    }
}

impl Default for Rollout {
    fn default() -> Self {
        Self {
            prompts: 1,
            group: 3,
            micro_batch: 0,
            images: ImageSampling::default(),
            answers: TextSampling::default(),
        }
    }
}

/// What answers are worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RewardOptions {
    /// Rules with their weights; their scores are added.
    pub rules: Vec<WeightedReward>,
    /// Rules of the answer objective of `grpo-split`, where they are not `rules`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_rules: Option<Vec<WeightedReward>>,
}

impl Default for RewardOptions {
    fn default() -> Self {
        Self { rules: vec![WeightedReward::named("bound")], answer_rules: None }
    }
}

/// The algorithm and its options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("additionalProperties" = false))]
pub struct OptimizerOptions {
    /// `sft`, `grpo` or `grpo-split`.
    pub name: String,
    /// A table of options for each algorithm by name.
    #[serde(flatten)]
    #[schemars(schema_with = "algorithm_tables")]
    pub options: toml::Table,
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        Self { name: "grpo".into(), options: toml::Table::new() }
    }
}

/// A table of options for each algorithm.
fn algorithm_tables(generator: &mut SchemaGenerator) -> Schema {
    let mut tables = serde_json::Map::new();
    for entry in algorithms::all() {
        let mut schema = (entry.schema)(generator);
        // The generator keeps the definitions, and the whole has them.
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

    /// Reads the options of every algorithm, of those that are not chosen, too.
    fn check(&self) -> Result<()> {
        algorithms::all()
            .into_iter()
            .try_for_each(|entry| (entry.build)(self.table_of(entry.name)?).map(drop))
    }
}

/// The figures that a checkpoint can be chosen by.
pub(crate) const DRIFT_FIGURES: [&str; 4] = ["t2i", "mmu", "t2i_to_mmu", "mmu_to_t2i"];

/// What happens when a category falls by more than its interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RegressionAction {
    /// The log says so.
    #[default]
    Warn,
    /// The run ends there.
    Stop,
    /// The weights of the best step come back and the moments of the update are forgotten; after three times the run ends.
    Rollback,
}

/// How the model is evaluated before and after training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalOptions {
    /// Prompts a category; 0 does not evaluate.
    pub prompts: usize,
    /// Prompts at once.
    #[schemars(range(min = 1))]
    pub batch: usize,
    /// The seed of the evaluation, independent of the run's.
    pub seed: u64,
    /// In training, how often a prompt of each category is drawn for the pictures in `samples/`; 0 draws none.
    pub pictures: usize,
    /// In training, every so many steps a small fixed set of training tasks is judged; 0 never does.
    pub every: u64,
    /// How many tasks a category that set has.
    #[schemars(range(min = 1))]
    pub every_prompts: usize,
    /// By which figure of that set the best checkpoint is kept: `t2i`, `mmu`, `t2i_to_mmu` or `mmu_to_t2i`.
    pub best: String,
    /// What happens when drawing or reading of a category falls below the base's interval there.
    pub guard: RegressionAction,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self {
            prompts: 100,
            batch: 100,
            seed: 2505,
            pictures: 8,
            every: 0,
            every_prompts: 20,
            best: "t2i".into(),
            guard: RegressionAction::Warn,
        }
    }
}

/// When weights are written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointOptions {
    /// Every so many steps; 0 writes only the last. What a run was killed before costs at most so many steps.
    pub every: u64,
    /// How many of the last are kept, beside the best; 0 keeps all.
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

/// The table of a shipped preset.
pub fn preset(name: &str) -> Result<toml::Table> {
    let (_, text) = PRESETS
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| unknown_name("preset", name, &PRESETS.map(|(known, _)| known)))?;
    text.parse::<toml::Table>().context(|| format!("preset `{name}`"))
}

impl RunConfig {
    /// Reads a merged table.
    pub fn from_table(mut table: toml::Table) -> Result<Self> {
        home::expand_table(&mut table);
        let config: Self = settings::read("", table)?;
        config.optimizer.check()?;
        if !DRIFT_FIGURES.contains(&config.eval.best.as_str()) {
            return Err(unknown_name("figure in `eval.best`", &config.eval.best, &DRIFT_FIGURES));
        }
        Ok(config)
    }

    /// The settings as [`Self::from_table`] reads them.
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
    fn every_preset_is_a_valid_configuration() {
        for (name, _) in PRESETS {
            let config = RunConfig::from_table(preset(name).unwrap()).unwrap();
            let entry = crate::algorithms::find(&config.optimizer.name).unwrap();
            (entry.build)(config.optimizer.table().unwrap()).unwrap();
        }
    }

    #[test]
    fn an_unknown_key_names_the_nearest_full_key() {
        let table = "[train]\nstpes = 3".parse().unwrap();
        let error = RunConfig::from_table(table).unwrap_err();
        assert_eq!(error.message(), "unknown key `train.stpes`");
        assert_eq!(error.hints()[0], "did you mean `train.steps`?");
    }

    fn refused(text: &str) -> String {
        RunConfig::from_table(text.parse().unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn options_of_every_algorithm_are_checked() {
        for (text, expected) in [
            ("name = \"grpo\"\nbeta = 99", "did you mean `optimizer.grpo.beta`?"),
            ("name = \"grpo-split\"\nbeta = 99", "did you mean `optimizer.grpo-split.beta`?"),
            ("name = \"grpo\"\nschedule = \"joint\"", "did you mean `optimizer.grpo-split.schedule`?"),
            ("name = \"grpo\"\ngpro.beta = 1", "unknown key `optimizer.gpro.beta`"),
            ("name = \"grpo\"\nsft.xyz = 1", "unknown key `optimizer.sft.xyz`"),
            ("name = \"grpo\"\nsft = 3", "`optimizer.sft`: expected a table, got `3`"),
            ("name = \"sft\"\ngrpo.image.beta = \"x\"", "`optimizer.grpo.image.beta`: expected a number"),
            ("name = \"sft\"\ngrpo.weighting = \"sum\"", "expected one of `softmax`, `advantage`, got `sum`"),
        ] {
            let said = refused(&format!("[optimizer]\n{text}"));
            assert!(said.contains(expected), "{text}: {said}");
        }
    }

    /// Every setting of which a wrong value would train, with values just outside of its range.
    #[test]
    fn ranges_hold_for_every_setting() {
        for (key, values) in [
            ("train.steps", &["0", "-1"][..]),
            ("rollout.prompts", &["0"]),
            ("rollout.group", &["0"]),
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
            ("update.clip", &["-1"]),
            ("update.warmup", &["-1"]),
            ("update.final_rate", &["-3", "1.1"]),
            ("optimizer.grpo.beta", &["-5"]),
            ("optimizer.grpo.weight_temperature", &["0", "-1"]),
            ("optimizer.grpo.gumbel_temperature", &["0.0"]),
            ("optimizer.grpo.answer_coefficient", &["-1"]),
            ("optimizer.grpo.image.coefficient", &["-1"]),
            ("optimizer.grpo.image.beta", &["-1"]),
            ("optimizer.grpo.image.reveal_steps", &["-1"]),
            ("optimizer.grpo-split.weight_temperature", &["0"]),
            ("optimizer.grpo-split.beta", &["-1", "nan"]),
            ("optimizer.sft.gumbel_temperature", &["0"]),
            ("eval.prompts", &["-1"]),
            ("eval.batch", &["0"]),
            ("eval.every_prompts", &["0"]),
            ("checkpoint.keep", &["-1"]),
        ] {
            for value in values {
                let mut table: toml::Table = "[optimizer]\nname = \"grpo\"".parse().unwrap();
                crate::config::layers::set(&mut table, &format!("{key}={value}")).unwrap();
                let error = RunConfig::from_table(table).unwrap_err();
                assert!(
                    error.message().starts_with(&format!("`{key}`: expected a ")),
                    "{key}={value}: {error}"
                );
            }
        }
    }
}
