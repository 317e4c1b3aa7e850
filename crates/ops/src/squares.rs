//! Sums of squares of a gradient, for clipping by the global norm.

use burn::tensor::Tensor;

use crate::profile;

/// Elements squared at once in tensor operations, so that the squares never take as much memory as the gradient.
const PIECE: usize = 1 << 22;

/// `Σ x²` over consecutive pieces of x, on the device: the caller reads those of all gradients at once and adds them up in float64.
///
/// # Shapes
/// * `x`: `[n]`, outside autodiff
/// * result: `[pieces]`; how many there are depends on the device
pub fn sums_of_squares(x: Tensor<1>) -> Tensor<1> {
    let _within = profile::operation("sums_of_squares", || 0.0);
    profile::moved(|| (x.shape().num_elements() * x.dtype().size()) as f64);
    #[cfg(feature = "cube")]
    if crate::cube::takes_outside_graph(&x) {
        let [sums] = crate::cube::run(crate::cube::update::SumSquares, [x.into()]);
        return sums.into();
    }
    Tensor::cat(x.split(PIECE, 0).into_iter().map(definition).collect(), 0)
}

/// One piece of [`sums_of_squares`] in plain tensor operations, `[1]`.
pub fn definition(x: Tensor<1>) -> Tensor<1> {
    x.square().sum()
}
