//! Reading: pictures or image tokens with a question behind them, and the answer.

use tch::{Kind, Tensor};
use unirl::Result;
use unirl::model::{Answers, Images, TextSampling, TokenLogp};
use unirl_layers::LayerNorm;
use unirl_layers::attention::{self, AttnMask};
use unirl_layers::decoder::StackInput;
use unirl_layers::decoding::{self, GeneratedText};
use unirl_layers::language::answered;
use unirl_text::padded;

use super::Showo;
use crate::config::Special;
use crate::mask;
use crate::phi::{self, Phi};

/// Answers under way.
pub type TextDecoding<'a> = decoding::TextDecoding<'a, phi::Layer, LayerNorm>;

impl Showo {
    /// Reads images and questions, given as ids, in one pass: padding stands behind a question, hidden from
    /// the answer, of at most `room` tokens.
    pub fn ask<'a>(
        &self,
        phi: &'a Phi,
        images: &Images,
        questions: &[Vec<i64>],
        room: i64,
    ) -> Result<TextDecoding<'a>> {
        let (ids, there) = padded(questions, self.special.pad, self.device);
        let (x, positions, mask) = self.understanding(phi, images, &ids)?;
        let image = Tensor::ones([images.len(), self.prefix()], (Kind::Bool, self.device));
        let rows =
            StackInput { x, positions: &positions, sees: AttnMask::Mask(&mask), past: None, read: None };
        TextDecoding::read(&phi.language, rows, &Tensor::cat(&[image, there], 1), room)
    }

    /// Writes answers to questions, given as ids, until each has emitted `stop`.
    pub fn write(
        &self,
        images: &Images,
        questions: &[Vec<i64>],
        sampling: &TextSampling,
        stop: i64,
    ) -> Result<GeneratedText> {
        tch::no_grad(|| {
            let answering = self.ask(&self.phi, images, questions, sampling.max_tokens)?;
            answering.write(sampling, stop, self.special.pad)
        })
    }

    /// Log-probabilities of answers to questions that are given as ids.
    pub fn score(
        &self,
        phi: &Phi,
        images: &Images,
        questions: &[Vec<i64>],
        answers: &Answers,
    ) -> Result<TokenLogp> {
        let (ids, _) = padded(&answered(questions, answers)?, self.special.pad, self.device);
        let (x, positions, mask) = self.understanding(phi, images, &ids)?;
        let ends: Vec<i64> =
            questions.iter().map(|question| self.prefix() + question.len() as i64 - 1).collect();
        let rows =
            StackInput { x, positions: &positions, sees: AttnMask::Mask(&mask), past: None, read: None };
        phi.language.score(rows, &ends, answers)
    }

    /// Images and the text `ids [B,L]` behind them as rows, with their positions and who sees whom.
    fn understanding(&self, phi: &Phi, images: &Images, ids: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let x = Tensor::cat(&[self.embed_images(phi, images)?, phi.language.embed(ids)], 1);
        let length = x.size()[1];
        let columns = Tensor::arange(length, (Kind::Int64, self.device));
        let visible = match &self.vision {
            Some(vision) => {
                let features = vision.tower.config().patches();
                mask::mmu_clip(length, vision.system.len() as i64, features, self.device)
            }
            None => mask::causal(length, 0, self.device).logical_or(&columns.lt(self.prefix())).unsqueeze(0),
        };
        Ok((x, columns.unsqueeze(0), attention::additive(&visible)))
    }

    /// Rows before the text of understanding: `<mmu> <soi> image <eoi>`, or with the system prompt behind `<mmu>` and
    /// features for the image.
    pub(super) fn prefix(&self) -> i64 {
        match &self.vision {
            Some(vision) => vision.system.len() as i64 + vision.tower.config().patches() + 3,
            None => self.card.image_tokens + 3,
        }
    }

    pub(super) fn question_ids(&self, questions: &[String]) -> Result<Vec<Vec<i64>>> {
        let ids = |question: &String| -> Result<Vec<i64>> {
            let text = self.config.question_template().replace("{question}", question);
            let ids = self.text.encode(&text)?;
            Ok(if self.vision.is_some() { ids } else { self.prompting.question(&ids) })
        };
        questions.iter().map(ids).collect()
    }

    /// The rows before the text, embedded: `[B,prefix,D]`. Relaxed images carry gradient.
    fn embed_images(&self, phi: &Phi, images: &Images) -> Result<Tensor> {
        let rows = images.len();
        let edge = |ids: &[i64]| {
            let ids = Tensor::from_slice(ids).to_device(self.device).unsqueeze(0);
            phi.language.embed(&ids.expand([rows, -1], false))
        };
        let Special { mmu, soi, eoi, image, .. } = self.special;
        let mut before = vec![mmu];
        let image = match (&self.vision, &images.relaxed) {
            (Some(vision), _) => {
                before.extend(&vision.system);
                phi.embed_features(&vision.tower.features(&self.seen(images)))?
            }
            (None, Some(relaxed)) => phi.embed_codes(relaxed),
            (None, None) => phi.language.embed(&(&images.tokens + image)),
        };
        before.push(soi);
        Ok(Tensor::cat(&[edge(&before), image, edge(&[eoi])], 1))
    }

    /// The pictures that understanding looks at, `[B,3,H,W]` in `0..=1`: those that were read, or drawings, decoded with
    /// gradient where they are relaxed.
    pub(super) fn seen(&self, images: &Images) -> Tensor {
        let decoded = match (&images.pixels, &images.relaxed) {
            (Some(pixels), _) => return pixels.to_device(self.device),
            (None, Some(relaxed)) => self.magvit.decode_relaxed(relaxed, self.config.grid()),
            (None, None) => self.magvit.decode(&images.tokens, self.config.grid()),
        };
        ((decoded + 1.0) / 2.0).clamp(0.0, 1.0)
    }
}
