//! The rewards `paper` (Table 2 of the paper), `bound` (the same points, with each keyword bound to its object) and `exact` (all
//! or nothing). Each is a rule file in `rules/`, which you can copy to start your own.

use unirl::Result;
use unirl::reward::RewardFunction;
use unirl_keywords::{RuleFile, ShippedOptions};

/// The rule file of `paper`.
pub const PAPER: &str = include_str!("../rules/paper.toml");
/// The rule file of `bound`.
pub const BOUND: &str = include_str!("../rules/bound.toml");
/// The rule file of `exact`.
pub const EXACT: &str = include_str!("../rules/exact.toml");

/// Builds the reward of a shipped rule file.
pub fn rules(text: &str, options: ShippedOptions) -> Result<Box<dyn RewardFunction>> {
    RuleFile::parse(text)?.build_with(options)
}

unirl::register_reward!("paper", ShippedOptions, |options| rules(PAPER, options));
unirl::register_reward!("bound", ShippedOptions, |options| rules(BOUND, options));
unirl::register_reward!("exact", ShippedOptions, |options| rules(EXACT, options));

#[cfg(feature = "dynamic")]
unirl::export_plugin!();

#[cfg(test)]
mod tests;
