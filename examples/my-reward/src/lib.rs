//! A reward that uses pixels: the share of the image that is not background.
//!
//! ```text
//! cargo build --release -p my-reward
//! unirl --plugin showo --optimizer grpo --reward exact --reward my-reward
//! ```
//!
//! With options, in a configuration:
//!
//! ```toml
//! [reward]
//! rules = [{ name = "exact" }, { name = "my-reward", weight = 0.2, options = { most = 0.1 } }]
//! ```

use schemars::JsonSchema;
use serde::Deserialize;
use unirl::prelude::*;

/// The allowed share of covered pixels.
#[derive(Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct MyReward {
    /// The smallest allowed share of pixels that differ from the background.
    least: f64,
    /// The largest allowed share.
    most: f64,
}

impl Default for MyReward {
    /// One or two shapes in the sixteen tiles of the tiles benchmark.
    fn default() -> Self {
        Self { least: 0.01, most: 0.125 }
    }
}

impl MyReward {
    fn checked(self) -> Result<Box<dyn RewardFunction>> {
        if !(0.0 <= self.least && self.least < self.most && self.most <= 1.0) {
            return Err(Error::usage(format!(
                "`least` and `most`: expected 0 <= least < most <= 1, got {} and {}",
                self.least, self.most
            )));
        }
        Ok(Box::new(self))
    }

    fn reward(&self, sample: &Sample, covered: f64) -> Reward {
        if sample.spec.category == Category::Counting {
            return Reward::abstain("several objects need room");
        }
        let fits = (self.least..=self.most).contains(&covered);
        let why = format!("{:.1} % of the image is covered", covered * 100.0);
        Reward { why, ..Reward::new(if fits { 1.0 } else { 0.0 }, 1.0) }
    }
}

impl RewardFunction for MyReward {
    fn wants_pixels(&self) -> bool {
        true
    }

    fn score(&self, samples: &[Sample], pixels: Option<&Tensor>) -> Result<Vec<Reward>> {
        let pixels = pixels.ok_or_else(|| Error::failure("the pixels are missing"))?; // [B,3,H,W]
        let corner = pixels.narrow(2, 0, 1).narrow(3, 0, 1); // [B,3,1,1]
        let differs = (pixels - corner).abs().amax([1], false).gt(0.1); // [B,H,W]
        let covered = differs.to_kind(pixels.kind()).mean_dim([1_i64, 2].as_slice(), false, None); // [B]
        let covered = Vec::<f64>::try_from(covered)?;
        Ok(samples.iter().zip(covered).map(|(sample, covered)| self.reward(sample, covered)).collect())
    }
}

unirl::register_reward!("my-reward", MyReward, MyReward::checked);
unirl::export_plugin!();

#[cfg(test)]
mod tests {
    unirl_testing::check_reward!("my-reward");
}
