//! Detectors: what is where in a picture. A plugin's object, for judges that need eyes.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::error::{Error, Result};

/// An object that a detector found. Numbers are f32, as networks give them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// Its class, by name.
    pub class: String,
    /// How sure the detector is, in `0..=1`.
    pub score: f32,
    /// The edges `[x0, y0, x1, y1]` in pixels; x to the right, y down.
    #[serde(rename = "box")]
    pub bounds: [f32; 4],
    /// What a colour classifier says of it, where one was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
}

impl Detection {
    /// Refuses an empty class, a score outside of `0..=1`, and a box that is not finite or has its edges swapped.
    pub fn check(&self) -> Result<()> {
        if self.class.is_empty() {
            return Err(Error::usage("`class` is empty"));
        }
        if !(0.0..=1.0).contains(&self.score) {
            return Err(Error::usage(format!("`score`: expected a number in 0..=1, got {}", self.score)));
        }
        let [x0, y0, x1, y1] = self.bounds;
        if !(self.bounds.iter().all(|edge| edge.is_finite()) && x0 <= x1 && y0 <= y1) {
            return Err(Error::usage(format!(
                "`box`: expected finite [x0, y0, x1, y1] with x0 <= x1 and y0 <= y1, got {:?}",
                self.bounds
            )));
        }
        Ok(())
    }
}

/// Finds objects in pictures: the same picture always gives the same detections.
pub trait Detector: Send {
    /// For every picture of `pixels [B,3,H,W]`, f32 in `0..=1`, what is there, in any order.
    ///
    /// `classes` are the names that are asked for; others may be given, too. `colors` are the colours to choose from for
    /// [`Detection::color`]; where there are none no verdict is needed.
    fn detect(&self, pixels: &Tensor, classes: &[String], colors: &[String]) -> Result<Vec<Vec<Detection>>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfit_detections_are_refused() {
        let good = Detection { class: "dog".into(), score: 1.0, bounds: [0.0, 1.0, 0.0, 2.0], color: None };
        assert!(good.check().is_ok());
        for (bad, words) in [
            (Detection { class: String::new(), ..good.clone() }, "`class` is empty"),
            (Detection { score: 1.5, ..good.clone() }, "`score`: expected a number in 0..=1, got 1.5"),
            (Detection { score: f32::NAN, ..good.clone() }, "got NaN"),
            (Detection { bounds: [0.0, 0.0, f32::INFINITY, 1.0], ..good.clone() }, "`box`: expected finite"),
            (Detection { bounds: [5.0, 0.0, 4.0, 1.0], ..good.clone() }, "got [5.0, 0.0, 4.0, 1.0]"),
        ] {
            let error = bad.check().unwrap_err();
            assert!(error.message().contains(words), "{error}");
        }
    }
}
