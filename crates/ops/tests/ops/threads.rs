//! Results are the same to the bit with any number of threads.

use burn::tensor::{Device, Tensor};
use fpo_ops::{Activation, AdamW, AttentionOptions, Encoder, FlatRows, Gain, Normalization};

use crate::support::{Numbers, autodiff, vec};

/// Runs `work` on one, two and three threads and compares everything that it returns.
fn same_bits(what: &str, work: impl Fn() -> Vec<Vec<f64>> + Sync) {
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.expect("a pool of threads").install(&work)
    };
    let one = on(1);
    for threads in [2, 3] {
        assert!(on(threads) == one, "{what}: {threads} threads differ from one");
    }
}

/// The output of `f` and the gradients of all inputs.
fn all<const N: usize, const D: usize, const O: usize>(
    inputs: [Tensor<D>; N],
    f: impl Fn([Tensor<D>; N]) -> Tensor<O>,
) -> Vec<Vec<f64>> {
    let leaves = inputs.map(Tensor::require_grad);
    let output = f(leaves.clone());
    let weights = Numbers(41).tensor(output.dims(), 1.0, &autodiff());
    let gradients = (output.clone() * weights).backward();
    let gradients = leaves.map(|leaf| leaf.grad(&gradients).expect("tracked"));
    std::iter::once(vec(&output)).chain(gradients.iter().map(vec)).collect()
}

fn random<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<D> {
    Numbers(seed).tensor(shape, 1.0, &autodiff())
}

#[test]
fn elementwise_and_rowwise() {
    same_bits("geglu", || {
        all([random(1, [300, 100]), random(2, [300, 100])], |[g, u]| fpo_ops::geglu(g, u))
    });
    same_bits("swiglu", || {
        all([random(1, [300, 100]), random(2, [300, 100])], |[g, u]| fpo_ops::swiglu(g, u))
    });
    same_bits("softcap", || all([random(1, [300, 100])], |[x]| fpo_ops::softcap(x, 3.0)));
    same_bits("rms_norm", || {
        all([random(1, [300, 100]), random(2, [1, 100])], |[x, w]| {
            fpo_ops::rms_norm(x, w.squeeze_dim(0), Gain::OnePlusWeight, 1e-6)
        })
    });
    same_bits("jump_relu", || {
        all([random(1, [300, 100]), random(2, [1, 100])], |[z, theta]| {
            fpo_ops::jump_relu(z, theta.squeeze_dim(0), 0.2)
        })
    });
    same_bits("rotary", || {
        let (cos, sin) = (random(2, [150, 16]), random(3, [150, 16]));
        all([random(1, [2, 150, 2, 32])], |[x]| fpo_ops::rotary(x, cos.clone(), sin.clone()))
    });
}

#[test]
fn heaviside() {
    same_bits("heaviside", || {
        let z = random(1, [300, 100]);
        all([random(2, [1, 100])], |[theta]| {
            fpo_ops::heaviside(z.clone(), theta.squeeze_dim(0), 0.2)
        })
    });
}

#[test]
fn linear() {
    // gemm chooses the number of threads by size.
    for [n, d_in, d_out] in [[400, 64, 600], [1000, 130, 500], [3, 700, 900], [2100, 700, 40]] {
        same_bits(&format!("linear {:?}", [n, d_in, d_out]), || {
            all([random(1, [n, d_in]), random(2, [d_out, d_in])], |[x, w]| fpo_ops::linear(x, w))
        });
    }
}

#[test]
fn attention() {
    let options = AttentionOptions { scale: 0.3, softcap: Some(5.0), window: Some(90) };
    same_bits("attention", || {
        let [q, k, v] = [1, 2, 3].map(|seed| random(seed, [3, 150, 4, 16]));
        all([q, k, v], |[q, k, v]| fpo_ops::causal_attention(q, k, v, &options))
    });
    same_bits("attention over shared rows", || {
        let [q, k, v] = [1, 2, 3].map(|seed| random(seed, [1, 240, 4, 16]));
        let rows = FlatRows::new(&[[0..100, 100..150], [0..100, 150..240]], &autodiff());
        all([q, k, v], |[q, k, v]| fpo_ops::flat_attention(q, k, v, &options, &rows))
    });
}

#[test]
fn vocabulary() {
    let targets = || Numbers(3).indices(300, 1500, &autodiff());
    let inputs = || [random(1, [300, 24]), random(2, [1500, 24])];
    same_bits("linear_log_probs", || {
        all(inputs(), |[h, w]| fpo_ops::linear_log_probs(h, w, targets(), Some(5.0)))
    });
    same_bits("linear_kl", || {
        let reference = || (random(4, [300, 24]), random(5, [1500, 24]));
        all(inputs(), |[h, w]| fpo_ops::linear_kl(reference().0, reference().1, h, w, None))
    });
    same_bits("linear_token_statistics", || {
        let [h, w] = inputs();
        let statistics = fpo_ops::linear_token_statistics(h, w, targets(), None);
        vec![vec(&statistics.log_probs), vec(&statistics.entropy)]
    });
}

#[test]
fn pooled_features() {
    let encoder = Encoder {
        normalization: Normalization::None,
        w_enc: random(1, [24, 1100]),
        b_enc: random(2, [1100]),
        activation: Activation::JumpRelu { threshold: random(3, [1100]) },
    };
    same_bits("pooled_features", || {
        all([random(4, [300, 24])], |[h]| fpo_ops::pooled_features(h, &encoder, &[100, 150, 50]))
    });
}

#[test]
fn adamw() {
    let options =
        AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, grad_scale: 1.0 };
    same_bits("adamw_step", || {
        let [p, g, m, v] = [1, 2, 3, 4]
            .map(|seed| Numbers(seed).tensor::<2>([300, 100], 1.0, &Device::flex()).abs());
        let (p, m, v) = fpo_ops::adamw_step(p, g, m, v, 2, &options);
        [p, m, v].iter().map(vec).collect()
    });
}
