//! Mean activations of a sparse autoencoder's features over segments of tokens.

use burn::tensor::Tensor;

use crate::{graph, rms_norm::at_least_f32};

/// Activations that are formed at once, 128 MiB in float32.
const BLOCK: usize = 1 << 25;

/// The encoder of a frozen JumpReLU sparse autoencoder.
#[derive(Clone, Debug)]
pub struct Encoder {
    /// `[d, d_sae]`
    pub w_enc: Tensor<2>,
    /// `[d_sae]`
    pub b_enc: Tensor<1>,
    /// `[d_sae]`
    pub threshold: Tensor<1>,
}

impl Encoder {
    /// Outside any graph, in float32 at least.
    fn plain(&self) -> Self {
        Self {
            w_enc: at_least_f32(self.w_enc.clone().without_autodiff()),
            b_enc: at_least_f32(self.b_enc.clone().without_autodiff()),
            threshold: at_least_f32(self.threshold.clone().without_autodiff()),
        }
    }
}

/// The mean over each segment of `JumpReLU(h·W_enc + b_enc)`, in float32 at least (FPO, equation 10: average pooling).
/// The encoder is frozen: the gradient reaches `hidden` only.
///
/// # Shapes
/// * `hidden`: `[n, d]`, the segments one after another
/// * `segments`: the number of tokens of each, all positive, with sum `n`
/// * result: `[segments.len(), d_sae]`
pub fn pooled_features(hidden: Tensor<2>, encoder: &Encoder, segments: &[usize]) -> Tensor<2> {
    let ([n, d], [d_enc, d_sae]) = (hidden.dims(), encoder.w_enc.dims());
    assert!(
        d == d_enc && encoder.b_enc.dims() == [d_sae] && encoder.threshold.dims() == [d_sae],
        "pooled_features: hidden {:?}, w_enc {:?}, b_enc {:?} and threshold {:?} don't fit together",
        hidden.dims(),
        encoder.w_enc.dims(),
        encoder.b_enc.dims(),
        encoder.threshold.dims()
    );
    assert!(
        segments.iter().sum::<usize>() == n && !segments.is_empty() && !segments.contains(&0),
        "pooled_features: segments {segments:?} must be positive and sum to the {n} rows of hidden"
    );
    #[cfg(feature = "flex")]
    if let Some(output) = fast::Pooled::new(encoder, segments)
        .and_then(|pooled| crate::flex::apply(pooled, [crate::flex::operand(&hidden)]))
    {
        return Tensor::from_dispatch(output);
    }
    let rows = (BLOCK / d_sae).max(1);
    let blocked = blocked::Pooled { encoder: encoder.plain(), segments: segments.into(), rows };
    match graph::apply(blocked, [hidden.clone().into_dispatch()]) {
        Some(output) => Tensor::from_dispatch(output),
        None => definition(hidden, encoder, segments),
    }
}

/// [`pooled_features`] by plain tensor operations.
pub fn definition(hidden: Tensor<2>, encoder: &Encoder, segments: &[usize]) -> Tensor<2> {
    let Encoder { w_enc, b_enc, threshold } = encoder.plain();
    let (b_enc, threshold) = (b_enc.unsqueeze::<2>(), threshold.unsqueeze::<2>());
    let hidden = at_least_f32(hidden);
    let mut start = 0;
    let pooled = segments
        .iter()
        .map(|&length| {
            let segment = hidden.clone().narrow(0, start, length);
            start += length;
            let z = segment.matmul(w_enc.clone()) + b_enc.clone();
            let closed = z.clone().inner().lower_equal(threshold.clone());
            z.mask_fill(closed, 0.0).mean_dim(0)
        })
        .collect();
    Tensor::cat(pooled, 0)
}

/// The same some rows at a time, for the other backends. By tensor operations the mean is a product with the matrix of the
/// segments' shares.
mod blocked {
    use std::{ops::Range, sync::Arc};

    #[cfg(feature = "cube")]
    use burn::tensor::DType;
    use burn::tensor::{Bool, FloatDType, Tensor, TensorData};

    use super::{Encoder, at_least_f32};
    #[cfg(feature = "cube")]
    use crate::cube::{
        pooled::{Block, Segments},
        takes,
    };
    use crate::{
        blocked::{add, ranges},
        graph::{Operation, Plain},
    };

    #[derive(Clone, Debug)]
    pub(super) struct Pooled {
        /// Outside any graph, in float32 at least.
        pub encoder: Encoder,
        pub segments: Arc<[usize]>,
        /// Rows that are encoded at once.
        pub rows: usize,
    }

    impl Pooled {
        /// `h·W_enc` of some rows, `[rows, d_sae]`.
        fn products(&self, hidden: &Tensor<2>, rows: &Range<usize>) -> Tensor<2> {
            let hidden = at_least_f32(hidden.clone().narrow(0, rows.start, rows.len()));
            hidden.matmul(self.encoder.w_enc.clone())
        }

        /// The pre-activations of some rows, and where they are closed. `[rows, d_sae]`
        fn encode(&self, hidden: &Tensor<2>, rows: &Range<usize>) -> (Tensor<2>, Tensor<2, Bool>) {
            let Encoder { b_enc, threshold, .. } = self.encoder.clone();
            let z = self.products(hidden, rows) + b_enc.unsqueeze();
            let closed = z.clone().lower_equal(threshold.unsqueeze::<2>().expand(z.dims()));
            (z, closed)
        }

        /// What each of these rows contributes to each segment, `[segments, rows]`.
        fn shares(&self, rows: &Range<usize>, like: &Tensor<2>) -> Tensor<2> {
            let mut shares = vec![0f64; self.segments.len() * rows.len()];
            let mut start = 0;
            for (segment, &length) in self.segments.iter().enumerate() {
                for row in start.max(rows.start)..(start + length).min(rows.end) {
                    shares[segment * rows.len() + row - rows.start] = 1.0 / length as f64;
                }
                start += length;
            }
            let shape = [self.segments.len(), rows.len()];
            Tensor::from_data(TensorData::new(shares, shape), (&like.device(), like.dtype()))
        }
    }

    /// The same with kernels for what comes after the products.
    #[cfg(feature = "cube")]
    impl Pooled {
        /// None where there are no kernels for these tensors.
        fn segments(&self, hidden: &Tensor<2>) -> Option<Segments> {
            let Encoder { w_enc, b_enc, threshold } = &self.encoder;
            let taken = takes(hidden) && takes(w_enc) && takes(b_enc) && takes(threshold);
            taken.then(|| Segments::new(&self.segments, &hidden.device()))
        }

        fn block(&self, hidden: &Tensor<2>, rows: &Range<usize>) -> Block {
            let Encoder { b_enc, threshold, .. } = self.encoder.clone();
            let products = self.products(hidden, rows);
            Block { products, first_row: rows.start, bias: b_enc, threshold }
        }

        fn pool(&self, hidden: &Tensor<2>, segments: &Segments) -> Tensor<2> {
            let [_, d_sae] = self.encoder.w_enc.dims();
            let shape = [self.segments.len(), d_sae];
            let none = Tensor::zeros(shape, (&hidden.device(), DType::F32));
            ranges(hidden.dims()[0], self.rows)
                .fold(none, |pooled, rows| self.block(hidden, &rows).pool(segments, pooled))
        }
    }

    impl Operation<1> for Pooled {
        type Saved = ();

        fn forward(&self, [hidden]: [Plain; 1]) -> (Plain, ()) {
            let hidden = Tensor::<2>::from(hidden);
            #[cfg(feature = "cube")]
            if let Some(segments) = self.segments(&hidden) {
                return (self.pool(&hidden, &segments).into(), ());
            }
            let mut pooled: Option<Tensor<2>> = None;
            for rows in ranges(hidden.dims()[0], self.rows) {
                let (z, closed) = self.encode(&hidden, &rows);
                let shares = self.shares(&rows, &z);
                pooled = Some(add(pooled, shares.matmul(z.mask_fill(closed, 0.0))));
            }
            let Some(pooled) = pooled else { unreachable!("segments are positive") };
            (pooled.into(), ())
        }

        fn backward(
            &self,
            [hidden]: [Plain; 1],
            (): (),
            gradient: Plain,
            _wanted: [bool; 1],
        ) -> [Option<Plain>; 1] {
            let (hidden, gradient) = (Tensor::<2>::from(hidden), Tensor::<2>::from(gradient));
            let dtype = FloatDType::from(hidden.dtype());
            #[cfg(feature = "cube")]
            let segments = self.segments(&hidden);
            let d_z = |rows: &Range<usize>| {
                #[cfg(feature = "cube")]
                if let Some(segments) = &segments {
                    return self.block(&hidden, rows).backward(segments, gradient.clone());
                }
                let (z, closed) = self.encode(&hidden, rows);
                let shares = self.shares(rows, &z);
                shares.transpose().matmul(gradient.clone()).mask_fill(closed, 0.0)
            };
            let parts = ranges(hidden.dims()[0], self.rows)
                .map(|rows| d_z(&rows).matmul(self.encoder.w_enc.clone().transpose()).cast(dtype));
            [Some(Tensor::cat(parts.collect(), 0).into())]
        }
    }
}

/// A task is one segment, a block of features at a time. The backward pass looks only at features whose gradient isn't zero:
/// for a loss on the largest features that is a small part of the encoder.
#[cfg(feature = "flex")]
mod fast {
    use std::sync::Arc;

    use burn::backend::flex::FlexTensor;

    use super::Encoder;
    use crate::flex::{
        Operation, blocks, constant,
        elementary::vectorised,
        matrix::{Matrix, Write, multiply},
        tensor, values,
    };

    /// Tokens and features of a block.
    const ROWS: usize = 64;
    const FEATURES: usize = 512;

    #[derive(Clone, Debug)]
    pub(super) struct Pooled {
        w_enc: FlexTensor,
        b_enc: FlexTensor,
        threshold: FlexTensor,
        segments: Arc<[usize]>,
    }

    impl Pooled {
        /// None if the encoder isn't float32 on Flex.
        pub fn new(encoder: &Encoder, segments: &[usize]) -> Option<Self> {
            Some(Self {
                w_enc: constant(&encoder.w_enc)?,
                b_enc: constant(&encoder.b_enc)?,
                threshold: constant(&encoder.threshold)?,
                segments: segments.into(),
            })
        }

        /// The size of a state and the number of features.
        fn sizes(&self) -> [usize; 2] {
            [self.w_enc.layout().shape()[0], self.w_enc.layout().shape()[1]]
        }
    }

    impl Operation<1> for Pooled {
        /// The hidden states.
        type Saved = FlexTensor;

        fn forward(&self, [hidden]: [FlexTensor; 1]) -> (FlexTensor, FlexTensor) {
            let [d, d_sae] = self.sizes();
            let h = values(&hidden);
            let [w, bias, threshold] = [&self.w_enc, &self.b_enc, &self.threshold].map(values);
            let mut output = vec![0.0; self.segments.len() * d_sae];
            let starts = starts(&self.segments);
            blocks::for_each_block([(&mut output, d_sae)], |segment, [output]| {
                let (start, length) = (starts[segment], self.segments[segment]);
                let mut scratch = vec![0.0; ROWS.min(length) * FEATURES.min(d_sae)];
                let share = 1.0 / length as f32;
                for (block, output) in output.chunks_mut(FEATURES).enumerate() {
                    let (first, width) = (block * FEATURES, output.len());
                    let w = Matrix::strided(&w[first..], d, width, d_sae);
                    let (bias, threshold) = (&bias[first..][..width], &threshold[first..][..width]);
                    for row in (start..start + length).step_by(ROWS) {
                        let rows = ROWS.min(start + length - row);
                        let h = Matrix::dense(&h[row * d..][..rows * d], rows, d);
                        let z = &mut scratch[..rows * width];
                        multiply(z, Write::Replace, 1.0, h, w);
                        vectorised(
                            #[inline(always)]
                            || {
                                for z in z.chunks_exact(width) {
                                    let inputs = z.iter().zip(bias).zip(threshold);
                                    for (sum, ((&z, &bias), &threshold)) in
                                        output.iter_mut().zip(inputs)
                                    {
                                        let z = z + bias;
                                        *sum += if z > threshold { z } else { 0.0 };
                                    }
                                }
                            },
                        );
                    }
                    output.iter_mut().for_each(|sum| *sum *= share);
                }
            });
            (tensor(output, [self.segments.len(), d_sae]), hidden)
        }

        fn backward(
            &self,
            hidden: FlexTensor,
            gradient: FlexTensor,
            _wanted: [bool; 1],
        ) -> [Option<FlexTensor>; 1] {
            let [d, d_sae] = self.sizes();
            let (h, g) = (values(&hidden), values(&gradient));
            let [w, bias, threshold] = [&self.w_enc, &self.b_enc, &self.threshold].map(values);
            let mut output = vec![0.0; h.len()];
            let lengths = self.segments.iter().map(|length| length * d);
            blocks::for_each_part(&mut output, lengths, |segment, start, output| {
                let g = &g[segment * d_sae..][..d_sae];
                let features: Vec<usize> = (0..d_sae).filter(|&i| g[i] != 0.0).collect();
                let rows = self.segments[segment];
                let h = Matrix::dense(&h[start..][..output.len()], rows, d);
                let share = 1.0 / rows as f32;
                for features in features.chunks(FEATURES) {
                    let width = features.len();
                    let select =
                        |from: &[f32]| -> Vec<f32> { features.iter().map(|&i| from[i]).collect() };
                    let (g, bias, threshold) = (select(g), select(bias), select(threshold));
                    let w: Vec<f32> = w.chunks_exact(d_sae).flat_map(select).collect();
                    let w = Matrix::dense(&w, d, width);
                    let mut z = vec![0.0; rows * width];
                    multiply(&mut z, Write::Replace, 1.0, h, w);
                    vectorised(
                        #[inline(always)]
                        || {
                            for z in z.chunks_exact_mut(width) {
                                let features = g.iter().zip(&bias).zip(&threshold);
                                for (z, ((&g, &bias), &threshold)) in z.iter_mut().zip(features) {
                                    *z = if *z + bias > threshold { g * share } else { 0.0 };
                                }
                            }
                        },
                    );
                    let z = Matrix::dense(&z, rows, width);
                    multiply(output, Write::Add, 1.0, z, w.t());
                }
            });
            [Some(tensor(output, hidden.layout().shape().clone()))]
        }
    }

    /// Where each segment starts.
    fn starts(segments: &[usize]) -> Vec<usize> {
        let mut next = 0;
        let start = |&length: &usize| {
            next += length;
            next - length
        };
        segments.iter().map(start).collect()
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::{Encoder, blocked::Pooled, definition};
    use crate::testing::{check, random};

    #[test]
    fn blocks_make_no_difference() {
        for (segments, d, d_sae) in [(&[1][..], 1, 1), (&[3, 1, 4, 2], 5, 9), (&[7, 7], 3, 20)] {
            for rows in [1, 3, 100] {
                let vector = |seed| random(seed, [1, d_sae]).squeeze_dim::<1>(0);
                let encoder = Encoder {
                    w_enc: random(3, [d, d_sae]),
                    b_enc: vector(4),
                    threshold: vector(5).abs(),
                };
                let pooled = Pooled { encoder: encoder.clone(), segments: segments.into(), rows };
                check(pooled, [[segments.iter().sum(), d]], |[h]| {
                    definition(h, &encoder, segments)
                });
            }
        }
    }
}
