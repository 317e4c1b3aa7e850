//! RMS normalisation, with the two ways in which models store its gain.

use burn::tensor::{DType, FloatDType, Tensor};

use crate::{graph, profile};

/// What the weight of a norm says about its gain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gain {
    /// The gain is `1 + weight`, as in Gemma (Hugging Face, `Gemma2RMSNorm`).
    OnePlusWeight,
    /// The gain is the weight, and `x · rsqrt(…)` is rounded to the type of `x` before it is multiplied, as in Llama and Qwen
    /// (Hugging Face, `LlamaRMSNorm`).
    Weight,
}

impl Gain {
    /// The weight at which a norm's gain is 1.
    pub const fn neutral(self) -> f32 {
        1.0 - self.offset()
    }

    /// The gain minus the weight.
    pub(crate) const fn offset(self) -> f32 {
        match self {
            Self::OnePlusWeight => 1.0,
            Self::Weight => 0.0,
        }
    }

    /// The gain, for a weight in float32 at least.
    fn of(self, weight: Tensor<1>) -> Tensor<1> {
        match self {
            Self::OnePlusWeight => weight + 1.0,
            Self::Weight => weight,
        }
    }
}

/// `x · rsqrt(mean(x²) + eps) · gain` over the last dimension, computed in float32 at least and returned in the type of `x`.
///
/// # Shapes
/// * `x`: `[…, d]`
/// * `weight`: `[d]`
pub fn rms_norm<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    gain: Gain,
    eps: f64,
) -> Tensor<D> {
    let (d, [d_weight]) = (x.dims()[D - 1], weight.dims());
    assert_eq!(d, d_weight, "rms_norm: x has {d} features, but the weight has {d_weight}");
    let _within = profile::operation("rms_norm", || 0.0);
    #[cfg(feature = "flex")]
    if let Some(output) = crate::flex::apply(
        fast::RmsNorm { offset: gain.offset(), eps: eps as f32 },
        [crate::flex::operand(&x), crate::flex::operand(&weight)],
    ) {
        return Tensor::from_dispatch(output);
    }
    let inputs = [x.clone().into_dispatch(), weight.clone().into_dispatch()];
    #[cfg(feature = "cube")]
    if crate::cube::takes(&x)
        && crate::cube::takes(&weight)
        && let Some(output) =
            graph::apply(crate::cube::rms_norm::RmsNorm { gain, eps }, inputs.clone())
    {
        return Tensor::from_dispatch(output);
    }
    match graph::apply(recomputed::RmsNorm::<D> { gain, eps }, inputs) {
        Some(output) => Tensor::from_dispatch(output),
        None => definition(x, weight, gain, eps),
    }
}

/// [`rms_norm`] in plain tensor operations.
pub fn definition<const D: usize>(
    x: Tensor<D>,
    weight: Tensor<1>,
    gain: Gain,
    eps: f64,
) -> Tensor<D> {
    let dtype = FloatDType::from(x.dtype());
    let (x, weight) = (at_least_f32(x), at_least_f32(weight));
    let scale = (x.clone().square().mean_dim(D - 1) + eps).sqrt().recip();
    let normal = match gain {
        Gain::OnePlusWeight => x * scale,
        Gain::Weight => at_least_f32((x * scale).cast(dtype)),
    };
    (normal * gain.of(weight).unsqueeze()).cast(dtype)
}

/// Half precision as float32; float32 and float64 unchanged.
pub fn at_least_f32<const D: usize>(x: Tensor<D>) -> Tensor<D> {
    match x.dtype() {
        DType::F16 | DType::BF16 => x.cast(FloatDType::F32),
        _ => x,
    }
}

/// The type that [`at_least_f32`] gives a tensor of this one.
pub fn at_least_f32_type(dtype: DType) -> DType {
    match dtype {
        DType::F16 | DType::BF16 => DType::F32,
        other => other,
    }
}

/// The definition with a backward pass that only saves the inputs.
mod recomputed {
    use burn::tensor::{FloatDType, Tensor};

    use super::{Gain, at_least_f32, definition};
    use crate::graph::{Operation, Plain};

    #[derive(Clone, Debug)]
    pub(super) struct RmsNorm<const D: usize> {
        pub gain: Gain,
        pub eps: f64,
    }

    impl<const D: usize> Operation<2> for RmsNorm<D> {
        type Saved = ();

        fn forward(&self, [x, weight]: [Plain; 2]) -> (Plain, ()) {
            (definition(Tensor::<D>::from(x), weight.into(), self.gain, self.eps).into(), ())
        }

        /// With r = rsqrt(mean(x²) + eps), n = x·r and h = g·gain: `dx = r·(h − n·mean(h·n))`, `dw = Σ g·n` over all rows.
        fn backward(
            &self,
            [x, weight]: [Plain; 2],
            (): (),
            gradient: Plain,
            [x_wanted, weight_wanted]: [bool; 2],
        ) -> [Option<Plain>; 2] {
            let (x, weight) = (Tensor::<D>::from(x), Tensor::<1>::from(weight));
            let types = [x.dtype(), weight.dtype()].map(FloatDType::from);
            let (x, weight) = (at_least_f32(x), at_least_f32(weight));
            let g = at_least_f32(Tensor::<D>::from(gradient));
            let r = (x.clone().square().mean_dim(D - 1) + self.eps).sqrt().recip();
            let n = x * r.clone();
            let d_weight = weight_wanted.then(|| {
                let [width] = weight.dims();
                let products = g.clone() * n.clone();
                let rows = products.shape().num_elements() / width.max(1);
                let sums = products.reshape([rows, width]).sum_dim(0).squeeze_dim::<1>(0);
                Plain::from(sums.cast(types[1]))
            });
            let d_x = x_wanted.then(|| {
                let h = g * self.gain.of(weight).unsqueeze();
                let mean = (h.clone() * n.clone()).mean_dim(D - 1);
                Plain::from(((h - n * mean) * r).cast(types[0]))
            });
            [d_x, d_weight]
        }
    }
}

/// One pass over the rows forward and one backward; each row is read twice while it is in the cache.
#[cfg(feature = "flex")]
mod fast {
    use burn::backend::flex::FlexTensor;

    use crate::flex::{
        Operation,
        blocks::{self, Uninit},
        elementary::{sum, vectorised},
        tensor, values,
    };

    /// Rows per block. Fixed, because it determines the order of summation in the weight's gradient.
    const ROWS: usize = 64;

    #[derive(Clone, Debug)]
    pub(super) struct RmsNorm {
        /// The gain minus the weight.
        pub offset: f32,
        pub eps: f32,
    }

    impl Operation<2> for RmsNorm {
        /// x, the weight, and rsqrt(mean(x²) + eps) of each row.
        type Saved = ([FlexTensor; 2], FlexTensor);

        fn forward(&self, inputs: [FlexTensor; 2]) -> (FlexTensor, Self::Saved) {
            let [x, weight] = inputs.each_ref().map(values);
            let d = weight.len();
            let rows = x.len() / d;
            let offset = self.offset;
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
                                output.write(x * r * (offset + weight));
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

        /// With n = x·r and c = g·gain: `dx = r·(c − n·mean(c·n))` and `dw = Σ_rows g·n`.
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
            let offset = self.offset;
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
                                |[g, w, x]| g * (offset + w) * x,
                            ) * r
                                / d as f32;
                            let inputs = x.iter().zip(g).zip(w);
                            let outputs = d_x.iter_mut().zip(&mut sums);
                            for (((&x, &g), &w), (d_x, d_w)) in inputs.zip(outputs) {
                                let n = x * r;
                                d_x.write(r * (g * (offset + w) - n * mean));
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

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::Gain;
    use crate::graph::{Operation, Plain};

    /// With the weight as `[1, d]`, because the comparison works on matrices.
    #[derive(Clone, Debug)]
    struct Flat(super::recomputed::RmsNorm<2>);

    impl Operation<2> for Flat {
        type Saved = ();

        fn forward(&self, [x, w]: [Plain; 2]) -> (Plain, ()) {
            let w = burn::tensor::Tensor::<2>::from(w).squeeze_dim::<1>(0);
            self.0.forward([x, w.into()])
        }

        fn backward(
            &self,
            [x, w]: [Plain; 2],
            saved: (),
            gradient: Plain,
            wanted: [bool; 2],
        ) -> [Option<Plain>; 2] {
            let w = burn::tensor::Tensor::<2>::from(w).squeeze_dim::<1>(0);
            let [d_x, d_w] = self.0.backward([x, w.into()], saved, gradient, wanted);
            let d_w = d_w.map(|d_w| burn::tensor::Tensor::<1>::from(d_w).unsqueeze::<2>().into());
            [d_x, d_w]
        }
    }

    #[test]
    fn recomputing_makes_no_difference() {
        for gain in [Gain::OnePlusWeight, Gain::Weight] {
            for shape in [[1, 1], [3, 5], [7, 4]] {
                let operation = Flat(super::recomputed::RmsNorm { gain, eps: 1e-6 });
                crate::testing::check(operation, [shape, [1, shape[1]]], |[x, w]| {
                    super::definition(x, w.squeeze_dim(0), gain, 1e-6)
                });
            }
        }
    }
}
