//! Log-probabilities of target tokens without all logits in memory, against the plain definition: the same values and gradients.
//!
//!     cargo run --release -p fpo-ops --features flex --example log_probs

use std::time::Instant;

use burn::tensor::{Device, Distribution, Int, Tensor};
use fpo_ops::{definition, linear_log_probs};

const TOKENS: usize = 256;
const D_MODEL: usize = 64;
const VOCABULARY: usize = 32_000;
const SOFTCAP: Option<f64> = Some(30.0);

fn main() {
    let device = Device::flex().autodiff();
    device.seed(0);
    let random = |shape| Tensor::<2>::random(shape, Distribution::Normal(0.0, 1.0), &device);
    let (hidden, unembedding) = (random([TOKENS, D_MODEL]), random([VOCABULARY, D_MODEL]));
    let tokens = Distribution::Uniform(0.0, VOCABULARY as f64);
    let targets = Tensor::<1, Int>::random([TOKENS], tokens, &device);

    // Values, gradient of the hidden states, seconds.
    let run = |f: &dyn Fn(Tensor<2>, Tensor<2>) -> Tensor<1>| {
        let (h, w) = (hidden.clone().require_grad(), unembedding.clone().require_grad());
        let start = Instant::now();
        let log_probs = f(h.clone(), w);
        let gradients = log_probs.clone().sum().backward();
        let d_hidden = h.grad(&gradients).expect("the hidden states are tracked");
        (log_probs.inner(), d_hidden, start.elapsed().as_secs_f64())
    };
    let blocked = run(&|h, w| linear_log_probs(h, w, targets.clone(), SOFTCAP));
    let plain = run(&|h, w| definition::linear_log_probs(h, w, targets.clone(), SOFTCAP));

    let mean: f32 = blocked.0.clone().mean().into_scalar();
    println!("{TOKENS} tokens, vocabulary {VOCABULARY}: mean log-probability {mean:.3} nats");
    println!("linear_log_probs {:.3} s, definition {:.3} s", blocked.2, plain.2);
    let difference: f32 = (blocked.0 - plain.0).abs().max().into_scalar();
    let of_gradients: f32 = (blocked.1 - plain.1).abs().max().into_scalar();
    println!("largest difference: values {difference:.1e}, gradients {of_gradients:.1e}");
    assert!(difference < 1e-3 && of_gradients < 1e-3, "the two ways disagree");
}
