//! In bfloat16 every operation gives what its definition gives in float32 on the same rounded inputs, up to the rounding of a few
//! steps: 8 bits of mantissa are about two and a half digits.

use burn::tensor::{FloatDType, Tensor};
use fpo_ops::{AttentionOptions, Encoder, definition};

use crate::support::{Numbers, autodiff, close};

/// Largest difference, relative to the largest magnitude.
const TOLERANCE: f64 = 2e-2;

/// `f` on bfloat16 inputs against `definition` on the same numbers in float32, forward and backward.
fn same<const N: usize, const D: usize, const O: usize>(
    what: &str,
    shapes: [[usize; D]; N],
    f: impl Fn([Tensor<D>; N]) -> Tensor<O>,
    definition: impl Fn([Tensor<D>; N]) -> Tensor<O>,
) {
    let mut numbers = Numbers(70);
    let inputs = shapes.map(|shape| numbers.tensor(shape, 1.0, &autodiff()).cast(FloatDType::BF16));
    let run = |f: &dyn Fn([Tensor<D>; N]) -> Tensor<O>, dtype: FloatDType| {
        let leaves = inputs.clone().map(|x| x.detach().cast(dtype).detach().require_grad());
        let output = f(leaves.clone());
        let weights = Numbers(71).tensor(output.dims(), 1.0, &output.device());
        let weights = weights.cast(FloatDType::from(output.dtype()));
        let gradients = (output.clone() * weights).sum().backward();
        let gradients = leaves.map(|leaf| leaf.grad(&gradients).expect("tracked"));
        (output.inner().cast(FloatDType::F32), gradients.map(|x| x.cast(FloatDType::F32)))
    };
    let (found, expected) = (run(&f, FloatDType::BF16), run(&definition, FloatDType::F32));
    close(what, &found.0, &expected.0, TOLERANCE);
    for (i, (found, expected)) in found.1.iter().zip(&expected.1).enumerate() {
        close(&format!("{what}, gradient {i}"), found, expected, TOLERANCE);
    }
}

#[test]
fn pointwise_and_rowwise() {
    for shape in [[1, 3], [7, 33]] {
        same("geglu", [shape; 2], |[g, u]| fpo_ops::geglu(g, u), |[g, u]| definition::geglu(g, u));
        same("softcap", [shape], |[x]| fpo_ops::softcap(x, 2.0), |[x]| definition::softcap(x, 2.0));
        same(
            "rms_norm",
            [shape, [1, shape[1]]],
            |[x, w]| fpo_ops::rms_norm(x, w.squeeze_dim(0), 1e-6),
            |[x, w]| definition::rms_norm(x, w.squeeze_dim(0), 1e-6),
        );
        same(
            "linear",
            [shape, [5, shape[1]]],
            |[x, w]| fpo_ops::linear(x, w),
            |[x, w]| definition::linear(x, w),
        );
    }
}

#[test]
fn attention() {
    for window in [None, Some(3)] {
        let options = AttentionOptions { scale: 0.5, softcap: Some(5.0), window };
        same(
            "attention",
            [[2, 9, 4, 6], [2, 9, 2, 6], [2, 9, 2, 6]],
            |[q, k, v]| fpo_ops::causal_attention(q, k, v, &options),
            |[q, k, v]| definition::causal_attention(q, k, v, &options),
        );
    }
}

#[test]
fn vocabulary() {
    for [n, d, v] in [[1, 3, 17], [20, 8, 300]] {
        let targets = || Numbers(72).indices(n, v, &autodiff());
        same(
            "linear_log_probs",
            [[n, d], [v, d]],
            |[h, w]| fpo_ops::linear_log_probs(h, w, targets(), Some(5.0)),
            |[h, w]| definition::linear_log_probs(h, w, targets(), Some(5.0)),
        );
    }
}

#[test]
fn pooled_features() {
    let mut numbers = Numbers(73);
    let mut constant = |shape| numbers.tensor(shape, 1.0, &autodiff()).inner();
    // Thresholds in the gaps between pre-activations would make this test one of luck; none is near zero.
    let encoder = Encoder {
        w_enc: constant([8, 40]),
        b_enc: constant([1, 40]).squeeze_dim(0),
        threshold: constant([1, 40]).squeeze_dim::<1>(0) * 0.0 - 100.0,
    };
    same(
        "pooled_features",
        [[10, 8]],
        |[h]| fpo_ops::pooled_features(h, &encoder, &[4, 6]),
        |[h]| definition::pooled_features(h, &encoder, &[4, 6]),
    );
}
