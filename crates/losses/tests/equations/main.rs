//! Every objective against scalar arithmetic written from the equations and against identities; gradients
//! against finite differences in float64.

mod distance;
mod scalar;

use burn::tensor::{DType, Device, Tensor, TensorData};
use fpo_losses::{Method, Needs, Objective, Options, PerResponse, Quantities, mean_loss};
use proptest::prelude::{ProptestConfig, proptest};

use crate::scalar::{
    Response, close, log_ratio, objectives, pairs, quantities, sample, scalar_losses, scalar_u,
    sigma, to_vec,
};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn every_method_is_its_equation(pairs in pairs(1..12)) {
        let device = Device::flex();
        for objective in objectives() {
            let result = objective.losses(quantities(&pairs, &device));
            let (us, losses) = (to_vec(result.logits()), to_vec(result.losses));
            for (loss, expected) in losses.iter().zip(scalar_losses(&objective, &pairs)) {
                assert!(
                    (loss - expected).abs() <= 1e-8 * (1.0 + expected.abs()),
                    "{objective:?}: {loss} is not {expected}"
                );
            }
            if Method::PAPER.contains(&objective.method) && objective.options == Options::NONE {
                us.iter().zip(&pairs).for_each(|(u, pair)| close(*u, scalar_u(&objective, *pair)));
            }
        }
    }

    /// Without its constraint FPO is length-normalised DPO (TRL's `sigmoid_norm`), TDPO-2 is DPO.
    #[test]
    fn without_alpha_the_constraint_is_gone(pairs in pairs(1..9)) {
        let device = Device::flex();
        let u = |method, pairs: &[[Response; 2]]| {
            let objective = Objective { alpha: 0.0, beta: 0.3, ..Objective::paper(method) };
            to_vec(objective.losses(quantities(pairs, &device)).logits())
        };
        assert_eq!(u(Method::TDPO2, &pairs), u(Method::DPO, &pairs));
        let mut normalised = pairs.clone();
        for response in normalised.iter_mut().flatten() {
            response.log_prob /= response.tokens;
            response.reference /= response.tokens;
        }
        for (a, b) in u(Method::FPO, &pairs).into_iter().zip(u(Method::DPO, &normalised)) {
            close(a, b);
        }
    }

    /// Quantities that a method doesn't ask for may be absent.
    #[test]
    fn a_method_reads_only_what_it_needs(pairs in pairs(1..5)) {
        let device = Device::flex();
        for objective in objectives() {
            let (needs, all) = (objective.needs(), quantities(&pairs, &device));
            let keep = |wanted: bool, x: &Option<PerResponse>| x.clone().filter(|_| wanted);
            let needed = Quantities {
                shared: keep(needs.shared_log_probs, &all.shared),
                aligned: keep(needs.aligned_log_probs, &all.aligned),
                reference: keep(needs.reference_log_probs, &all.reference),
                reference_shared: keep(needs.shared_log_probs, &all.reference_shared),
                kl: keep(needs.token_kl, &all.kl),
                distance: keep(needs.features, &all.distance),
                ..all.clone()
            };
            let losses = |q| to_vec(objective.losses(q).losses);
            assert_eq!(losses(needed), losses(all));
        }
    }
}

#[test]
fn the_loss_does_not_overflow() {
    let device = Device::flex();
    let mut pairs = sample(pairs(2));
    for (pair, log_probs) in pairs.iter_mut().zip([[-1e5, 0.0], [0.0, -1e5]]) {
        for (response, log_prob) in pair.iter_mut().zip(log_probs) {
            (response.log_prob, response.reference) = (log_prob, 0.0);
        }
    }
    let objective = Objective { beta: 1.0, ..Objective::paper(Method::DPO) };
    let losses = to_vec(objective.losses(quantities(&pairs, &device)).losses);
    close(losses[0], 1e5);
    close(losses[1], 0.0);
}

/// The gradient of the mean loss in every input against central differences, and 0 where it is stopped.
#[test]
fn gradients_are_finite_differences_and_stops_are_stops() {
    let fields: [(&str, Field); 5] = [
        ("log_probs", |q| &mut q.log_probs),
        ("shared", |q| q.shared.as_mut().unwrap()),
        ("aligned", |q| q.aligned.as_mut().unwrap()),
        ("kl", |q| q.kl.as_mut().unwrap()),
        ("distance", |q| q.distance.as_mut().unwrap()),
    ];
    let pairs = sample(pairs(3));
    for objective in objectives() {
        // BCO's δ is a constant that moves with the rewards; `the_shift_of_bco_is_a_constant` is its test.
        if is_bco(objective.method) && objective.options.reward_shift != Some(false) {
            continue;
        }
        for stop_gradient in [true, false] {
            let objective = Objective { stop_gradient, ..objective };
            for (name, field) in fields {
                for chosen in [true, false] {
                    let stopped = match name {
                        "aligned" => true,
                        "kl" => {
                            chosen && [Method::TDPO2, Method::SIMPO_KL].contains(&objective.method)
                        }
                        "distance" => chosen && objective.method == Method::FPO && stop_gradient,
                        _ => false,
                    };
                    let gradient = gradient(&objective, &pairs, field, chosen);
                    for (i, gradient) in gradient.into_iter().enumerate() {
                        let expected = match stopped {
                            true => 0.0,
                            false => central_difference(&objective, &pairs, field, chosen, i),
                        };
                        assert!(
                            (gradient - expected).abs() < 1e-7 * (1.0 + expected.abs()),
                            "{objective:?} {name} chosen {chosen}: {gradient} is not {expected}"
                        );
                    }
                }
            }
        }
    }
}

/// With δ held constant, the gradient is that of two log-sigmoids.
#[test]
fn the_shift_of_bco_is_a_constant() {
    let pairs = sample(pairs(5));
    let objective = Objective { beta: 0.2, ..Objective::paper("bco-pair".parse().unwrap()) };
    let rewards = |i: usize| -> Vec<f64> {
        pairs.iter().map(|pair| 0.2 * log_ratio(&objective, pair[i])).collect()
    };
    let [chosen, rejected] = [rewards(0), rewards(1)];
    let delta = chosen.iter().chain(&rejected).sum::<f64>() / 10.0;
    let of_chosen = gradient(&objective, &pairs, |q| &mut q.log_probs, true);
    let of_rejected = gradient(&objective, &pairs, |q| &mut q.log_probs, false);
    for i in 0..5 {
        close(of_chosen[i], -0.2 * sigma(-(chosen[i] - delta)) / 5.0);
        close(of_rejected[i], 0.2 * sigma(rejected[i] - delta) / 5.0);
    }
}

fn is_bco(method: Method) -> bool {
    method.name() == "bco-pair"
}

type Field = fn(&mut Quantities) -> &mut PerResponse;

fn slot(q: &mut Quantities, field: Field, chosen: bool) -> &mut Tensor<1> {
    let side = field(q);
    if chosen { &mut side.chosen } else { &mut side.rejected }
}

fn gradient(o: &Objective, pairs: &[[Response; 2]], field: Field, chosen: bool) -> Vec<f64> {
    let mut q = quantities(pairs, &Device::flex().autodiff());
    let slot = slot(&mut q, field, chosen);
    let leaf = slot.clone().require_grad();
    *slot = leaf.clone();
    let loss = mean_loss(o.losses(q));
    let gradient = match loss.is_tracked() {
        true => leaf.grad(&loss.backward()).map(to_vec),
        false => None,
    };
    gradient.unwrap_or(vec![0.0; pairs.len()])
}

fn central_difference(
    o: &Objective,
    pairs: &[[Response; 2]],
    field: Field,
    chosen: bool,
    i: usize,
) -> f64 {
    let (step, device) = (1e-5, Device::flex());
    let at = |shift: f64| {
        let mut q = quantities(pairs, &device);
        let slot = slot(&mut q, field, chosen);
        let mut values = to_vec(slot.clone());
        values[i] += shift;
        let count = values.len();
        *slot = Tensor::from_data(TensorData::new(values, [count]), (&device, DType::F64));
        to_vec(mean_loss(o.losses(q)))[0]
    };
    (at(step) - at(-step)) / (2.0 * step)
}

#[test]
fn methods_have_names_needs_and_limits() {
    assert!(Method::all().zip(Method::PAPER).all(|(a, b)| a == b));
    for method in Method::all() {
        assert_eq!(method.name().parse::<Method>(), Ok(method));
        assert_eq!(method.name().replace('-', "_").parse::<Method>(), Ok(method));
        let objective = Objective::paper(method);
        assert!(objective.check().is_ok());
        assert!(Objective { beta: 0.0, ..objective }.check().is_err());
        assert!(Objective { alpha: f64::NAN, ..objective }.check().is_err());
    }
    assert_eq!("sigmoid".parse::<Method>(), Ok(Method::DPO));
    let unknown = "ppo".parse::<Method>().unwrap_err().to_string();
    assert!(unknown.contains("`ppo`") && Method::all().all(|m| unknown.contains(m.name())));
    let with = |wanted: fn(Needs) -> bool| -> Vec<&str> {
        let needs = |m: &Method| wanted(Objective::paper(*m).needs());
        Method::all().filter(needs).map(Method::name).collect()
    };
    assert_eq!(with(|n| n.token_kl), ["tdpo1", "tdpo2", "simpo-kl"]);
    assert_eq!(with(|n| n.features), ["fpo"]);
    assert_eq!(with(|n| n.whole_step), ["bco-pair", "aot", "aot-unpaired"]);
    let free = ["simpo", "simpo-kl", "orpo", "cpo", "cpo-hinge", "asft"];
    assert_eq!(with(|n| !n.reference_log_probs), free);
    assert!(with(|n| n.shared_log_probs || n.aligned_log_probs).is_empty());
}

/// Only with a method of the whole step may a pair's loss depend on the other pairs.
#[test]
fn a_pair_has_its_own_loss_unless_the_method_says_otherwise() {
    let device = Device::flex();
    let pairs = sample(pairs(6));
    for objective in objectives() {
        let losses =
            |pairs: &[[Response; 2]]| to_vec(objective.losses(quantities(pairs, &device)).losses);
        let alone: Vec<f64> = pairs.iter().flat_map(|pair| losses(&[*pair])).collect();
        let same = alone.iter().zip(losses(&pairs)).all(|(a, b)| (a - b).abs() < 1e-9);
        assert_eq!(same, !objective.needs().whole_step, "{objective:?}");
    }
}

#[test]
fn impossible_quantities_are_refused() {
    let device = Device::flex();
    let check = |change: fn(&mut Response)| {
        let mut pairs = sample(pairs(3));
        change(&mut pairs[2][1]);
        quantities(&pairs, &device).check().map_err(|e| e.to_string())
    };
    assert_eq!(check(|_| ()), Ok(()));
    // Rounding can lift the log-probability of a token of probability 1 above 0.
    assert_eq!(check(|r| r.log_prob = 1e-6), Ok(()));
    for (change, says) in [
        (
            (|r| r.log_prob = f64::NAN) as fn(&mut Response),
            "the policy's log-probability of the rejected response is NaN",
        ),
        (
            |r| r.log_prob = 0.1,
            "pair 2: the policy's log-probability of the rejected response is 0.1",
        ),
        (
            |r| r.reference = f64::NEG_INFINITY,
            "the reference's log-probability of the rejected response is -inf",
        ),
        (|r| r.tokens = 0.0, "pair 2: the rejected response has 0 tokens"),
        (|r| r.tokens = f64::NAN, "has NaN tokens"),
    ] {
        let message = check(change).unwrap_err();
        assert!(message.contains(says), "{message:?} does not say {says:?}");
    }
}
