//! Object detectors, which plugins provide and judges use.

use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::error::{Error, Result};

/// A detected object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    /// The name of its class.
    pub class: String,
    /// The confidence, in `0..=1`.
    pub score: f32,
    /// The box `[x0, y0, x1, y1]` in pixels; x to the right, y down.
    #[serde(rename = "box")]
    pub bounds: [f32; 4],
    /// The result of a colour classifier, if requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub color: Option<String>,
}

impl Detection {
    /// Errors if the class is empty, the score is outside `0..=1`, or the box is not finite or has swapped edges.
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

/// Detects objects in images. Must be deterministic: the same image gives the same detections.
pub trait Detector: Send {
    /// Returns the objects in each image of `pixels [B,3,H,W]`, f32 in `0..=1`, in any order.
    ///
    /// `classes` are the names of the requested classes; the result may contain others. [`Detection::color`] is one of `colors`;
    /// if `colors` is empty, no colour is needed.
    fn detect(&self, pixels: &Tensor, classes: &[String], colors: &[String]) -> Result<Vec<Vec<Detection>>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_detections_are_refused() {
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
