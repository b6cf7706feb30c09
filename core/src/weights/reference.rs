//! The reference policy of the KL terms.

use tch::Tensor;

use super::Store;
use crate::error::{Error, Result};
use crate::model::Policy;

/// The frozen copy of a network `T`, for [`Policy::Reference`]. A model makes it in
/// [`UnifiedModel::freeze_reference`](crate::model::UnifiedModel::freeze_reference) and scores under a policy with [`Self::run`].
#[derive(Debug)]
pub struct ReferencePolicy<T>(Option<T>);

impl<T> Default for ReferencePolicy<T> {
    /// Returns one without a copy.
    fn default() -> Self {
        Self(None)
    }
}

impl<T> ReferencePolicy<T> {
    /// Freezes copies of `weights`: `build` constructs the network from a store that gives them by name. An earlier copy is
    /// replaced.
    pub fn freeze<'a>(
        &mut self,
        weights: impl IntoIterator<Item = &'a (String, Tensor)>,
        build: impl FnOnce(&mut Store) -> Result<T>,
    ) -> Result<()> {
        let copies = weights.into_iter().map(|(name, tensor)| (name.clone(), tensor.detach().copy()));
        self.0 = Some(build(&mut Store::of_tensors("the reference policy", copies))?);
        Ok(())
    }

    /// Runs `work` on the `current` network or on the frozen one, as `policy` selects; the latter without gradient. Errors if
    /// nothing is frozen yet.
    pub fn run<R>(&self, policy: Policy, current: &T, work: impl FnOnce(&T) -> Result<R>) -> Result<R> {
        match (policy, &self.0) {
            (Policy::Current, _) => work(current),
            (Policy::Reference, Some(frozen)) => tch::no_grad(|| work(frozen)),
            (Policy::Reference, None) => {
                Err(Error::failure("no reference policy").hint("call `freeze_reference` first"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Init;

    #[test]
    fn reference_policy_keeps_the_weights_of_its_freeze_without_gradient() {
        let mut current = Tensor::from_slice(&[1.0f32, 2.0]).set_requires_grad(true);
        let weights = [("w".to_string(), current.shallow_clone())];
        let mut reference = ReferencePolicy::default();
        let sum = |weight: &Tensor| Ok(weight.sum(tch::Kind::Float));
        let missing = reference.run(Policy::Reference, &current, sum).unwrap_err();
        assert_eq!(missing.message(), "no reference policy");

        reference.freeze(&weights, |store| store.take("w", &[2], Init::Ones)).unwrap();
        tch::no_grad(|| {
            let _ = current.g_add_scalar_(10.0);
        });
        let frozen = reference.run(Policy::Reference, &current, sum).unwrap();
        assert!((frozen.double_value(&[]) - 3.0).abs() < 1e-6 && !frozen.requires_grad(), "{frozen}");
        let trained = reference.run(Policy::Current, &current, sum).unwrap();
        assert!((trained.double_value(&[]) - 23.0).abs() < 1e-6 && trained.requires_grad(), "{trained}");
    }
}
