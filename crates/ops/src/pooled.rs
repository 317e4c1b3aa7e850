//! Mean activations of a sparse autoencoder's features over segments of tokens.

use burn::tensor::Tensor;

use crate::rms_norm::at_least_f32;

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
    definition(hidden, encoder, segments)
}

/// [`pooled_features`] by plain tensor operations.
pub fn definition(hidden: Tensor<2>, encoder: &Encoder, segments: &[usize]) -> Tensor<2> {
    let w_enc = at_least_f32(encoder.w_enc.clone().without_autodiff());
    let b_enc = at_least_f32(encoder.b_enc.clone().without_autodiff()).unsqueeze::<2>();
    let threshold = at_least_f32(encoder.threshold.clone().without_autodiff()).unsqueeze::<2>();
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
