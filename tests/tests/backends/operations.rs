//! Each operation, forward and backward.

use std::{env, process::Command};

use burn::tensor::{Device, Tensor};
use fpo_ops::{
    Activation, AdamW, AttentionOptions, Clip, Dropout, Encoder, FlatRows, Gain, Normalization,
    TextStarts,
};

use crate::support::{TOLERANCE, close, devices, indices, random, tolerance, values};

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
    close(what, &found.0, &expected.0, tolerance());
    close(&format!("{what} outside the graph"), &found.1, &expected.1, tolerance());
    for (i, (found, expected)) in found.2.iter().zip(&expected.2).enumerate() {
        close(&format!("{what}, gradient {i}"), found, expected, tolerance());
    }
}

#[test]
fn pointwise_and_rowwise() {
    for shape in [[1, 3], [5, 16], [33, 130]] {
        let row = [1, shape[1]];
        same("geglu", [shape, shape], |[gate, up], _| fpo_ops::geglu(gate, up));
        same("swiglu", [shape, shape], |[gate, up], _| fpo_ops::swiglu(gate, up));
        same("seed", [shape, shape], |[x, g], _| {
            let zero = fpo_ops::seed(fpo_ops::softcap(x.clone(), 2.0), g.clone().detach());
            // Of the zero alone the gradients would be compared as what they are multiplied with.
            (x * g).sum() + zero
        });
        same("softcap", [shape], |[x], _| fpo_ops::softcap(x, 2.0));
        same("jump_relu", [shape, row], |[z, theta], _| {
            fpo_ops::jump_relu(z, theta.squeeze_dim::<1>(0).abs(), 0.5)
        });
        same("linear", [shape, [7, shape[1]]], |[x, w], _| fpo_ops::linear(x, w));
        same("matmul", [shape, [shape[1], 9]], |[a, b], _| fpo_ops::matmul(a, b));
        same("linear of what is computed again", [shape, [7, shape[1]]], |[x, w], _| {
            let plain = x.clone().without_autodiff();
            fpo_ops::linear_of(
                fpo_ops::softcap(x, 2.0),
                move || fpo_ops::softcap(plain.clone(), 2.0),
                w,
            )
        });
    }
    for rate in [0.05, 0.5] {
        let rows = [4, 9, u64::MAX].into_iter();
        let tokens: Vec<_> = rows.flat_map(|row| (0..37).map(move |t| (row, t))).collect();
        let by = Dropout { rate, seed: 7, tokens: &tokens };
        same("dropout", [[3, 37, 130]], |[x], _| fpo_ops::dropout(x, by));
    }
    let angles = |device: &Device| {
        [1, 2].map(|seed| random(seed, [5, 4], 1.0, &device.clone().without_autodiff()))
    };
    same("rotary", [[2, 5, 3, 8]], |[x], device| {
        let [cos, sin] = angles(device);
        fpo_ops::rotary(x, cos, sin)
    });
    same("rotary of some features of some heads", [[2, 5, 7, 11]], |[x], device| {
        let [cos, sin] = angles(device);
        fpo_ops::rotary(x.narrow(2, 2, 3).narrow(3, 1, 8), cos, sin)
    });
}

/// Rows of one element, of fewer than a warp, of no multiple of it and of more than a cube; one row, fewer than a cube's, and
/// more than one dimension of the grid holds.
#[test]
fn rms_norm() {
    let norm = |x, w: Tensor<2>| fpo_ops::rms_norm(x, w.squeeze_dim(0), Gain::OnePlusWeight, 1e-6);
    for shape in
        [[1, 1], [1, 3], [5, 16], [33, 130], [9, 1025], [130, 260], [2049, 35], [262_147, 2]]
    {
        same(&format!("rms_norm of {shape:?}"), [shape, [1, shape[1]]], |[x, w], _| norm(x, w));
        same(&format!("rms_norm of {shape:?}, plain"), [shape, [1, shape[1]]], |[x, w], _| {
            fpo_ops::rms_norm(x, w.squeeze_dim(0), Gain::Weight, 1e-6)
        });
    }
    same("rms_norm of columns", [[40, 7], [1, 40]], |[x, w], _| norm(x.transpose(), w));
    same("rms_norm of half the rows", [[12, 40], [1, 40]], |[x, w], _| norm(x.narrow(0, 5, 6), w));
    same("rms_norm of half the columns", [[12, 40], [1, 9]], |[x, w], _| {
        norm(x.narrow(1, 11, 9), w)
    });
    same("rms_norm of three dimensions", [[12, 40], [1, 10]], |[x, w], _| {
        let x = x.reshape([3, 4, 4, 10]).swap_dims(0, 2);
        let output = fpo_ops::rms_norm(x, w.squeeze_dim::<1>(0), Gain::OnePlusWeight, 1e-6);
        output.reshape([12, 40])
    });
}

/// One token, one head, heads that share keys, more keys than queries, rows of no multiple of a warp and of more than a cube.
#[test]
fn attention() {
    for [b, t, kt, h, kh, d] in [
        [1, 1, 1, 1, 1, 1],
        [2, 9, 9, 4, 2, 8],
        [1, 3, 40, 3, 1, 5],
        [3, 1, 33, 2, 2, 4],
        [2, 70, 70, 6, 2, 3],
        [1, 2, 1100, 2, 1, 4],
    ] {
        for window in [None, Some(1), Some(37)] {
            for softcap in [None, Some(2.0)] {
                let options = AttentionOptions { scale: 0.4, softcap, window };
                let shapes = [[b, t, h, d], [b, kt, kh, d], [b, kt, kh, d]];
                same(&format!("attention {shapes:?}, {options:?}"), shapes, |[q, k, v], _| {
                    fpo_ops::causal_attention(q, k, v, &options)
                });
            }
        }
    }
}

#[test]
fn flat_attention() {
    // Rows that share nothing, a beginning, and all that the shorter one has.
    let cases = [
        vec![[0..0, 0..1], [0..0, 1..4]],
        vec![[0..5, 5..9], [9..9, 9..12], [0..5, 12..75]],
        vec![[0..3, 3..3], [0..3, 3..40]],
    ];
    for rows in cases {
        let count = rows.iter().flatten().map(|range| range.end).max().unwrap_or(0);
        for window in [None, Some(3)] {
            let options = AttentionOptions { scale: 0.4, softcap: Some(2.0), window };
            let shapes = [[1, count, 4, 3], [1, count, 2, 3], [1, count, 2, 3]];
            same(&format!("flat {rows:?}, {options:?}"), shapes, |[q, k, v], device| {
                fpo_ops::flat_attention(q, k, v, &options, &FlatRows::new(&rows, device))
            });
        }
    }
}

#[test]
fn packed_attention() {
    let texts = [
        (9, vec![vec![4, 5], vec![2, 3]]),
        (70, vec![vec![1, 68, 1], vec![33, 37]]),
        (5, vec![vec![], vec![5]]),
    ];
    for (t, lengths) in texts {
        for window in [None, Some(3)] {
            for softcap in [None, Some(2.0)] {
                let options = AttentionOptions { scale: 0.4, softcap, window };
                let starts = TextStarts::new(&lengths, t);
                let shapes = [[2, t, 4, 8], [2, t, 2, 8], [2, t, 2, 8]];
                same(&format!("texts {lengths:?}, {options:?}"), shapes, |[q, k, v], _| {
                    fpo_ops::packed_attention(q, k, v, &options, &starts)
                });
            }
        }
    }
}

/// More scores than are formed at once: the last queries are a block of their own, whose first key is not the first of all.
#[test]
fn attention_in_blocks() {
    let t = 2080;
    let options = AttentionOptions { scale: 0.4, softcap: Some(2.0), window: None };
    let shapes = [[1, t, 8, 2], [1, t, 1, 2], [1, t, 1, 2]];
    let starts = TextStarts::new(&[vec![1000, 1050]], t);
    same("packed_attention in blocks", shapes, |[q, k, v], _| {
        fpo_ops::packed_attention(q, k, v, &options, &starts)
    });
}

/// Vocabularies of fewer tokens than a warp, of more than a cube and of more than a block; more rows than a block.
#[test]
fn vocabulary() {
    for [n, d, v] in
        [[1, 2, 3], [13, 8, 50], [40, 16, 700], [3, 5, 1300], [5, 4, 17_000], [2051, 3, 33]]
    {
        for softcap in [None, Some(3.0)] {
            let what = |name: &str| format!("{name}, {n} × {d} × {v}, soft cap {softcap:?}");
            same(&what("linear_log_probs"), [[n, d], [v, d]], |[h, w], device| {
                fpo_ops::linear_log_probs(h, w, indices(3, n, v, device), softcap)
            });
            same(&what("linear_kl"), [[n, d], [v, d]], |[h, w], device| {
                let device = device.clone().without_autodiff();
                let [r_h, r_w] = [([n, d], 1), ([v, d], 2)]
                    .map(|(shape, seed)| random(seed, shape, 1.0, &device));
                fpo_ops::linear_kl(r_h, r_w, h, w, softcap)
            });
            statistics([n, d, v], softcap);
        }
    }
}

fn statistics([n, d, v]: [usize; 3], softcap: Option<f64>) {
    let Some(devices) = devices() else { return };
    let [expected, found] = devices.map(|device| {
        let (h, w) = (random(1, [n, d], 1.0, &device), random(2, [v, d], 1.0, &device));
        let s = fpo_ops::linear_token_statistics(h, w, indices(3, n, v, &device), softcap);
        let argmax: Vec<i64> = s.argmax.to_data().iter::<i64>().collect();
        (values(&s.log_probs), values(&s.entropy), argmax)
    });
    close("log_probs", &found.0, &expected.0, tolerance());
    close("entropy", &found.1, &expected.1, tolerance());
    assert_eq!(found.2, expected.2);
}

/// Of equal logits the first counts, within a block, across units and across blocks.
#[test]
fn the_first_of_equals() {
    let Some([_, device]) = devices() else { return };
    let v = 17_000;
    let mut weight = vec![0.0f32; v];
    for token in [16_999, 16_500, 16_384, 700, 301, 300, 45] {
        weight[token] = 1.0;
        let w = Tensor::<1>::from_floats(weight.as_slice(), &device).unsqueeze_dim(1);
        let h = Tensor::<2>::from_floats([[1.0], [2.0]], &device);
        let s = fpo_ops::linear_token_statistics(h, w, indices(3, 2, v, &device), Some(30.0));
        let argmax: Vec<i64> = s.argmax.to_data().iter::<i64>().collect();
        assert_eq!(argmax, [token as i64; 2]);
    }
}

/// Fewer features than a warp and more than a cube; segments of one token; one that begins in one block of rows and ends in
/// the next.
#[test]
fn pooled_features() {
    for (d, d_sae, segments) in [
        (1, 1, vec![1]),
        (6, 40, vec![3, 6, 1]),
        (5, 1500, vec![1, 70, 2, 9]),
        (2, 70_000, vec![3, 485, 7]),
    ] {
        let n = segments.iter().sum();
        same(&format!("pooled_features, {d_sae} features"), [[n, d]], |[h], device| {
            let device = device.clone().without_autodiff();
            let vector = |seed| random(seed, [1, d_sae], 1.0, &device).squeeze_dim::<1>(0);
            // Of so many pre-activations, rounding would carry one over its threshold: they keep away from it.
            let b_enc = if d_sae > 10_000 { vector(2).sign() * 10.0 } else { vector(2) };
            let encoder = Encoder {
                normalization: Normalization::None,
                w_enc: random(1, [d, d_sae], 1.0, &device),
                b_enc,
                activation: Activation::JumpRelu { threshold: vector(3).abs() },
            };
            fpo_ops::pooled_features(h, &encoder, &segments)
        });
    }
}

/// Activation functions and normalisations for which there are no kernels of their own.
#[test]
fn pooled_features_of_every_kind() {
    let (d, d_sae, segments) = (6, 40, vec![3, 6, 1]);
    for (normalization, activation) in [
        (Normalization::None, Activation::Relu),
        (Normalization::None, Activation::TopK { k: 7 }),
        (Normalization::LayerNorm, Activation::Relu),
        (Normalization::ConstantNorm, Activation::TopK { k: 3 }),
    ] {
        let what = format!("pooled_features, {normalization:?}, {activation:?}");
        same(&what, [[10, d]], |[h], device| {
            let device = device.clone().without_autodiff();
            let encoder = Encoder {
                normalization,
                w_enc: random(1, [d, d_sae], 1.0, &device),
                b_enc: random(2, [1, d_sae], 1.0, &device).squeeze_dim::<1>(0),
                activation: activation.clone(),
            };
            fpo_ops::pooled_features(h, &encoder, &segments)
        });
    }
}

/// Rows of one element, fewer than a cube and more; the largest, the smallest and some between; equal elements and both zeros.
#[test]
fn kth_largest() {
    let Some(devices) = devices() else { return };
    for shape in [[1, 1], [3, 40], [5, 300], [2, 5000]] {
        let [n, m] = shape;
        for k in [1, 2, m / 2, m].into_iter().filter(|k| (1..=m).contains(k)) {
            let [expected, found] = devices.clone().map(|device| {
                let x = random(1, shape, 2.0, &device);
                let equal = (x.clone() * 2.0).round();
                [x.clone(), equal, x * -1e-30].map(|x| values(&fpo_ops::kth_largest(x, k)))
            });
            assert_eq!(found, expected, "{k} of {n} rows of {m}");
        }
    }
}

/// Indices that repeat, within a cube and in others; a table in one part and in several; rows that someone else still holds.
#[test]
fn rows_of_a_table() {
    let Some(devices) = devices() else { return };
    for (n, d, count) in [(1, 1, 1), (9, 300, 4), (700, 5, 37), (700, 3, 2000)] {
        let [expected, found] = devices.clone().map(|device| {
            let (table, rows) =
                (random(1, [count, d], 1.0, &device), random(2, [n, d], 1.0, &device));
            let at = indices(3, n, count, &device);
            let half = count.div_ceil(2);
            let parts =
                [0..count, 0..half, half..count].into_iter().filter(|part| !part.is_empty());
            let sums = parts.map(|part| {
                let of_part = table.clone().narrow(0, part.start, part.len());
                values(&fpo_ops::add_rows(of_part, part.start, at.clone(), rows.clone()))
            });
            let sums = sums.collect::<Vec<_>>();
            (sums, values(&table))
        });
        assert_eq!(found.1, expected.1, "the table that is held");
        for (found, expected) in found.0.iter().zip(&expected.0) {
            close(&format!("{n} rows to {count} of {d}"), found, expected, TOLERANCE);
        }
    }
}

/// Indices that repeat, more than a cube of them; segments of no value, of one, of fewer than a cube and of more, with gaps.
#[test]
fn rows_and_segments_that_are_picked() {
    for (n, d, count) in [(1, 1, 1), (9, 300, 4), (700, 5, 37)] {
        same(&format!("{n} of {count} rows of {d}"), [[count, d]], |[table], device| {
            fpo_ops::select_rows(table, indices(3, n, count, device))
        });
    }
    for segments in [vec![0..1], vec![0..0, 2..3, 3..60, 64..900]] {
        same(&format!("sums of {segments:?}"), [[1, 901]], |[values], _| {
            fpo_ops::segment_sums(values.squeeze_dim::<1>(0), &segments)
        });
    }
}

/// Products by a strategy of CubeK's, where [`fpo_ops`] doesn't leave them to Burn: written into place, and added there by a kernel
/// of our own, because CubeK adds to nothing. In a process of its own: the strategy is one for the whole process.
#[test]
fn products_by_a_strategy_that_is_named() {
    if devices().is_none() {
        return;
    }
    for test in ["operations::vocabulary", "operations::attention", "operations::pooled_features"] {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--test-threads", "1"])
            .env("FPO_PRODUCTS", "simple-unit")
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{test}: {printed}");
        assert!(printed.contains("1 passed"), "{test}: {printed}");
    }
}

/// One element, fewer than a cube, more than one, no multiple of what a unit does; in two dimensions; and a state that someone
/// else still holds, which has to stay as it was.
#[test]
fn adamw() {
    let Some(devices) = devices() else { return };
    let options =
        AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, grad_scale: 0.5 };
    for shape in [[1, 1], [1, 500], [3, 1001], [70, 70]] {
        let [expected, found] = devices.clone().map(|device| {
            let new = |seed| random(seed, shape, 1.0, &device);
            let (mut w, mut m, mut v) = (new(1), new(2), new(3).abs());
            let held = [w.clone(), m.clone(), v.clone()];
            for step in 1..=3 {
                (w, m, v) = fpo_ops::adamw_step(w, new(4), m, v, step, &options);
            }
            [w, m, v].into_iter().chain(held).map(|x| values(&x)).collect::<Vec<_>>()
        });
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            close(&format!("adamw of {shape:?}, state {i}"), found, expected, TOLERANCE);
        }
    }
}

/// More parameters than a kernel takes, of different lengths, one of them without elements; one alone is the oracle. A moment that
/// someone else still holds stays as it was.
#[test]
fn many_parameters_at_once() {
    let Some([_, device]) = devices() else { return };
    let options =
        AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, grad_scale: 0.5 };
    let mut counts: Vec<usize> = (0..70).map(|i| [1, 1023, 1024, 70_001, 3][i % 5] + i).collect();
    counts[20] = 0;
    let states = || -> Vec<[Tensor<1>; 4]> {
        let of_one = |(i, &count): (usize, &usize)| {
            [0, 1, 2, 3].map(|kind| {
                let x = random(4 * i as u64 + kind, [1, count], 1.0, &device).squeeze_dim(0);
                if kind == 3 { x.abs() } else { x }
            })
        };
        counts.iter().enumerate().map(of_one).collect()
    };
    let mut all = states();
    let held = random(1, [1, counts[7]], 1.0, &device).squeeze_dim::<1>(0);
    all[7][2] = held.clone();
    let together = fpo_ops::adamw_steps(all, 3, &options, &Clip::NONE);
    assert_eq!(together.len(), counts.len());
    let before = random(1, [1, counts[7]], 1.0, &device).squeeze_dim::<1>(0);
    assert_eq!(values(&held), values(&before));
    let (mut squares, mut tensors) = (0.0, Vec::new());
    for (i, ([p, g, m, v], found)) in states().into_iter().zip(together).enumerate() {
        let m = if i == 7 { before.clone() } else { m };
        squares += values(&g).iter().map(|g| g * g).sum::<f64>();
        tensors.push(g.clone());
        let alone = fpo_ops::adamw_step(p, g, m, v, 3, &options);
        for (found, alone) in found.iter().zip([alone.0, alone.1, alone.2]) {
            assert_eq!(values(found), values(&alone));
        }
    }
    let found = values(&fpo_ops::sums_of_squares(tensors)).iter().sum::<f64>();
    close("squares of many", &[found], &[squares], TOLERANCE);
}

/// Norms below the largest and above it; the factor is applied as the number is.
#[test]
fn clipping() {
    let Some(devices) = devices() else { return };
    let options =
        AdamW { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, grad_scale: 0.5 };
    for largest in [1.0, 1e6] {
        let [expected, found] = devices.clone().map(|device| {
            let new = |seed, count| random(seed, [1, count], 1.0, &device).squeeze_dim::<1>(0);
            let sums = fpo_ops::sums_of_squares(vec![new(1, 70_001), new(2, 3)]);
            let clip = Clip::of(vec![sums], Some(largest));
            let state = [1023, 7].map(|n| [new(3, n), new(4, n), new(5, n), new(6, n).abs()]);
            let moved = fpo_ops::adamw_steps(state.to_vec(), 3, &options, &clip);
            let moved = moved.iter().flatten().flat_map(values);
            [clip.norm(), clip.factor()].into_iter().chain(moved).collect::<Vec<_>>()
        });
        for (found, expected) in found.iter().zip(&expected) {
            close(&format!("clipped to {largest}"), &[*found], &[*expected], TOLERANCE);
        }
    }
}

#[test]
fn sums_of_squares() {
    let Some(devices) = devices() else { return };
    for count in [1, 255, 70_000, 200_001] {
        let [expected, found] = devices.clone().map(|device| {
            let x = random(1, [1, count], 1.0, &device).squeeze_dim::<1>(0);
            vec![values(&fpo_ops::sums_of_squares(vec![x])).iter().sum::<f64>()]
        });
        close(&format!("squares of {count}"), &found, &expected, TOLERANCE);
    }
}
