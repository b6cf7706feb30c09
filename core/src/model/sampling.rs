//! Sampling options for images and answers.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::BatchSlice;
use crate::error::{Error, Result};

/// Options of image generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ImageSampling {
    /// Classifier-free guidance in the convention of the family. Show-o: `(1+g)·cond − g·uncond`, unguided at 0. Janus:
    /// `uncond + g·(cond − uncond)`, unguided at 1.
    #[schemars(range(min = 0.0))]
    pub guidance: f64,
    /// Parallel decoding steps of a masked model; ignored by an autoregressive one.
    #[schemars(range(min = 1))]
    pub steps: i64,
    /// Sampling temperature, 1 as trained. For a masked model it scales the noise of the reveal order.
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// The only source of randomness.
    #[serde(skip_serializing_if = "is_zero")]
    pub seed: u64,
    /// The rows of a larger batch that this call generates; `None` for the whole batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub part: Option<BatchSlice>,
}

impl ImageSampling {
    /// Errors if there is no prompt or no decoding step.
    pub fn check(&self, prompts: usize) -> Result<()> {
        for (what, got) in [("prompts", prompts as i64), ("image decoding steps", self.steps)] {
            if got < 1 {
                return Err(Error::usage(format!("{what}: expected at least 1, got {got}")));
            }
        }
        Ok(())
    }
}

impl Default for ImageSampling {
    /// The setting of the paper for Show-o (§4.1): guidance 2, 16 steps.
    fn default() -> Self {
        Self { guidance: 2.0, steps: 16, temperature: 1.0, seed: 0, part: None }
    }
}

/// Options of answer sampling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TextSampling {
    /// 0 is greedy; 1 samples from the model's distribution.
    #[schemars(range(min = 0.0))]
    pub temperature: f64,
    /// Samples from the `top_k` most likely tokens; 0 samples from all.
    #[serde(skip_serializing_if = "is_zero_count")]
    #[schemars(range(min = 0))]
    pub top_k: i64,
    /// Maximum number of tokens of an answer, end token included.
    #[schemars(range(min = 1))]
    pub max_tokens: i64,
    /// The only source of randomness.
    #[serde(skip_serializing_if = "is_zero")]
    pub seed: u64,
    /// The rows of a larger batch that this call generates; `None` for the whole batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(skip)]
    pub part: Option<BatchSlice>,
}

impl TextSampling {
    /// Errors if `max_tokens` is below 1.
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

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(seed: &u64) -> bool {
    *seed == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero_count(count: &i64) -> bool {
    *count == 0
}
