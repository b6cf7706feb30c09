//! The rewards of a run: the weighted sum of several ([`RewardSet`]), and rewards that are programs ([`ProcessReward`]).

mod process;
mod set;

pub use process::{PREFIX as PROCESS, ProcessOptions, ProcessReward, command};
pub use set::{RewardSet, WeightedReward};
