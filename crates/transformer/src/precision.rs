//! In which types a model is held and computed.

use std::{fmt, str::FromStr};

use burn::tensor::{DType, Device, FloatDType, Tensor};
use serde::{Deserialize, Serialize};

/// The types of a model's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// All of it float32.
    #[default]
    Float32,
    /// Matrix products, queries, keys, values and the MLP's activations in bfloat16. The residual stream, norms, the
    /// softmax and losses in float32. Parameters that are trained are float32 and rounded where they are used; the
    /// matrices of a model that is not trained are held in bfloat16, which gives the same values.
    Bf16Mixed,
}

impl Precision {
    /// All there are.
    pub const ALL: [Self; 2] = [Self::Float32, Self::Bf16Mixed];

    /// Its name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bf16Mixed => "bf16-mixed",
        }
    }

    /// Bytes of a number that enters a product.
    pub const fn factor_bytes(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Bf16Mixed => 2,
        }
    }

    /// The type in which a matrix of parameters is held on a device.
    pub(crate) fn of_matrix(self, device: &Device) -> DType {
        match self {
            Self::Bf16Mixed if !device.is_autodiff() => DType::BF16,
            _ => DType::F32,
        }
    }

    /// `x·Wᵀ`
    pub(crate) fn linear<const D: usize>(self, x: Tensor<D>, weight: Tensor<2>) -> Tensor<D> {
        match self {
            Self::Float32 => fpo_ops::linear(x, weight),
            Self::Bf16Mixed => fpo_ops::linear_bf16(x, weight),
        }
    }

    /// Rounded as what enters a matrix product is.
    pub(crate) fn factor<const D: usize>(self, x: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Float32 => x,
            Self::Bf16Mixed => x.cast(FloatDType::BF16),
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|precision| precision.name() == text)
            .ok_or_else(|| format!("precision `{text}`: there are float32 and bf16-mixed"))
    }
}

/// Where a model's parameters go, and in which types it is held and computed.
#[derive(Clone, Debug)]
pub struct Placement {
    /// Where.
    pub device: Device,
    /// In which types.
    pub precision: Precision,
    /// The most bytes of one tensor there, where that is limited: the embedding table is kept in as many parts as it takes, and any
    /// other parameter that is larger is refused.
    pub largest_tensor: Option<usize>,
}

impl Placement {
    /// With the limit of the device.
    pub fn new(device: Device, precision: Precision) -> Self {
        let largest_tensor = fpo_ops::largest_tensor(&device);
        Self { device, precision, largest_tensor }
    }

    /// The same for a model that is trained.
    pub fn autodiff(&self) -> Self {
        Self { device: self.device.clone().autodiff(), ..*self }
    }
}

impl From<&Device> for Placement {
    /// In float32.
    fn from(device: &Device) -> Self {
        Self::new(device.clone(), Precision::Float32)
    }
}

impl From<&Placement> for Placement {
    fn from(placement: &Placement) -> Self {
        placement.clone()
    }
}
