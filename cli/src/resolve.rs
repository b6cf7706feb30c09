//! The configuration of a run with every default written out, so that a later change of a default changes no recorded run.

use unirl::error::Result;
use unirl_base::schema::schema;
use unirl_base::settings;
use unirl_engine::config::RunConfig;
use unirl_engine::plugin::Plugins;
use unirl_engine::rewards::{ProcessOptions, WeightedReward};

use crate::load::RewardSource;

/// Writes out the defaults of the algorithm, of the model plugin and of each reward. An option whose default is "absent"
/// stays absent.
pub(crate) fn resolve(config: &mut RunConfig, plugins: &mut Plugins) -> Result<()> {
    config.optimizer.resolve()?;
    settings::fill_defaults(plugins.model_schema(&config.model.plugin)?, &mut config.model.options);
    let reward = &mut config.reward;
    for rule in reward.rules.iter_mut().chain(reward.answer_rules.iter_mut().flatten()) {
        resolve_reward(rule, plugins)?;
    }
    Ok(())
}

fn resolve_reward(rule: &mut WeightedReward, plugins: &mut Plugins) -> Result<()> {
    match RewardSource::of(&rule.name) {
        RewardSource::Program(_) => {
            settings::fill_defaults(&schema::<ProcessOptions>(), &mut rule.options);
        }
        RewardSource::Plugin(name) => {
            settings::fill_defaults(plugins.reward_schema(name)?, &mut rule.options);
        }
        RewardSource::RuleFile(_) => {}
    }
    Ok(())
}
