//! The configuration of a run: a TOML table of sections, each with defaults and no unknown keys.
//!
//! Later sources win: the defaults, a preset, `--config FILE`, `--set key=value`, the flags of the command line.

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Context, Error, Result, unknown_name};
use crate::home;
use crate::model::{ImageSampling, TextSampling};
use crate::reward::WeightedRule;
use crate::table::section;
use crate::update::UpdateOptions;

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
    pub prompts: usize,
    /// `G`, images a prompt.
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
    pub rules: Vec<WeightedRule>,
    /// Rules of the answer objective of `grpo-split`, where they are not `rules`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer_rules: Option<Vec<WeightedRule>>,
}

impl Default for RewardOptions {
    fn default() -> Self {
        Self { rules: vec![WeightedRule::named("bound")], answer_rules: None }
    }
}

/// The algorithm and its options.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct OptimizerOptions {
    /// `sft`, `grpo` or `grpo-split`.
    pub name: String,
    /// A table of options for each algorithm by name.
    #[serde(flatten)]
    #[schemars(with = "std::collections::BTreeMap<String, serde_json::Value>")]
    pub options: toml::Table,
}

impl Default for OptimizerOptions {
    fn default() -> Self {
        Self { name: "grpo".into(), options: toml::Table::new() }
    }
}

impl OptimizerOptions {
    /// The options of the chosen algorithm.
    pub fn table(&self) -> Result<toml::Table> {
        match self.options.get(&self.name) {
            None => Ok(toml::Table::new()),
            Some(toml::Value::Table(table)) => Ok(table.clone()),
            Some(other) => Err(Error::usage(format!(
                "`optimizer.{}`: expected a table of options, got a {}",
                self.name,
                other.type_str()
            ))),
        }
    }
}

/// The figures that a checkpoint can be chosen by.
pub(crate) const GUARD_FIGURES: [&str; 4] = ["t2i", "mmu", "t2i_to_mmu", "mmu_to_t2i"];

/// What happens when a category falls by more than its interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuardAction {
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
    pub batch: usize,
    /// The seed of the evaluation, independent of the run's.
    pub seed: u64,
    /// In training, how often a prompt of each category is drawn for the pictures in `samples/`; 0 draws none.
    pub pictures: usize,
    /// In training, every so many steps a small fixed set of training tasks is judged; 0 never does.
    pub every: u64,
    /// How many tasks a category that set has.
    pub every_prompts: usize,
    /// By which figure of that set the best checkpoint is kept: `t2i`, `mmu`, `t2i_to_mmu` or `mmu_to_t2i`.
    pub best: String,
    /// What happens when drawing or reading of a category falls below the base's interval there.
    pub guard: GuardAction,
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
            guard: GuardAction::Warn,
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
    ("tiles", include_str!("../presets/tiles.toml")),
    ("tiles-split", include_str!("../presets/tiles-split.toml")),
    ("paper", include_str!("../presets/paper.toml")),
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
    /// Reads a merged table section by section, so that an error names its section.
    pub fn from_table(mut table: toml::Table) -> Result<Self> {
        home::expand_table(&mut table);
        let mut config = Self::default();
        for (name, value) in table {
            match name.as_str() {
                "model" => config.model = section(&name, value)?,
                "train" => config.train = section(&name, value)?,
                "rollout" => config.rollout = rollout(value)?,
                "reward" => config.reward = section(&name, value)?,
                "optimizer" => config.optimizer = section(&name, value)?,
                "update" => config.update = section(&name, value)?,
                "eval" => config.eval = section(&name, value)?,
                "checkpoint" => config.checkpoint = section(&name, value)?,
                _ => {
                    let known =
                        ["model", "train", "rollout", "reward", "optimizer", "update", "eval", "checkpoint"];
                    return Err(unknown_name("configuration section", &name, &known));
                }
            }
        }
        config.check()?;
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

    fn check(&self) -> Result<()> {
        let at_least_one = |name: &str, value: u64| {
            if value >= 1 {
                return Ok(());
            }
            Err(Error::usage(format!("`{name}`: expected at least 1, got {value}")))
        };
        at_least_one("train.steps", self.train.steps)?;
        at_least_one("rollout.prompts", self.rollout.prompts as u64)?;
        at_least_one("rollout.group", self.rollout.group as u64)?;
        at_least_one("eval.batch", self.eval.batch as u64)?;
        at_least_one("rollout.images.steps", self.rollout.images.steps.max(0) as u64)?;
        at_least_one("rollout.answers.max_tokens", self.rollout.answers.max_tokens.max(0) as u64)?;
        if !GUARD_FIGURES.contains(&self.eval.best.as_str()) {
            return Err(unknown_name("figure in `eval.best`", &self.eval.best, &GUARD_FIGURES));
        }
        if self.eval.every > 0 {
            at_least_one("eval.every_prompts", self.eval.every_prompts as u64)?;
        }
        if self.rollout.answers.top_k < 0 {
            let got = self.rollout.answers.top_k;
            return Err(Error::usage(format!("`rollout.answers.top_k`: expected at least 0, got {got}")));
        }
        for (name, value) in [
            ("update.learning_rate", self.update.learning_rate),
            ("rollout.images.guidance", self.rollout.images.guidance),
            ("rollout.images.temperature", self.rollout.images.temperature),
            ("rollout.answers.temperature", self.rollout.answers.temperature),
        ] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::usage(format!("`{name}`: expected a number of at least 0, got {value}")));
            }
        }
        Ok(())
    }
}

/// The nested tables are read one by one, so that an error names the inner one.
fn rollout(value: toml::Value) -> Result<Rollout> {
    if let toml::Value::Table(table) = &value {
        if let Some(images) = table.get("images") {
            section::<ImageSampling>("rollout.images", images.clone())?;
        }
        if let Some(answers) = table.get("answers") {
            section::<TextSampling>("rollout.answers", answers.clone())?;
        }
    }
    section("rollout", value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_is_a_valid_configuration() {
        for (name, _) in PRESETS {
            let config = RunConfig::from_table(preset(name).unwrap()).unwrap();
            let entry = crate::optimizer::find(&config.optimizer.name).unwrap();
            (entry.build)(config.optimizer.table().unwrap()).unwrap();
        }
    }

    #[test]
    fn a_wrong_key_names_its_section_and_the_nearest_key() {
        let table = "[train]\nstpes = 3".parse().unwrap();
        let error = RunConfig::from_table(table).unwrap_err();
        assert_eq!(error.message(), "unknown configuration key `stpes` in `train`");
        assert_eq!(error.hints()[0], "did you mean `steps`?");
    }
}
