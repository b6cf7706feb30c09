//! The guide: the method, and how to add a model or a reward of your own.
//!
//! | page | what |
//! |---|---|
//! | [`method`] | what is done, on one page |
//! | [`step`] | what happens in a step, with shapes |
//! | [`writing_a_model`] | from an empty folder to a model that trains |
//! | [`writing_a_reward`] | the same for a reward, as a file, as code, as a process |
//! | [`testing`] | what `unirl plugins check` and `unirl doctor` find out, and what to test yourself |
//! | [`publishing`] | how users get your plugin |
//! | [`abi_rules`] | what may change between your plugin and its host |

#[doc = include_str!("method.md")]
pub mod method {}

#[doc = include_str!("step.md")]
pub mod step {}

#[doc = include_str!("model.md")]
pub mod writing_a_model {}

#[doc = include_str!("reward.md")]
pub mod writing_a_reward {}

#[doc = include_str!("testing.md")]
pub mod testing {}

#[doc = include_str!("publishing.md")]
pub mod publishing {}

#[doc = include_str!("abi.md")]
pub mod abi_rules {}
