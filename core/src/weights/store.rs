//! The source from which a model's constructor takes its weights, one by one.

use std::collections::BTreeMap;
use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::{Expected, Weights};
use crate::error::{Error, Result};
use crate::model::ModelSource;

/// The initialization of a fresh weight.
#[derive(Debug, Clone, Copy)]
pub enum Init {
    /// Normal with standard deviation 0.02.
    Normal,
    /// Uniform in ± 1/√inputs, as usual for convolutions.
    Fan(i64),
    /// All 0.
    Zeros,
    /// All 1.
    Ones,
}

enum Source {
    Plan(Vec<Expected>),
    Fresh,
    Files(Weights),
    Tensors(String, BTreeMap<String, Tensor>),
}

/// Provides a constructor with its weights and records them in order.
pub struct Store {
    source: Source,
    device: Device,
    kind: Kind,
    trainable: bool,
    taken: Vec<(String, Tensor)>,
    started: Instant,
}

impl Store {
    fn new(source: Source, device: Device, kind: Kind) -> Self {
        Self { source, device, kind, trainable: true, taken: Vec::new(), started: Instant::now() }
    }

    /// Creates a plan, which records the requested weights as [`Store::expected`] and returns undefined tensors. A model built
    /// from it can only be used for its sizes.
    pub fn plan() -> Self {
        Self::new(Source::Plan(Vec::new()), Device::Cpu, Kind::Float)
    }

    /// Takes weights from a checkpoint, moved to `device` as `kind`.
    pub fn open(weights: Weights, device: Device, kind: Kind) -> Self {
        Self::new(Source::Files(weights), device, kind)
    }

    /// Returns the weights that a constructor requests from a plan.
    pub fn planned<T>(take: impl FnOnce(&mut Self) -> Result<T>) -> Result<Vec<Expected>> {
        let mut plan = Self::plan();
        take(&mut plan)?;
        Ok(plan.expected())
    }

    /// Creates the store for `source`: the weights of its checkpoint, if any, otherwise fresh ones, on its device as `kind`; a
    /// plan if the source is dry.
    pub fn of_source(source: &ModelSource, weights: Option<Weights>, kind: Kind) -> Self {
        match weights {
            _ if source.dry => Self::plan(),
            Some(weights) => Self::open(weights, source.device, kind),
            None => Self::fresh(source.device, kind),
        }
    }

    /// Takes random weights on `device` as `kind`. The caller seeds libtorch.
    pub fn fresh(device: Device, kind: Kind) -> Self {
        Self::new(Source::Fresh, device, kind)
    }

    /// Takes the given tensors themselves; errors call them `label`.
    pub fn of_tensors(label: &str, tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        let tensors = tensors.into_iter().collect();
        Self::new(Source::Tensors(label.into(), tensors), Device::Cpu, Kind::Float)
    }

    /// Makes all weights non-trainable.
    #[must_use]
    pub fn frozen(mut self) -> Self {
        self.trainable = false;
        self
    }

    /// Returns the weight `name`, a leaf. Errors if it is missing or has another shape.
    pub fn take(&mut self, name: &str, shape: &[i64], init: Init) -> Result<Tensor> {
        let options = (Kind::Float, Device::Cpu);
        let tensor = match &mut self.source {
            Source::Plan(expected) => {
                expected.push(Expected { name: name.into(), shape: shape.into(), required: true });
                return Ok(Tensor::new());
            }
            Source::Fresh => match init {
                Init::Normal => Tensor::f_randn(shape, options)? * 0.02,
                Init::Fan(inputs) => (Tensor::f_rand(shape, options)? * 2.0 - 1.0) / (inputs as f64).sqrt(),
                Init::Zeros => Tensor::f_zeros(shape, options)?,
                Init::Ones => Tensor::f_ones(shape, options)?,
            },
            Source::Files(weights) => {
                let tensor = weights.read(name)?;
                check_shape(weights.label(), name, shape, &tensor)?;
                tensor
            }
            Source::Tensors(label, tensors) => {
                let tensor = tensors
                    .remove(name)
                    .ok_or_else(|| Error::failure(format!("`{label}`: no weight `{name}`")))?;
                check_shape(label, name, shape, &tensor)?;
                self.taken.push((name.into(), tensor.shallow_clone()));
                return Ok(tensor);
            }
        };
        let tensor = tensor.f_to_device(self.device)?.f_to_kind(self.kind)?.detach();
        let tensor = tensor.set_requires_grad(self.trainable);
        self.taken.push((name.into(), tensor.shallow_clone()));
        Ok(tensor)
    }

    /// Runs `take` with another type of weights.
    pub fn of_kind<T>(&mut self, kind: Kind, take: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let usual = std::mem::replace(&mut self.kind, kind);
        let taken = take(self);
        self.kind = usual;
        taken
    }

    /// Declares a buffer that the model computes and that checkpoints may contain.
    pub fn computed(&mut self, name: &str, shape: &[i64]) {
        if let Source::Plan(expected) = &mut self.source {
            expected.push(Expected { name: name.into(), shape: shape.into(), required: false });
        }
    }

    /// Returns the weights that a plan recorded, in order.
    pub fn expected(self) -> Vec<Expected> {
        match self.source {
            Source::Plan(expected) => expected,
            _ => Vec::new(),
        }
    }

    /// Returns the weights that were taken, in order.
    pub fn finish(self) -> Vec<(String, Tensor)> {
        if let Source::Files(weights) = &self.source {
            let values: usize = self.taken.iter().map(|(_, tensor)| tensor.numel()).sum();
            let seconds = self.started.elapsed().as_secs_f64();
            tracing::info!(
                "{}: loaded {values} parameters as {:?} in {seconds:.2} s",
                weights.label(),
                self.kind
            );
        }
        self.taken
    }
}

fn check_shape(label: &str, name: &str, shape: &[i64], tensor: &Tensor) -> Result<()> {
    let got = tensor.size();
    if got == shape {
        return Ok(());
    }
    Err(Error::failure(format!("`{label}`: weight `{name}`: expected shape {shape:?}, got {got:?}")))
}
