//! The comparison of two ways to compute the same thing, values and gradients.

use burn::tensor::{Device, Tensor};

pub use crate::numbers::{Numbers, close, vec};

pub fn autodiff() -> Device {
    Device::flex().autodiff()
}

/// Runs `fast` and `slow` on the same tracked inputs, multiplies the outputs by the same random weights, and compares values and
/// every gradient.
pub fn same<const N: usize, const D: usize, const O: usize>(
    what: &str,
    inputs: [Tensor<D>; N],
    tolerance: f64,
    fast: impl Fn([Tensor<D>; N]) -> Tensor<O>,
    slow: impl Fn([Tensor<D>; N]) -> Tensor<O>,
) {
    let run = |f: &dyn Fn([Tensor<D>; N]) -> Tensor<O>| {
        let leaves = inputs.clone().map(|x| x.detach().require_grad());
        let output = f(leaves.clone());
        let weights = Numbers(99).tensor(output.dims(), 1.0, &output.device());
        let gradients = (output.clone() * weights).sum().backward();
        let gradients = leaves.map(|leaf| leaf.grad(&gradients));
        (output.inner(), gradients)
    };
    let ((a, d_a), (b, d_b)) = (run(&fast), run(&slow));
    close(what, &a, &b, tolerance);
    for (i, (d_a, d_b)) in d_a.iter().zip(&d_b).enumerate() {
        let what = format!("{what}, gradient {i}");
        match (d_a, d_b) {
            (Some(d_a), Some(d_b)) => close(&what, d_a, d_b, tolerance),
            (None, None) => {}
            _ => panic!("{what}: only one of them has it"),
        }
    }
}
