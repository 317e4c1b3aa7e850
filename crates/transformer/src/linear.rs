//! A linear layer with an optional bias and an optional low-rank adapter.

use std::{
    ops::Range,
    sync::{Arc, OnceLock},
};

use burn::{
    module::{Module, Param},
    tensor::Tensor,
};

use fpo_ops::{at_least_f32, dropout};

use crate::{Precision, dropping::Mask};

/// The input of linear layers, cheap enough for their backward pass to compute it again instead of keeping it: once for all of them,
/// held until the last one has had it.
pub(crate) struct Again<const D: usize> {
    value: Tensor<D>,
    compute: Arc<dyn Fn() -> Tensor<D> + Send + Sync>,
}

impl<const D: usize> Again<D> {
    /// `value`, which `compute` computes from tensors outside any graph.
    pub(crate) fn new(
        value: Tensor<D>,
        compute: impl Fn() -> Tensor<D> + Send + Sync + 'static,
    ) -> Self {
        let computed = OnceLock::new();
        Self { value, compute: Arc::new(move || computed.get_or_init(&compute).clone()) }
    }
}

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

    /// The layer on what the backward pass computes again. An adapter keeps it.
    pub(crate) fn forward_again<const D: usize>(&self, x: &Again<D>) -> Tensor<D> {
        if self.lora.is_some() {
            return self.forward(x.value.clone());
        }
        let compute = x.compute.clone();
        let compute = move || compute();
        self.with_bias(self.precision.linear_of(x.value.clone(), compute, self.weight.val()))
    }

    pub(crate) fn forward<const D: usize>(&self, x: Tensor<D>) -> Tensor<D> {
        let precision = self.precision;
        self.with_bias(match &self.lora {
            None => precision.linear(x, self.weight.val()),
            Some(lora) => {
                let product = precision.linear(x.clone(), self.weight.val());
                lora.add_to(product, x, self.weight.val(), precision)
            }
        })
    }

    fn with_bias<const D: usize>(&self, product: Tensor<D>) -> Tensor<D> {
        match &self.bias {
            None => product,
            Some(bias) => {
                // In float32, because the bias's gradient is a sum over all tokens.
                let dtype = product.dtype();
                (at_least_f32(product) + bias.val().unsqueeze()).cast(dtype)
            }
        }
    }

    /// The layer with the adapter merged into its weight.
    pub(crate) fn merged(self) -> Self {
        match self.lora {
            None => self,
            Some(lora) => {
                let rows = 0..self.weight.dims()[0];
                let weight = self.weight.map(|weight| lora.merge(weight, rows));
                Self::new(weight, self.bias, self.precision)
            }
        }
    }
}

/// A low-rank adapter (Hu et al. 2021, "LoRA"): the layer's product plus `s · x · Aᵀ · Bᵀ`. With a magnitude (Liu et al. 2024,
/// "DoRA") each output of that sum is multiplied by `m / ‖W + s · B · A‖`, the norm being that of its row.
#[derive(Module, Debug)]
pub struct Lora {
    /// A, `[rank, in]`
    pub a: Param<Tensor<2>>,
    /// B, `[out, rank]`
    pub b: Param<Tensor<2>>,
    /// m, `[out]`
    pub magnitude: Option<Param<Tensor<1>>>,
    /// s
    pub(crate) scale: f64,
    /// In training, which of its inputs are zeroed.
    #[module(skip)]
    pub(crate) mask: Option<Mask>,
}

impl Lora {
    /// The output of the layer with weight `weight`, whose product with `x` is given.
    fn add_to<const D: usize>(
        &self,
        product: Tensor<D>,
        x: Tensor<D>,
        weight: Tensor<2>,
        precision: Precision,
    ) -> Tensor<D> {
        let x = match &self.mask {
            Some(mask) => dropout(x, mask.dropout()),
            None => x,
        };
        // Scaled here because this tensor is the narrow one.
        let narrow = precision.linear(x.clone(), self.a.val()) * self.scale;
        let added = precision.linear(narrow, self.b.val());
        let Some(magnitude) = &self.magnitude else { return product + added };
        let rows = 0..weight.dims()[0];
        // As in PEFT, no gradient flows through the norm.
        let gain = magnitude.val() / row_norms(self.sum(weight.clone().without_autodiff(), rows));
        // In float32, because the magnitude's gradient is a sum over all tokens.
        let dtype = product.dtype();
        let gain = gain.unsqueeze();
        let sum = match &self.mask {
            None => at_least_f32(product + added) * gain,
            // As in PEFT: what the gain changes of the layer's own product has its inputs dropped too.
            Some(_) => {
                let dropped = precision.linear(x, weight);
                at_least_f32(product - dropped.clone()) + at_least_f32(dropped + added) * gain
            }
        };
        sum.cast(dtype)
    }

    /// Some rows of the merged weight, given those of the weight, `[rows, in]`, outside any graph.
    pub(crate) fn merge(&self, weight: Tensor<2>, rows: Range<usize>) -> Tensor<2> {
        let sum = self.sum(weight, rows.clone());
        let Some(magnitude) = &self.magnitude else { return sum };
        let magnitude = magnitude.val().without_autodiff().narrow(0, rows.start, rows.len());
        let gain = magnitude / row_norms(sum.clone());
        sum * gain.unsqueeze_dim(1)
    }

    /// `W + s · B · A` of some rows.
    fn sum(&self, weight: Tensor<2>, rows: Range<usize>) -> Tensor<2> {
        let (a, b) = (self.a.val().without_autodiff(), self.b.val().without_autodiff());
        let delta = b.narrow(0, rows.start, rows.len()).matmul(a) * self.scale;
        weight.cast(delta.dtype()) + delta
    }
}

/// The norm of each row, `[rows, in]` → `[rows]`.
pub(crate) fn row_norms(weight: Tensor<2>) -> Tensor<1> {
    at_least_f32(weight).powf_scalar(2.0).sum_dim(1).sqrt().squeeze_dim(1)
}
