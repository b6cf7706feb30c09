//! The SDK of unirl, for authors of plugins: a model, a reward or a detector for the post-training of unified multimodal models on
//! their own images (UniRL, arXiv 2505.23380) on libtorch.
//!
//! A plugin is a `cdylib` crate. It implements [`UnifiedModel`](model::UnifiedModel),
//! [`RewardFunction`](reward::RewardFunction) or [`Detector`](detector::Detector), registers the implementation under a name
//! with a macro, and ends with [`export_plugin!`]. A whole plugin, with the dependencies `unirl`, `serde` and `schemars`:
//!
//! ```no_run,standalone_crate
//! use schemars::JsonSchema;
//! use serde::Deserialize;
//! use unirl::prelude::*;
//!
//! /// Rewards short answers.
//! #[derive(Deserialize, JsonSchema)]
//! #[serde(default)]
//! struct Brief {
//!     /// The maximum number of words that earn the point.
//!     words: usize,
//! }
//!
//! impl Default for Brief {
//!     fn default() -> Self {
//!         Self { words: 5 }
//!     }
//! }
//!
//! impl RewardFunction for Brief {
//!     fn score(&self, samples: &[Sample], _pixels: Option<&Tensor>) -> Result<Vec<Reward>> {
//!         let score = |sample: &Sample| {
//!             let brief = sample.answer.split_whitespace().count() <= self.words;
//!             Reward::new(f64::from(u8::from(brief)), 1.0)
//!         };
//!         Ok(samples.iter().map(score).collect())
//!     }
//! }
//!
//! unirl::register_reward!("brief", Brief, |config| Ok(Box::new(config)));
//! unirl::export_plugin!();
//! # fn main() {}
//! ```
//!
//! `unirl plugins new NAME --kind model` writes a crate with a whole model, and `--kind reward` one with a reward;
//! `unirl plugins check FILE` checks what the library provides. The tests of the crate run the same checks through the crate
//! `unirl-testing`. The guides `own-model.md` and `own-reward.md` in `docs/guides/` lead through both.
//!
//! # What is where
//!
//! | to | use |
//! |---|---|
//! | import what most plugins need | [`prelude`] |
//! | write a model | [`model::UnifiedModel`], the types of its methods in [`model`] |
//! | load, initialize and save weights | [`weights::Store`], [`weights::Weights`], [`weights::write`] |
//! | sample tokens and score them | [`sampling::sample_tokens`], [`sampling::gather_logp`] |
//! | write a reward | [`reward::RewardFunction`]; a [`reward::Sample`] has the spec of its prompt, a [`prompt::PromptSpec`] |
//! | write a detector | [`detector::Detector`] |
//! | report an error | [`Error::usage`] for what a user can correct, [`Error::failure`] for the rest; [`error::Context`] adds what failed |
//! | register and export | [`register_model!`], [`register_reward!`], [`register_detector!`], [`export_plugin!`] |
//! | call libtorch | [`tch`]: use this one, because host and plugins share one libtorch |
//!
//! # Rules
//!
//! - All randomness comes from the `seed` of an argument. A reward and a detector have none.
//! - An object is used by one thread at a time. It may keep state, but the same call must return the same result.
//! - A panic becomes an error of the host. `tracing` events go to the log of the host.
//! - Shapes are in the documentation of each type; images are `[B,3,H,W]`, f32 in `0..=1`.

#[doc(hidden)]
pub mod abi;
pub mod detector;
pub mod model;
pub mod prompt;
pub mod reward;
pub mod sampling;
pub mod weights;

/// The error type: a message, its causes and hints.
pub mod error {
    pub use unirl_base::error::{Code, Context, Error, Result, nearest, unknown_name};
}

/// What most plugins import: `use unirl::prelude::*;`.
pub mod prelude {
    #[doc(no_inline)]
    pub use crate::detector::{Detection, Detector};
    #[doc(no_inline)]
    pub use crate::error::{Code, Context, Error, Result};
    #[doc(no_inline)]
    pub use crate::model::{
        Answers, BatchSlice, Checkpoint, Cost, Footprint, ImageDecoding, ImageLogits, ImageSampling,
        ImageSpace, Images, Masking, MemoryEstimate, Mode, ModelCard, ModelSource, Parameter, ParameterGroup,
        Policy, Scoring, TextSampling, TokenLogp, TrainableTokenizer, UnifiedModel, Workload,
    };
    #[doc(no_inline)]
    pub use crate::prompt::{Category, Object, PromptSpec, Relation};
    #[doc(no_inline)]
    pub use crate::reward::{Reward, RewardFunction, Sample};
    #[doc(no_inline)]
    pub use crate::weights::ReferencePolicy;
    #[doc(no_inline)]
    pub use tch::{self, Device, Kind, Tensor};
}

#[doc(no_inline)]
pub use error::{Error, Result};
/// The libtorch bindings. A plugin must use these, because host and plugins share one libtorch.
pub use tch;
#[doc(no_inline)]
pub use tch::Tensor;

/// For the exported macros only.
#[doc(hidden)]
pub use abi::export::private as __private;

/// The Rust code of the book.
#[cfg(doctest)]
#[doc = include_str!("../../docs/guides/own-reward.md")]
mod own_reward {}
