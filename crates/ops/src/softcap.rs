//! Soft-capping: a smooth bound on logits.

use burn::tensor::Tensor;

/// `cap · tanh(x / cap)`: the identity near zero, bounded by ±`cap` (Gemma 2 report, section 2).
///
/// # Shapes
/// * `x`: any
pub fn softcap<const D: usize>(x: Tensor<D>, cap: f64) -> Tensor<D> {
    assert!(cap > 0.0, "softcap: the cap is {cap}, it must be positive");
    definition(x, cap)
}

/// [`softcap`] by plain tensor operations.
pub fn definition<const D: usize>(x: Tensor<D>, cap: f64) -> Tensor<D> {
    (x / cap).tanh() * cap
}

/// [`definition`] where a cap is given, else the identity.
pub(crate) fn optional_softcap<const D: usize>(x: Tensor<D>, cap: Option<f64>) -> Tensor<D> {
    match cap {
        Some(cap) => definition(x, cap),
        None => x,
    }
}
