//! Every fast path computes what its definition computes, in values and gradients, over awkward shapes.

use burn::tensor::Tensor;
use fpo_ops::{AttentionOptions, definition};

use crate::support::{Numbers, autodiff, same};

#[test]
fn geglu() {
    for shape in [[1, 1], [3, 17], [129, 257]] {
        for scale in [0.01, 1.0, 20.0] {
            let mut numbers = Numbers(1);
            let inputs = [(); 2].map(|()| numbers.tensor(shape, scale, &autodiff()));
            same(
                &format!("geglu {shape:?} × {scale}"),
                inputs,
                2e-6,
                |[gate, up]| fpo_ops::geglu(gate, up),
                |[gate, up]| definition::geglu(gate, up),
            );
        }
    }
}

#[test]
fn rms_norm() {
    for shape in [[1, 3], [1, 16], [3, 17], [130, 65]] {
        let mut numbers = Numbers(2);
        let x = numbers.tensor(shape, 3.0, &autodiff());
        let weight = numbers.tensor([1, shape[1]], 0.5, &autodiff());
        same(
            &format!("rms_norm {shape:?}"),
            [x, weight],
            3e-6,
            |[x, weight]| fpo_ops::rms_norm(x, weight.squeeze_dim(0), 1e-6),
            |[x, weight]| definition::rms_norm(x, weight.squeeze_dim(0), 1e-6),
        );
    }
}

#[test]
fn causal_attention() {
    // batch, tokens, kv tokens, heads, kv heads, head_dim
    for [b, t, kt, h, kh, d] in [
        [1, 1, 1, 1, 1, 1],
        [2, 1, 5, 2, 1, 3],
        [2, 7, 7, 4, 2, 5],
        [3, 65, 65, 3, 1, 16],
        [1, 130, 130, 2, 2, 8],
        [1, 70, 139, 4, 1, 4],
    ] {
        for softcap in [None, Some(5.0)] {
            for window in [None, Some(1), Some(3), Some(64), Some(1000)] {
                let options = AttentionOptions {
                    scale: 0.7,
                    softcap,
                    window,
                };
                let mut numbers = Numbers(3);
                let q = numbers.tensor([b, t, h, d], 2.0, &autodiff());
                let k = numbers.tensor([b, kt, kh, d], 2.0, &autodiff());
                let v = numbers.tensor([b, kt, kh, d], 2.0, &autodiff());
                same(
                    &format!("attention {:?} {options:?}", [b, t, kt, h, kh, d]),
                    [q, k, v],
                    5e-6,
                    |[q, k, v]| fpo_ops::causal_attention(q, k, v, &options),
                    |[q, k, v]| definition::causal_attention(q, k, v, &options),
                );
            }
        }
    }
}

#[allow(dead_code)]
fn ignore(_: Tensor<1>) {}
