//! Time of single operations on the CPU, each beside its plain definition.
//!
//!     cargo bench -p fpo-ops --features flex --bench ops
//!
//! `fpo bench ops` measures every operation on any device, against the device's matrix rate.

use burn::tensor::{Device, Distribution, Int, Tensor};
use divan::{Bencher, black_box};
use fpo_ops::{Activation, AttentionOptions, Encoder, Normalization, definition};

fn main() {
    divan::main();
}

/// Uniform in ±1, on an autodiff device.
fn random<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    Tensor::random(shape, Distribution::Uniform(-1.0, 1.0), &Device::flex().autodiff())
}

/// Forward and backward pass with gradients of all inputs.
fn forward_backward<const N: usize, const D: usize, const O: usize>(
    bencher: Bencher,
    inputs: [Tensor<D>; N],
    f: impl Fn([Tensor<D>; N]) -> Tensor<O> + Sync,
) {
    let inputs = inputs.map(Tensor::require_grad);
    bencher.bench_local(|| black_box(f(inputs.clone()).sum().backward()));
}

/// 256 tokens, d_model 256, vocabulary 16,384.
mod linear_log_probs {
    use super::*;

    const SHAPES: [[usize; 2]; 2] = [[256, 256], [16_384, 256]];

    fn targets() -> Tensor<1, Int> {
        let tokens = Distribution::Uniform(0.0, SHAPES[1][0] as f64);
        Tensor::random([SHAPES[0][0]], tokens, &Device::flex().autodiff())
    }

    #[divan::bench]
    fn fast(bencher: Bencher) {
        let targets = targets();
        forward_backward(bencher, SHAPES.map(random), |[h, w]| {
            fpo_ops::linear_log_probs(h, w, targets.clone(), Some(30.0))
        });
    }

    #[divan::bench]
    fn plain(bencher: Bencher) {
        let targets = targets();
        forward_backward(bencher, SHAPES.map(random), |[h, w]| {
            definition::linear_log_probs(h, w, targets.clone(), Some(30.0))
        });
    }
}

/// 2 texts of 256 tokens, 8 query heads on 4 key-value heads of width 64, soft-capped.
mod causal_attention {
    use super::*;

    const OPTIONS: AttentionOptions =
        AttentionOptions { scale: 0.125, softcap: Some(50.0), window: None };
    const SHAPES: [[usize; 4]; 3] = [[2, 256, 8, 64], [2, 256, 4, 64], [2, 256, 4, 64]];

    #[divan::bench]
    fn fast(bencher: Bencher) {
        forward_backward(bencher, SHAPES.map(random), |[q, k, v]| {
            fpo_ops::causal_attention(q, k, v, &OPTIONS)
        });
    }

    #[divan::bench]
    fn plain(bencher: Bencher) {
        forward_backward(bencher, SHAPES.map(random), |[q, k, v]| {
            definition::causal_attention(q, k, v, &OPTIONS)
        });
    }
}

/// 4 texts of 64 tokens, d_model 256, 4,096 features of which few are active.
mod pooled_features {
    use super::*;

    const SEGMENTS: [usize; 4] = [64; 4];

    fn encoder() -> Encoder {
        Encoder {
            normalization: Normalization::None,
            w_enc: random([256, 4096]),
            b_enc: random([4096]),
            activation: Activation::JumpRelu { threshold: random([4096]) + 20.0 },
        }
    }

    #[divan::bench]
    fn fast(bencher: Bencher) {
        let encoder = encoder();
        forward_backward(bencher, [random([256, 256])], |[h]| {
            fpo_ops::pooled_features(h, &encoder, &SEGMENTS)
        });
    }

    #[divan::bench]
    fn plain(bencher: Bencher) {
        let encoder = encoder();
        forward_backward(bencher, [random([256, 256])], |[h]| {
            definition::pooled_features(h, &encoder, &SEGMENTS)
        });
    }
}
