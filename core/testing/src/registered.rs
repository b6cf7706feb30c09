//! The checks of `unirl plugins check`, and tests that run them on what a crate registers.

use std::path::Path;

use serde_json::{Value, json};
use tch::Device;
use unirl::error::{Code, Result};
use unirl::model::{Checkpoint, ModelSource, UnifiedModel};
use unirl::reward::RewardFunction;
use unirl_benchmarks::tiles::Tiles;
use unirl_benchmarks::{Benchmark as _, conformance_tasks};
use unirl_engine::algorithms::Rollout;
use unirl_engine::config::EvalOptions;
use unirl_engine::memory;
use unirl_engine::plugin::{registered_model, registered_reward};

use super::{Extent, Finding, Outcome, check_all_passed, examine, examine_reward, format_findings};

/// Constructs a model from its options and a source.
pub type MakeModel<'a> = dyn FnMut(&Value, &ModelSource) -> Result<Box<dyn UnifiedModel>> + 'a;

/// Constructs a reward from its options.
pub type MakeReward<'a> = dyn FnMut(&Value) -> Result<Box<dyn RewardFunction>> + 'a;

/// Runs every check of a model with the sampling options of its card, as `unirl plugins check` does. `make` constructs the model
/// again: with an unknown option, and from a checkpoint that the model saved, with `options`.
pub fn run_model_checks(
    model: &mut dyn UnifiedModel,
    options: &Value,
    device: Device,
    make: &mut MakeModel<'_>,
) -> Result<Vec<Finding>> {
    let source = |checkpoint, seed, dry| ModelSource { checkpoint, device, seed, dry };
    let mut findings =
        vec![unknown_option(|options| make(options, &source(Checkpoint::Fresh, 1, true)).map(drop))];
    let tasks = conformance_tasks(model.card(), 1, EvalOptions::default().seed)?;
    let rollout = Rollout { images: model.card().sampling.clone(), ..Rollout::default() };
    let mut load = |dir: &Path| make(options, &source(Checkpoint::Folder(dir.into()), 2, false));
    findings.extend(examine(model, &tasks, &rollout, Extent::Full, Some(&mut load)));
    Ok(findings)
}

/// Runs every check of a reward, as `unirl plugins check` does. `make` constructs it with `options`, and with an unknown option.
pub fn run_reward_checks(options: &Value, make: &mut MakeReward<'_>) -> Result<Vec<Finding>> {
    let mut findings = vec![unknown_option(|options| make(options).map(drop))];
    findings.extend(examine_reward(&*make(options)?, &Tiles.test_tasks(2, 1)?)?);
    Ok(findings)
}

/// Checks that an unknown option is refused.
fn unknown_option(make: impl FnOnce(&Value) -> Result<()>) -> Finding {
    let outcome = match make(&json!({ "surely_no_option": 1 })) {
        Err(error) if error.code() == Code::Usage => Outcome::Holds("an unknown option is refused".into()),
        Err(error) => Outcome::Fails(error.to_string()),
        Ok(()) => Outcome::Fails("an unknown option is accepted".into()),
    };
    Finding {
        name: "unknown options are refused",
        outcome,
        hint: "derive `JsonSchema` for the options, without `#[serde(flatten)]`, which accepts any key",
    }
}

/// Tests that models pass every check of `unirl plugins check`: expands to a `#[test]`.
///
/// The arguments are the names under which the crate registers the models with
/// [`register_model!`](unirl::register_model): a name identifies a model, a type does not. A model is constructed with its
/// default options from its embedded checkpoint, or with fresh weights if it has none, on the CPU; its calls cross the plugin
/// boundary, as in the host. A failure lists the findings with their hints.
///
/// One model can be given options, as in JSON: `check_model!("my-model", { "width": 32 })`. Use the macro once per module.
///
/// ```no_run
/// #[cfg(test)]
/// mod tests {
///     unirl_testing::check_model!("my-model");
/// }
/// ```
#[macro_export]
macro_rules! check_model {
    ($($name:literal),+ $(,)?) => {
        #[test]
        fn models_pass_the_conformance_checks() {
            $($crate::__private::test_model($name, &$crate::__private::json!({}));)+
        }
    };
    ($name:literal, { $($options:tt)* } $(,)?) => {
        #[test]
        fn models_pass_the_conformance_checks() {
            $crate::__private::test_model($name, &$crate::__private::json!({ $($options)* }));
        }
    };
}

/// Tests that rewards pass every check of `unirl plugins check`: expands to a `#[test]`.
///
/// The arguments are the names under which the crate registers the rewards with
/// [`register_reward!`](unirl::register_reward); the rest is as in [`check_model!`](crate::check_model!).
///
/// ```no_run
/// #[cfg(test)]
/// mod tests {
///     unirl_testing::check_reward!("my-reward");
/// }
/// ```
#[macro_export]
macro_rules! check_reward {
    ($($name:literal),+ $(,)?) => {
        #[test]
        fn rewards_pass_the_conformance_checks() {
            $($crate::__private::test_reward($name, &$crate::__private::json!({}));)+
        }
    };
    ($name:literal, { $($options:tt)* } $(,)?) => {
        #[test]
        fn rewards_pass_the_conformance_checks() {
            $crate::__private::test_reward($name, &$crate::__private::json!({ $($options)* }));
        }
    };
}

/// Runs every check of a registered model. Panics with the findings if one fails.
pub fn test_model(name: &str, options: &Value) {
    panic_on_failure("model", name, check_registered_model(name, options));
}

/// Runs every check of a registered reward. Panics with the findings if one fails.
pub fn test_reward(name: &str, options: &Value) {
    panic_on_failure(
        "reward",
        name,
        run_reward_checks(options, &mut |options| registered_reward(name, options)),
    );
}

fn check_registered_model(name: &str, options: &Value) -> Result<Vec<Finding>> {
    let device = Device::Cpu;
    let source = |checkpoint| ModelSource { checkpoint, device, seed: 1, dry: false };
    let mut model = registered_model(name, options, &source(Checkpoint::Builtin))
        .or_else(|_| registered_model(name, options, &source(Checkpoint::Fresh)))?;
    memory::tune_malloc(&*model);
    run_model_checks(&mut *model, options, device, &mut |options, source| {
        registered_model(name, options, source)
    })
}

fn panic_on_failure(kind: &str, name: &str, findings: Result<Vec<Finding>>) {
    let findings = findings.unwrap_or_else(|error| panic!("{kind} `{name}`: {error}"));
    if let Err(error) = check_all_passed(&findings) {
        panic!("{kind} `{name}`: {error}\n{}", format_findings(&findings));
    }
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;
    use serde::Deserialize;
    use serde_json::json;
    use unirl::prelude::*;

    use super::test_reward;

    /// Gives every sample the same points of 1.
    #[derive(Default, Deserialize, JsonSchema)]
    #[serde(default, deny_unknown_fields)]
    struct Constant {
        points: f64,
    }

    impl RewardFunction for Constant {
        fn score(&self, samples: &[Sample], _pixels: Option<&Tensor>) -> Result<Vec<Reward>> {
            Ok(samples.iter().map(|_| Reward::new(self.points, 1.0)).collect())
        }
    }

    unirl::register_reward!("constant", Constant, |config| Ok(Box::new(config)));

    crate::check_reward!("constant");

    mod with_options {
        crate::check_reward!("constant", { "points": 0.5 });
    }

    #[test]
    #[should_panic(expected = "FAILS    rewards are in 0..=max\n         score 2, max 1")]
    fn reward_that_fails_a_check_panics_with_the_findings() {
        test_reward("constant", &json!({ "points": 2.0 }));
    }

    #[test]
    #[should_panic(expected = "the plugin has no reward `constnat`")]
    fn name_that_is_not_registered_panics() {
        test_reward("constnat", &json!({}));
    }
}
