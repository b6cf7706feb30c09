//! The host side: implements the traits for a component and validates what the plugin returns.

use std::cell::RefCell;
use std::collections::HashSet;
use std::path::Path;

use tch::{Kind, Tensor};
use unirl::abi::component::ComponentBox;
use unirl::abi::wire::{self, Message, op};
use unirl::detector::{Detection, Detector};
use unirl::error::{Code, Error, Result};
use unirl::model::{
    Answers, Footprint, ImageLogits, ImageSampling, Images, Masking, MemoryEstimate, Mode, ModelCard,
    Parameter, Policy, TextSampling, TokenLogp, TrainableTokenizer, UnifiedModel, Workload,
};
use unirl::reward::{Reward, RewardFunction, Sample};

/// A component and its name in errors. The cell is needed because some methods of the traits take `&self`.
struct Remote {
    label: String,
    component: RefCell<ComponentBox>,
}

impl Remote {
    fn new(label: String, component: ComponentBox) -> Self {
        Self { label, component: RefCell::new(component) }
    }

    /// Calls an operation; errors name the plugin and the operation.
    fn call<T>(&self, op: &str, args: Result<Message>, read: impl FnOnce(Message) -> Result<T>) -> Result<T> {
        let reply = args.and_then(|args| {
            let reply = self.component.borrow_mut().call(op.into(), args.pack());
            read(Message::unpack(reply.into_result()?)?)
        });
        reply.map_err(|error| error.context(format!("plugin `{}` failed in `{op}`", self.label)))
    }
}

/// A model in a plugin.
pub(crate) struct ForeignModel {
    remote: Remote,
    card: ModelCard,
}

impl ForeignModel {
    /// Wraps a model. Errors call it `label`: the plugin and, if its name differs, the entry.
    pub(crate) fn new(label: String, component: ComponentBox) -> Result<Self> {
        let remote = Remote::new(label, component);
        let card = remote.call(op::CARD, Ok(Message::default()), |reply| {
            let card = wire::read_card(reply)?;
            let sizes = [card.image_tokens, card.codebook_size, card.resolution];
            let good = sizes.iter().all(|size| *size > 0);
            check(good, || format!("`card`: expected positive sizes, got {sizes:?}"))?;
            Ok(card)
        })?;
        Ok(Self { remote, card })
    }

    fn check_images(&self, images: Images, batch: i64) -> Result<Images> {
        let (n, k) = (self.card.image_tokens, self.card.codebook_size);
        shape("images.tokens", &images.tokens, &[batch, n], Kind::Int64)?;
        within("images.tokens", &images.tokens, 0.0, (k - 1) as f64)?;
        if let Some(relaxed) = &images.relaxed {
            shape("images.relaxed", relaxed, &[batch, n, k], Kind::Float)?;
            finite("images.relaxed", relaxed)?;
        }
        if let Some(logp) = &images.logp {
            shape("images.logp", logp, &[batch, n], Kind::Float)?;
            finite("images.logp", logp)?;
        }
        if let Some(revealed_at) = &images.revealed_at {
            shape("images.revealed_at", revealed_at, &[batch, n], Kind::Int64)?;
        }
        if let Some(pixels) = &images.pixels {
            let size = pixels.size();
            let square = size.len() == 4 && size[0] == batch && size[1] == 3 && size[2] == size[3];
            check(square, || format!("`images.pixels`: expected [{batch},3,H,H], got {size:?}"))?;
            finite("images.pixels", pixels)?;
        }
        Ok(images)
    }
}

impl UnifiedModel for ForeignModel {
    fn card(&self) -> &ModelCard {
        &self.card
    }

    fn parameters(&self) -> Result<Vec<Parameter>> {
        self.remote.call(op::PARAMETERS, Ok(Message::default()), |reply| {
            let parameters = wire::read_parameters(reply)?;
            let mut names = HashSet::new();
            for Parameter { name, tensor, .. } in &parameters {
                check(names.insert(name), || format!("duplicate parameter `{name}`"))?;
                check(tensor.is_leaf(), || {
                    format!("parameter `{name}`: expected a leaf tensor, got a computed one")
                })?;
                let float = matches!(tensor.kind(), Kind::Float | Kind::BFloat16 | Kind::Half | Kind::Double);
                check(float, || {
                    format!("parameter `{name}`: expected a float type, got {:?}", tensor.kind())
                })?;
            }
            Ok(parameters)
        })
    }

    fn set_mode(&mut self, mode: Mode) -> Result<()> {
        self.remote.call(op::SET_MODE, wire::set_mode(mode), |_| Ok(()))
    }

    fn freeze_reference(&mut self) -> Result<()> {
        self.remote.call(op::FREEZE_REFERENCE, Ok(Message::default()), |_| Ok(()))
    }

    fn generate(&mut self, prompts: &[String], sampling: &ImageSampling) -> Result<Images> {
        let batch = prompts.len() as i64;
        self.remote.call(op::GENERATE, wire::generate(prompts, sampling), |reply| {
            self.check_images(wire::read_images(reply)?, batch)
        })
    }

    fn answer(&mut self, images: &Images, questions: &[String], sampling: &TextSampling) -> Result<Answers> {
        self.remote.call(op::ANSWER, wire::answer(images, questions, sampling), |reply| {
            check_answers(wire::read_answers(reply)?, questions.len())
        })
    }

    fn encode_answers(&self, texts: &[String]) -> Result<Answers> {
        self.remote.call(op::ENCODE_ANSWERS, wire::encode_answers(texts), |reply| {
            check_answers(wire::read_answers(reply)?, texts.len())
        })
    }

    fn image_logits(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        replay: &Masking,
    ) -> Result<ImageLogits> {
        self.remote.call(op::IMAGE_LOGITS, wire::image_logits(prompts, images, policy, replay), |reply| {
            let reply = wire::read_logits(reply)?;
            let (b, n, k) = (images.len(), self.card.image_tokens, self.card.codebook_size);
            shape("logits", &reply.logits, &[b, n, k], Kind::Float)?;
            shape("targets", &reply.targets, &[b, n], Kind::Bool)?;
            let not_targets = reply.targets.logical_not().unsqueeze(-1);
            finite("logits", &reply.logits.detach().masked_fill(&not_targets, 0.0))?;
            Ok(reply)
        })
    }

    /// Falls back to the logits for plugins from before this operation existed.
    fn image_logp(
        &self,
        prompts: &[String],
        images: &Images,
        policy: Policy,
        replay: &Masking,
    ) -> Result<TokenLogp> {
        let args = wire::image_logits(prompts, images, policy, replay);
        let scored = self.remote.call(op::IMAGE_LOGP, args, |reply| {
            check_logp(wire::read_logp(reply)?, &[images.len(), self.card.image_tokens])
        });
        match scored {
            Err(error) if error.code() == Code::Unsupported => {
                Ok(self.image_logits(prompts, images, policy, replay)?.logp(&images.tokens))
            }
            scored => scored,
        }
    }

    fn answer_logp(
        &self,
        images: &Images,
        questions: &[String],
        answers: &Answers,
        policy: Policy,
    ) -> Result<TokenLogp> {
        self.remote.call(op::ANSWER_LOGP, wire::answer_logp(images, questions, answers, policy), |reply| {
            check_logp(wire::read_logp(reply)?, &answers.tokens.size())
        })
    }

    fn pixels(&self, images: &Images) -> Result<Tensor> {
        self.remote.call(op::PIXELS, Ok(wire::images(images)), |reply| {
            let pixels = wire::read_pixels(reply)?;
            let side = self.card.resolution;
            shape("pixels", &pixels, &[images.len(), 3, side, side], Kind::Float)?;
            finite("pixels", &pixels)?;
            within("pixels", &pixels, 0.0, 1.0)?;
            Ok(pixels)
        })
    }

    fn encode(&self, pixels: &Tensor) -> Result<Images> {
        self.remote.call(op::ENCODE, Ok(wire::pixels(pixels)), |reply| {
            self.check_images(wire::read_images(reply)?, pixels.size().first().copied().unwrap_or(0))
        })
    }

    fn save(&self, dir: &Path) -> Result<()> {
        self.remote.call(op::SAVE, wire::save(dir), |_| Ok(()))
    }

    /// Always: only the plugin knows, and answers that it is not supported.
    fn memory_estimate(&self) -> Option<&dyn MemoryEstimate> {
        Some(self)
    }

    /// See [`Self::memory_estimate`].
    fn trainable_tokenizer(&self) -> Option<&dyn TrainableTokenizer> {
        Some(self)
    }
}

impl MemoryEstimate for ForeignModel {
    fn footprint(&self, workload: &Workload) -> Result<Footprint> {
        self.remote.call(op::FOOTPRINT, wire::footprint(workload), wire::read_memory)
    }
}

impl TrainableTokenizer for ForeignModel {
    fn tokenizer_loss(&self, pixels: &Tensor, progress: f64) -> Result<Tensor> {
        self.remote.call(op::TOKENIZER_LOSS, wire::tokenizer_loss(pixels, progress), |reply| {
            let loss = wire::read_loss(reply)?;
            shape("loss", &loss, &[], Kind::Float)?;
            finite("loss", &loss)?;
            Ok(loss)
        })
    }
}

/// A reward function in a plugin.
pub(crate) struct ForeignReward {
    remote: Remote,
    wants_pixels: bool,
}

impl ForeignReward {
    /// Like [`ForeignModel::new`]. Plugins from before rewards could see images do not want pixels.
    pub(crate) fn new(label: String, component: ComponentBox) -> Result<Self> {
        let remote = Remote::new(label, component);
        let wants = remote.call(op::WANTS_PIXELS, Ok(Message::default()), wire::read_wants_pixels);
        let wants_pixels = match wants {
            Err(error) if error.code() == Code::Unsupported => false,
            wants => wants?,
        };
        Ok(Self { remote, wants_pixels })
    }
}

impl RewardFunction for ForeignReward {
    fn wants_pixels(&self) -> bool {
        self.wants_pixels
    }

    fn score(&self, samples: &[Sample], pixels: Option<&Tensor>) -> Result<Vec<Reward>> {
        let pixels = pixels.filter(|_| self.wants_pixels);
        self.remote.call(op::SCORE, wire::score(samples, pixels), |reply| {
            let rewards = wire::read_rewards(reply)?;
            let (expected, got) = (samples.len(), rewards.len());
            check(expected == got, || format!("`rewards`: expected {expected}, got {got}"))?;
            for (index, reward) in rewards.iter().enumerate() {
                check(reward.max >= 0.0, || {
                    format!("`rewards[{index}].max`: expected a number of at least 0, got {}", reward.max)
                })?;
            }
            Ok(rewards)
        })
    }
}

/// A detector in a plugin.
pub(crate) struct ForeignDetector(Remote);

impl ForeignDetector {
    /// Like [`ForeignModel::new`].
    pub(crate) fn new(label: String, component: ComponentBox) -> Self {
        Self(Remote::new(label, component))
    }
}

impl Detector for ForeignDetector {
    fn detect(&self, pixels: &Tensor, classes: &[String], colors: &[String]) -> Result<Vec<Vec<Detection>>> {
        self.0.call(op::DETECT, wire::detect(pixels, classes, colors), |reply| {
            let detections = wire::read_detections(reply)?;
            let (expected, got) = (pixels.size().first().copied().unwrap_or(0) as usize, detections.len());
            check(expected == got, || format!("`detections`: expected {expected} images, got {got}"))?;
            for (image, found) in detections.iter().enumerate() {
                for (index, detection) in found.iter().enumerate() {
                    detection.check().map_err(|error| {
                        Error::failure(format!("`detections[{image}][{index}]`: {}", error.message()))
                    })?;
                }
            }
            Ok(detections)
        })
    }
}

fn check_logp(reply: TokenLogp, size: &[i64]) -> Result<TokenLogp> {
    shape("logp", &reply.logp, size, Kind::Float)?;
    shape("mask", &reply.mask, size, Kind::Bool)?;
    finite("logp", &reply.logp)?;
    Ok(reply)
}

fn check_answers(answers: Answers, batch: usize) -> Result<Answers> {
    let texts = answers.text.len();
    check(texts == batch, || format!("`text`: expected {batch} answers, got {texts}"))?;
    let length = answers.tokens.size().get(1).copied().unwrap_or(0);
    shape("answers.tokens", &answers.tokens, &[batch as i64, length], Kind::Int64)?;
    shape("answers.mask", &answers.mask, &[batch as i64, length], Kind::Bool)?;
    if let Some(logp) = &answers.logp {
        shape("answers.logp", logp, &[batch as i64, length], Kind::Float)?;
        finite("answers.logp", logp)?;
    }
    Ok(answers)
}

fn check(good: bool, message: impl FnOnce() -> String) -> Result<()> {
    if good { Ok(()) } else { Err(Error::failure(message())) }
}

fn shape(place: &str, tensor: &Tensor, size: &[i64], kind: Kind) -> Result<()> {
    let (got, got_kind) = (tensor.size(), tensor.kind());
    check(got == size && got_kind == kind, || {
        format!("`{place}`: expected {size:?} {}, got {got:?} {}", kind_name(kind), kind_name(got_kind))
    })
}

fn kind_name(kind: Kind) -> String {
    match kind {
        Kind::Int64 => "i64".into(),
        Kind::Int => "i32".into(),
        Kind::Float => "f32".into(),
        Kind::Double => "f64".into(),
        Kind::Half => "f16".into(),
        Kind::BFloat16 => "bf16".into(),
        Kind::Bool => "bool".into(),
        other => format!("{other:?}"),
    }
}

fn within(place: &str, tensor: &Tensor, low: f64, high: f64) -> Result<()> {
    if tensor.numel() == 0 {
        return Ok(());
    }
    let min = tensor.f_min()?.f_double_value(&[])?;
    let max = tensor.f_max()?.f_double_value(&[])?;
    check(min >= low && max <= high, || {
        format!("`{place}`: expected values in {low}..={high}, got {min}..={max}")
    })
}

fn finite(place: &str, tensor: &Tensor) -> Result<()> {
    let bad = tensor.detach().f_isfinite()?.f_logical_not()?.f_nonzero()?;
    let count = bad.size()[0];
    if count == 0 {
        return Ok(());
    }
    let first = if tensor.dim() == 0 { Vec::new() } else { Vec::<i64>::try_from(bad.get(0))? };
    let message =
        format!("`{place}`: expected finite values, got {count} NaN or infinite, the first at {first:?}");
    Err(Error::new(Code::NonFinite, message))
}

#[cfg(test)]
mod tests {
    use abi_stable::erased_types::TD_Opaque;
    use abi_stable::std_types::{RResult, RStr};
    use unirl::abi::adapt::unsupported;
    use unirl::abi::component::{Component, Component_TO, FfiError, FfiRecord};
    use unirl::abi::panic::catch_unwind_to_ffi_error;
    use unirl::model::{ImageDecoding, ImageSpace};

    use super::*;

    /// A model of a plugin without the operation `image_logp`: an image of two tokens with a codebook of three.
    struct OldModel;

    impl Component for OldModel {
        fn call(&mut self, op: RStr<'_>, _: FfiRecord) -> RResult<FfiRecord, FfiError> {
            catch_unwind_to_ffi_error(|| match op.as_str() {
                op::CARD => {
                    let sizes = [2, 3, 1];
                    let card = ModelCard::new("before", ImageSpace::Shared, ImageDecoding::Masked, sizes);
                    Ok(wire::card(&card)?.pack())
                }
                op::IMAGE_LOGITS => {
                    let logits = Tensor::from_slice(&[0.0f32, 0.0, 2.0, 1.0, 5.0, 1.0]).view([1, 2, 3]);
                    let targets = Tensor::from_slice(&[true, false]).view([1, 2]);
                    Ok(wire::logits(&ImageLogits { logits, targets }).pack())
                }
                op => Err(unsupported(op)),
            })
        }
    }

    #[test]
    fn image_logp_falls_back_to_logits_of_older_plugins() {
        let model =
            ForeignModel::new("before".into(), Component_TO::from_value(OldModel, TD_Opaque)).unwrap();
        let images = Images::from_tokens(Tensor::from_slice(&[2i64, 1]).view([1, 2]));
        let scored = model
            .image_logp(&["a".into()], &images, Policy::Current, &Masking::remask(1, None))
            .expect("computed from the logits");
        let logp: Vec<f64> = scored.logp.view([-1]).to_kind(Kind::Double).try_into().unwrap();
        // 2 − ln(1 + 1 + e²); the second token is not a target.
        assert!((logp[0] - (2.0 - (2.0 + f64::exp(2.0)).ln())).abs() < 1e-6, "{logp:?}");
        assert!(logp[1].abs() < f64::MIN_POSITIVE, "{logp:?}");
    }
}
