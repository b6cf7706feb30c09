//! Understanding: CLIP features or image tokens, a question and its answer.

use tch::{Kind, Tensor};
use unirl::Result;
use unirl::model::{Answers, Images, TextSampling, TokenLogp};
use unirl_layers::LayerNorm;
use unirl_layers::answering::{EmbeddedRows, Questions};
use unirl_layers::attention;
use unirl_layers::decoding::{self, GeneratedText};
use unirl_layers::vqgan::to_unit;

use super::Showo;
use crate::config::Special;
use crate::mask;
use crate::phi::{self, Phi};

/// Answers during generation.
pub type TextDecoding<'a> = decoding::TextDecoding<'a, phi::Layer, LayerNorm>;

impl Showo {
    /// Prefills images and tokenized questions, for answers of at most `max_tokens` tokens. Padding follows the question and is
    /// masked.
    pub fn prefill<'a>(
        &self,
        phi: &'a Phi,
        images: &Images,
        questions: &[Vec<i64>],
        max_tokens: i64,
    ) -> Result<TextDecoding<'a>> {
        let embed = |ids: &Tensor| self.embed_after_images(phi, images, ids);
        self.questions(questions).prefill(&phi.language, max_tokens, embed)
    }

    /// Generates answers to tokenized questions until each has emitted `stop`.
    pub fn generate_text(
        &self,
        images: &Images,
        questions: &[Vec<i64>],
        sampling: &TextSampling,
        stop: i64,
    ) -> Result<GeneratedText> {
        tch::no_grad(|| {
            let decoding = self.prefill(&self.phi, images, questions, sampling.max_tokens)?;
            decoding.generate(sampling, stop, self.special.pad)
        })
    }

    /// Log-probabilities of answers to tokenized questions.
    pub fn score_answers(
        &self,
        phi: &Phi,
        images: &Images,
        questions: &[Vec<i64>],
        answers: &Answers,
    ) -> Result<TokenLogp> {
        let embed = |ids: &Tensor| self.embed_after_images(phi, images, ids);
        self.questions(questions).score(&phi.language, answers, embed)
    }

    fn questions<'a>(&self, ids: &'a [Vec<i64>]) -> Questions<'a> {
        Questions { ids, before: self.prefix_len(), pad: self.special.pad }
    }

    /// Embeds images followed by the text `ids [B,L]`.
    fn embed_after_images(&self, phi: &Phi, images: &Images, ids: &Tensor) -> Result<EmbeddedRows> {
        let x = Tensor::cat(&[self.embed_images(phi, images)?, phi.language.embed(ids)], 1);
        let length = x.size()[1];
        let columns = Tensor::arange(length, (Kind::Int64, self.device));
        let visible = match &self.vision {
            Some(vision) => {
                let features = vision.encoder.config().patches();
                mask::mmu_clip(length, vision.system.len() as i64, features, self.device)
            }
            None => {
                mask::causal(length, 0, self.device).logical_or(&columns.lt(self.prefix_len())).unsqueeze(0)
            }
        };
        Ok(EmbeddedRows { x, positions: columns.unsqueeze(0), mask: attention::additive_mask(&visible) })
    }

    /// The number of rows before the question: `<mmu> <soi> image <eoi>`; with CLIP, the system prompt follows `<mmu>` and
    /// features replace the image tokens.
    pub(super) fn prefix_len(&self) -> i64 {
        match &self.vision {
            Some(vision) => vision.system.len() as i64 + vision.encoder.config().patches() + 3,
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

    /// Embeds the rows before the question: `[B,prefix_len,D]`. Relaxed images carry gradient.
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
                phi.embed_features(&vision.encoder.features(&self.pixels_for_understanding(images)))?
            }
            (None, Some(relaxed)) => phi.embed_relaxed_codes(relaxed),
            (None, None) => phi.language.embed(&(&images.tokens + image)),
        };
        before.push(soi);
        Ok(Tensor::cat(&[edge(&before), image, edge(&[eoi])], 1))
    }

    /// The input images of understanding, `[B,3,H,W]` in `0..=1`: the given pixels, or decoded tokens, with gradient if they are
    /// relaxed.
    pub(super) fn pixels_for_understanding(&self, images: &Images) -> Tensor {
        let decoded = match (&images.pixels, &images.relaxed) {
            (Some(pixels), _) => return pixels.to_device(self.device),
            (None, Some(relaxed)) => self.magvit.decode_relaxed(relaxed, self.config.grid()),
            (None, None) => self.magvit.decode(&images.tokens, self.config.grid()),
        };
        to_unit(&decoded)
    }
}
