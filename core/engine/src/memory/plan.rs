//! The memory plan of a run: what it holds throughout, what each pass adds per image, and the largest micro-batch that fits.

use std::fmt::Write as _;

use tch::Device;
use unirl::error::Result;
use unirl::model::{Cost, Footprint, UnifiedModel, Workload};

use super::available;
use crate::algorithms::{self, Algorithm};
use crate::config::RunConfig;
use crate::optim::VALUES_AT_ONCE;
use crate::rewards::Reader;

/// The share of device memory that is left free, for fragmentation and other processes.
const HEADROOM: f64 = 0.05;

/// Gradients of the embedding table that are alive at once at the end of a backward pass: of generation, of understanding, of
/// the codes of relaxed images, and their sum.
const EMBEDDING_GRADIENTS: i64 = 4;

/// The memory of a run in bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct MemoryPlan {
    /// Memory that is held from the first step on: name and bytes.
    pub persistent: Vec<(&'static str, i64)>,
    /// Memory per image of each phase: name, KV cache and activations.
    pub phases: Vec<(&'static str, Cost)>,
    /// Bytes of the gradients of all trainable weights, and of the largest one.
    pub gradients: (i64, i64),
    /// Whether a backward pass starts with gradients of an earlier micro-batch or pass. Its own gradients then need extra memory,
    /// because autograd adds a gradient only after all uses of its weight.
    pub grads_accumulated: bool,
    /// Temporary bytes of the weight update.
    pub update: i64,
    /// The number of images of a step.
    pub images: i64,
    /// The number of images that go through the model at once.
    pub micro_batch: i64,
    /// Bytes available on the device, if known.
    pub available: Option<i64>,
    /// The number of parameters, and of trainable ones.
    pub parameters: (i64, i64),
}

impl MemoryPlan {
    /// Plans the training of `model`, which may be a dry one.
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
        let mut phases = vec![("generation", of.generate), ("answering", of.answer)];
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
        // AdamW: two moments, and f32 master weights if the weights have a shorter type.
        let half_precision = of.trainable_weights < of.trainable * 4;
        let copies = if half_precision { 3 } else { 2 };
        let images = (rollout.prompts_per_step * rollout.group_size) as i64;
        let micro_batch = rollout.parts(images as usize).first().map_or(0, |rows| rows.len() as i64);
        let bytes = of.trainable_weights / of.trainable.max(1);
        let mut persistent = vec![
            ("weights", of.weights),
            ("gradients", of.trainable_weights),
            ("optimizer state", copies * 4 * of.trainable),
            ("reference policy", of.reference),
        ];
        // The weights of the reader, and those of the policy while it reads.
        match config.reward.reader {
            Reader::Current => {}
            Reader::Reference => persistent.push(("reader", 2 * of.trainable_weights)),
            Reader::Ema => persistent.push(("reader", 4 * of.trainable + of.trainable_weights)),
        }
        Ok(Self {
            persistent,
            phases,
            gradients: (of.trainable_weights, bytes * of.largest),
            grads_accumulated: micro_batch < images || passes.iter().any(|pass| pass.grads_accumulated),
            // Gradients of a shorter type are converted to f32.
            update: if half_precision {
                4 * of.trainable.min(of.largest.max(VALUES_AT_ONCE as i64))
            } else {
                0
            },
            images,
            micro_batch,
            available: available(device),
            parameters: (of.values, of.trainable),
        })
    }

    fn persistent_bytes(&self) -> i64 {
        self.persistent.iter().map(|(_, bytes)| bytes).sum()
    }

    fn bytes_per_image(&self) -> i64 {
        self.phases.iter().map(|(_, cost)| cost.cache + cost.activations).max().unwrap_or(0)
    }

    /// Returns the bytes that are held when a pass with gradient begins.
    fn before_backward(&self) -> i64 {
        self.persistent_bytes() - if self.grads_accumulated { 0 } else { self.gradients.0 }
    }

    /// Returns the peak memory for a micro-batch. A pass has one peak where the backward pass begins, with all activations and
    /// the first gradient, and one where it ends, with all gradients and no activations.
    pub fn peak(&self, micro_batch: i64) -> i64 {
        let (all, largest) = self.gradients;
        let start = self.bytes_per_image() * micro_batch + largest;
        let end = all + EMBEDDING_GRADIENTS * largest;
        (self.before_backward() + start.max(end)).max(self.persistent_bytes() + self.update)
    }

    /// Returns the largest micro-batch that fits, 0 if a single image does not; `None` if the memory of the device is unknown.
    pub fn fitting(&self) -> Option<i64> {
        let usable = (self.available? as f64 * (1.0 - HEADROOM)) as i64;
        if usable < self.peak(1) {
            return Some(0);
        }
        let free = usable - self.before_backward() - self.gradients.1;
        Some((free / self.bytes_per_image().max(1)).min(self.images))
    }

    /// Formats the plan as a table.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let (all, trainable) = self.parameters;
        let _ = writeln!(text, "{:<20}{:>16}", "parameters", thousands(all));
        let _ = writeln!(text, "{:<20}{:>16}\n", "trainable", thousands(trainable));
        let _ = writeln!(text, "persistent");
        for (name, bytes) in &self.persistent {
            let _ = writeln!(text, "  {name:<18}{:>16}", size(*bytes));
        }
        let _ = writeln!(text, "\n{:<20}{:>16}{:>16}", "per image", "activations", "KV cache");
        for (name, cost) in &self.phases {
            let (activations, cache) = (size(cost.activations), size(cost.cache));
            let _ = writeln!(text, "  {name:<18}{activations:>16}{cache:>16}");
        }
        let _ = writeln!(text, "\nindependent of the batch");
        if self.grads_accumulated {
            let _ = writeln!(text, "  {:<18}{:>16}", "added gradients", size(self.gradients.0));
        }
        let _ =
            writeln!(text, "  {:<18}{:>16}", "end of backward", size(EMBEDDING_GRADIENTS * self.gradients.1));
        let _ = writeln!(text, "  {:<18}{:>16}", "weight update", size(self.update));
        let _ = writeln!(text, "\n{:<20}{:>16}", "micro-batch", self.micro_batch);
        let _ = writeln!(text, "{:<20}{:>16}", "peak memory", size(self.peak(self.micro_batch)));
        if let (Some(available), Some(fitting)) = (self.available, self.fitting()) {
            let _ = writeln!(text, "{:<20}{:>16}", "device memory", size(available));
            let _ =
                writeln!(text, "{:<20}{:>16}", "images that fit", format!("{fitting} of {}", self.images));
        }
        text
    }
}

/// Formats a number of bytes.
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
            persistent: vec![("weights", 10), ("gradients", 10)],
            phases: vec![
                ("generation", Cost { cache: 1, activations: 2 }),
                ("answer gradient", Cost { cache: 0, activations: 7 }),
            ],
            gradients: (10, 2),
            grads_accumulated: true,
            update: 12,
            images: 6,
            micro_batch: 6,
            available,
            parameters: (1_234_567, 7),
        }
    }

    #[test]
    fn peak_is_persistent_memory_plus_the_largest_phase() {
        let plan = plan(None);
        // When backward begins: 7 per image and the largest gradient. When it ends: all gradients and four times the largest.
        assert_eq!((plan.peak(6), plan.peak(2), plan.peak(1)), (20 + 44, 20 + 18, 20 + 18));
        let once = MemoryPlan { grads_accumulated: false, update: 0, ..plan };
        assert_eq!((once.peak(6), once.peak(1)), (10 + 44, 10 + 18));
    }

    #[test]
    fn fitting_leaves_headroom() {
        // 95 % of 60 is 57. Minus persistent memory and the first gradient: 35, five images of 7 each.
        assert_eq!(plan(Some(60)).fitting(), Some(5));
        assert_eq!(plan(Some(1000)).fitting(), Some(6));
        assert_eq!(plan(Some(39)).fitting(), Some(0), "37 are usable, but the backward pass ends with 38");
    }

    #[test]
    fn thousands_groups_digits() {
        assert_eq!([7, 1_000, 1_448_176_770].map(thousands), ["7", "1,000", "1,448,176,770"]);
    }
}
