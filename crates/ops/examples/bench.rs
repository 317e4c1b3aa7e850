//! The time of each operation, forward and backward, fast path against definition, on the sizes of a small model.
//!
//! `cargo run -p fpo-ops --release --features flex --example bench`

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use fpo_ops::{AttentionOptions, definition};

const TEXTS: usize = 24;
const TOKENS: usize = 40;
const D_MODEL: usize = 128;
const FFN: usize = 512;
const HEADS: usize = 4;

fn main() {
    let device = Device::flex().autodiff();
    let random = |shape: &[usize]| {
        Tensor::<3>::random(shape.to_vec(), Distribution::Normal(0.0, 1.0), &device).require_grad()
    };
    println!(
        "{:24} {:>10} {:>10} {:>10} {:>10}",
        "", "fast fwd", "+ bwd", "def. fwd", "+ bwd"
    );

    let wide = [random(&[TEXTS, TOKENS, FFN]), random(&[TEXTS, TOKENS, FFN])];
    compare(
        "geglu",
        &wide,
        |[a, b]| fpo_ops::geglu(a, b),
        |[a, b]| definition::geglu(a, b),
    );
    let x = [random(&[TEXTS, TOKENS, D_MODEL]), random(&[1, 1, D_MODEL])];
    compare(
        "rms_norm",
        &x,
        |[x, w]| fpo_ops::rms_norm(x, w.flatten(0, 2), 1e-6),
        |[x, w]| definition::rms_norm(x, w.flatten(0, 2), 1e-6),
    );
    let heads = |x: Tensor<3>| x.reshape([TEXTS, TOKENS, HEADS, D_MODEL / HEADS]);
    let qkv = [(); 3].map(|()| random(&[TEXTS, TOKENS, D_MODEL]));
    for softcap in [None, Some(50.0)] {
        let options = AttentionOptions {
            scale: 0.18,
            softcap,
            window: None,
        };
        compare(
            if softcap.is_none() {
                "attention"
            } else {
                "attention, softcap"
            },
            &qkv,
            |qkv| {
                let [q, k, v] = qkv.map(heads);
                fpo_ops::causal_attention(q, k, v, &options).flatten(2, 3)
            },
            |qkv| {
                let [q, k, v] = qkv.map(heads);
                definition::causal_attention(q, k, v, &options).flatten(2, 3)
            },
        );
    }
}

/// Prints the times of both ways in milliseconds, the best of several runs.
fn compare<const N: usize>(
    name: &str,
    inputs: &[Tensor<3>; N],
    fast: impl Fn([Tensor<3>; N]) -> Tensor<3>,
    slow: impl Fn([Tensor<3>; N]) -> Tensor<3>,
) {
    let plain = inputs.clone().map(Tensor::inner);
    let forward = |f: &dyn Fn([Tensor<3>; N]) -> Tensor<3>| best(|| drop(f(plain.clone())));
    let both =
        |f: &dyn Fn([Tensor<3>; N]) -> Tensor<3>| best(|| drop(f(inputs.clone()).backward()));
    println!(
        "{name:24} {:10.3} {:10.3} {:10.3} {:10.3}",
        forward(&fast),
        both(&fast),
        forward(&slow),
        both(&slow)
    );
}

/// Milliseconds of the fastest of many runs.
fn best(work: impl Fn()) -> f64 {
    (0..30)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e3
        })
        .fold(f64::INFINITY, f64::min)
}
