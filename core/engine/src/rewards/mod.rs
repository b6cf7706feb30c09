//! The rewards of a run: the weighted sum of several ([`RewardSet`]), and rewards that are programs ([`ProcessReward`]).

mod options;
mod process;
mod set;

pub use options::{Reader, RewardKind, RewardOptions, View};
pub use process::{PREFIX as PROCESS, ProcessOptions, ProcessReward, command};
pub use set::{RewardSet, WeightedReward};
