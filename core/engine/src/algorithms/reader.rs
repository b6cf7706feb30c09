//! The weights that read images: those of the policy, of the base model, or of a moving average.

use tch::Tensor;
use unirl::error::{Error, Result};
use unirl::model::Parameter;
use unirl_base::panic::catch_unwind_to_error;

use super::Iteration;
use crate::rewards::{Reader, RewardOptions};

/// The weights of the reader of the image objective. They take the place of the trained weights while it reads, so that every
/// model can be read by any reader.
pub struct ReaderWeights {
    trained: Vec<Tensor>,
    /// One per trained weight, in f32 for `ema`; empty for `current`.
    weights: Vec<Tensor>,
    /// The share of the former weights that a step keeps; `None` if they do not follow the policy.
    decay: Option<f64>,
}

impl ReaderWeights {
    /// Copies the current weights, unless the reader is the current policy.
    pub fn new(trained: &[Parameter], options: &RewardOptions) -> Self {
        let trained: Vec<Tensor> = trained.iter().map(|parameter| parameter.tensor.shallow_clone()).collect();
        let copy = |tensor: &Tensor| tensor.detach().copy();
        let (weights, decay) = match options.reader {
            Reader::Current => (Vec::new(), None),
            Reader::Reference => (trained.iter().map(copy).collect(), None),
            Reader::Ema => {
                let wide = |tensor: &Tensor| copy(&tensor.to_kind(tch::Kind::Float));
                (trained.iter().map(wide).collect(), Some(options.ema_decay))
            }
        };
        Self { trained, weights, decay }
    }

    /// Follows the policy after an update: `w ← decay · w + (1 − decay) · θ`.
    pub(crate) fn follow(&mut self) {
        let Some(decay) = self.decay else { return };
        tch::no_grad(|| {
            for (weight, trained) in self.weights.iter_mut().zip(&self.trained) {
                let _ = weight.g_mul_scalar_(decay);
                let _ = weight.g_add_(&(trained.to_kind(tch::Kind::Float) * (1.0 - decay)));
            }
        });
    }

    /// Returns the weights that follow the policy, which a checkpoint saves; empty for the other readers.
    pub(crate) fn state(&self) -> &[Tensor] {
        if self.decay.is_some() { &self.weights } else { &[] }
    }

    /// Restores what [`Self::state`] returned.
    pub(crate) fn resume(&mut self, state: &[Tensor]) -> Result<()> {
        if self.decay.is_none() {
            return Ok(());
        }
        if state.len() != self.weights.len() {
            return Err(Error::failure(format!(
                "the checkpoint has {} weights of the moving average, expected {}",
                state.len(),
                self.weights.len()
            ))
            .hint("`reward.reader` cannot become `ema` when a run is resumed: start a new run"));
        }
        tch::no_grad(|| {
            for (weight, saved) in self.weights.iter_mut().zip(state) {
                weight.copy_(saved);
            }
        });
        Ok(())
    }

    /// Puts the weights of the reader into the model, without gradient, and returns those of the policy.
    fn enter(&mut self) -> Vec<Tensor> {
        for trained in &self.trained {
            let _ = trained.set_requires_grad(false);
        }
        tch::no_grad(|| {
            let replaced = self.trained.iter_mut().zip(&self.weights);
            replaced
                .map(|(trained, weight)| {
                    let policy = trained.copy();
                    trained.copy_(weight);
                    policy
                })
                .collect()
        })
    }

    fn leave(&mut self, policy: &[Tensor]) {
        tch::no_grad(|| {
            for (trained, policy) in self.trained.iter_mut().zip(policy) {
                trained.copy_(policy);
            }
        });
        for trained in &self.trained {
            let _ = trained.set_requires_grad(true);
        }
    }
}

impl Iteration<'_> {
    /// Runs `work` with the weights of the reader in the model. They get no gradient; images do. No graph of the policy may be
    /// alive.
    pub(super) fn as_reader<T>(&mut self, work: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let policy = self.reader.enter();
        // A panic must not leave the weights of the reader behind: the step is repeated if memory ran out.
        let result = catch_unwind_to_error(|| work(self));
        self.reader.leave(&policy);
        result
    }
}

#[cfg(test)]
mod tests {
    use unirl::model::ParameterGroup;

    use super::*;

    fn is(tensor: &Tensor, expected: f64) -> bool {
        (tensor.double_value(&[0]) - expected).abs() < 1e-6
    }

    fn weights(reader: Reader) -> (Tensor, ReaderWeights) {
        let tensor = Tensor::from_slice(&[1.0f32]).set_requires_grad(true);
        let parameter =
            Parameter { name: "w".into(), tensor: tensor.shallow_clone(), group: ParameterGroup::Shared };
        let options = RewardOptions { reader, ema_decay: 0.75, ..RewardOptions::default() };
        (tensor, ReaderWeights::new(&[parameter], &options))
    }

    /// An update adds 8. The average is ¾ · 1 + ¼ · 9 = 3.
    #[test]
    fn reader_weights_take_the_place_of_the_policy() {
        for (reader, read) in [(Reader::Current, 9.0), (Reader::Reference, 1.0), (Reader::Ema, 3.0)] {
            let (mut tensor, mut weights) = weights(reader);
            tch::no_grad(|| {
                let _ = tensor.g_add_scalar_(8.0);
            });
            weights.follow();
            let policy = weights.enter();
            assert!(is(&tensor, read) && !tensor.requires_grad(), "{reader:?}: {tensor}");
            weights.leave(&policy);
            assert!(is(&tensor, 9.0) && tensor.requires_grad(), "{reader:?}: {tensor}");
        }
    }

    #[test]
    fn the_moving_average_is_saved_and_resumed() {
        let (_, reference) = weights(Reader::Reference);
        assert!(reference.state().is_empty());
        let (_, mut ema) = weights(Reader::Ema);
        ema.resume(&[Tensor::from_slice(&[5.0f32])]).unwrap();
        assert!(is(&ema.state()[0], 5.0));
        let error = ema.resume(&[]).unwrap_err();
        assert_eq!(error.message(), "the checkpoint has 0 weights of the moving average, expected 1");
    }
}
