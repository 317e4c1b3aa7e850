//! Tensors of micro-batches become values of pairs. Oracle: the same numbers in plain float64 arithmetic.

use burn::tensor::{Device, Tensor};
use fpo_losses::{Objective, PairLosses, PerResponse, Quantities, mean_loss};
use fpo_metrics::{METRICS, PairValues, Pairs, Sides, TokenStatistics, log, metrics};

/// Every row is a pair: the chosen response's value and the rejected one's. All are exact in float32.
const LOG_PROBS: [[f64; 2]; 4] = [[-4.0, -9.0], [-8.0, -2.5], [-1.5, -1.25], [-20.0, -7.0]];
const TOKENS: [[f64; 2]; 4] = [[2.0, 3.0], [8.0, 2.0], [1.0, 1.0], [16.0, 4.0]];
const REFERENCE: [[f64; 2]; 4] = [[-5.0, -8.0], [-8.5, -2.0], [-1.5, -2.25], [-24.0, -4.0]];
const KL: [[f64; 2]; 4] = [[0.5, 0.25], [1.5, 0.125], [0.0, 2.0], [4.0, 1.0]];
const DISTANCE: [[f64; 2]; 4] = [[0.25, 0.5], [0.0, 0.75], [1.0, 1.5], [0.125, 0.0]];
const ENTROPY: [[f64; 2]; 4] = [[1.0, 2.0], [6.0, 0.5], [0.25, 0.75], [9.0, 3.5]];
const RIGHT: [[f64; 2]; 4] = [[1.0, 3.0], [5.0, 0.0], [1.0, 0.0], [9.0, 4.0]];

fn per_response(values: &[[f64; 2]], device: &Device) -> PerResponse {
    let side = |side: usize| {
        let values: Vec<f32> = values.iter().map(|pair| pair[side] as f32).collect();
        Tensor::from_floats(values.as_slice(), device)
    };
    PerResponse { chosen: side(0), rejected: side(1) }
}

fn quantities(range: std::ops::Range<usize>, device: &Device) -> Quantities {
    let of = |values: &[[f64; 2]; 4]| per_response(&values[range.clone()], device);
    Quantities {
        reference: Some(of(&REFERENCE)),
        kl: Some(of(&KL)),
        distance: Some(of(&DISTANCE)),
        ..Quantities::new(of(&LOG_PROBS), of(&TOKENS))
    }
}

fn statistics(range: std::ops::Range<usize>, device: &Device) -> TokenStatistics {
    TokenStatistics {
        entropy: per_response(&ENTROPY[range.clone()], device),
        right: per_response(&RIGHT[range], device),
    }
}

/// All pairs in micro-batches that end at `ends`, with losses per micro-batch.
fn gathered(objective: &Objective, ends: &[usize]) -> Pairs {
    let device = Device::flex();
    let (mut pairs, mut start) = (Pairs::default(), 0);
    for &end in ends {
        let q = quantities(start..end, &device);
        pairs.add(&q);
        pairs.add_statistics(&statistics(start..end, &device));
        pairs.add_losses(&objective.losses(q));
        start = end;
    }
    pairs
}

/// A method with the constants of the paper.
fn paper(method: &str) -> Objective {
    Objective::paper(method.parse().unwrap())
}

#[track_caller]
fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-6 * (1.0 + expected.abs()), "{found}, not {expected}");
}

#[test]
fn values_are_those_that_were_added() {
    let objective = Objective { beta: 0.5, ..paper("dpo") };
    let pairs = gathered(&objective, &[4]).read();
    let sides = |pair: [f64; 2]| Sides::new(pair[0], pair[1]);
    for (i, pair) in pairs.iter().enumerate() {
        assert_eq!(pair.log_probs, sides(LOG_PROBS[i]));
        assert_eq!(pair.tokens, sides(TOKENS[i]));
        assert_eq!(pair.kl, Some(sides(KL[i])));
        assert_eq!(pair.distance, Some(sides(DISTANCE[i])));
        assert_eq!(pair.entropy, Some(sides(ENTROPY[i])));
        assert_eq!(pair.right_tokens, Some(sides(RIGHT[i])));
        assert_eq!(pair.method_margin, None);
        // DPO: a reward is β (log p − log r), u their difference, the loss −log σ(u).
        let reward = |side: usize| 0.5 * (LOG_PROBS[i][side] - REFERENCE[i][side]);
        close(pair.rewards.chosen, reward(0));
        close(pair.rewards.rejected, reward(1));
        close(pair.rewards.margin, reward(0) - reward(1));
        close(pair.u, reward(0) - reward(1));
        close(pair.loss, (reward(1) - reward(0)).exp().ln_1p());
    }
    assert_eq!(pairs.len(), 4);
}

/// The oracle is the definition: one sum over everything, divided once.
#[test]
fn ragged_micro_batches_average_like_the_whole() {
    let objective = paper("fpo");
    let whole = gathered(&objective, &[4]).read();
    for ends in [&[1, 4][..], &[3, 4], &[1, 2, 4]] {
        let parts = gathered(&objective, ends).read();
        for metric in METRICS {
            let [found, expected] = [&parts, &whole].map(|pairs| metric.mean(pairs, &[]));
            assert_eq!(found.is_some(), expected.is_some(), "{}", metric.name);
            close(found.unwrap_or(0.0), expected.unwrap_or(0.0));
        }
    }
    let total = |values: &[[f64; 2]], side: usize| values.iter().map(|x| x[side]).sum::<f64>();
    let both = |values: &[[f64; 2]]| total(values, 0) + total(values, 1);
    let (_, logged) = log(&whole);
    let logged = |key: &str| logged[key].as_f64().unwrap();
    close(logged("entropy"), both(&ENTROPY) / both(&TOKENS));
    close(logged("mean_token_accuracy"), total(&RIGHT, 0) / total(&TOKENS, 0));
    close(logged("logps/chosen"), total(&LOG_PROBS, 0) / 4.0);
    close(logged("tokens/rejected"), total(&TOKENS, 1) / 4.0);
    close(logged("kl/margins"), (total(&KL, 0) - total(&KL, 1)) / 4.0);
    close(logged("distance/margins"), (total(&DISTANCE, 0) - total(&DISTANCE, 1)) / 4.0);
    // −2 > −3 per token; −1 > −1.25; not −1.5 > −1.25; −1.25 > −1.75.
    close(logged("accuracy"), 0.75);
}

/// A loss of the whole step is added once for many micro-batches.
#[test]
fn losses_may_be_of_other_batches_than_quantities() {
    let device = Device::flex();
    let objective = paper("aot-unpaired");
    let mut pairs = Pairs::default();
    for range in [0..1, 1..4] {
        pairs.add(&quantities(range, &device));
    }
    pairs.add_losses(&objective.losses(pairs.quantities()));
    let whole = objective.losses(quantities(0..4, &device));
    let expected: Vec<f64> = whole.losses.into_data().iter::<f64>().collect();
    let found: Vec<f64> = pairs.read().iter().map(|pair| pair.loss).collect();
    assert_eq!(found, expected);
}

/// The logged loss is the differentiated one, and adding it neither keeps nor cuts its graph.
#[test]
fn graphs_stay_with_the_caller() {
    let device = Device::flex().autodiff();
    let objective = paper("dpo");
    let mut q = quantities(0..4, &device);
    q.log_probs = q.log_probs.map(Tensor::require_grad);
    let policy = q.log_probs.clone();
    let losses = objective.losses(q.clone());
    let mut pairs = Pairs::default();
    pairs.add(&q);
    pairs.add_losses(&losses);
    let expected: Vec<f64> = losses.losses.to_data().iter::<f64>().collect();
    let gradients = mean_loss(losses).backward();
    let gradient = policy.chosen.grad(&gradients).expect("the loss depends on the policy");
    let gradient: Vec<f64> = gradient.into_data().iter::<f64>().collect();
    let read = pairs.read();
    for ((pair, expected), gradient) in read.iter().zip(expected).zip(gradient) {
        assert_eq!(pair.loss, expected);
        // d/dlog p(chosen) of the mean of −log σ(u) is −β σ(−u) / pairs.
        close(gradient, -objective.beta / (1.0 + pair.u.exp()) / 4.0);
    }
}

#[test]
fn margins_are_what_the_method_subtracts() {
    let reference = |i: usize, side: usize| REFERENCE[i][side] / TOKENS[i][side];
    let cases: [(&str, &dyn Fn(usize) -> f64); 4] = [
        ("dpo", &|i| 0.1 * (REFERENCE[i][0] - REFERENCE[i][1])),
        ("tdpo2", &|i| 0.1 * (REFERENCE[i][0] - REFERENCE[i][1])),
        ("simpo", &|_| 0.5),
        ("fpo", &|i| 0.1 * (reference(i, 0) - reference(i, 1))),
    ];
    for (method, expected) in cases {
        let objective = paper(method);
        let mut pairs = gathered(&objective, &[1, 4]);
        pairs.add_method_margins(&objective);
        for (i, pair) in pairs.read().iter().enumerate() {
            close(pair.method_margin.unwrap(), expected(i));
        }
    }
}

#[test]
fn nothing_was_added() {
    let none: Vec<PairValues> = Pairs::default().read();
    assert!(none.is_empty());
    let (loss, rest) = log(&none);
    assert!(loss.is_nan() && rest.is_empty());
    assert_eq!(metrics::accuracy::ACCURACY.mean(&none, &[]), None);
}

#[test]
#[should_panic(expected = "losses of 3 pairs for quantities of 4")]
fn losses_of_other_pairs_are_a_bug() {
    let device = Device::flex();
    let mut pairs = Pairs::default();
    pairs.add(&quantities(0..4, &device));
    let rewards = per_response(&KL[..3], &device);
    let losses = Tensor::zeros([3], &device);
    pairs.add_losses(&PairLosses { losses, rewards, target_margin: 0.0 });
    pairs.read();
}
