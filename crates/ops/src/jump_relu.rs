//! JumpReLU and the unit step, with the straight-through gradients that train their threshold.
//!
//! Source: "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders" (arXiv 2407.14435),
//! equations 10 to 12 and appendix J. K is the rectangle: 1 on (−½, ½), 0 elsewhere.

use burn::tensor::Tensor;

/// `f = z·1[z > θ]`.
///
/// Gradients: to z `1[z > θ]` (no straight-through part); to θ `−(θ/ε)·K((z−θ)/ε)`, summed over the rows.
///
/// # Shapes
/// * `z`: `[n, d_sae]`, pre-activations
/// * `threshold` θ: `[d_sae]`
/// * `bandwidth` ε: positive
pub fn jump_relu(z: Tensor<2>, threshold: Tensor<1>, bandwidth: f64) -> Tensor<2> {
    check_shapes("jump_relu", &z, &threshold, bandwidth);
    jump_relu_definition(z, threshold, bandwidth)
}

/// `1[z > θ]`, as floats.
///
/// Gradients: none to z; to θ `−(1/ε)·K((z−θ)/ε)`, summed over the rows.
///
/// # Shapes
/// As for [`jump_relu`].
pub fn heaviside(z: Tensor<2>, threshold: Tensor<1>, bandwidth: f64) -> Tensor<2> {
    check_shapes("heaviside", &z, &threshold, bandwidth);
    heaviside_definition(z, threshold, bandwidth)
}

fn check_shapes(operation: &str, z: &Tensor<2>, threshold: &Tensor<1>, bandwidth: f64) {
    let ([_, m], [m_threshold]) = (z.dims(), threshold.dims());
    assert!(
        m == m_threshold && bandwidth > 0.0,
        "{operation}: z {:?}, threshold {:?} and bandwidth {bandwidth} don't fit together",
        z.dims(),
        threshold.dims()
    );
}

/// [`jump_relu`] by plain tensor operations.
pub fn jump_relu_definition(z: Tensor<2>, threshold: Tensor<1>, bandwidth: f64) -> Tensor<2> {
    let theta = threshold.clone().inner().unsqueeze::<2>();
    let closed = z.clone().inner().lower_equal(theta.clone());
    let slope = rectangle(z.clone(), theta.clone(), bandwidth) * theta / -bandwidth;
    z.mask_fill(closed, 0.0) + straight_through(threshold, slope)
}

/// [`heaviside`] by plain tensor operations.
pub fn heaviside_definition(z: Tensor<2>, threshold: Tensor<1>, bandwidth: f64) -> Tensor<2> {
    let theta = threshold.clone().inner().unsqueeze::<2>();
    let open = z.clone().inner().greater(theta.clone());
    let dtype = z.dtype();
    let slope = rectangle(z, theta, bandwidth) / -bandwidth;
    let step = open.float().cast(burn::tensor::FloatDType::from(dtype));
    step + straight_through(threshold, slope)
}

/// K((z−θ)/ε) as a constant, `[n, d_sae]`.
fn rectangle(z: Tensor<2>, theta: Tensor<2>, bandwidth: f64) -> Tensor<2> {
    let distance = (z.inner() - theta).abs();
    let outside = distance.clone().greater_equal_elem(bandwidth / 2.0);
    distance.ones_like().mask_fill(outside, 0.0)
}

/// A term of value zero whose gradient to the threshold is `slope`.
fn straight_through(threshold: Tensor<1>, slope: Tensor<2>) -> Tensor<2> {
    let constant = threshold.clone().inner();
    slope * (threshold - constant).unsqueeze::<2>()
}
