//! Every fast path computes what its definition computes, values and gradients, on awkward shapes.

use burn::tensor::Tensor;
use fpo_ops::{
    Activation, AttentionOptions, Encoder, FlatRows, Gain, Normalization, TextStarts, definition,
};

use crate::support::{Numbers, autodiff, close, same, vec};

#[test]
fn gated() {
    for shape in [[1, 1], [3, 17], [129, 257]] {
        for scale in [0.01, 1.0, 20.0] {
            let mut numbers = Numbers(1);
            let inputs = [(); 2].map(|()| numbers.tensor(shape, scale, &autodiff()));
            same(
                &format!("geglu {shape:?} × {scale}"),
                inputs.clone(),
                2e-6,
                |[gate, up]| fpo_ops::geglu(gate, up),
                |[gate, up]| definition::geglu(gate, up),
            );
            same(
                &format!("swiglu {shape:?} × {scale}"),
                inputs,
                2e-6,
                |[gate, up]| fpo_ops::swiglu(gate, up),
                |[gate, up]| definition::swiglu(gate, up),
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
        for gain in [Gain::OnePlusWeight, Gain::Weight] {
            same(
                &format!("rms_norm {shape:?} {gain:?}"),
                [x.clone(), weight.clone()],
                3e-6,
                |[x, weight]| fpo_ops::rms_norm(x, weight.squeeze_dim(0), gain, 1e-6),
                |[x, weight]| definition::rms_norm(x, weight.squeeze_dim(0), gain, 1e-6),
            );
        }
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
                let options = AttentionOptions { scale: 0.7, softcap, window };
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

#[test]
fn flat_attention() {
    // Rows; heads, kv heads, head_dim
    for (rows, [h, kh, d]) in [
        (vec![[0..0, 0..1]], [1, 1, 1]),
        (vec![[0..5, 5..9], [0..5, 9..12]], [4, 2, 5]),
        (vec![[0..70, 70..71], [0..70, 71..200]], [3, 1, 16]),
        (vec![[0..3, 3..3], [3..4, 4..80], [0..3, 80..81], [3..4, 81..90]], [2, 2, 8]),
        (vec![[0..0, 0..66], [0..0, 66..67], [0..0, 67..80]], [4, 1, 3]),
    ] {
        let count = rows.iter().flatten().map(|range| range.end).max().unwrap();
        let flat = FlatRows::new(&rows, &autodiff());
        for softcap in [None, Some(5.0)] {
            for window in [None, Some(1), Some(3), Some(64), Some(1000)] {
                let options = AttentionOptions { scale: 0.7, softcap, window };
                let mut numbers = Numbers(3);
                let q = numbers.tensor([1, count, h, d], 2.0, &autodiff());
                let k = numbers.tensor([1, count, kh, d], 2.0, &autodiff());
                let v = numbers.tensor([1, count, kh, d], 2.0, &autodiff());
                same(
                    &format!("attention over {rows:?} {options:?}"),
                    [q, k, v],
                    5e-6,
                    |[q, k, v]| fpo_ops::flat_attention(q, k, v, &options, &flat),
                    |[q, k, v]| definition::flat_attention(q, k, v, &options, &flat),
                );
            }
        }
    }
}

#[test]
fn packed_attention() {
    // Texts of each row; the width; heads, kv heads, head_dim
    for (lengths, width, [h, kh, d]) in [
        (vec![vec![1]], 1, [1, 1, 1]),
        (vec![vec![3, 1, 5], vec![9], vec![4, 2]], 9, [4, 2, 5]),
        (vec![vec![63, 2, 65], vec![1, 64, 65]], 130, [2, 2, 8]),
        (vec![vec![0, 20, 0, 70], vec![]], 100, [3, 1, 16]),
    ] {
        let texts = TextStarts::new(&lengths, width);
        for softcap in [None, Some(5.0)] {
            for window in [None, Some(1), Some(3), Some(64)] {
                let options = AttentionOptions { scale: 0.7, softcap, window };
                let mut numbers = Numbers(5);
                let q = numbers.tensor([lengths.len(), width, h, d], 2.0, &autodiff());
                let k = numbers.tensor([lengths.len(), width, kh, d], 2.0, &autodiff());
                let v = numbers.tensor([lengths.len(), width, kh, d], 2.0, &autodiff());
                same(
                    &format!("packed attention {lengths:?} {options:?}"),
                    [q, k, v],
                    5e-6,
                    |[q, k, v]| fpo_ops::packed_attention(q, k, v, &options, &texts),
                    |[q, k, v]| definition::packed_attention(q, k, v, &options, &texts),
                );
            }
        }
    }
}

/// n, d, vocabulary
const HEADS: [[usize; 3]; 5] = [[1, 1, 2], [1, 3, 17], [5, 8, 256], [67, 9, 513], [200, 16, 1000]];

#[test]
fn linear_log_probs() {
    for [n, d, v] in HEADS {
        for softcap in [None, Some(2.0)] {
            let mut numbers = Numbers(4);
            let hidden = numbers.tensor([n, d], 3.0, &autodiff());
            let weight = numbers.tensor([v, d], 1.0, &autodiff());
            let targets = numbers.indices(n, v, &autodiff());
            same(
                &format!("linear_log_probs {:?} {softcap:?}", [n, d, v]),
                [hidden, weight],
                5e-6,
                |[h, w]| fpo_ops::linear_log_probs(h, w, targets.clone(), softcap),
                |[h, w]| definition::linear_log_probs(h, w, targets.clone(), softcap),
            );
        }
    }
}

#[test]
fn linear_log_probs_in_several_slabs() {
    let (n, d, v) = (200, 2, 40_000);
    let mut numbers = Numbers(4);
    let hidden = numbers.tensor([n, d], 3.0, &autodiff());
    let weight = numbers.tensor([v, d], 1.0, &autodiff());
    let targets = numbers.indices(n, v, &autodiff());
    same(
        "linear_log_probs in several slabs",
        [hidden, weight],
        2e-5,
        |[h, w]| fpo_ops::linear_log_probs(h, w, targets.clone(), Some(30.0)),
        |[h, w]| definition::linear_log_probs(h, w, targets.clone(), Some(30.0)),
    );
}

#[test]
fn linear_token_statistics() {
    for [n, d, v] in HEADS {
        for softcap in [None, Some(2.0)] {
            let mut numbers = Numbers(5);
            let what = format!("statistics {:?} {softcap:?}", [n, d, v]);
            let hidden = numbers.tensor([n, d], 3.0, &autodiff());
            let weight = numbers.tensor([v, d], 1.0, &autodiff());
            let targets = numbers.indices(n, v, &autodiff());
            let (h, w, t) = (hidden.clone(), weight.clone(), targets.clone());
            let fast = fpo_ops::linear_token_statistics(h, w, t, softcap);
            let slow = definition::linear_token_statistics(hidden, weight, targets, softcap);
            close(&format!("{what}: log_probs"), &fast.log_probs, &slow.log_probs, 3e-6);
            close(&format!("{what}: entropy"), &fast.entropy, &slow.entropy, 3e-6);
            fast.argmax.to_data().assert_eq(&slow.argmax.to_data(), false);
            assert!(!fast.log_probs.is_autodiff() && !fast.argmax.is_autodiff());
        }
    }
}

#[test]
fn linear_kl() {
    for [n, d, v] in HEADS {
        for softcap in [None, Some(2.0)] {
            let mut numbers = Numbers(6);
            let hidden = numbers.tensor([n, d], 3.0, &autodiff());
            let weight = numbers.tensor([v, d], 1.0, &autodiff());
            // A reference of another width.
            let r_hidden = numbers.tensor([n, d + 1], 2.0, &autodiff());
            let r_weight = numbers.tensor([v, d + 1], 1.0, &autodiff());
            let reference = || (r_hidden.clone(), r_weight.clone());
            same(
                &format!("linear_kl {:?} {softcap:?}", [n, d, v]),
                [hidden, weight],
                1e-5,
                |[h, w]| fpo_ops::linear_kl(reference().0, reference().1, h, w, softcap),
                |[h, w]| definition::linear_kl(reference().0, reference().1, h, w, softcap),
            );
        }
    }
}

#[test]
fn kl_of_a_model_with_itself_is_zero() {
    let mut numbers = Numbers(7);
    let hidden: Tensor<2> = numbers.tensor([70, 8], 3.0, &autodiff());
    let weight: Tensor<2> = numbers.tensor([300, 8], 1.0, &autodiff());
    let (h, w) = (hidden.clone().require_grad(), weight.clone());
    let kl = fpo_ops::linear_kl(hidden, weight, h.clone(), w, Some(30.0));
    let gradient = h.grad(&kl.clone().backward()).expect("tracked");
    assert!(vec(&kl).iter().all(|&x| x == 0.0));
    assert!(vec(&gradient).iter().all(|&x| x == 0.0));
}

#[test]
fn linear() {
    for [n, d_in, d_out] in [[1, 1, 1], [1, 16, 600], [3, 17, 5], [300, 33, 129], [130, 8, 1100]] {
        let mut numbers = Numbers(8);
        let x = numbers.tensor([n, d_in], 1.0, &autodiff());
        let weight = numbers.tensor([d_out, d_in], 1.0, &autodiff());
        same(
            &format!("linear {:?}", [n, d_in, d_out]),
            [x, weight],
            3e-6,
            |[x, weight]| fpo_ops::linear(x.unsqueeze::<3>(), weight),
            |[x, weight]| definition::linear(x.unsqueeze::<3>(), weight),
        );
    }
}

#[test]
fn rotary() {
    for [b, t, h, d] in [[1, 1, 1, 2], [2, 5, 3, 6], [3, 130, 2, 34]] {
        let mut numbers = Numbers(9);
        let x = numbers.tensor([b, t, h, d], 2.0, &autodiff());
        let [cos, sin] = [(); 2].map(|()| numbers.tensor([t, d / 2], 1.0, &autodiff()));
        same(
            &format!("rotary {:?}", [b, t, h, d]),
            [x],
            1e-6,
            |[x]| fpo_ops::rotary(x, cos.clone(), sin.clone()),
            |[x]| definition::rotary(x, cos.clone(), sin.clone()),
        );
    }
}

#[test]
fn softcap() {
    for shape in [[1, 1], [3, 17], [129, 257]] {
        let x = Numbers(10).tensor(shape, 60.0, &autodiff());
        same(
            &format!("softcap {shape:?}"),
            [x],
            2e-6,
            |[x]| fpo_ops::softcap(x, 30.0),
            |[x]| definition::softcap(x, 30.0),
        );
    }
}

#[test]
fn jump_relu_and_heaviside() {
    for [n, d] in [[1, 1], [3, 17], [150, 33]] {
        let mut numbers = Numbers(11);
        let z = numbers.tensor([n, d], 1.0, &autodiff());
        let threshold = numbers.tensor([1, d], 0.5, &autodiff());
        same(
            &format!("jump_relu {:?}", [n, d]),
            [z.clone(), threshold.clone()],
            2e-6,
            |[z, threshold]| fpo_ops::jump_relu(z, threshold.squeeze_dim(0), 0.3),
            |[z, threshold]| definition::jump_relu(z, threshold.squeeze_dim(0), 0.3),
        );
        same(
            &format!("heaviside {:?}", [n, d]),
            [z, threshold],
            2e-6,
            |[z, threshold]| fpo_ops::heaviside(z, threshold.squeeze_dim(0), 0.3),
            |[z, threshold]| definition::heaviside(z, threshold.squeeze_dim(0), 0.3),
        );
    }
}

#[test]
fn pooled_features() {
    for (d, d_sae, segments) in
        [(1, 1, vec![1]), (5, 17, vec![1, 3, 2]), (16, 1100, vec![70, 1, 130, 64])]
    {
        let mut numbers = Numbers(12);
        let mut encoder = Encoder {
            normalization: Normalization::None,
            w_enc: numbers.tensor([d, d_sae], 1.0, &autodiff()),
            b_enc: numbers.tensor([d_sae], 0.3, &autodiff()),
            activation: Activation::JumpRelu {
                threshold: numbers.tensor([d_sae], 0.5, &autodiff()),
            },
        };
        let hidden = numbers.tensor([segments.iter().sum(), d], 1.0, &autodiff());
        let kinds = [
            (Normalization::None, encoder.activation.clone()),
            (Normalization::ConstantNorm, encoder.activation.clone()),
            (Normalization::None, Activation::Relu),
            (Normalization::None, Activation::TopK { k: d_sae.div_ceil(5) }),
        ];
        // With a gradient on few features, and on all.
        for ((normalization, activation), sparse) in
            kinds.into_iter().flat_map(|kind| [(kind.clone(), false), (kind, true)])
        {
            (encoder.normalization, encoder.activation) = (normalization, activation);
            let weigh = |pooled: Tensor<2>| {
                let mask = Numbers(13).tensor::<2>(pooled.dims(), 1.0, &autodiff());
                if sparse { pooled.mask_fill(mask.lower_elem(0.9), 0.0) } else { pooled }
            };
            same(
                &format!("pooled_features {d} {d_sae} {segments:?} {sparse} {normalization:?}"),
                [hidden.clone()],
                3e-6,
                |[h]| weigh(fpo_ops::pooled_features(h, &encoder, &segments)),
                |[h]| weigh(definition::pooled_features(h, &encoder, &segments)),
            );
        }
    }
}
