//! Concatenation that leaves a single tensor as it is.

use burn::tensor::Tensor;

/// `parts` along a dimension; a single one itself, of which Burn would make a copy.
///
/// # Panics
/// If there are no parts, or if their shapes differ elsewhere.
pub fn joined<const D: usize>(mut parts: Vec<Tensor<D>>, dim: usize) -> Tensor<D> {
    match parts.len() {
        1 => parts.remove(0),
        _ => Tensor::cat(parts, dim),
    }
}
