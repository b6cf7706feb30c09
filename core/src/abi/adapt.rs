//! The plugin side: implements [`Component`] for the author's object.

use std::panic::{self, AssertUnwindSafe};
use std::path::Path;

use abi_stable::erased_types::TD_Opaque;
use abi_stable::std_types::{RResult, RStr};

use super::component::{Component, Component_TO, ComponentBox, FfiError, FfiRecord};
use super::panic::catch_unwind_to_ffi_error;
use super::wire::{self, Message, op};
use crate::detector::Detector;
use crate::error::{Code, Error, Result};
use crate::model::{Policy, UnifiedModel};
use crate::reward::RewardFunction;

/// Dispatches operations to the methods of a trait.
trait Dispatch: Send {
    fn dispatch(&mut self, op: &str, args: Message) -> Result<Message>;
}

struct Adapter<T: Dispatch>(Option<T>);

impl<T: Dispatch> Component for Adapter<T> {
    fn call(&mut self, op: RStr<'_>, args: FfiRecord) -> RResult<FfiRecord, FfiError> {
        catch_unwind_to_ffi_error(|| {
            let object = self.0.as_mut().ok_or_else(|| Error::failure("used after it was dropped"))?;
            Ok(object.dispatch(op.as_str(), Message::unpack(args)?)?.pack())
        })
    }
}

impl<T: Dispatch> Drop for Adapter<T> {
    fn drop(&mut self) {
        let object = self.0.take();
        // A panic in the author's destructor is discarded.
        let _ = panic::catch_unwind(AssertUnwindSafe(|| drop(object)));
    }
}

/// Wraps a model.
pub(super) fn model(model: Box<dyn UnifiedModel>) -> ComponentBox {
    Component_TO::from_value(Adapter(Some(model)), TD_Opaque)
}

/// Wraps a reward function.
pub(super) fn reward(reward: Box<dyn RewardFunction>) -> ComponentBox {
    Component_TO::from_value(Adapter(Some(reward)), TD_Opaque)
}

/// Wraps a detector.
pub(super) fn detector(detector: Box<dyn Detector>) -> ComponentBox {
    Component_TO::from_value(Adapter(Some(detector)), TD_Opaque)
}

pub fn unsupported(op: &str) -> Error {
    Error::new(Code::Unsupported, format!("the plugin does not support operation `{op}`"))
        .hint("rebuild the plugin with the unirl release of the host")
}

impl Dispatch for Box<dyn UnifiedModel> {
    fn dispatch(&mut self, op: &str, args: Message) -> Result<Message> {
        // Enforces what the trait documents as "without gradient".
        let _no_grad = match op {
            op::PARAMETERS | op::IMAGE_LOGITS | op::IMAGE_LOGP | op::ANSWER_LOGP | op::TOKENIZER_LOSS => None,
            _ => Some(tch::no_grad_guard()),
        };
        match op {
            op::CARD => wire::card(self.card()),
            op::PARAMETERS => wire::parameters(&self.parameters()?),
            op::SET_MODE => done(self.set_mode(wire::read_set_mode(args)?)),
            op::FREEZE_REFERENCE => done(self.freeze_reference()),
            op::GENERATE => {
                let (prompts, sampling) = wire::read_generate(args)?;
                Ok(wire::images(&self.generate(&prompts, &sampling)?))
            }
            op::ANSWER => {
                let (images, questions, sampling) = wire::read_answer(args)?;
                wire::answers(&UnifiedModel::answer(&mut **self, &images, &questions, &sampling)?)
            }
            op::ENCODE_ANSWERS => wire::answers(&self.encode_answers(&wire::read_encode_answers(args)?)?),
            op::IMAGE_LOGITS => {
                let (prompts, images, policy, replay) = wire::read_image_logits(args)?;
                let _no_grad = (policy == Policy::Reference).then(tch::no_grad_guard);
                Ok(wire::logits(&self.image_logits(&prompts, &images, policy, &replay)?))
            }
            op::IMAGE_LOGP => {
                let (prompts, images, policy, replay) = wire::read_image_logits(args)?;
                let _no_grad = (policy == Policy::Reference).then(tch::no_grad_guard);
                Ok(wire::logp(&self.image_logp(&prompts, &images, policy, &replay)?))
            }
            op::ANSWER_LOGP => {
                let (images, questions, answers, policy) = wire::read_answer_logp(args)?;
                Ok(wire::logp(&self.answer_logp(&images, &questions, &answers, policy)?))
            }
            op::PIXELS => Ok(wire::pixels(&self.pixels(&wire::read_images(args)?)?)),
            op::ENCODE => Ok(wire::images(&self.encode(&wire::read_pixels(args)?)?)),
            op::TOKENIZER_LOSS => {
                let (pixels, progress) = wire::read_tokenizer_loss(args)?;
                Ok(wire::loss(&self.tokenizer_loss(&pixels, progress)?))
            }
            op::FOOTPRINT => wire::memory(&self.footprint(&wire::read_footprint(args)?)?),
            op::SAVE => done(self.save(Path::new(&wire::read_save(args)?))),
            _ => Err(unsupported(op)),
        }
    }
}

fn done(result: Result<()>) -> Result<Message> {
    result.map(|()| Message::default())
}

impl Dispatch for Box<dyn RewardFunction> {
    fn dispatch(&mut self, op: &str, args: Message) -> Result<Message> {
        match op {
            op::WANTS_PIXELS => wire::wants_pixels(self.wants_pixels()),
            op::SCORE => {
                let (samples, pixels) = wire::read_score(args)?;
                wire::rewards(&self.score(&samples, pixels.as_ref())?)
            }
            _ => Err(unsupported(op)),
        }
    }
}

impl Dispatch for Box<dyn Detector> {
    fn dispatch(&mut self, op: &str, args: Message) -> Result<Message> {
        let _no_grad = tch::no_grad_guard();
        match op {
            op::DETECT => {
                let (pixels, classes, colors) = wire::read_detect(args)?;
                wire::detections(&self.detect(&pixels, &classes, &colors)?)
            }
            _ => Err(unsupported(op)),
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Tensor;

    use super::*;
    use crate::reward::{Reward, Sample};

    struct NoReward;

    impl RewardFunction for NoReward {
        fn score(&self, _: &[Sample], _: Option<&Tensor>) -> Result<Vec<Reward>> {
            Ok(Vec::new())
        }
    }

    #[test]
    fn unknown_operation_returns_unsupported() {
        let mut component = reward(Box::new(NoReward));
        let result = component.call("dance".into(), Message::default().pack()).into_result();
        let error = Error::from(result.map(|_| ()).expect_err("unknown"));
        assert_eq!(
            (error.code(), error.message()),
            (Code::Unsupported, "the plugin does not support operation `dance`")
        );
    }
}
