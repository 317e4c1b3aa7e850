//! Every preference loss: losses, rewards, and the gradient of what training minimises with respect to all that the policy gives.
//! No matrix is multiplied, so that the tolerance is one for all devices.

use burn::tensor::{Device, Tensor, TensorData};
use fpo_losses::{Method, Objective, Options, PerResponse, Quantities, mean_loss};

use crate::support::{TOLERANCE, close, devices, random, values};

/// Pairs of a step: one, which has no order; an even and an odd number; more than a warp.
const PAIRS: [usize; 4] = [1, 2, 5, 33];

/// Options beside a method's defaults, of which a method takes those that it has.
const OPTIONS: [Options; 6] = [
    Options { label_smoothing: Some(0.2), ..NONE },
    Options { nll_weight: Some(0.5), ..NONE },
    Options { reward_shift: Some(false), ..NONE },
    Options { ld_alpha: Some(0.3), ..NONE },
    Options { use_weighting: Some(true), ..NONE },
    Options { ada_tau: Some([0.9, 1.1]), ..NONE },
];
const NONE: Options = Options::NONE;

/// Every method as it is, and once with each of the options that it has.
fn objectives() -> Vec<Objective> {
    let mut all: Vec<Objective> = Method::all().map(Objective::paper).collect();
    all.push(Objective { stop_gradient: false, ..Objective::paper(Method::FPO) });
    for method in Method::all() {
        for options in OPTIONS.map(|options| options.for_method(method)) {
            if options != NONE {
                all.push(Objective { options, ..Objective::paper(method) });
            }
        }
    }
    all
}

/// What the policy gives and gradients flow back to, `[pairs]` each: both sides of its log-probabilities, of those of shared tokens,
/// of the KL and of the feature distance.
const LEAVES: usize = 8;

/// Numbers that a batch may have: log-probabilities below zero, of a tail added to those of shared tokens; a KL and a distance above.
fn quantities(pairs: usize, device: &Device) -> (Quantities, [Tensor<1>; LEAVES]) {
    let plain = device.clone().without_autodiff();
    // From 0 to `scale`, never 0.
    let column = |seed, scale| random(seed, [1, pairs], scale, &plain).squeeze_dim::<1>(0).abs();
    let constant = |x: Tensor<1>| Tensor::<1>::from_data(x.into_data(), device);
    let side = |seed: u64| {
        let tokens: Vec<f32> =
            (0..pairs).map(|i| ((seed as usize + 5 * i) % 7 + 1) as f32).collect();
        let counts = Tensor::<1>::from_data(TensorData::new(tokens, [pairs]), &plain);
        let shared = (column(seed, 3.0) + 0.1) * counts.clone();
        let reference = (column(seed + 1, 3.0) + 0.1) * counts.clone();
        let log_probs = shared.clone() + column(seed + 2, 2.0);
        let leaves = [-log_probs, -shared, column(seed + 3, 4.0), column(seed + 4, 2.0)];
        let rest = [counts, -column(seed + 5, 1.0), -reference.clone() - 1.0, -reference];
        (leaves.map(|x| constant(x).require_grad()), rest.map(constant))
    };
    let ((chosen_leaves, chosen), (rejected_leaves, rejected)) = (side(100), side(200));
    let leaf = |i: usize| PerResponse {
        chosen: chosen_leaves[i].clone(),
        rejected: rejected_leaves[i].clone(),
    };
    let rest = |i: usize| PerResponse { chosen: chosen[i].clone(), rejected: rejected[i].clone() };
    let quantities = Quantities {
        log_probs: leaf(0),
        counts: rest(0),
        shared: Some(leaf(1)),
        aligned: Some(rest(1)),
        reference: Some(rest(2)),
        reference_shared: Some(rest(3)),
        kl: Some(leaf(2)),
        distance: Some(leaf(3)),
    };
    let all = [chosen_leaves, rejected_leaves].concat();
    (quantities, all.try_into().expect("four of each side"))
}

/// Losses, rewards and margin of every pair, and the gradients, absent where nothing flows.
fn evaluate(
    objective: &Objective,
    pairs: usize,
    device: &Device,
) -> ([Vec<f64>; 4], [Option<Vec<f64>>; LEAVES]) {
    let (quantities, leaves) = quantities(pairs, &device.clone().autodiff());
    let of_pairs = objective.losses(quantities);
    let rewards = &of_pairs.rewards;
    let forward =
        [&of_pairs.losses, &rewards.chosen, &rewards.rejected, &of_pairs.logits()].map(values);
    let gradients = mean_loss(of_pairs).backward();
    (forward, leaves.map(|leaf| leaf.grad(&gradients).map(|gradient| values(&gradient))))
}

#[test]
fn every_loss_and_its_gradient() {
    let Some([flex, gpu]) = devices() else { return };
    for objective in objectives() {
        objective.check().unwrap();
        let sizes = if objective.options == NONE { &PAIRS[..] } else { &[5] };
        for &pairs in sizes {
            let what = format!("{} of {pairs} pairs, {:?}", objective.method, objective.options);
            let [expected, found] = [&flex, &gpu].map(|device| evaluate(&objective, pairs, device));
            for (i, (found, expected)) in found.0.iter().zip(&expected.0).enumerate() {
                close(&format!("{what}, number {i}"), found, expected, TOLERANCE);
            }
            assert!(expected.1[0].is_some(), "{what}: no gradient");
            for (i, (found, expected)) in found.1.iter().zip(&expected.1).enumerate() {
                let what = format!("{what}, gradient {i}");
                match (found, expected) {
                    (Some(found), Some(expected)) => close(&what, found, expected, TOLERANCE),
                    (found, expected) => assert_eq!(found, expected, "{what}"),
                }
            }
        }
    }
}
