//! In half precision, where the device has any, the operations with kernels give what they give in float32 on Flex on the same
//! rounded inputs, up to the rounding of a few steps.

use burn::tensor::{Device, FloatDType, Tensor};
use fpo_ops::{Activation, AttentionOptions, Encoder, FlatRows, Gain, Normalization};

use crate::support::{close, devices, indices, random, values};

/// What results may differ by, relative to the largest magnitude: bfloat16 has 8 bits of mantissa.
const TOLERANCE: f64 = 2e-2;

fn same<const N: usize, const D: usize, const O: usize>(
    what: &str,
    shapes: [[usize; D]; N],
    f: impl Fn([Tensor<D>; N], &Device) -> Tensor<O>,
) {
    let Some(devices) = devices() else { return };
    for dtype in [FloatDType::F16, FloatDType::BF16] {
        if !devices[1].supports_dtype(dtype) {
            eprintln!("{what}: skipped, the device has no {dtype:?}");
            continue;
        }
        let run = |device: &Device, precision: FloatDType| {
            let device = device.clone().autodiff();
            let mut seed = 10;
            let leaves = shapes.map(|shape| {
                seed += 1;
                let leaf = random(seed, shape, 1.0, &device).cast(dtype).cast(precision);
                leaf.detach().require_grad()
            });
            let output = f(leaves.clone(), &device);
            let weights = random(5, output.dims(), 1.0, &device);
            let weights = weights.cast(FloatDType::from(output.dtype()));
            let gradients = (output.clone() * weights).sum().backward();
            let gradients = leaves.map(|leaf| values(&leaf.grad(&gradients).expect("tracked")));
            (values(&output), gradients)
        };
        let expected = run(&devices[0], FloatDType::F32);
        let found = run(&devices[1], dtype);
        close(&format!("{what} in {dtype:?}"), &found.0, &expected.0, TOLERANCE);
        for (i, (found, expected)) in found.1.iter().zip(&expected.1).enumerate() {
            close(&format!("{what} in {dtype:?}, gradient {i}"), found, expected, TOLERANCE);
        }
    }
}

#[test]
fn operations_with_kernels() {
    for gain in [Gain::OnePlusWeight, Gain::Weight] {
        same(&format!("rms_norm, {gain:?}"), [[7, 33], [1, 33]], |[x, w], _| {
            fpo_ops::rms_norm(x, w.squeeze_dim(0), gain, 1e-6)
        });
    }
    same("geglu", [[7, 33]; 2], |[gate, up], _| fpo_ops::geglu(gate, up));
    same("swiglu", [[7, 33]; 2], |[gate, up], _| fpo_ops::swiglu(gate, up));
    let options = AttentionOptions { scale: 0.4, softcap: Some(2.0), window: Some(5) };
    same("causal_attention", [[2, 9, 4, 8], [2, 9, 2, 8], [2, 9, 2, 8]], |[q, k, v], _| {
        fpo_ops::causal_attention(q, k, v, &options)
    });
    same("flat_attention", [[1, 9, 4, 8], [1, 9, 2, 8], [1, 9, 2, 8]], |[q, k, v], device| {
        let rows = FlatRows::new(&[[0..3, 3..8], [0..3, 8..9]], device);
        fpo_ops::flat_attention(q, k, v, &options, &rows)
    });
    same("rotary", [[1, 5, 3, 8]], |[x], device| {
        let [cos, sin] =
            [1, 2].map(|seed| random(seed, [5, 4], 1.0, &device.clone().without_autodiff()));
        fpo_ops::rotary(x, cos, sin)
    });
    let [n, d, v] = [13, 8, 50];
    same("linear_log_probs", [[n, d], [v, d]], |[h, w], device| {
        fpo_ops::linear_log_probs(h, w, indices(3, n, v, device), Some(3.0))
    });
    same("linear_kl", [[n, d], [v, d]], |[h, w], device| {
        let device = device.clone().without_autodiff();
        let [r_h, r_w] = [([n, d], 1), ([v, d], 2)].map(|(shape, seed)| {
            // Seven bits: the same in every type.
            let coarse = (random(seed, shape, 1.0, &device) * 64.0).round() / 64.0;
            coarse.cast(FloatDType::from(h.dtype()))
        });
        fpo_ops::linear_kl(r_h, r_w, h, w, Some(3.0))
    });
    same("pooled_features", [[10, 6]], |[h], device| {
        let device = device.clone().without_autodiff();
        let vector = |seed| random(seed, [1, 40], 1.0, &device).squeeze_dim::<1>(0);
        let encoder = Encoder {
            normalization: Normalization::None,
            w_enc: random(1, [6, 40], 1.0, &device),
            b_enc: vector(2),
            activation: Activation::JumpRelu { threshold: vector(3).abs() },
        };
        fpo_ops::pooled_features(h, &encoder, &[3, 6, 1])
    });
}
