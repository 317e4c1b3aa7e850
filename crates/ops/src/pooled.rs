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
