//! A linear layer, with a low-rank adapter beside it where one is attached.

use std::ops::Range;

use burn::{
    module::{Module, Param},
    tensor::Tensor,
};

use crate::Precision;

/// `x · Wᵀ` without bias, and the adapter's part where there is one.
#[derive(Module, Debug)]
pub struct Linear {
    /// `[out, in]`
    pub weight: Param<Tensor<2>>,
    /// What is trained instead of the weight.
    pub lora: Option<Lora>,
    #[module(skip)]
    precision: Precision,
}

impl Linear {
    pub(crate) fn new(weight: Param<Tensor<2>>, precision: Precision) -> Self {
        Self { weight, lora: None, precision }
    }

    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let precision = self.precision;
        match &self.lora {
            None => precision.linear(x, self.weight.val()),
            Some(lora) => {
                precision.linear(x.clone(), self.weight.val()) + lora.forward(x, precision)
            }
        }
    }

    /// The adapter becomes part of the weight: `W + s · B · A`.
    pub(crate) fn merged(self) -> Self {
        match self.lora {
            None => self,
            Some(lora) => {
                let delta = lora.delta(0..self.weight.dims()[0]);
                let weight = self.weight.map(|weight| weight.cast(delta.dtype()) + delta);
                Self::new(weight, self.precision)
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
        // Scaled where it is narrow.
        let narrow = precision.linear(x, self.a.val()) * self.scale;
        precision.linear(narrow, self.b.val())
    }

    /// What it adds to some rows of the weight, `[rows, in]`, outside any graph.
    pub(crate) fn delta(&self, rows: Range<usize>) -> Tensor<2> {
        let (a, b) = (self.a.val().without_autodiff(), self.b.val().without_autodiff());
        b.narrow(0, rows.start, rows.len()).matmul(a) * self.scale
    }
}
