//! Where a model's constructor takes its weights from, one by one.

use std::collections::BTreeMap;
use std::time::Instant;

use tch::{Device, Kind, Tensor};

use super::{Expected, Weights};
use crate::error::{Error, Result};
use crate::model::ModelSource;

/// How a fresh weight is drawn.
#[derive(Debug, Clone, Copy)]
pub enum Init {
    /// Normal, standard deviation 0.02.
    Normal,
    /// Uniform, as convolutions usually are: ± 1/√(inputs).
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

/// Gives a constructor its weights and remembers them in order.
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

    /// Notes what is taken and gives tensors without content: a constructor that runs over it tells its
    /// [`Store::expected`] weights, and the model that it makes is good for nothing else.
    pub fn plan() -> Self {
        Self::new(Source::Plan(Vec::new()), Device::Cpu, Kind::Float)
    }

    /// Weights of a checkpoint, moved to `device` as `kind`.
    pub fn open(weights: Weights, device: Device, kind: Kind) -> Self {
        Self::new(Source::Files(weights), device, kind)
    }

    /// What a constructor that runs over a plan takes.
    pub fn planned<T>(take: impl FnOnce(&mut Self) -> Result<T>) -> Result<Vec<Expected>> {
        let mut plan = Self::plan();
        take(&mut plan)?;
        Ok(plan.expected())
    }

    /// What a model's constructor is given for `source`: the weights of its checkpoint, or fresh ones where there are none,
    /// on its device as `kind`; a plan where sizes alone are asked for.
    pub fn of_source(source: &ModelSource, weights: Option<Weights>, kind: Kind) -> Self {
        match weights {
            _ if source.dry => Self::plan(),
            Some(weights) => Self::open(weights, source.device, kind),
            None => Self::fresh(source.device, kind),
        }
    }

    /// Random weights on `device` as `kind`: the caller seeds libtorch.
    pub fn fresh(device: Device, kind: Kind) -> Self {
        Self::new(Source::Fresh, device, kind)
    }

    /// The tensors themselves, under their names; `label` is what errors call them.
    pub fn of_tensors(label: &str, tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        let tensors = tensors.into_iter().collect();
        Self::new(Source::Tensors(label.into(), tensors), Device::Cpu, Kind::Float)
    }

    /// What is taken from here does not learn.
    #[must_use]
    pub fn frozen(mut self) -> Self {
        self.trainable = false;
        self
    }

    /// The weight `name` of the given shape: a leaf.
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

    /// Lets `take` take weights of another type than the rest.
    pub fn of_kind<T>(&mut self, kind: Kind, take: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let usual = std::mem::replace(&mut self.kind, kind);
        let taken = take(self);
        self.kind = usual;
        taken
    }

    /// A buffer that checkpoints may carry and that the model computes itself.
    pub fn computed(&mut self, name: &str, shape: &[i64]) {
        if let Source::Plan(expected) = &mut self.source {
            expected.push(Expected { name: name.into(), shape: shape.into(), required: false });
        }
    }

    /// What a plan noted, in order.
    pub fn expected(self) -> Vec<Expected> {
        match self.source {
            Source::Plan(expected) => expected,
            _ => Vec::new(),
        }
    }

    /// Everything taken, in order.
    pub fn finish(self) -> Vec<(String, Tensor)> {
        if let Source::Files(weights) = &self.source {
            let values: usize = self.taken.iter().map(|(_, tensor)| tensor.numel()).sum();
            let seconds = self.started.elapsed().as_secs_f64();
            tracing::info!("{}: {values} weights as {:?} in {seconds:.2} s", weights.label(), self.kind);
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
