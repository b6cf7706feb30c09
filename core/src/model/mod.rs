//! The interface between the algorithms and a unified multimodal model, independent of the model family.
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

pub use crate::sampling::BatchSlice;
pub use batch::{Answers, Images};
pub use card::{ImageDecoding, ImageSpace, ModelCard};
pub use footprint::{Cost, Footprint, MemoryEstimate, Workload};
pub use masking::{ImageLogits, Masking, Scoring, TokenLogp};
pub use sampling::{ImageSampling, TextSampling};

/// The task that a parameter serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParameterGroup {
    /// Generation and understanding.
    Shared,
    /// Generation only.
    Generation,
    /// Understanding only.
    Understanding,
    /// The image tokenizer: trained in pretraining, frozen in post-training.
    Tokenizer,
}

/// A named leaf tensor. The tensor shares its storage and its gradient with the model.
#[derive(Debug)]
pub struct Parameter {
    /// The name in the checkpoint layout of the family.
    pub name: String,
    /// The leaf tensor.
    pub tensor: Tensor,
    /// The task that it serves.
    pub group: ParameterGroup,
}

impl Parameter {
    /// Lists weights by name, as a [`Store`](crate::weights::Store) returns them, each in the group that `group` gives its name.
    pub fn list(weights: &[(String, Tensor)], group: impl Fn(&str) -> ParameterGroup) -> Vec<Self> {
        let parameter = |(name, tensor): &(String, Tensor)| Self {
            name: name.clone(),
            tensor: tensor.shallow_clone(),
            group: group(name),
        };
        weights.iter().map(parameter).collect()
    }
}

/// Training or evaluation mode, for layers such as dropout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Dropout and the like are active.
    Train,
    /// Deterministic.
    Eval,
}

/// The weights that score a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// The weights that are trained; the result carries gradient.
    Current,
    /// The copy made by [`UnifiedModel::freeze_reference`]; no gradient.
    Reference,
}

/// The source of the weights of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Checkpoint {
    /// The small checkpoint embedded in the plugin.
    Builtin,
    /// A directory in the checkpoint layout of the family.
    Folder(PathBuf),
    /// Random weights, in the sizes given by the configuration of the plugin.
    Fresh,
}

/// What a plugin needs to build a model, in addition to its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSource {
    /// The source of the weights.
    pub checkpoint: Checkpoint,
    /// The device of the weights and of the computation.
    pub device: Device,
    /// Seed of fresh weights.
    pub seed: u64,
    /// Builds the model without weights: only its card and its memory estimate are used.
    pub dry: bool,
}

/// A network that generates an image from a prompt and answers questions about an image.
///
/// A plugin author implements this trait; the host calls it. One object is used by one thread at a time. All randomness
/// comes from the `seed` of an argument: the same call on the same weights and device returns the same result.
///
/// The required methods are in the order in which a run first calls them: rollout, update, supervised training, checkpoint.
///
/// # Optional methods
///
/// - [`Self::set_mode`], for a model with layers such as dropout;
/// - [`Self::image_logp`], for a model with a large codebook;
/// - [`Self::memory_estimate`], with which unirl plans the memory of a run and the size of batches;
/// - [`Self::trainable_tokenizer`], for an image tokenizer that can be pretrained.
pub trait UnifiedModel: Send {
    /// Returns the properties of the model.
    fn card(&self) -> &ModelCard;

    /// Returns all weights in a fixed order. The tensors are leaves that share storage and `.grad` with the model.
    fn parameters(&self) -> Result<Vec<Parameter>>;

    /// Copies the current weights as [`Policy::Reference`]; [`ReferencePolicy`](crate::weights::ReferencePolicy) does so for a network.
    fn freeze_reference(&mut self) -> Result<()>;

    /// Generates one image per prompt, without gradient. A masked model fills `revealed_at`.
    fn generate(&mut self, prompts: &[String], sampling: &ImageSampling) -> Result<Images>;

    /// Answers `questions[i]` about image `i`, without gradient.
    fn answer(&mut self, images: &Images, questions: &[String], sampling: &TextSampling) -> Result<Answers>;

    /// Decodes to `[B,3,H,W]` f32 in `0..=1`, without gradient.
    fn pixels(&self, images: &Images) -> Result<Tensor>;

    /// Feeds images back with their prompts and returns logits `[B,N,K]`, with gradient for [`Policy::Current`].
    fn image_logits(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        masking: &Masking,
    ) -> Result<ImageLogits>;

    /// Returns `log p(answer | image, question)` per token, with gradient for [`Policy::Current`]. If `image_space` is
    /// [`ImageSpace::Shared`] and `images.relaxed` is set, the gradient reaches `images.relaxed`.
    fn answer_logp(
        &self,
        images: &Images,
        questions: &[String],
        answers: &Answers,
        policy: Policy,
    ) -> Result<TokenLogp>;

    /// Encodes `[B,3,H,W]` f32 in `0..=1`, without gradient.
    fn encode(&self, pixels: &Tensor) -> Result<Images>;

    /// Tokenizes answers given as text, end token included, for supervised training.
    fn encode_answers(&self, texts: &[String]) -> Result<Answers>;

    /// Writes a checkpoint in the layout of the family into an existing, empty directory.
    fn save(&self, dir: &Path) -> Result<()>;

    /// Switches layers that behave differently in training, such as dropout. The default does nothing.
    fn set_mode(&mut self, _mode: Mode) -> Result<()> {
        Ok(())
    }

    /// Returns `log p(token | prompt)` of the tokens of the images `[B,N]`, each in the state given by `masking`, with
    /// gradient for [`Policy::Current`]. Only the targets are scored. The default uses [`Self::image_logits`]; a model with
    /// a large codebook can override it to compute the logits of a few tokens at a time.
    fn image_logp(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        masking: &Masking,
    ) -> Result<TokenLogp> {
        Ok(self.image_logits(prompts, images, policy, masking)?.logp(&images.tokens))
    }

    /// Returns the model as one that estimates its memory; the default is `None`.
    fn memory_estimate(&self) -> Option<&dyn MemoryEstimate> {
        None
    }

    /// Returns the model as one whose image tokenizer can be trained; the default is `None`.
    fn trainable_tokenizer(&self) -> Option<&dyn TrainableTokenizer> {
        None
    }
}

/// A model whose image tokenizer can be trained.
pub trait TrainableTokenizer {
    /// Returns the reconstruction loss of the image tokenizer on `[B,3,H,W]` pixels: a scalar with gradient to the
    /// parameters of [`ParameterGroup::Tokenizer`]. `progress` in `0..=1` is the share of training that is done, for a
    /// quantizer that hardens during training.
    fn tokenizer_loss(&self, pixels: &Tensor, progress: f64) -> Result<Tensor>;
}

/// The host's calls of optional traits.
impl dyn UnifiedModel + '_ {
    /// Calls [`MemoryEstimate::footprint`]. Errors with [`Code::Unsupported`] if the model does not estimate its memory.
    #[doc(hidden)] // for the host
    pub fn footprint(&self, workload: &Workload) -> Result<Footprint> {
        let missing = || format!("model `{}` does not support memory estimation", self.card().name);
        let model = self.memory_estimate().ok_or_else(|| Error::new(Code::Unsupported, missing()))?;
        model.footprint(workload)
    }

    /// Calls [`TrainableTokenizer::tokenizer_loss`]. Errors with [`Code::Unsupported`] if the image tokenizer cannot be trained.
    #[doc(hidden)] // for the host
    pub fn tokenizer_loss(&self, pixels: &Tensor, progress: f64) -> Result<Tensor> {
        let missing = || format!("the image tokenizer of `{}` cannot be trained", self.card().name);
        let model = self.trainable_tokenizer().ok_or_else(|| Error::new(Code::Unsupported, missing()))?;
        model.tokenizer_loss(pixels, progress)
    }
}
