//! A linear layer with an optional bias and an optional low-rank adapter.

use std::ops::Range;

use burn::{
    module::{Module, Param},
    tensor::Tensor,
};

use fpo_ops::at_least_f32;

use crate::Precision;

/// `x · Wᵀ`, plus the adapter's output and the bias if there are any.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Param<Tensor<2>>,
    /// `[out]`
    pub bias: Option<Param<Tensor<1>>>,
    /// The adapter, trained in place of the weight.
    pub lora: Option<Lora>,
    #[module(skip)]
    precision: Precision,
}

impl Linear {
    pub(crate) fn new(
        weight: Param<Tensor<2>>,
        bias: Option<Param<Tensor<1>>>,
        precision: Precision,
    ) -> Self {
        Self { weight, bias, lora: None, precision }
    }

    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let precision = self.precision;
        let product = match &self.lora {
            None => precision.linear(x, self.weight.val()),
            Some(lora) => {
                precision.linear(x.clone(), self.weight.val()) + lora.forward(x, precision)
            }
        };
        match &self.bias {
            None => product,
            Some(bias) => {
                // In float32, because the bias's gradient is a sum over all tokens.
                let dtype = product.dtype();
                (at_least_f32(product) + bias.val().unsqueeze()).cast(dtype)
            }
        }
    }

    /// The layer with the adapter merged into its weight: `W + s · B · A`.
    pub(crate) fn merged(self) -> Self {
        match self.lora {
            None => self,
            Some(lora) => {
                let delta = lora.delta(0..self.weight.dims()[0]);
                let weight = self.weight.map(|weight| weight.cast(delta.dtype()) + delta);
                Self::new(weight, self.bias, self.precision)
            }
        }
    }
}

/// A low-rank adapter: `s · x · Aᵀ · Bᵀ` (Hu et al. 2021, "LoRA").
#[derive(Module, Debug)]
pub struct Lora {
    /// A, `[rank, in]`
    pub a: Param<Tensor<2>>,
    /// B, `[out, rank]`
    pub b: Param<Tensor<2>>,
    /// s
    pub(crate) scale: f64,
}

impl Lora {
    fn forward<const D: usize>(&self, x: Tensor<D>, precision: Precision) -> Tensor<D> {
        // Scaled here because this tensor is the narrow one.
        let narrow = precision.linear(x, self.a.val()) * self.scale;
        precision.linear(narrow, self.b.val())
    }

    /// Its contribution to some rows of the weight, `[rows, in]`, outside any graph.
    pub(crate) fn delta(&self, rows: Range<usize>) -> Tensor<2> {
        let (a, b) = (self.a.val().without_autodiff(), self.b.val().without_autodiff());
        b.narrow(0, rows.start, rows.len()).matmul(a) * self.scale
    }
}
