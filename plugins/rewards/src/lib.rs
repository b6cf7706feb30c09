//! The reward rule sets `paper` (the paper's Table 2), `bound` (the same points, each only where it belongs) and `exact`
//! (all of it or nothing). Each is a file of `rules/`, to read, and to copy as the beginning of one's own.

use unirl::Result;
use unirl::reward::{RewardFunction, RuleFile, ShippedOptions};

/// The text of `paper`.
pub const PAPER: &str = include_str!("../rules/paper.toml");
/// The text of `bound`.
pub const BOUND: &str = include_str!("../rules/bound.toml");
/// The text of `exact`.
pub const EXACT: &str = include_str!("../rules/exact.toml");

/// The rules of a shipped text.
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
