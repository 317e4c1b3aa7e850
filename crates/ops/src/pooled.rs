//! Mean feature activations of a sparse autoencoder over segments of tokens.

use burn::tensor::Tensor;

use crate::{Encoder, Normalization, graph, profile, rms_norm::at_least_f32};

/// Feature activations computed per block: 128 MiB in float32.
const BLOCK: usize = 1 << 25;

/// The mean over each segment of the [`Encoder`]'s features, in float32 at least (FPO, equation 10: average pooling).
/// The encoder is frozen: the gradient reaches `hidden` only.
///
/// # Shapes
/// * `hidden`: `[n, d]`, the tokens of one segment after those of another
/// * `segments`: the number of tokens in each, all positive, with sum `n`
/// * result: `[segments.len(), d_sae]`
pub fn pooled_features(hidden: Tensor<2>, encoder: &Encoder, segments: &[usize]) -> Tensor<2> {
    encoder.check_shapes("pooled_features", &hidden);
    let [n, _] = hidden.dims();
    assert!(
        segments.iter().sum::<usize>() == n && !segments.is_empty() && !segments.contains(&0),
        "pooled_features: segments {segments:?} must be positive and sum to the {n} rows of hidden"
    );
    let _within = profile::operation("pooled_features", || {
        2.0 * hidden.shape().num_elements() as f64 * encoder.d_sae() as f64
    });
    let hidden = normalized(hidden, encoder);
    #[cfg(feature = "flex")]
    if let Some(output) = fast::Pooled::new(encoder, segments)
        .and_then(|pooled| crate::flex::apply(pooled, [crate::flex::operand(&hidden)]))
    {
        return Tensor::from_dispatch(output);
    }
    let rows = (BLOCK / encoder.d_sae()).max(1);
    let blocked = blocked::Pooled { encoder: encoder.frozen(), segments: segments.into(), rows };
    match graph::apply(blocked, [hidden.clone().into_dispatch()]) {
        Some(output) => Tensor::from_dispatch(output),
        None => pool(hidden, encoder, segments),
    }
}

/// Hidden states as the linear map takes them. In float32 at least, unless they are left as they are.
fn normalized(hidden: Tensor<2>, encoder: &Encoder) -> Tensor<2> {
    match encoder.normalization {
        Normalization::None => hidden,
        normalization => normalization.apply(at_least_f32(hidden)),
    }
}

/// [`pooled_features`] by plain tensor operations.
pub fn definition(hidden: Tensor<2>, encoder: &Encoder, segments: &[usize]) -> Tensor<2> {
    pool(normalized(hidden, encoder), encoder, segments)
}

fn pool(hidden: Tensor<2>, encoder: &Encoder, segments: &[usize]) -> Tensor<2> {
    let (hidden, encoder) = (at_least_f32(hidden), encoder.frozen());
    let mut start = 0;
    let pooled = segments
        .iter()
        .map(|&length| {
            let segment = hidden.clone().narrow(0, start, length);
            start += length;
            encoder.encode_normalized(segment).mean_dim(0)
        })
        .collect();
    Tensor::cat(pooled, 0)
}

/// Block by block of rows, for the other backends. In tensor operations the mean is a product with the matrix of each row's share
/// in each segment.
mod blocked {
    use std::{ops::Range, sync::Arc};

    #[cfg(feature = "cube")]
    use burn::tensor::DType;
    use burn::tensor::{Bool, FloatDType, Tensor, TensorData};

    #[cfg(feature = "cube")]
    use crate::cube::{
        pooled::{Block, Segments},
        takes,
    };
    use crate::{
        Encoder,
        blocked::{add, ranges},
        graph::{Operation, Plain},
        joined,
        product::{Factor, product},
        rms_norm::at_least_f32,
    };

    #[derive(Clone, Debug)]
    pub(super) struct Pooled {
        /// Outside any graph, in float32 at least.
        pub encoder: Encoder,
        pub segments: Arc<[usize]>,
        /// Rows per block.
        pub rows: usize,
    }

    impl Pooled {
        /// `h·W_enc` of some rows, `[rows, d_sae]`.
        fn products(&self, hidden: &Tensor<2>, rows: &Range<usize>) -> Tensor<2> {
            let hidden = at_least_f32(hidden.clone().narrow(0, rows.start, rows.len()));
            product(hidden, self.encoder.w_enc.clone())
        }

        /// The pre-activations of some rows, and where they are closed. `[rows, d_sae]`
        fn encode(&self, hidden: &Tensor<2>, rows: &Range<usize>) -> (Tensor<2>, Tensor<2, Bool>) {
            let z = self.products(hidden, rows) + self.encoder.b_enc.clone().unsqueeze();
            let closed = self.encoder.activation.closed(&z);
            (z, closed)
        }

        /// The weight of each of these rows in the mean of each segment, `[segments, rows]`.
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

    /// What the GPU kernels take beside the products `h·W_enc`.
    #[cfg(feature = "cube")]
    struct Kernels<'a> {
        pooled: &'a Pooled,
        segments: Segments,
        threshold: Tensor<1>,
    }

    #[cfg(feature = "cube")]
    impl<'a> Kernels<'a> {
        /// None if there are no kernels for these tensors or for the activation function.
        fn new(pooled: &'a Pooled, hidden: &Tensor<2>) -> Option<Self> {
            let Encoder { w_enc, b_enc, .. } = &pooled.encoder;
            let threshold = pooled.encoder.threshold()?;
            let taken = takes(hidden) && takes(w_enc) && takes(b_enc) && takes(&threshold);
            let segments = || Segments::new(&pooled.segments, &hidden.device());
            taken.then(|| Self { pooled, segments: segments(), threshold })
        }

        fn block(&self, hidden: &Tensor<2>, rows: &Range<usize>) -> Block {
            Block {
                products: self.pooled.products(hidden, rows),
                first_row: rows.start,
                bias: self.pooled.encoder.b_enc.clone(),
                threshold: self.threshold.clone(),
            }
        }

        fn forward(&self, hidden: &Tensor<2>) -> Tensor<2> {
            let shape = [self.pooled.segments.len(), self.pooled.encoder.d_sae()];
            let none = Tensor::zeros(shape, (&hidden.device(), DType::F32));
            ranges(hidden.dims()[0], self.pooled.rows)
                .fold(none, |sums, rows| self.block(hidden, &rows).pool(&self.segments, sums))
        }

        /// The gradient of the products of some rows.
        fn backward(&self, hidden: &Tensor<2>, rows: &Range<usize>, d: Tensor<2>) -> Tensor<2> {
            self.block(hidden, rows).backward(&self.segments, d)
        }
    }

    impl Operation<1> for Pooled {
        type Saved = ();

        fn forward(&self, [hidden]: [Plain; 1]) -> (Plain, ()) {
            let hidden = Tensor::<2>::from(hidden);
            #[cfg(feature = "cube")]
            if let Some(kernels) = Kernels::new(self, &hidden) {
                return (kernels.forward(&hidden).into(), ());
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
            let kernels = Kernels::new(self, &hidden);
            let d_z = |rows: &Range<usize>| {
                #[cfg(feature = "cube")]
                if let Some(kernels) = &kernels {
                    return kernels.backward(&hidden, rows, gradient.clone());
                }
                let (z, closed) = self.encode(&hidden, rows);
                let shares = self.shares(rows, &z);
                shares.transpose().matmul(gradient.clone()).mask_fill(closed, 0.0)
            };
            let parts = ranges(hidden.dims()[0], self.rows).map(|rows| {
                let w_enc = Factor::transposed(self.encoder.w_enc.clone());
                product(d_z(&rows), w_enc).cast(dtype)
            });
            [Some(joined(parts.collect(), 0).into())]
        }
    }
}

/// One task per segment, which works through the features block by block. The backward pass skips features whose gradient is zero:
/// with a loss on the largest features, that is most of the encoder.
#[cfg(feature = "flex")]
mod fast {
    use std::sync::Arc;

    use burn::backend::flex::FlexTensor;

    use crate::{
        Encoder,
        flex::{
            Operation, blocks, constant,
            elementary::vectorised,
            matrix::{Matrix, Write, multiply},
            tensor, values,
        },
    };

    /// Tokens and features per block.
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
        /// None if the encoder isn't float32 on Flex, or if its activation function isn't a threshold per feature.
        pub fn new(encoder: &Encoder, segments: &[usize]) -> Option<Self> {
            Some(Self {
                w_enc: constant(&encoder.w_enc)?,
                b_enc: constant(&encoder.b_enc)?,
                threshold: constant(&encoder.threshold()?)?,
                segments: segments.into(),
            })
        }

        /// `[d, d_sae]`
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

    /// The first row of each segment.
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
    use super::{blocked::Pooled, definition};
    use crate::{
        Activation, Encoder, Normalization,
        testing::{check, random},
    };

    #[test]
    fn blocks_make_no_difference() {
        for (segments, d, d_sae) in [(&[1][..], 1, 1), (&[3, 1, 4, 2], 5, 9), (&[7, 7], 3, 20)] {
            for rows in [1, 3, 100] {
                let vector = |seed| random(seed, [1, d_sae]).squeeze_dim::<1>(0);
                for activation in [
                    Activation::JumpRelu { threshold: vector(5).abs() },
                    Activation::Relu,
                    Activation::TopK { k: d_sae.div_ceil(3) },
                ] {
                    let encoder = Encoder {
                        normalization: Normalization::None,
                        w_enc: random(3, [d, d_sae]),
                        b_enc: vector(4),
                        activation,
                    };
                    let pooled =
                        Pooled { encoder: encoder.clone(), segments: segments.into(), rows };
                    check(pooled, [[segments.iter().sum(), d]], |[h]| {
                        definition(h, &encoder, segments)
                    });
                }
            }
        }
    }
}
