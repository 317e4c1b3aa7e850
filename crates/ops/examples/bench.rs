//! The time of each operation, forward alone and with backward, fast path against definition, on the sizes of a small model.
//!
//! `cargo run -p fpo-ops --release --features flex --example bench [NAME]`

use std::time::Instant;

use burn::tensor::{Device, Distribution, Int, Tensor};
use fpo_ops::{AdamW, AttentionOptions, Encoder, definition};

const TEXTS: usize = 24;
const TOKENS: usize = 40;
const POSITIONS: usize = TEXTS * TOKENS;
const D_MODEL: usize = 128;
const FFN: usize = 512;
const HEADS: usize = 4;
const VOCABULARY: usize = 1024;
const D_SAE: usize = 2048;

fn main() {
    println!(
        "milliseconds            {:>10} {:>10} {:>10} {:>10}",
        "fast fwd", "+ bwd", "def. fwd", "+ bwd"
    );
    let wide = || random([POSITIONS, FFN]);
    let narrow = || random([POSITIONS, D_MODEL]);

    compare(
        "geglu",
        [wide(), wide()],
        |[gate, up]| fpo_ops::geglu(gate, up),
        |[gate, up]| definition::geglu(gate, up),
    );
    for softcap in [None, Some(50.0)] {
        let options = AttentionOptions { scale: 0.18, softcap, window: None };
        let heads = |x: Tensor<2>| x.reshape([TEXTS, TOKENS, HEADS, D_MODEL / HEADS]);
        compare(
            if softcap.is_some() { "attention, softcap" } else { "attention" },
            [narrow(), narrow(), narrow()],
            |qkv| {
                let [q, k, v] = qkv.map(heads);
                fpo_ops::causal_attention(q, k, v, &options).reshape([POSITIONS, D_MODEL])
            },
            |qkv| {
                let [q, k, v] = qkv.map(heads);
                definition::causal_attention(q, k, v, &options).reshape([POSITIONS, D_MODEL])
            },
        );
    }
    vocabulary();
    compare(
        "rms_norm",
        [narrow(), random([1, D_MODEL])],
        |[x, w]| fpo_ops::rms_norm(x, w.squeeze_dim(0), 1e-6),
        |[x, w]| definition::rms_norm(x, w.squeeze_dim(0), 1e-6),
    );
    for (name, d_in, d_out) in [("linear, up", D_MODEL, FFN), ("linear, down", FFN, D_MODEL)] {
        compare(
            name,
            [random([POSITIONS, d_in]), random([d_out, d_in])],
            |[x, w]| fpo_ops::linear(x, w),
            |[x, w]| definition::linear(x, w),
        );
    }
    let [cos, sin] = [(); 2].map(|()| random([TOKENS, D_MODEL / HEADS / 2]).inner());
    let heads = |x: Tensor<2>| x.reshape([TEXTS, TOKENS, HEADS, D_MODEL / HEADS]);
    compare(
        "rotary",
        [narrow()],
        |[x]| fpo_ops::rotary(heads(x), cos.clone(), sin.clone()).reshape([POSITIONS, D_MODEL]),
        |[x]| definition::rotary(heads(x), cos.clone(), sin.clone()).reshape([POSITIONS, D_MODEL]),
    );
    features();
    optimiser();
}

/// The operations on whole vocabularies.
fn vocabulary() {
    let inputs = || [random([POSITIONS, D_MODEL]), random([VOCABULARY, D_MODEL])];
    let cap = Some(30.0);
    let indices = Tensor::<1, Int>::arange(0..POSITIONS as i64, &device());
    let targets = || indices.clone();
    compare(
        "linear_log_probs",
        inputs(),
        |[h, w]| fpo_ops::linear_log_probs(h, w, targets(), cap).unsqueeze(),
        |[h, w]| definition::linear_log_probs(h, w, targets(), cap).unsqueeze(),
    );
    let reference = inputs().map(Tensor::inner);
    let [r_h, r_w] = [0, 1].map(|i| move |r: &[Tensor<2>; 2]| r[i].clone());
    compare(
        "linear_kl",
        inputs(),
        |[h, w]| fpo_ops::linear_kl(r_h(&reference), r_w(&reference), h, w, cap).unsqueeze(),
        |[h, w]| definition::linear_kl(r_h(&reference), r_w(&reference), h, w, cap).unsqueeze(),
    );
    compare(
        "linear_token_statistics",
        inputs(),
        |[h, w]| fpo_ops::linear_token_statistics(h, w, targets(), cap).entropy.unsqueeze(),
        |[h, w]| definition::linear_token_statistics(h, w, targets(), cap).entropy.unsqueeze(),
    );
}

/// The operations of sparse autoencoders. The pooled features' gradient is that of the 100 largest of each text.
fn features() {
    let encoder = Encoder {
        w_enc: random([D_MODEL, D_SAE]).inner(),
        b_enc: random([1, D_SAE]).inner().squeeze_dim(0),
        threshold: random([1, D_SAE]).inner().squeeze_dim(0) + 20.0,
    };
    let segments = [TOKENS; TEXTS];
    compare(
        "pooled_features",
        [random([POSITIONS, D_MODEL])],
        |[h]| fpo_ops::pooled_features(h, &encoder, &segments).topk(100, 1),
        |[h]| definition::pooled_features(h, &encoder, &segments).topk(100, 1),
    );
    let inputs = || [random([POSITIONS, D_SAE]), random([1, D_SAE])];
    compare(
        "jump_relu",
        inputs(),
        |[z, theta]| fpo_ops::jump_relu(z, theta.squeeze_dim(0), 0.1),
        |[z, theta]| definition::jump_relu(z, theta.squeeze_dim(0), 0.1),
    );
    compare(
        "heaviside",
        inputs(),
        |[z, theta]| fpo_ops::heaviside(z, theta.squeeze_dim(0), 0.1),
        |[z, theta]| definition::heaviside(z, theta.squeeze_dim(0), 0.1),
    );
}

/// AdamW on the parameters of four layers, about a million.
fn optimiser() {
    let options = AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
    let new = || [(); 3].map(|()| random([8 * FFN, 2 * D_MODEL]).inner().abs());
    let gradient = random([8 * FFN, 2 * D_MODEL]).inner();
    let time = |fast: bool| {
        // The step owns its state, as an optimiser does.
        let mut state = Some(new());
        best(|| {
            let [p, m, v] = state.take().expect("put back below");
            let g = gradient.clone();
            let (p, m, v) = if fast {
                fpo_ops::adamw_step(p, g, m, v, 10, &options)
            } else {
                definition::adamw_step(p, g, m, v, 10, &options)
            };
            state = Some([p, m, v]);
        })
    };
    println!("{:23} {:10.3} {:>10} {:10.3}", "adamw_step", time(true), "", time(false));
}

fn device() -> Device {
    Device::flex().autodiff()
}

fn random(shape: [usize; 2]) -> Tensor<2> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), &device()).require_grad()
}

/// Prints the times of both ways, each the best of several runs. The gradient that comes in is one everywhere.
fn compare<const N: usize>(
    name: &str,
    inputs: [Tensor<2>; N],
    fast: impl Fn([Tensor<2>; N]) -> Tensor<2>,
    slow: impl Fn([Tensor<2>; N]) -> Tensor<2>,
) {
    if std::env::args().nth(1).is_some_and(|only| !name.contains(&only)) {
        return;
    }
    let plain = inputs.clone().map(Tensor::inner);
    let times = |f: &dyn Fn([Tensor<2>; N]) -> Tensor<2>| {
        let forward = best(|| drop(f(plain.clone())));
        let differentiable = f(inputs.clone()).is_tracked();
        let both = differentiable.then(|| best(|| drop(f(inputs.clone()).backward())));
        format!("{forward:10.3} {:>10}", both.map_or(String::new(), |t| format!("{t:.3}")))
    };
    println!("{name:23} {} {}", times(&fast), times(&slow));
}

/// Milliseconds of the fastest of many runs.
fn best(mut work: impl FnMut()) -> f64 {
    (0..40)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed().as_secs_f64() * 1e3
        })
        .fold(f64::INFINITY, f64::min)
}
