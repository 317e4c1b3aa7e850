//! The gradients of the definitions against central differences in float64.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use fpo_ops::{Activation, AttentionOptions, Encoder, Gain, Normalization, TextStarts, definition};
use proptest::prelude::*;

use crate::support::{Numbers, autodiff, same, vec};

/// Asserts that the gradients of `f`, its output multiplied by random weights, equal central differences.
///
/// The inputs are flat; `f` reshapes them. float64 never takes a fast path, so this checks the definitions.
fn check<const N: usize, const O: usize>(
    what: &str,
    inputs: [Vec<f64>; N],
    f: impl Fn([Tensor<1>; N]) -> Tensor<O>,
) {
    const STEP: f64 = 1e-5;
    let tensor = |values: &Vec<f64>, device: &Device| {
        Tensor::<1>::from_data(
            TensorData::new(values.clone(), [values.len()]),
            (device, DType::F64),
        )
    };
    let weigh = |output: Tensor<O>| -> Tensor<1> {
        let values = Numbers(51).values(output.shape().num_elements(), 1.0);
        let shape = output.shape();
        let weights =
            Tensor::<O>::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F64));
        (output * weights).sum()
    };
    let value = |inputs: &[Vec<f64>; N]| {
        let inputs = inputs.each_ref().map(|values| tensor(values, &Device::flex()));
        vec(&weigh(f(inputs)))[0]
    };

    let leaves = inputs.each_ref().map(|values| tensor(values, &autodiff()).require_grad());
    let gradients = weigh(f(leaves.clone())).backward();
    for (i, leaf) in leaves.iter().enumerate() {
        let gradient = vec(&leaf.grad(&gradients).expect("tracked"));
        for (j, &exact) in gradient.iter().enumerate() {
            let moved = |by: f64| {
                let mut inputs = inputs.clone();
                inputs[i][j] += by;
                value(&inputs)
            };
            let estimate = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
            assert!(
                (exact - estimate).abs() <= 1e-7 * (1.0 + estimate.abs()),
                "{what}: the gradient of element {j} of input {i} is {exact}, finite differences give {estimate}"
            );
        }
    }
}

fn values<const N: usize>(sizes: [usize; N]) -> [Vec<f64>; N] {
    let mut numbers = Numbers(50);
    sizes.map(|n| numbers.values(n, 1.5))
}

fn targets(n: usize, vocabulary: usize) -> Tensor<1, Int> {
    Numbers(52).indices(n, vocabulary, &Device::flex())
}

/// float64 constants without autodiff.
fn constant<const D: usize>(seed: u64, shape: [usize; D]) -> Tensor<D> {
    let values = Numbers(seed).values(shape.iter().product(), 1.0);
    Tensor::from_data(TensorData::new(values, shape), (&Device::flex(), DType::F64))
}

#[test]
fn small_operations() {
    check("geglu", values([6, 6]), |[g, u]| fpo_ops::geglu(g, u));
    check("swiglu", values([6, 6]), |[g, u]| fpo_ops::swiglu(g, u));
    check("softcap", values([6]), |[x]| fpo_ops::softcap(x, 2.0));
    for gain in [Gain::OnePlusWeight, Gain::Weight] {
        check("rms_norm", values([12, 4]), |[x, w]| {
            fpo_ops::rms_norm(x.reshape([3, 4]), w, gain, 1e-6)
        });
    }
    check("linear", values([12, 8]), |[x, w]| {
        fpo_ops::linear(x.reshape([3, 4]), w.reshape([2, 4]))
    });
    check("rotary", values([24]), |[x]| {
        fpo_ops::rotary(x.reshape([1, 3, 2, 4]), constant(1, [3, 2]), constant(2, [3, 2]))
    });
}

#[test]
fn attention() {
    for softcap in [None, Some(2.0)] {
        for window in [None, Some(2)] {
            let options = AttentionOptions { scale: 0.6, softcap, window };
            // 2 texts, 3 queries of 4 positions, 4 heads on 2
            check(&format!("attention {options:?}"), values([72, 48, 48]), |[q, k, v]| {
                let q = q.reshape([2, 3, 4, 3]);
                let [k, v] = [k, v].map(|x| x.reshape([2, 4, 2, 3]));
                fpo_ops::causal_attention(q, k, v, &options)
            });
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Oracle: attention on each text by itself. The rest of a row is one more text.
    #[test]
    fn packed_attention(
        lengths in prop::collection::vec(prop::collection::vec(1..6_usize, 1..4), 1..4),
        rest in 0..3_usize,
        softcap in prop::option::of(1.0..4.0),
        window in prop::option::of(1..7_usize),
    ) {
        let total = |lengths: &Vec<usize>| lengths.iter().sum::<usize>();
        let width = lengths.iter().map(total).max().unwrap_or_default() + rest;
        let texts = TextStarts::new(&lengths, width);
        let all: Vec<Vec<usize>> = lengths
            .iter()
            .map(|row| row.iter().copied().chain([width - total(row)]).collect())
            .collect();
        let positions: Vec<usize> = all.iter().flatten().flat_map(|&length| 0..length).collect();
        prop_assert_eq!(texts.positions().collect::<Vec<_>>(), positions);

        let options = AttentionOptions { scale: 0.6, softcap, window };
        let mut numbers = Numbers(1);
        let device = autodiff();
        let q = numbers.tensor([lengths.len(), width, 4, 3], 2.0, &device);
        let [k, v] = [(); 2].map(|()| numbers.tensor([lengths.len(), width, 2, 3], 2.0, &device));
        let alone = |[q, k, v]: [Tensor<4>; 3]| {
            let rows = all.iter().enumerate().map(|(row, lengths)| {
                let mut first = 0;
                let texts = lengths.iter().filter(|length| **length > 0).map(|length| {
                    let text = first..first + length;
                    first += length;
                    let [q, k, v] =
                        [&q, &k, &v].map(|x| x.clone().slice([row..row + 1, text.clone()]));
                    definition::causal_attention(q, k, v, &options)
                });
                Tensor::cat(texts.collect(), 1)
            });
            Tensor::cat(rows.collect(), 0)
        };
        let packed =
            |[q, k, v]: [Tensor<4>; 3]| definition::packed_attention(q, k, v, &options, &texts);
        same("packed attention", [q, k, v], 1e-6, packed, alone);
    }
}

#[test]
fn vocabulary() {
    for softcap in [None, Some(2.0)] {
        check("linear_log_probs", values([12, 20]), |[h, w]| {
            let (h, w) = (h.reshape([3, 4]), w.reshape([5, 4]));
            fpo_ops::linear_log_probs(h, w, targets(3, 5), softcap)
        });
        check("linear_kl", values([12, 20]), |[h, w]| {
            let (h, w) = (h.reshape([3, 4]), w.reshape([5, 4]));
            fpo_ops::linear_kl(constant(3, [3, 2]), constant(4, [5, 2]), h, w, softcap)
        });
    }
}

#[test]
fn pooled_features() {
    let activations = || {
        [
            Activation::JumpRelu { threshold: constant(7, [9]) },
            Activation::Relu,
            Activation::TopK { k: 3 },
        ]
    };
    for normalization in
        [Normalization::None, Normalization::LayerNorm, Normalization::ConstantNorm]
    {
        for activation in activations() {
            let what = format!("pooled_features {normalization:?} {activation:?}");
            let encoder = Encoder {
                normalization,
                w_enc: constant(5, [4, 9]),
                b_enc: constant(6, [9]),
                activation,
            };
            check(&what, values([24]), |[h]| {
                fpo_ops::pooled_features(h.reshape([6, 4]), &encoder, &[1, 3, 2])
            });
        }
    }
}

/// Oracle: KL, entropy and log-probabilities as sums over tokens.
#[test]
fn distributions_in_scalar_arithmetic() {
    let (n, d, v) = (3, 4, 7);
    let (h, w) = (constant::<2>(8, [n, d]), constant::<2>(9, [v, d]));
    let (r_h, r_w) = (constant::<2>(10, [n, d]), constant::<2>(11, [v, d]));
    let cap = 1.5;
    let distribution = |h: &Tensor<2>, w: &Tensor<2>| -> Vec<Vec<f64>> {
        let (h, w) = (vec(h), vec(w));
        let row = |i: usize| {
            let logit = |t: usize| {
                let dot: f64 = (0..d).map(|k| h[i * d + k] * w[t * d + k]).sum();
                (cap * (dot / cap).tanh()).exp()
            };
            let total: f64 = (0..v).map(logit).sum();
            (0..v).map(|t| logit(t) / total).collect()
        };
        (0..n).map(row).collect()
    };
    let (p, r) = (distribution(&h, &w), distribution(&r_h, &r_w));
    let targets = targets(n, v);
    let chosen = targets.to_data_as::<i64>();
    let chosen = chosen.as_slice::<i64>().expect("i64");
    let kl = vec(&fpo_ops::linear_kl(r_h, r_w, h.clone(), w.clone(), Some(cap)));
    let statistics = fpo_ops::linear_token_statistics(h, w, targets.clone(), Some(cap));
    let (log_probs, entropy) = (vec(&statistics.log_probs), vec(&statistics.entropy));
    for i in 0..n {
        let expected: f64 = (0..v).map(|t| r[i][t] * (r[i][t] / p[i][t]).ln()).sum();
        assert!((kl[i] - expected).abs() < 1e-12);
        assert!((log_probs[i] - p[i][chosen[i] as usize].ln()).abs() < 1e-12);
        let expected: f64 = p[i].iter().map(|p| -p * p.ln()).sum();
        assert!((entropy[i] - expected).abs() < 1e-12);
    }
}

/// Oracle: a stable sort. Ties keep those that come first.
#[test]
fn the_largest_of_each_row() {
    let rows = [
        vec![0.5, -1.0, 3.0, 3.0, 0.0, -2.0, 3.0],
        vec![-1.0; 7],
        vec![7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0],
        vec![0.25, f64::NEG_INFINITY, 0.5, f64::NEG_INFINITY, 0.125, 1.0, -0.5],
    ];
    let flat: Vec<f64> = rows.concat();
    for k in [1, 2, 3, 6, 7, 9] {
        let z = Tensor::<2>::from_data(TensorData::new(flat.clone(), [4, 7]), &Device::flex());
        let found = fpo_ops::among_largest(z, k).to_data();
        let found: Vec<bool> = found.iter::<bool>().collect();
        for (row, found) in rows.iter().zip(found.chunks_exact(7)) {
            let mut order: Vec<usize> = (0..7).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            for (rank, &i) in order.iter().enumerate() {
                assert_eq!(found[i], rank < k, "k = {k}, {row:?}, element {i}");
            }
        }
    }
    // Without ties every path agrees.
    let z = Numbers(1).tensor::<2>([6, 40], 1.0, &Device::flex());
    for k in [1, 5, 40] {
        let [fast, plain] =
            [fpo_ops::among_largest(z.clone(), k), definition::among_largest(z.clone(), k)];
        assert_eq!(fast.to_data(), plain.to_data());
    }
}
