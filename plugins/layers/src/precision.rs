//! The type of a network's weights.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

/// The type of weights. The update keeps f32 masters of shorter ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// bf16 on a GPU, f32 on the CPU.
    #[default]
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, 8 of them of the exponent.
    Bf16,
}

impl Precision {
    /// The type on `device`.
    pub fn kind(self, device: Device) -> Kind {
        match self {
            Self::Auto if device.is_cuda() => Kind::BFloat16,
            Self::Auto | Self::F32 => Kind::Float,
            Self::Bf16 => Kind::BFloat16,
        }
    }
}
