//! Gemma-2's RMS normalisation, whose weight is stored as its difference from one.

use burn::tensor::{DType, FloatDType, Tensor};

/// `x · rsqrt(mean(x²) + eps) · (1 + weight)` over the last dimension, computed in float32 at least and returned in the
/// type of `x` (Hugging Face, `Gemma2RMSNorm`).
///
/// # Shapes
/// * `x`: `[…, d]`
/// * `weight`: `[d]`
pub fn rms_norm<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let (d, [d_weight]) = (x.dims()[D - 1], weight.dims());
    assert_eq!(d, d_weight, "rms_norm: x ends in {d} features, the weight has {d_weight}");
    #[cfg(feature = "flex")]
    if let Some(output) = crate::flex::apply(
        fast::RmsNorm { eps: eps as f32 },
        [crate::flex::operand(&x), crate::flex::operand(&weight)],
    ) {
        return Tensor::from_dispatch(output);
    }
    definition(x, weight, eps)
}

/// [`rms_norm`] by plain tensor operations.
pub fn definition<const D: usize>(x: Tensor<D>, weight: Tensor<1>, eps: f64) -> Tensor<D> {
    let dtype = x.dtype();
    let (x, weight) = (at_least_f32(x), at_least_f32(weight));
    let scale = (x.clone().square().mean_dim(D - 1) + eps).sqrt().recip();
    (x * scale * (weight + 1.0).unsqueeze()).cast(FloatDType::from(dtype))
}

/// Half-precision tensors as float32; float32 and float64 as they are.
pub(crate) fn at_least_f32<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(FloatDType::F32),
        _ => x,
    }
}

/// One pass over the rows in each direction, each row twice while it is in the cache.
#[cfg(feature = "flex")]
mod fast {
    use burn::backend::flex::FlexTensor;

    use crate::flex::{
        Operation,
        blocks::{self, Uninit},
        elementary::{sum, vectorised},
        tensor, values,
    };

    /// Rows per block; fixed, for the sum of the weight's gradient.
    const ROWS: usize = 64;

    #[derive(Clone, Debug)]
    pub(super) struct RmsNorm {
        pub eps: f32,
    }

    impl Operation<2> for RmsNorm {
        /// x, the weight, and rsqrt(mean(x²) + eps) of each row.
        type Saved = ([FlexTensor; 2], FlexTensor);

        fn forward(&self, inputs: [FlexTensor; 2]) -> (FlexTensor, Self::Saved) {
            let [x, weight] = inputs.each_ref().map(values);
            let d = weight.len();
            let rows = x.len() / d;
            let work = |block: usize, [output, scales]: [Uninit; 2]| {
                let x = &x[block * ROWS * d..][..output.len()];
                vectorised(
                    #[inline(always)]
                    || {
                        let outputs = output.chunks_exact_mut(d).zip(scales);
                        for ((output, scale), x) in outputs.zip(x.chunks_exact(d)) {
                            let mean = sum(
                                [x],
                                #[inline(always)]
                                |[x]| x * x,
                            ) / d as f32;
                            let r = 1.0 / (mean + self.eps).sqrt();
                            scale.write(r);
                            for ((output, &x), &weight) in output.iter_mut().zip(x).zip(weight) {
                                output.write(x * r * (1.0 + weight));
                            }
                        }
                    },
                );
            };
            // SAFETY: the loops write every element of both blocks.
            let [output, scales] =
                unsafe { blocks::fill([(ROWS * d, x.len()), (ROWS, rows)], work) };
            let output = tensor(output, inputs[0].layout().shape().clone());
            (output, (inputs, tensor(scales, [rows])))
        }

        /// With n = x·r and c = g·(1+w): `dx = r·(c − n·mean(c·n))` and `dw = Σ_rows g·n`.
        fn backward(
            &self,
            ([x, weight], scales): Self::Saved,
            gradient: FlexTensor,
            [_, weight_wanted]: [bool; 2],
        ) -> [Option<FlexTensor>; 2] {
            let shape = x.layout().shape();
            let (x, w, scales, g) =
                (values(&x), values(&weight), values(&scales), values(&gradient));
            let d = w.len();
            let rows = x.len() / d;
            let work = |block: usize, [d_x, d_w]: [Uninit; 2]| {
                let first = block * ROWS;
                let mut sums = vec![0.0; d];
                vectorised(
                    #[inline(always)]
                    || {
                        for (row, d_x) in (first..).zip(d_x.chunks_exact_mut(d)) {
                            let (x, g) = (&x[row * d..][..d], &g[row * d..][..d]);
                            let r = scales[row];
                            let mean = sum(
                                [g, w, x],
                                #[inline(always)]
                                |[g, w, x]| g * (1.0 + w) * x,
                            ) * r
                                / d as f32;
                            let inputs = x.iter().zip(g).zip(w);
                            let outputs = d_x.iter_mut().zip(&mut sums);
                            for (((&x, &g), &w), (d_x, d_w)) in inputs.zip(outputs) {
                                let n = x * r;
                                d_x.write(r * (g * (1.0 + w) - n * mean));
                                *d_w += g * n;
                            }
                        }
                    },
                );
                for (d_w, sum) in d_w.iter_mut().zip(sums) {
                    d_w.write(sum);
                }
            };
            let lengths = [(ROWS * d, x.len()), (d, rows.div_ceil(ROWS) * d)];
            // SAFETY: the loops write every element of both blocks.
            let [d_x, d_w] = unsafe { blocks::fill(lengths, work) };
            [
                Some(tensor(d_x, shape.clone())),
                weight_wanted.then(|| tensor(blocks::sum_rows(&d_w, d), [d])),
            ]
        }
    }
}
