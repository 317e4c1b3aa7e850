//! The types in which weights are stored.

use std::{fmt, str::FromStr};

use half::{bf16, f16};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

/// The type of weights in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightType {
    /// 32 bits.
    Float32,
    /// 16 bits with the exponents of float32.
    Bfloat16,
    /// 16 bits of IEEE 754, up to 65504.
    Float16,
}

impl WeightType {
    /// Every type.
    pub const ALL: [Self; 3] = [Self::Float32, Self::Bfloat16, Self::Float16];

    /// Its name, which is that of Hugging Face's `config.json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Float32 => "float32",
            Self::Bfloat16 => "bfloat16",
            Self::Float16 => "float16",
        }
    }

    /// Bytes of an element.
    pub(crate) const fn size(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Bfloat16 | Self::Float16 => 2,
        }
    }

    pub(crate) const fn dtype(self) -> Dtype {
        match self {
            Self::Float32 => Dtype::F32,
            Self::Bfloat16 => Dtype::BF16,
            Self::Float16 => Dtype::F16,
        }
    }

    /// The type in which weights that were stored as `dtype` are stored again.
    pub(crate) const fn of(dtype: Dtype) -> Self {
        match dtype {
            Dtype::BF16 => Self::Bfloat16,
            Dtype::F16 => Self::Float16,
            _ => Self::Float32,
        }
    }

    /// A number rounded to the type.
    pub(crate) fn rounded(self, number: f32) -> f32 {
        match self {
            Self::Float32 => number,
            Self::Bfloat16 => bf16::from_f32(number).to_f32(),
            Self::Float16 => f16::from_f32(number).to_f32(),
        }
    }

    /// Numbers rounded to the type, as they stand in a file.
    pub(crate) fn bytes(self, numbers: &[f32]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(numbers.len() * self.size());
        match self {
            Self::Float32 => numbers.iter().for_each(|x| bytes.extend(x.to_le_bytes())),
            Self::Bfloat16 => {
                numbers.iter().for_each(|x| bytes.extend(bf16::from_f32(*x).to_le_bytes()));
            }
            Self::Float16 => {
                numbers.iter().for_each(|x| bytes.extend(f16::from_f32(*x).to_le_bytes()));
            }
        }
        bytes
    }
}

impl fmt::Display for WeightType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for WeightType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|weight_type| weight_type.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("type `{text}` is unknown: weights are stored in {names}")
        })
    }
}
