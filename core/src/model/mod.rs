//! What the optimizers need of a unified multimodal model, and nothing of how a family does it.
//!
//! Shapes: `B` batch, `N` image tokens, `K` codes of the image codebook, `T` answer tokens, `H`×`W` pixels.

mod batch;
mod card;
mod footprint;
mod masking;
mod sampling;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

use crate::error::{Code, Error, Result};

pub use batch::{Answers, BatchSlice, Images};
pub use card::{ImageDecoding, ImageSpace, ModelCard};
pub use footprint::{Cost, Footprint, Workload};
pub use masking::{ImageLogits, Masking, Scoring, TokenLogp};
pub use sampling::{ImageSampling, TextSampling};

/// Which task a parameter serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterGroup {
    /// Drawing and answering.
    Shared,
    /// Drawing alone.
    Generation,
    /// Answering alone.
    Understanding,
    /// The image tokenizer: learned in pretraining, frozen in post-training.
    Tokenizer,
}

/// A named leaf tensor. The tensor shares its storage and its gradient with the model.
#[derive(Debug)]
pub struct Parameter {
    /// The name in the family's own checkpoint.
    pub name: String,
    /// The leaf itself.
    pub tensor: Tensor,
    /// Which task it serves.
    pub group: ParameterGroup,
}

/// Training or evaluation behaviour of layers that know the difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Dropout and the like are active.
    Train,
    /// Deterministic.
    Eval,
}

/// Which weights score a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The weights being trained; the result carries gradient.
    Current,
    /// The weights remembered by [`UnifiedModel::freeze_reference`]; no gradient.
    Reference,
}

impl Policy {
    /// Runs `work` on what this policy names of a model; the reference leaves no gradient.
    pub fn run<T, R>(
        self,
        current: &T,
        reference: Option<&T>,
        work: impl FnOnce(&T) -> Result<R>,
    ) -> Result<R> {
        match (self, reference) {
            (Self::Current, _) => work(current),
            (Self::Reference, Some(reference)) => tch::no_grad(|| work(reference)),
            (Self::Reference, None) => {
                Err(Error::failure("there is no reference policy yet").hint("call `freeze_reference` first"))
            }
        }
    }
}

/// Where a model's weights come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checkpoint {
    /// The small one that the plugin carries.
    Builtin,
    /// A folder in the family's own layout.
    Folder(PathBuf),
    /// None: random weights, in the sizes that the plugin's configuration names.
    Fresh,
}

/// What a plugin needs to construct a model, besides its own configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSource {
    /// Where the weights come from.
    pub checkpoint: Checkpoint,
    /// Where the weights lie and the work is done.
    pub device: Device,
    /// Seed of fresh weights.
    pub seed: u64,
    /// Sizes alone are asked for: the model reads no weights and answers `card` and `footprint`, and no other method is
    /// called.
    pub dry: bool,
}

/// One network that draws an image from a prompt and answers questions about an image.
///
/// A plugin author implements this trait; the host calls it. One object is used by one thread at a time. All randomness
/// comes from the `seed` of an argument: the same call on the same weights and device answers the same.
pub trait UnifiedModel: Send {
    /// What the model is.
    fn card(&self) -> &ModelCard;

    /// Every weight, in a fixed order. The tensors are leaves that share storage and `.grad` with the model.
    fn parameters(&self) -> Result<Vec<Parameter>>;

    /// Switches layers that behave differently in training. A model without such leaves this as it is.
    fn set_mode(&mut self, _mode: Mode) -> Result<()> {
        Ok(())
    }

    /// Remembers the weights of now as [`Policy::Reference`].
    fn freeze_reference(&mut self) -> Result<()>;

    /// Reckons the memory that a workload takes, without doing it. A model that cannot say leaves this as it is.
    fn footprint(&self, _workload: &Workload) -> Result<Footprint> {
        Err(Error::new(Code::Unsupported, format!("model `{}` does not reckon its memory", self.card().name)))
    }

    /// Draws one image a prompt, without gradient. A masked model fills `revealed_at`.
    fn generate(&mut self, prompts: &[String], sampling: &ImageSampling) -> Result<Images>;

    /// Answers `questions[i]` about image `i`, without gradient.
    fn answer(&mut self, images: &Images, questions: &[String], sampling: &TextSampling) -> Result<Answers>;

    /// The tokens of answers given as text, end token included: what supervised training needs.
    fn encode_answers(&self, texts: &[String]) -> Result<Answers>;

    /// Feeds images back with their prompts and returns logits `[B,N,K]`, with gradient for [`Policy::Current`].
    fn image_logits(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        replay: &Masking,
    ) -> Result<ImageLogits>;

    /// `log p(token | prompt)` of the image's own tokens, each in the state that `replay` names, with gradient for
    /// [`Policy::Current`]: `[B,N]`, of the targets alone. What [`Self::image_logits`] says of them, and a model that leaves this
    /// as it is answers by that; one with many codes makes logits of a few tokens at a time here.
    fn image_logp(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        replay: &Masking,
    ) -> Result<TokenLogp> {
        Ok(self.image_logits(prompts, images, policy, replay)?.logp(&images.tokens))
    }

    /// `log p(answer | image, question)` a token, with gradient for [`Policy::Current`]. Where `image_space` is
    /// [`ImageSpace::Shared`] and `images.relaxed` is set, the gradient reaches it.
    fn answer_logp(
        &self,
        images: &Images,
        questions: &[String],
        answers: &Answers,
        policy: Policy,
    ) -> Result<TokenLogp>;

    /// Decodes to `[B,3,H,W]` f32 in `0..=1`, without gradient.
    fn pixels(&self, images: &Images) -> Result<Tensor>;

    /// Encodes `[B,3,H,W]` f32 in `0..=1`, without gradient.
    fn encode(&self, pixels: &Tensor) -> Result<Images>;

    /// The loss that teaches the image tokenizer to reproduce `[B,3,H,W]` pixels: a scalar with gradient to the
    /// parameters of [`ParameterGroup::Tokenizer`]. `progress` in `0..=1` says how far training is, for a quantiser
    /// that hardens on the way. A model without such parameters leaves this as it is.
    fn tokenizer_loss(&self, _pixels: &Tensor, _progress: f64) -> Result<Tensor> {
        Err(Error::new(
            Code::Unsupported,
            format!("the image tokenizer of `{}` does not learn", self.card().name),
        ))
    }

    /// Writes the family's own checkpoint layout into an existing, empty folder, from which the plugin loads it again.
    fn save(&self, dir: &Path) -> Result<()>;
}
