//! The memory plan of a run: what its parts take, and how many images go through the model at once on a device.

use std::fmt::Write as _;

use tch::Device;

use super::available;
use crate::algorithms::{self, Algorithm};
use crate::config::RunConfig;
use crate::error::Result;
use crate::model::{Cost, Footprint, UnifiedModel, Workload};
use crate::optim::VALUES_AT_ONCE;

/// What is left free of a device's memory, for fragmentation and whatever else runs there.
const HEADROOM: f64 = 0.05;

/// Gradients of the embedding table that are alive at once when a backward pass ends there: of drawing, of reading, of
/// the codes of relaxed images, and their sum.
const LOOK_UPS: i64 = 4;

/// A run's memory in bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryPlan {
    /// What stays from the first step on: name and bytes.
    pub held: Vec<(&'static str, i64)>,
    /// What comes and goes, for one image: name, keys and values, everything else.
    pub phases: Vec<(&'static str, Cost)>,
    /// The gradients of all weights that learn, and of the largest of them.
    pub gradients: (i64, i64),
    /// Whether there are gradients already when a pass begins, of another part or pass: those of this one then come beside
    /// them, as each waits for all uses of its weight.
    pub grads_accumulated: bool,
    /// What the update of the weights needs on the way.
    pub update: i64,
    /// Images of an iteration, and how many of them go through the model at once.
    pub images: i64,
    /// See `images`.
    pub micro_batch: i64,
    /// What the device has, where that is known.
    pub available: Option<i64>,
    /// Values of all weights, and of those that learn.
    pub values: (i64, i64),
}

impl MemoryPlan {
    /// The plan of training `model`, which may be a dry one.
    pub fn new(
        model: &dyn UnifiedModel,
        optimizer: &dyn Algorithm,
        config: &RunConfig,
        device: Device,
    ) -> Result<Self> {
        let rollout = &config.rollout;
        let footprint = |states: i64| -> Result<Footprint> {
            let (images, answers) = (rollout.images.clone(), rollout.answers.clone());
            model.footprint(&Workload { images, answers, states })
        };
        let of = footprint(1)?;
        let mut phases = vec![("drawing", of.generate), ("answering", of.answer)];
        let passes = algorithms::passes(optimizer.terms(), rollout, model.card());
        for pass in &passes {
            let mut cost = Cost::default();
            let mut add = |part: Cost| {
                cost.cache += part.cache;
                cost.activations += part.activations;
            };
            if pass.states > 0 {
                add(footprint(pass.states)?.image_logits);
            }
            if pass.answers {
                add(of.answer_logp);
            }
            phases.push((if pass.answers { "answer gradient" } else { "image gradient" }, cost));
        }
        // AdamW: two moments, and masters of weights that are not f32 themselves.
        let short = of.trainable_weights < of.trainable * 4;
        let copies = if short { 3 } else { 2 };
        let images = (rollout.prompts * rollout.group) as i64;
        let micro_batch = rollout.parts(images as usize).first().map_or(0, |rows| rows.len() as i64);
        let bytes = of.trainable_weights / of.trainable.max(1);
        Ok(Self {
            held: vec![
                ("weights", of.weights),
                ("gradients", of.trainable_weights),
                ("optimizer state", copies * 4 * of.trainable),
                ("reference policy", of.reference),
            ],
            phases,
            gradients: (of.trainable_weights, bytes * of.largest),
            grads_accumulated: micro_batch < images || passes.iter().any(|pass| pass.grads_accumulated),
            // Gradients of a shorter type in f32.
            update: if short { 4 * of.trainable.min(of.largest.max(VALUES_AT_ONCE as i64)) } else { 0 },
            images,
            micro_batch,
            available: available(device),
            values: (of.values, of.trainable),
        })
    }

    fn held(&self) -> i64 {
        self.held.iter().map(|(_, bytes)| bytes).sum()
    }

    fn per_image(&self) -> i64 {
        self.phases.iter().map(|(_, cost)| cost.cache + cost.activations).max().unwrap_or(0)
    }

    /// What is held while a pass with gradient runs.
    fn during_backward(&self) -> i64 {
        self.held() - if self.grads_accumulated { 0 } else { self.gradients.0 }
    }

    /// The most that is alive at once with so many images in the model. A pass has one summit where it turns round, with
    /// all activations and the first gradient, and one where it ends, with all gradients and no activations.
    pub fn peak(&self, micro_batch: i64) -> i64 {
        let (all, largest) = self.gradients;
        let turn = self.per_image() * micro_batch + largest;
        let end = all + LOOK_UPS * largest;
        (self.during_backward() + turn.max(end)).max(self.held() + self.update)
    }

    /// The most images that fit at once: 0 if not even one does, none if the device does not tell its memory.
    pub fn fitting(&self) -> Option<i64> {
        let room = (self.available? as f64 * (1.0 - HEADROOM)) as i64;
        if room < self.peak(1) {
            return Some(0);
        }
        let free = room - self.during_backward() - self.gradients.1;
        Some((free / self.per_image().max(1)).min(self.images))
    }

    /// The plan as a table for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let (all, learning) = self.values;
        let _ = writeln!(text, "{:<20}{:>16}", "weights", thousands(all));
        let _ = writeln!(text, "{:<20}{:>16}\n", "of these learn", thousands(learning));
        let _ = writeln!(text, "held throughout");
        for (name, bytes) in &self.held {
            let _ = writeln!(text, "  {name:<18}{:>16}", size(*bytes));
        }
        let _ = writeln!(text, "\n{:<20}{:>16}{:>16}", "for each image", "activations", "keys, values");
        for (name, cost) in &self.phases {
            let (activations, cache) = (size(cost.activations), size(cost.cache));
            let _ = writeln!(text, "  {name:<18}{activations:>16}{cache:>16}");
        }
        let _ = writeln!(text, "\nwhatever the batch");
        if self.grads_accumulated {
            let _ = writeln!(text, "  {:<18}{:>16}", "more gradients", size(self.gradients.0));
        }
        let _ = writeln!(text, "  {:<18}{:>16}", "end of backward", size(LOOK_UPS * self.gradients.1));
        let _ = writeln!(text, "  {:<18}{:>16}", "update", size(self.update));
        let _ = writeln!(text, "\n{:<20}{:>16}", "images at once", self.micro_batch);
        let _ = writeln!(text, "{:<20}{:>16}", "peak", size(self.peak(self.micro_batch)));
        if let (Some(available), Some(fitting)) = (self.available, self.fitting()) {
            let _ = writeln!(text, "{:<20}{:>16}", "the device has", size(available));
            let _ =
                writeln!(text, "{:<20}{:>16}", "images that fit", format!("{fitting} of {}", self.images));
        }
        text
    }
}

/// Bytes for people.
pub(crate) fn size(bytes: i64) -> String {
    let bytes = bytes as f64;
    if bytes < 1e9 { format!("{:.1} MB", bytes / 1e6) } else { format!("{:.2} GB", bytes / 1e9) }
}

fn thousands(number: i64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(available: Option<i64>) -> MemoryPlan {
        MemoryPlan {
            held: vec![("weights", 10), ("gradients", 10)],
            phases: vec![
                ("drawing", Cost { cache: 1, activations: 2 }),
                ("answer gradient", Cost { cache: 0, activations: 7 }),
            ],
            gradients: (10, 2),
            grads_accumulated: true,
            update: 12,
            images: 6,
            micro_batch: 6,
            available,
            values: (1_234_567, 7),
        }
    }

    #[test]
    fn the_peak_is_the_largest_phase_above_what_is_held() {
        let plan = plan(None);
        // At the turn 7 an image and the largest gradient, at the end all gradients and four times the largest.
        assert_eq!((plan.peak(6), plan.peak(2), plan.peak(1)), (20 + 44, 20 + 18, 20 + 18));
        let once = MemoryPlan { grads_accumulated: false, update: 0, ..plan };
        assert_eq!((once.peak(6), once.peak(1)), (10 + 44, 10 + 18));
    }

    #[test]
    fn what_fits_leaves_some_room() {
        // 95 % of 60 are 57: 35 above what is held and the first gradient, five images of 7 each.
        assert_eq!(plan(Some(60)).fitting(), Some(5));
        assert_eq!(plan(Some(1000)).fitting(), Some(6));
        assert_eq!(plan(Some(39)).fitting(), Some(0), "37 are free, a pass alone ends with 38");
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!([7, 1_000, 1_448_176_770].map(thousands), ["7", "1,000", "1,448,176,770"]);
    }
}
