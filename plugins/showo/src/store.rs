//! Named weights: taken one by one from a checkpoint, or drawn fresh, and checked for their shapes.

use std::collections::BTreeMap;
use std::path::Path;

use tch::{Device, Kind, Tensor};
use unirl::{Error, Result, error::Context};

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

/// Where weights come from, and which were taken.
pub struct Store {
    source: Option<(String, BTreeMap<String, Tensor>)>,
    device: Device,
    taken: Vec<(String, Tensor)>,
}

impl Store {
    /// Weights of a safetensors file.
    pub fn open(path: &Path, device: Device) -> Result<Self> {
        let tensors = Tensor::read_safetensors(path).map_err(|error| {
            Error::failure(format!("cannot read the weights `{}`", path.display()))
                .cause(error.to_string().lines().next().unwrap_or_default())
        })?;
        Ok(Self::from_tensors(path.display().to_string(), tensors, device))
    }

    /// Weights under their names; `file` is what errors call them.
    pub fn from_tensors(file: String, tensors: Vec<(String, Tensor)>, device: Device) -> Self {
        Self { source: Some((file, tensors.into_iter().collect())), device, taken: Vec::new() }
    }

    /// Random weights: the caller seeds libtorch.
    pub fn fresh(device: Device) -> Self {
        Self { source: None, device, taken: Vec::new() }
    }

    /// The weight `name` of the given shape, an f32 leaf.
    pub fn take(&mut self, name: &str, shape: &[i64], init: Init) -> Result<Tensor> {
        let options = (Kind::Float, Device::Cpu);
        let tensor = match &mut self.source {
            Some((file, tensors)) => {
                let tensor = tensors.remove(name).ok_or_else(|| {
                    Error::failure(format!("`{file}`: no weight `{name}`"))
                        .hint("is it a checkpoint of this family, and whole?")
                })?;
                if tensor.size() != shape {
                    return Err(Error::failure(format!(
                        "`{file}`: weight `{name}`: expected shape {shape:?}, got {:?}",
                        tensor.size()
                    )));
                }
                tensor
            }
            None => match init {
                Init::Normal => Tensor::randn(shape, options) * 0.02,
                Init::Fan(inputs) => (Tensor::rand(shape, options) * 2.0 - 1.0) / (inputs as f64).sqrt(),
                Init::Zeros => Tensor::zeros(shape, options),
                Init::Ones => Tensor::ones(shape, options),
            },
        };
        let tensor =
            tensor.to_device(self.device).to_kind(Kind::Float).detach().copy().set_requires_grad(true);
        self.taken.push((name.into(), tensor.shallow_clone()));
        Ok(tensor)
    }

    /// Everything taken, in order. Weights that nobody took are mentioned in the log.
    pub fn finish(self) -> Vec<(String, Tensor)> {
        if let Some((file, left)) = &self.source {
            for name in left.keys() {
                tracing::debug!("`{file}`: weight `{name}` is not used");
            }
        }
        self.taken
    }
}

/// Reads a JSON file of a checkpoint.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let place = || format!("cannot read `{}`", path.display());
    serde_json::from_slice(&std::fs::read(path).context(place)?).context(place)
}
