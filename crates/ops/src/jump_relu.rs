//! JumpReLU and the unit step, with the straight-through estimators that train their thresholds.
//!
//! Source: "Jumping Ahead: Improving Reconstruction Fidelity with JumpReLU Sparse Autoencoders" (arXiv 2407.14435),
//! equations 10 to 12 and appendix J. K is the rectangle: 1 on (−½, ½), 0 elsewhere.

use burn::tensor::Tensor;

use crate::profile;

/// `f = z·1[z > θ]`.
///
/// Gradients: to z `1[z > θ]`, without a straight-through part; to θ `−(θ/ε)·K((z−θ)/ε)`, summed over the rows.
///
/// # Shapes
/// * `z`: `[n, d_sae]`, pre-activations
/// * `threshold` θ: `[d_sae]`
/// * `bandwidth` ε: positive
pub fn jump_relu(z: Tensor<2>, threshold: Tensor<1>, bandwidth: f64) -> Tensor<2> {
    check_shapes("jump_relu", &z, &threshold, bandwidth);
    let _within = profile::operation("jump_relu", || 0.0);
    #[cfg(feature = "flex")]
    if let Some(output) = crate::flex::apply(
        fast::JumpRelu { bandwidth: bandwidth as f32 },
        [crate::flex::operand(&z), crate::flex::operand(&threshold)],
    ) {
        return Tensor::from_dispatch(output);
    }
    jump_relu_definition(z, threshold, bandwidth)
}

/// `1[z > θ]`, in the type of z.
///
/// Gradients: none to z; to θ `−(1/ε)·K((z−θ)/ε)`, summed over the rows.
///
/// # Shapes
/// As for [`jump_relu`].
pub fn heaviside(z: Tensor<2>, threshold: Tensor<1>, bandwidth: f64) -> Tensor<2> {
    check_shapes("heaviside", &z, &threshold, bandwidth);
    let _within = profile::operation("heaviside", || 0.0);
    #[cfg(feature = "flex")]
    if let Some(output) = crate::flex::apply(
        fast::Heaviside { bandwidth: bandwidth as f32 },
        // Without its graph, because z gets no gradient.
        [crate::flex::operand(&z.clone().inner()), crate::flex::operand(&threshold)],
    ) {
        return Tensor::from_dispatch(output);
    }
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

/// A term with value 0 whose gradient to the threshold is `slope`.
fn straight_through(threshold: Tensor<1>, slope: Tensor<2>) -> Tensor<2> {
    let constant = threshold.clone().inner();
    slope * (threshold - constant).unsqueeze::<2>()
}

/// One pass over the elements forward, and one backward. The threshold's gradient is summed in fixed blocks of rows.
#[cfg(feature = "flex")]
mod fast {
    use burn::backend::flex::FlexTensor;

    use crate::flex::{
        Operation,
        blocks::{self, Uninit},
        elementary::vectorised,
        tensor, tensors_like, values,
    };

    /// Rows per block. Fixed, because it sets the order in which the threshold's gradient is summed.
    const ROWS: usize = 64;

    #[derive(Clone, Debug)]
    pub(super) struct JumpRelu {
        pub bandwidth: f32,
    }

    #[derive(Clone, Debug)]
    pub(super) struct Heaviside {
        pub bandwidth: f32,
    }

    impl Operation<2> for JumpRelu {
        type Saved = [FlexTensor; 2];

        fn forward(&self, inputs: [FlexTensor; 2]) -> (FlexTensor, Self::Saved) {
            let output = map(
                &inputs,
                #[inline(always)]
                |z, theta| if z > theta { z } else { 0.0 },
            );
            (output, inputs)
        }

        fn backward(
            &self,
            inputs: Self::Saved,
            gradient: FlexTensor,
            [_, threshold_wanted]: [bool; 2],
        ) -> [Option<FlexTensor>; 2] {
            let [z, theta] = inputs.each_ref().map(values);
            let (g, d) = (values(&gradient), theta.len());
            let (half, inverse) = (0.5 * self.bandwidth, -1.0 / self.bandwidth);
            let work = |block: usize, [d_z, d_theta]: [Uninit; 2]| {
                let start = block * ROWS * d;
                let rows = z[start..].chunks_exact(d).zip(g[start..].chunks_exact(d));
                let mut sums = vec![0.0; d];
                vectorised(
                    #[inline(always)]
                    || {
                        for (d_z, (z, g)) in d_z.chunks_exact_mut(d).zip(rows) {
                            let inputs = z.iter().zip(g).zip(theta);
                            let outputs = d_z.iter_mut().zip(&mut sums);
                            for (((&z, &g), &theta), (d_z, sum)) in inputs.zip(outputs) {
                                d_z.write(if z > theta { g } else { 0.0 });
                                let inside = (z - theta).abs() < half;
                                *sum += if inside { g * theta * inverse } else { 0.0 };
                            }
                        }
                    },
                );
                for (d_theta, sum) in d_theta.iter_mut().zip(sums) {
                    d_theta.write(sum);
                }
            };
            let partial = (z.len() / d.max(1)).div_ceil(ROWS) * d;
            // SAFETY: the loops write every element of both blocks.
            let [d_z, d_theta] = unsafe { blocks::fill([(ROWS * d, z.len()), (d, partial)], work) };
            let d_theta = threshold_wanted.then(|| blocks::sum_rows(&d_theta, d));
            tensors_like([Some(d_z), d_theta], &inputs)
        }
    }

    impl Operation<2> for Heaviside {
        type Saved = [FlexTensor; 2];

        fn forward(&self, inputs: [FlexTensor; 2]) -> (FlexTensor, Self::Saved) {
            let output = map(
                &inputs,
                #[inline(always)]
                |z, theta| if z > theta { 1.0 } else { 0.0 },
            );
            (output, inputs)
        }

        fn backward(
            &self,
            inputs: Self::Saved,
            gradient: FlexTensor,
            [_, threshold_wanted]: [bool; 2],
        ) -> [Option<FlexTensor>; 2] {
            if !threshold_wanted {
                return [None, None];
            }
            let [z, theta] = inputs.each_ref().map(values);
            let (g, d) = (values(&gradient), theta.len());
            let (half, inverse) = (0.5 * self.bandwidth, -1.0 / self.bandwidth);
            let rows = z.len() / d.max(1);
            let partials = blocks::map(rows.div_ceil(ROWS), |block| {
                let range = block * ROWS * d..((block + 1) * ROWS).min(rows) * d;
                let rows = z[range.clone()].chunks_exact(d).zip(g[range].chunks_exact(d));
                let mut sums = vec![0.0; d];
                vectorised(
                    #[inline(always)]
                    || {
                        for (z, g) in rows {
                            for (((&z, &g), &theta), sum) in
                                z.iter().zip(g).zip(theta).zip(&mut sums)
                            {
                                let inside = (z - theta).abs() < half;
                                *sum += if inside { g * inverse } else { 0.0 };
                            }
                        }
                    },
                );
                sums
            });
            let d_theta = blocks::sum_rows(&partials.concat(), d);
            tensors_like([None, Some(d_theta)], &inputs)
        }
    }

    /// `f(z, θ)` for every element of z `[n, d]` and the threshold of its column.
    #[inline(always)]
    fn map(inputs: &[FlexTensor; 2], f: impl Fn(f32, f32) -> f32 + Send + Sync) -> FlexTensor {
        let [z, theta] = inputs.each_ref().map(values);
        let d = theta.len();
        let work = |block: usize, [output]: [Uninit; 1]| {
            let z = z[block * ROWS * d..].chunks_exact(d);
            vectorised(
                #[inline(always)]
                || {
                    for (output, z) in output.chunks_exact_mut(d).zip(z) {
                        for ((output, &z), &theta) in output.iter_mut().zip(z).zip(theta) {
                            output.write(f(z, theta));
                        }
                    }
                },
            );
        };
        // SAFETY: the loops write every element of the block.
        let [output] = unsafe { blocks::fill([(ROWS * d, z.len())], work) };
        tensor(output, inputs[0].layout().shape().clone())
    }
}
