//! The losses around DPO: identities between them, scalar arithmetic from the papers where TRL has no
//! counterpart (`tests/tests/losses_trl.rs` compares the others), and extreme inputs.

use burn::tensor::{DType, Device, Tensor, TensorData};
use fpo_losses::{
    PairLosses, PerResponse, ada_dpo, aot, aot_unpaired, apo_down, apo_zero, asft, bco_pair, cdpo,
    cpo, cpo_hinge, discopop, dpo, exo_pair, fpo, hinge, ipo, nca_pair, orpo, robust, sigmoid_norm,
    simpo, sppo_hard,
};
use proptest::{
    collection::vec,
    prelude::{ProptestConfig, proptest},
    strategy::Strategy,
};

const BETA: f64 = 0.3;

type Loss = fn(PerResponse, PerResponse) -> PairLosses;

/// Every loss with a reference, by name.
const LOSSES: [(&str, Loss); 16] = [
    ("dpo", |p, r| dpo(p, r, BETA)),
    ("cdpo", |p, r| cdpo(p, r, BETA, 0.1)),
    ("robust", |p, r| robust(p, r, BETA, 0.1)),
    ("hinge", |p, r| hinge(p, r, BETA)),
    ("ipo", |p, r| ipo(p, r, BETA)),
    ("sigmoid_norm", |p, r| sigmoid_norm(p, r, BETA)),
    ("exo_pair", |p, r| exo_pair(p, r, BETA, 1e-3)),
    ("discopop", |p, r| discopop(p, r, BETA, 0.05)),
    ("ada_dpo", |p, r| ada_dpo(p, r, BETA, 0.3, [0.1, 5.0])),
    ("nca_pair", |p, r| nca_pair(p, r, BETA)),
    ("bco_pair", |p, r| {
        let delta = shift(0.7).cast(p.chosen.dtype());
        bco_pair(p, r, BETA, delta)
    }),
    ("sppo_hard", |p, r| sppo_hard(p, r, BETA)),
    ("apo_zero", |p, r| apo_zero(p, r, BETA)),
    ("apo_down", |p, r| apo_down(p, r, BETA)),
    ("aot", |p, r| aot(p, r, BETA, 0.1)),
    ("aot_unpaired", |p, r| aot_unpaired(p, r, BETA, 0.1)),
];

/// Every loss without a reference, by name.
const REFERENCE_FREE: [(&str, Loss); 4] = [
    ("orpo", |p, _| orpo(p.clone(), -p.chosen, BETA)),
    ("asft", |p, _| asft(p.clone(), -p.chosen, BETA)),
    ("cpo", |p, _| cpo(p.clone(), -p.chosen, BETA, 0.1, 1.0)),
    ("cpo_hinge", |p, _| cpo_hinge(p.clone(), -p.chosen, BETA, 1.0)),
];

fn tensor(values: &[f64], device: &Device, dtype: DType) -> Tensor<1> {
    Tensor::from_data(TensorData::new(values.to_vec(), [values.len()]), (device, dtype))
}

/// BCO's δ.
fn shift(delta: f64) -> Tensor<1> {
    tensor(&[delta], &Device::flex(), DType::F64)
}

fn to_vec(x: Tensor<1>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}

fn constant(value: f64) -> PerResponse {
    let side = tensor(&[value], &Device::flex(), DType::F64);
    PerResponse { chosen: side.clone(), rejected: side }
}

/// Log-probabilities of policy and reference, in float64.
fn models(pairs: impl Strategy<Value = usize>) -> impl Strategy<Value = [PerResponse; 2]> {
    pairs.prop_flat_map(|pairs| {
        let side = || vec(-6.0..-0.01, pairs).prop_map(|x| tensor(&x, &Device::flex(), DType::F64));
        let model =
            || (side(), side()).prop_map(|(chosen, rejected)| PerResponse { chosen, rejected });
        [model(), model()]
    })
}

fn swapped(x: &PerResponse) -> PerResponse {
    PerResponse { chosen: x.rejected.clone(), rejected: x.chosen.clone() }
}

#[track_caller]
fn same(a: Tensor<1>, b: Tensor<1>) {
    let (a, b) = (to_vec(a), to_vec(b));
    assert_eq!(a.len(), b.len());
    for (a, b) in a.into_iter().zip(b) {
        assert!((a - b).abs() <= 1e-9 * (1.0 + b.abs()), "{a} is not {b}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn with_neutral_constants_they_are_dpo([policy, reference] in models(1..10usize)) {
        let (p, r) = (|| policy.clone(), || reference.clone());
        let plain = || dpo(p(), r(), BETA).losses;
        same(cdpo(p(), r(), BETA, 0.0).losses, plain());
        same(robust(p(), r(), BETA, 0.0).losses, plain());
        // With ε = ½ the labels say nothing: a swapped pair has the same loss.
        same(
            cdpo(p(), r(), BETA, 0.5).losses,
            cdpo(swapped(&policy), swapped(&reference), BETA, 0.5).losses,
        );
        let distance = p() - r();
        same(
            sigmoid_norm(p(), r(), BETA).losses,
            fpo(p(), r(), distance, BETA, 0.0, true).losses,
        );
    }

    /// The property robust DPO is made for: averaged over labels flipped with probability ε it is DPO's loss.
    #[test]
    fn robust_dpo_is_unbiased([policy, reference] in models(1..10usize), epsilon in 0.0..0.45) {
        let kept = robust(policy.clone(), reference.clone(), BETA, epsilon).losses;
        let flipped = robust(swapped(&policy), swapped(&reference), BETA, epsilon).losses;
        let expectation = kept * (1.0 - epsilon) + flipped * epsilon;
        same(expectation, dpo(policy, reference, BETA).losses);
    }

    #[test]
    fn one_pair_has_no_order([policy, reference] in models(1..2usize), epsilon in 0.0..0.5) {
        let unsorted = cdpo(policy.clone(), reference.clone(), BETA, epsilon).losses;
        same(aot(policy.clone(), reference.clone(), BETA, epsilon).losses, unsorted.clone());
        same(aot_unpaired(policy, reference, BETA, epsilon).losses, unsorted);
    }

    #[test]
    fn transport_does_not_see_the_order_of_a_batch([policy, reference] in models(2..10usize)) {
        let turned = |x: &PerResponse| x.clone().map(|side| side.flip([0]));
        for loss in [aot, aot_unpaired] {
            same(
                loss(policy.clone(), reference.clone(), BETA, 0.0).losses,
                loss(turned(&policy), turned(&reference), BETA, 0.0).losses,
            );
        }
    }

    /// Conservative DPO and BCO's δ, which TRL lacks, and the constants of the others, from the papers.
    #[test]
    fn scalar_equations(
        [policy, reference] in models(1..12usize),
        epsilon in 0.0..0.5,
        delta in -2.0..2.0,
    ) {
        let log_sigma = |x: f64| -(1.0 + (-x).exp()).ln();
        let rewards = dpo(policy.clone(), reference.clone(), BETA).rewards;
        let pairs: Vec<_> =
            to_vec(rewards.chosen).into_iter().zip(to_vec(rewards.rejected)).collect();
        type Scalar<'a> = &'a dyn Fn(f64, f64) -> f64;
        let check = |losses: PairLosses, scalar: Scalar| {
            let expected: Vec<f64> = pairs.iter().map(|&(w, l)| scalar(w, l)).collect();
            same(losses.losses, tensor(&expected, &Device::flex(), DType::F64));
        };
        let (p, r) = (|| policy.clone(), || reference.clone());
        check(cdpo(p(), r(), BETA, epsilon), &|w, l| {
            -(1.0 - epsilon) * log_sigma(w - l) - epsilon * log_sigma(l - w)
        });
        check(bco_pair(p(), r(), BETA, shift(delta)), &|w, l| {
            -log_sigma(w - delta) - log_sigma(-(l - delta))
        });
        check(sppo_hard(p(), r(), BETA), &|w, l| {
            ((w - 0.5).powi(2) + (l + 0.5).powi(2)) / BETA.powi(2)
        });
        check(ipo(p(), r(), BETA), &|w, l| ((w - l - 0.5) / BETA).powi(2));
        // At a high temperature σ(u/τ) is ½: both components have the same weight.
        check(discopop(p(), r(), BETA, 1e12), &|w, l| (-log_sigma(w - l) + (l - w).exp()) / 2.0);
    }

    #[test]
    fn reference_free_identities([log_probs, _] in models(1..10usize)) {
        let nothing = log_probs.clone() * 0.0;
        let p = || log_probs.clone();
        let nll = || -log_probs.chosen.clone();
        same(cpo(p(), nll(), BETA, 0.1, 0.0).losses, cdpo(p(), nothing.clone(), BETA, 0.1).losses);
        same(cpo_hinge(p(), nll(), BETA, 0.0).losses, hinge(p(), nothing, BETA).losses);
        same(cpo(p(), nll(), BETA, 0.0, 0.0).losses, simpo(p(), BETA, 0.0).losses);
        // Equal odds: log 2 for the ratio.
        let twice = PerResponse { chosen: p().chosen, rejected: p().chosen };
        same(orpo(twice, nll(), BETA).losses, nll() + BETA * 2f64.ln());
        let odds = |log_p: Tensor<1>| log_p.clone().exp() / (-log_p.exp() + 1.0);
        let ratio = odds(p().chosen) / odds(p().rejected);
        same(orpo(p(), nll() * 0.0, 1.0).losses, (ratio.recip() + 1.0).log());
    }

    /// The losses of a pair and of the swapped pair add up to 2, since σ(x) + σ(−x) = 1 for each reward.
    #[test]
    fn anchored_losses_saturate([policy, reference] in models(1..10usize)) {
        let mirrored = apo_zero(swapped(&policy), swapped(&reference), BETA).losses;
        let two = policy.chosen.ones_like() * 2.0;
        same(apo_zero(policy, reference, BETA).losses + mirrored, two);
    }

    #[test]
    fn rewards_are_scaled_log_ratios([policy, reference] in models(1..6usize)) {
        let check = |losses: &[(&str, Loss)], expected: PerResponse| {
            for (_, loss) in losses {
                let rewards = loss(policy.clone(), reference.clone()).rewards;
                same(rewards.chosen, expected.chosen.clone());
                same(rewards.rejected, expected.rejected.clone());
            }
        };
        check(&LOSSES, (policy.clone() - reference.clone()) * BETA);
        check(&REFERENCE_FREE, policy.clone() * BETA);
    }
}

/// EXO is a divergence: 0, with gradient 0, where σ(u) = 1 − ε.
#[test]
fn exo_ends_at_its_target() {
    let device = Device::flex().autodiff();
    let epsilon: f64 = 0.1;
    let chosen = tensor(&[((1.0 - epsilon) / epsilon).ln() / BETA], &device, DType::F64);
    let chosen = chosen.require_grad();
    let zero = tensor(&[0.0], &device, DType::F64);
    let policy = PerResponse { chosen: chosen.clone(), rejected: zero.clone() };
    let reference = PerResponse { chosen: zero.clone(), rejected: zero };
    let losses = exo_pair(policy, reference, BETA, epsilon).losses;
    assert!(to_vec(losses.clone())[0].abs() < 1e-12);
    let gradient = chosen.grad(&losses.sum().backward()).unwrap();
    assert!(to_vec(gradient)[0].abs() < 1e-12);
}

/// In float32 far from the reference: finite values and gradients, and float64's value.
#[test]
fn nothing_overflows() {
    let device = Device::flex().autodiff();
    let (near, far) = (-1e-6, -1e4);
    let policy = [[near, far, near, far, near, far], [far, near, near, far, far, near]];
    let reference = [[far, near, far, near, near, far], [near, far, far, near, far, near]];
    for (name, loss) in LOSSES.into_iter().chain(REFERENCE_FREE) {
        let at = |dtype: DType| {
            let leaves = policy.map(|side| tensor(&side, &device, dtype).require_grad());
            let [chosen, rejected] = leaves.clone();
            let [of_chosen, of_rejected] = reference.map(|side| tensor(&side, &device, dtype));
            let reference = PerResponse { chosen: of_chosen, rejected: of_rejected };
            let losses = loss(PerResponse { chosen, rejected }, reference).losses;
            let gradients = losses.clone().sum().backward();
            let gradient = leaves.map(|leaf| leaf.grad(&gradients).map(to_vec));
            (to_vec(losses), gradient)
        };
        let (losses, gradient) = at(DType::F32);
        for (single, double) in losses.iter().zip(at(DType::F64).0) {
            let close = (single - double).abs() <= 1e-5 * (1.0 + double.abs());
            assert!(single.is_finite() && close, "{name}: {single} is not {double}");
        }
        let finite = gradient.iter().flatten().flatten().all(|g| g.is_finite());
        assert!(finite, "{name}: {gradient:?}");
    }
}

#[test]
#[should_panic = "0 < ε"]
fn exo_needs_smoothing() {
    exo_pair(constant(-1.0), constant(-2.0), BETA, 0.0);
}

#[test]
#[should_panic = "ε < ½"]
fn robust_needs_labels_that_say_something() {
    robust(constant(-1.0), constant(-2.0), BETA, 0.5);
}
