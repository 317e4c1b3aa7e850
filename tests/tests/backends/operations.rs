//! Each operation, forward and backward.

use burn::tensor::{Device, Tensor};
use fpo_ops::{AdamW, AttentionOptions, Encoder, TextStarts};

use crate::support::{TOLERANCE, close, devices, indices, random, values};

/// Runs `f` on both devices on the same inputs, weighs the output with the same numbers, and compares it and every gradient.
fn same<const N: usize, const D: usize, const O: usize>(
    what: &str,
    shapes: [[usize; D]; N],
    f: impl Fn([Tensor<D>; N], &Device) -> Tensor<O>,
) {
    let Some(devices) = devices() else { return };
    let [expected, found] = devices.map(|device| {
        let device = device.autodiff();
        let mut seed = 10;
        let leaves = shapes.map(|shape| {
            seed += 1;
            random(seed, shape, 1.5, &device).require_grad()
        });
        let output = f(leaves.clone(), &device);
        let weights = random(5, output.dims(), 1.0, &device);
        let gradients = (output.clone() * weights).sum().backward();
        let plain = f(leaves.clone().map(Tensor::inner), &device.without_autodiff());
        let gradients = leaves.map(|leaf| values(&leaf.grad(&gradients).expect("tracked")));
        (values(&output), values(&plain), gradients)
    });
    close(what, &found.0, &expected.0, TOLERANCE);
    close(&format!("{what} outside the graph"), &found.1, &expected.1, TOLERANCE);
    for (i, (found, expected)) in found.2.iter().zip(&expected.2).enumerate() {
        close(&format!("{what}, gradient {i}"), found, expected, TOLERANCE);
    }
}

#[test]
fn pointwise_and_rowwise() {
    for shape in [[1, 3], [5, 16], [33, 130]] {
        let row = [1, shape[1]];
        same("geglu", [shape, shape], |[gate, up], _| fpo_ops::geglu(gate, up));
        same("softcap", [shape], |[x], _| fpo_ops::softcap(x, 2.0));
        same("rms_norm", [shape, row], |[x, w], _| fpo_ops::rms_norm(x, w.squeeze_dim(0), 1e-6));
        same("jump_relu", [shape, row], |[z, theta], _| {
            fpo_ops::jump_relu(z, theta.squeeze_dim::<1>(0).abs(), 0.5)
        });
        same("linear", [shape, [7, shape[1]]], |[x, w], _| fpo_ops::linear(x, w));
    }
    same("rotary", [[2, 5, 3, 8]], |[x], device| {
        let [cos, sin] =
            [1, 2].map(|seed| random(seed, [5, 4], 1.0, &device.clone().without_autodiff()));
        fpo_ops::rotary(x, cos, sin)
    });
}

#[test]
fn attention() {
    for window in [None, Some(3)] {
        for softcap in [None, Some(2.0)] {
            let options = AttentionOptions { scale: 0.4, softcap, window };
            let shapes = [[2, 9, 4, 8], [2, 9, 2, 8], [2, 9, 2, 8]];
            same("causal_attention", shapes, |[q, k, v], _| {
                fpo_ops::causal_attention(q, k, v, &options)
            });
            let texts = TextStarts::new(&[vec![4, 5], vec![2, 3]], 9);
            same("packed_attention", shapes, |[q, k, v], _| {
                fpo_ops::packed_attention(q, k, v, &options, &texts)
            });
        }
    }
}

#[test]
fn vocabulary() {
    for [n, d, v] in [[1, 2, 3], [13, 8, 50], [40, 16, 700]] {
        for softcap in [None, Some(3.0)] {
            same("linear_log_probs", [[n, d], [v, d]], |[h, w], device| {
                fpo_ops::linear_log_probs(h, w, indices(3, n, v, device), softcap)
            });
            same("linear_kl", [[n, d], [v, d]], |[h, w], device| {
                let device = device.clone().without_autodiff();
                let [r_h, r_w] = [([n, d], 1), ([v, d], 2)]
                    .map(|(shape, seed)| random(seed, shape, 1.0, &device));
                fpo_ops::linear_kl(r_h, r_w, h, w, softcap)
            });
        }
    }
    let Some(devices) = devices() else { return };
    let [expected, found] = devices.map(|device| {
        let (h, w) = (random(1, [40, 16], 1.0, &device), random(2, [700, 16], 1.0, &device));
        let s = fpo_ops::linear_token_statistics(h, w, indices(3, 40, 700, &device), Some(3.0));
        let argmax: Vec<i64> = s.argmax.to_data().iter::<i64>().collect();
        (values(&s.log_probs), values(&s.entropy), argmax)
    });
    close("log_probs", &found.0, &expected.0, TOLERANCE);
    close("entropy", &found.1, &expected.1, TOLERANCE);
    assert_eq!(found.2, expected.2);
}

#[test]
fn pooled_features() {
    same("pooled_features", [[10, 6]], |[h], device| {
        let device = device.clone().without_autodiff();
        let vector = |seed| random(seed, [1, 40], 1.0, &device).squeeze_dim::<1>(0);
        let encoder = Encoder {
            w_enc: random(1, [6, 40], 1.0, &device),
            b_enc: vector(2),
            threshold: vector(3).abs(),
        };
        fpo_ops::pooled_features(h, &encoder, &[3, 6, 1])
    });
}

#[test]
fn adamw() {
    let Some(devices) = devices() else { return };
    let options =
        AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, grad_scale: 1.0 };
    let [expected, found] = devices.map(|device| {
        let new = |seed| random(seed, [1, 500], 1.0, &device).squeeze_dim::<1>(0);
        let (mut w, mut m, mut v) = (new(1), new(2), new(3).abs());
        for step in 1..=3 {
            (w, m, v) = fpo_ops::adamw_step(w, new(4), m, v, step, &options);
        }
        [w, m, v].map(|x| values(&x))
    });
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        close(&format!("adamw, state {i}"), found, expected, TOLERANCE);
    }
}
