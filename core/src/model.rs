//! What the optimizers need of a unified multimodal model, and nothing of how a family does it.
//!
//! Shapes: `B` batch, `N` image tokens, `K` codes of the image codebook, `T` answer tokens, `H`×`W` pixels.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::error::{Code, Error, Result};
use crate::sampling::gather_logp;

/// Whether a model reads images through the same tokens that it draws (§3.5 of the paper).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageSpace {
    /// One token space for both, as Show-o: gradients of an answer reach the image tokens.
    Shared,
    /// Two representations, as Janus: only split objectives make sense.
    Decoupled,
}

/// How image tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageDecoding {
    /// In a few parallel steps, each revealing some tokens (MaskGIT).
    Masked,
    /// One after the other.
    Autoregressive,
}

/// What a model is, as far as the framework cares.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelCard {
    /// The family, e.g. `showo`.
    pub name: String,
    /// Whether images are read as they are drawn.
    pub image_space: ImageSpace,
    /// How images are drawn.
    pub image_decoding: ImageDecoding,
    /// `N`, tokens of an image.
    pub image_tokens: i64,
    /// `K`, codes an image token can take.
    pub codebook_size: i64,
    /// Height and width of an image in pixels.
    pub resolution: i64,
    /// Height and width of the pictures that [`UnifiedModel::encode`] is given, where it is not `resolution`.
    #[serde(rename = "reads_at", default, skip_serializing_if = "Option::is_none")]
    pub input_resolution: Option<i64>,
    /// The grey, of 255, around a picture that is read and not square; without one, its middle is read.
    #[serde(rename = "pads_with", default, skip_serializing_if = "Option::is_none")]
    pub pad_value: Option<u8>,
    /// How the checkpoint is meant to draw: what holds where the user says nothing.
    #[serde(default)]
    pub sampling: ImageSampling,
}

impl ModelCard {
    /// The card of a model that reads square images as large as it draws them, of `tokens` tokens among `codes` codes, and
    /// `resolution` pixels along an edge.
    pub fn new(
        name: &str,
        image_space: ImageSpace,
        image_decoding: ImageDecoding,
        [tokens, codes, resolution]: [i64; 3],
    ) -> Self {
        Self {
            name: name.into(),
            image_space,
            image_decoding,
            image_tokens: tokens,
            codebook_size: codes,
            resolution,
            input_resolution: None,
            pad_value: None,
            sampling: ImageSampling::default(),
        }
    }
}

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

/// The place of some rows in a larger batch. Random numbers are drawn for the whole batch, so that a batch in parts is
/// the batch in one, whatever the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchSlice {
    /// The first of the rows.
    pub first: i64,
    /// `B` of the whole batch.
    pub of: i64,
}

impl BatchSlice {
    /// Of `all`, which answers for a whole batch of the given size, the rows of a part of `rows` rows.
    pub fn rows(part: Option<Self>, rows: i64, all: impl FnOnce(i64) -> Tensor) -> Tensor {
        match part {
            None => all(rows),
            Some(Self { first, of }) => all(of).narrow(0, first, rows),
        }
    }
}

/// How images are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImageSampling {
    /// Classifier-free guidance in the family's own convention. Show-o: `(1+g)·cond − g·uncond`, unguided at 0. Janus:
    /// `uncond + g·(cond − uncond)`, unguided at 1.
    #[schemars(range(min = 0.0))]
    pub guidance: f64,
    /// Parallel decoding steps of a masked model; an autoregressive one ignores it.
    #[schemars(range(min = 1))]
    pub steps: i64,
    /// Temperature of the sampling, 1 as trained. For a masked model it scales the noise of the reveal order.
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// The only source of randomness.
    #[serde(skip_serializing_if = "is_zero")]
    pub seed: u64,
    /// Which rows of a larger batch these are; none for a whole one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub part: Option<BatchSlice>,
}

impl ImageSampling {
    /// Refuses to draw for no prompt, and in no step.
    pub fn check(&self, prompts: usize) -> Result<()> {
        for (what, got) in [("prompts", prompts as i64), ("drawing steps", self.steps)] {
            if got < 1 {
                return Err(Error::usage(format!("{what}: expected at least 1, got {got}")));
            }
        }
        Ok(())
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(seed: &u64) -> bool {
    *seed == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_none(count: &i64) -> bool {
    *count == 0
}

impl Default for ImageSampling {
    /// The paper's setting for Show-o (§4.1): guidance 2, 16 steps.
    fn default() -> Self {
        Self { guidance: 2.0, steps: 16, temperature: 1.0, seed: 0, part: None }
    }
}

/// How answers are drawn.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TextSampling {
    /// 0 is greedy; 1 samples from the model's distribution.
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// Samples among the most likely tokens, so many; 0 among all.
    #[serde(skip_serializing_if = "is_none")]
    #[schemars(range(min = 0))]
    pub top_k: i64,
    /// Most tokens of an answer, its end token counted.
    #[schemars(range(min = 1))]
    pub max_tokens: i64,
    /// The only source of randomness.
    #[serde(skip_serializing_if = "is_zero")]
    pub seed: u64,
    /// Which rows of a larger batch these are; none for a whole one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub part: Option<BatchSlice>,
}

impl TextSampling {
    /// Refuses answers of no token.
    pub fn check(&self) -> Result<()> {
        if self.max_tokens >= 1 {
            return Ok(());
        }
        Err(Error::usage(format!("answer tokens: expected at least 1, got {}", self.max_tokens)))
    }
}

impl Default for TextSampling {
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, max_tokens: 32, seed: 0, part: None }
    }
}

/// A batch of images as tokens.
#[derive(Debug)]
pub struct Images {
    /// `[B,N]` i64 in `0..K`.
    pub tokens: Tensor,
    /// `[B,N,K]` f32, one row a (relaxed) one-hot that carries gradient; its argmax is `tokens`.
    pub relaxed: Option<Tensor>,
    /// `[B,N]` i64: the decoding step at which a masked model settled the token.
    pub revealed_at: Option<Tensor>,
    /// `[B,3,H,W]` f32 in `0..=1`: the pictures as a model sees them that understands pixels.
    pub pixels: Option<Tensor>,
    /// `[B,N]` f32: what the drawing itself took for the log-probability of each token when it chose it, with guidance and at
    /// a temperature of 1. Scoring the image by the guided distribution has to find the same again.
    pub logp: Option<Tensor>,
}

impl Images {
    /// Images known by their tokens `[B,N]` alone.
    pub fn from_tokens(tokens: Tensor) -> Self {
        Self { tokens, relaxed: None, revealed_at: None, pixels: None, logp: None }
    }

    /// Refuses images that are not one each of the model's for so many `texts`, which are `what`, and none.
    pub fn check(&self, card: &ModelCard, what: &str, texts: usize) -> Result<()> {
        let (size, tokens) = (self.tokens.size(), card.image_tokens);
        let wrong = |what: String| Err(Error::usage(what));
        if texts == 0 {
            return wrong(format!("{what}: expected at least 1, got 0"));
        }
        if size != [texts as i64, tokens] || self.tokens.kind() != Kind::Int64 {
            let kind = self.tokens.kind();
            return wrong(format!(
                "expected images of shape [{texts},{tokens}], Int64, for {texts} {what}, got {size:?}, {kind:?}"
            ));
        }
        // A token beyond the table ends a process on a GPU.
        let [least, most] = [self.tokens.min(), self.tokens.max()].map(|token| token.int64_value(&[]));
        if least < 0 || most >= card.codebook_size {
            return wrong(format!("image tokens: expected 0..{}, got {least}..={most}", card.codebook_size));
        }
        Ok(())
    }

    /// `B`.
    pub fn len(&self) -> i64 {
        self.tokens.size()[0]
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All rows of `parts`, which have the same tensors, in order.
    pub fn cat(mut parts: Vec<Self>) -> Self {
        if parts.len() == 1 {
            return parts.remove(0);
        }
        let all = |of: fn(&Self) -> Option<&Tensor>| {
            let tensors: Option<Vec<&Tensor>> = parts.iter().map(of).collect();
            tensors.filter(|tensors| !tensors.is_empty()).map(|tensors| Tensor::cat(&tensors, 0))
        };
        Self {
            tokens: all(|part| Some(&part.tokens)).unwrap_or_default(),
            relaxed: all(|part| part.relaxed.as_ref()),
            revealed_at: all(|part| part.revealed_at.as_ref()),
            pixels: all(|part| part.pixels.as_ref()),
            logp: all(|part| part.logp.as_ref()),
        }
    }

    /// Rows `start..start + len` of every tensor.
    #[must_use]
    pub fn narrow(&self, start: i64, len: i64) -> Self {
        let rows = |tensor: &Tensor| tensor.narrow(0, start, len);
        Self {
            tokens: rows(&self.tokens),
            relaxed: self.relaxed.as_ref().map(rows),
            revealed_at: self.revealed_at.as_ref().map(rows),
            pixels: self.pixels.as_ref().map(rows),
            logp: self.logp.as_ref().map(rows),
        }
    }
}

/// A batch of answers, right-padded.
#[derive(Debug)]
pub struct Answers {
    /// The decoded texts, without special tokens and surrounding blanks.
    pub text: Vec<String>,
    /// `[B,T]` i64, the end token included.
    pub tokens: Tensor,
    /// `[B,T]` bool, true where there is a token.
    pub mask: Tensor,
    /// `[B,T]` f32, 0 where there is no token: what answering itself took for the log-probability of each token when it chose
    /// it, at a temperature of 1 and among all. [`UnifiedModel::answer_logp`] has to find the same again.
    pub logp: Option<Tensor>,
}

impl Answers {
    /// Answers that nobody has a log-probability of.
    pub fn new(text: Vec<String>, tokens: Tensor, mask: Tensor) -> Self {
        Self { text, tokens, mask, logp: None }
    }

    /// All rows of `parts` in order, as long as the longest.
    pub fn cat(mut parts: Vec<Self>) -> Self {
        if parts.len() == 1 {
            return parts.remove(0);
        }
        let length = parts.iter().filter_map(|part| part.tokens.size().get(1).copied()).max().unwrap_or(0);
        let all = |tensors: Vec<&Tensor>| {
            let padded = tensors.iter().map(|part| part.constant_pad_nd([0, length - part.size()[1]]));
            Tensor::cat(&padded.collect::<Vec<_>>(), 0)
        };
        let tokens = all(parts.iter().map(|part| &part.tokens).collect());
        let mask = all(parts.iter().map(|part| &part.mask).collect());
        let logp = parts.iter().map(|part| part.logp.as_ref()).collect::<Option<Vec<_>>>().map(all);
        Self { text: parts.into_iter().flat_map(|part| part.text).collect(), tokens, mask, logp }
    }

    /// Rows `start..start + len`.
    #[must_use]
    pub fn narrow(&self, start: i64, len: i64) -> Self {
        Self {
            text: self.text[start as usize..(start + len) as usize].to_vec(),
            tokens: self.tokens.narrow(0, start, len),
            mask: self.mask.narrow(0, start, len),
            logp: self.logp.as_ref().map(|logp| logp.narrow(0, start, len)),
        }
    }
}

/// Which distribution scores image tokens that guidance drew. Published work on reinforcement learning with guidance does
/// each of the three.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Scoring {
    /// The conditional one alone (T2I-R1). Half the arithmetic, and biased: these are not the probabilities with which the
    /// tokens were drawn, so a token that only guidance made likely counts as an unlikely one.
    #[default]
    Conditional,
    /// The guided one, with gradient to both branches (ReasonGen-R1). Unbiased where tokens are drawn at temperature 1. Its
    /// gradient can also be followed by spoiling what the model draws without a prompt.
    Guided,
    /// The guided one, with gradient to the conditional branch alone. The probabilities are right and the gradient is not:
    /// what the unconditional branch would have contributed is left out.
    GuidedDetached,
}

/// How drawn images are fed back to obtain logits (§3.3: "following the original T2I training process").
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Masking {
    /// Masked models hide a random part of the tokens: one mask ratio for the batch, one pattern an image, both from the
    /// seed. Targets are the hidden positions. Autoregressive models score every token behind those before it, and ignore
    /// the seed.
    Remask {
        /// The only source of randomness.
        seed: u64,
        /// Which rows of a larger batch these are; none for a whole one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        part: Option<BatchSlice>,
        /// The scored distribution.
        #[serde(default)]
        scoring: Scoring,
        /// Guidance of a guided one.
        #[serde(default)]
        guidance: f64,
    },
    /// Every token is scored in the state in which it was drawn: before the step that `revealed_at` names. Targets are the
    /// tokens revealed at one of `steps`. For an autoregressive model, which does so in any case, this is `Remask`.
    Reveal {
        /// Which decoding steps to replay, each in `0..steps` of the sampling.
        steps: Vec<i64>,
        /// The scored distribution.
        #[serde(default)]
        scoring: Scoring,
        /// Guidance of a guided one.
        guidance: f64,
    },
    /// Training on data instead of drawings: as `Remask`, with one mask ratio an image, and the prompt dropped for a tenth
    /// of the images, from which guidance learns its unconditional branch.
    Pretrain {
        /// The only source of randomness.
        seed: u64,
    },
}

impl Masking {
    /// [`Masking::Remask`] as in the paper: by the conditional distribution.
    pub fn remask(seed: u64, part: Option<BatchSlice>) -> Self {
        Self::Remask { seed, part, scoring: Scoring::Conditional, guidance: 0.0 }
    }

    /// The distribution that is scored, and the guidance of a guided one.
    pub fn scoring(&self) -> (Scoring, f64) {
        match self {
            Self::Remask { scoring, guidance, .. } | Self::Reveal { scoring, guidance, .. } => {
                (*scoring, *guidance)
            }
            Self::Pretrain { .. } => (Scoring::Conditional, 0.0),
        }
    }
}

/// Logits over the image codebook.
#[derive(Debug)]
pub struct ImageLogits {
    /// `[B,N,K]` f32.
    pub logits: Tensor,
    /// `[B,N]` bool: the positions that were to be predicted. Logits elsewhere mean nothing.
    pub targets: Tensor,
}

impl ImageLogits {
    /// The log-probabilities of image `tokens [B,N]`, of the targets alone.
    pub fn logp(self, tokens: &Tensor) -> TokenLogp {
        let logp = gather_logp(&self.logits, tokens);
        TokenLogp { logp: logp.where_self(&self.targets, &logp.zeros_like()), mask: self.targets }
    }
}

/// Log-probabilities of given tokens.
#[derive(Debug)]
pub struct TokenLogp {
    /// `[B,T]` f32, 0 where `mask` is false.
    pub logp: Tensor,
    /// `[B,T]` bool, true where there is a token.
    pub mask: Tensor,
}

/// What is asked of a model at once, for its [`Footprint`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// How images are drawn.
    pub images: ImageSampling,
    /// How answers are drawn.
    pub answers: TextSampling,
    /// States of an image that are scored together: reveal steps, or 1 for a re-masking.
    pub states: i64,
}

/// Memory of one kind of call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Bytes an image for keys and values.
    pub cache: i64,
    /// Bytes an image for everything else, what is kept for a gradient included.
    pub activations: i64,
}

/// The memory of a model in bytes, as its plugin reckons it from sizes alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Footprint {
    /// Values of all weights.
    pub values: i64,
    /// Bytes of all weights.
    pub weights: i64,
    /// Values of the weights that learn in post-training.
    pub trainable: i64,
    /// Bytes of these.
    pub trainable_weights: i64,
    /// Values of the largest of them: the update works tensor by tensor.
    pub largest: i64,
    /// Bytes that [`UnifiedModel::freeze_reference`] takes.
    pub reference: i64,
    /// [`UnifiedModel::generate`].
    pub generate: Cost,
    /// [`UnifiedModel::answer`].
    pub answer: Cost,
    /// [`UnifiedModel::image_logits`] or [`UnifiedModel::image_logp`] with gradient, whichever takes more.
    pub image_logits: Cost,
    /// [`UnifiedModel::answer_logp`] with gradient.
    pub answer_logp: Cost,
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
