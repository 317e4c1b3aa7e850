//! The types and the device of a model.

use std::{fmt, str::FromStr};

use burn::tensor::{DType, Device, FloatDType, Tensor};
use serde::{Deserialize, Serialize};

/// The types in which a model is stored and computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Precision {
    /// Everything in float32.
    #[default]
    Float32,
    /// Matrix products, queries, keys, values and the MLP's activations in bfloat16; the residual stream, norms, the softmax and
    /// losses in float32. Trained parameters are stored in float32 and rounded where they are used. The matrices of a model that
    /// isn't trained are stored in bfloat16, which gives the same results.
    Bf16Mixed,
}

impl Precision {
    /// Every precision.
    pub const ALL: [Self; 2] = [Self::Float32, Self::Bf16Mixed];

    /// The name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bf16Mixed => "bf16-mixed",
        }
    }

    /// Bytes per element of a matrix product's factors.
    pub const fn factor_bytes(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Bf16Mixed => 2,
        }
    }

    /// The type in which a parameter matrix is stored on a device.
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

    /// [`linear`](Self::linear), where the backward pass calls `again` for x instead of keeping it.
    pub(crate) fn linear_of<const D: usize>(
        self,
        x: Tensor<D>,
        again: impl Fn() -> Tensor<D> + Send + Sync + 'static,
        weight: Tensor<2>,
    ) -> Tensor<D> {
        match self {
            Self::Float32 => fpo_ops::linear_of(x, again, weight),
            Self::Bf16Mixed => fpo_ops::linear_of_bf16(x, again, weight),
        }
    }

    /// Rounded to the type of a matrix product's factors.
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
            .ok_or_else(|| format!("precision `{text}` is unknown: use float32 or bf16-mixed"))
    }
}

/// The device of a model's parameters, and the types in which it is stored and computed.
#[derive(Clone, Debug)]
pub struct Placement {
    /// The device of the parameters; with autodiff if they are trained.
    pub device: Device,
    /// The types.
    pub precision: Precision,
    /// The device's limit for one tensor in bytes, if it has one. The embedding table is split into as many parts as necessary;
    /// any other parameter that is larger is refused.
    pub largest_tensor: Option<usize>,
}

impl Placement {
    /// With the device's own limit for one tensor.
    pub fn new(device: Device, precision: Precision) -> Self {
        let largest_tensor = fpo_ops::largest_tensor(&device);
        Self { device, precision, largest_tensor }
    }

    /// The same with autodiff, for a model that is trained.
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
