//! In bfloat16 every operation agrees with its definition in float32 on the same rounded inputs, up to a few roundings: 8 bits of
//! mantissa are about two and a half digits.

use burn::tensor::{FloatDType, Int, Tensor};
use fpo_ops::{Activation, AttentionOptions, Encoder, FlatRows, Gain, Normalization, definition};

use crate::support::{Numbers, autodiff, close};

/// Largest difference relative to the largest magnitude.
const TOLERANCE: f64 = 2e-2;

/// Compares `f` on bfloat16 inputs with `definition` on the same values in float32, forward and backward.
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
        same(
            "swiglu",
            [shape; 2],
            |[g, u]| fpo_ops::swiglu(g, u),
            |[g, u]| definition::swiglu(g, u),
        );
        same("softcap", [shape], |[x]| fpo_ops::softcap(x, 2.0), |[x]| definition::softcap(x, 2.0));
        for gain in [Gain::OnePlusWeight, Gain::Weight] {
            same(
                &format!("rms_norm, {gain:?}"),
                [shape, [1, shape[1]]],
                |[x, w]| fpo_ops::rms_norm(x, w.squeeze_dim(0), gain, 1e-6),
                |[x, w]| definition::rms_norm(x, w.squeeze_dim(0), gain, 1e-6),
            );
        }
        same(
            "linear",
            [shape, [5, shape[1]]],
            |[x, w]| fpo_ops::linear(x, w),
            |[x, w]| definition::linear(x, w),
        );
    }
}

/// Factors in float32, products in bfloat16, and gradients in the types of the factors.
#[test]
fn rounded_factors() {
    let mut numbers = Numbers(74);
    for [rows, d, out] in [[1, 3, 17], [20, 8, 300]] {
        let leaves = [[rows, d], [out, d]]
            .map(|shape| numbers.tensor(shape, 1.0, &autodiff()).require_grad());
        let indices = Numbers(75).indices(rows, out, &autodiff());
        let types = [FloatDType::BF16, FloatDType::F32];
        for types in [[FloatDType::F32; 2], types, [types[1], types[0]]] {
            let run = |f: &dyn Fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
                let [x, w] = [0, 1].map(|i| {
                    let leaf = leaves[i].clone().cast(FloatDType::BF16).cast(types[i]);
                    leaf.detach().require_grad()
                });
                let output = f(x.clone(), w.clone());
                let gradients = (output.clone().cast(FloatDType::F32)).square().sum().backward();
                let of = |x: Tensor<2>| x.grad(&gradients).expect("tracked");
                (output.inner(), [of(x), of(w)])
            };
            let check =
                |what: &str,
                 found: &dyn Fn(Tensor<2>, Tensor<2>) -> Tensor<2>,
                 oracle: &dyn Fn(Tensor<2>, Tensor<2>) -> Tensor<2>| {
                    let (found, expected) = (run(found), run(oracle));
                    let f32 = |x: &Tensor<2>| x.clone().cast(FloatDType::F32);
                    close(what, &f32(&found.0), &f32(&expected.0), TOLERANCE);
                    let gradients = found.1.iter().zip(&expected.1).zip(types);
                    for (i, ((found, expected), dtype)) in gradients.enumerate() {
                        let what = format!("{what}, gradient {i}");
                        assert_eq!(FloatDType::from(found.dtype()), dtype, "{what}");
                        close(&what, &f32(found), &f32(expected), TOLERANCE);
                    }
                };
            let wide = |x: Tensor<2>| x.cast(FloatDType::F32);
            check("linear_bf16", &fpo_ops::linear_bf16, &|x, w| {
                definition::linear(wide(x), wide(w))
            });
            let head = |f: fn(Tensor<2>, Tensor<2>, Tensor<1, Int>, Option<f64>) -> Tensor<1>| {
                let indices = indices.clone();
                move |x, w| f(x, w, indices.clone(), Some(5.0)).unsqueeze_dim::<2>(1)
            };
            let oracle = head(definition::linear_log_probs);
            check("linear_log_probs", &head(fpo_ops::linear_log_probs), &|x, w| {
                oracle(wide(x), wide(w))
            });
        }
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
        let rows = FlatRows::new(&[[0..3, 3..8], [0..3, 8..9]], &autodiff());
        same(
            "flat attention",
            [[1, 9, 4, 6], [1, 9, 2, 6], [1, 9, 2, 6]],
            |[q, k, v]| fpo_ops::flat_attention(q, k, v, &options, &rows),
            |[q, k, v]| definition::flat_attention(q, k, v, &options, &rows),
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
    // Thresholds far below every pre-activation, so that rounding doesn't open or close a feature.
    let encoder = Encoder {
        normalization: Normalization::None,
        w_enc: constant([8, 40]),
        b_enc: constant([1, 40]).squeeze_dim(0),
        activation: Activation::JumpRelu {
            threshold: constant([1, 40]).squeeze_dim::<1>(0) * 0.0 - 100.0,
        },
    };
    same(
        "pooled_features",
        [[10, 8]],
        |[h]| fpo_ops::pooled_features(h, &encoder, &[4, 6]),
        |[h]| definition::pooled_features(h, &encoder, &[4, 6]),
    );
}
