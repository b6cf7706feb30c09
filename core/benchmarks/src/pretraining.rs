//! Images with prompts and answers, from which a fresh model is pretrained.

use tch::Tensor;
use unirl::error::Result;
use unirl::prompt::Category;
use unirl_prompts::rng::Rng;

/// A question about an image with the correct answer.
#[derive(Debug)]
pub struct Question {
    /// The question.
    pub question: String,
    /// The correct answer about `image`.
    pub answer: String,
    /// `[3,H,W]` in `0..=1`.
    pub image: Tensor,
}

/// Rendered images with prompts and answers. Images are `[3,H,W]`, f32 in `0..=1`.
pub trait PretrainingData {
    /// Samples an image for the image tokenizer.
    fn image(&self, rng: &mut Rng) -> Tensor;

    /// Samples a prompt with its image. With probability `noise` the image shows a prompt that differs in one detail.
    fn captioned(&self, category: Category, noise: f64, rng: &mut Rng) -> Result<(String, Tensor)>;

    /// Samples a question about an image. With probability `mistakes` the image does not show the prompt of the question.
    fn question(&self, category: Category, mistakes: f64, rng: &mut Rng) -> Result<Question>;

    /// Returns the share of `reconstructed [B,3,H,W]` whose content is that of `images [B,3,H,W]`.
    fn same_content(&self, images: &Tensor, reconstructed: &Tensor) -> Result<f64>;
}
