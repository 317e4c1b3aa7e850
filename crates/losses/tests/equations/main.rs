//! Every objective against scalar arithmetic written from the equations, and against the identities
//! between them; gradients against finite differences in float64.

mod distance;
mod scalar;

use burn::tensor::{DType, Device, Tensor, TensorData};
use fpo_losses::{Method, Needs, Objective, Options, PerResponse, Quantities, mean_loss};

use crate::scalar::{
    Response, close, log_ratio, objectives, quantities, random_pairs, scalar_losses, scalar_u,
    sigma, to_vec,
};

#[test]
fn every_method_is_its_equation() {
    let device = Device::flex();
    let pairs = random_pairs(1, 33);
    for objective in objectives() {
        let result = objective.losses(quantities(&pairs, &device));
        let (us, losses) = (to_vec(result.logits()), to_vec(result.losses));
        for (loss, expected) in losses.iter().zip(scalar_losses(&objective, &pairs)) {
            assert!(
                (loss - expected).abs() <= 1e-8 * (1.0 + expected.abs()),
                "{objective:?}: {loss} is not {expected}"
            );
        }
        if Method::PAPER.contains(&objective.method) && objective.options == Options::default() {
            us.iter().zip(&pairs).for_each(|(u, pair)| close(*u, scalar_u(&objective, *pair)));
        }
    }
}

#[test]
fn the_loss_does_not_overflow() {
    let device = Device::flex();
    let mut pairs = random_pairs(1, 2);
    for (pair, log_probs) in pairs.iter_mut().zip([[-1e5, 0.0], [0.0, -1e5]]) {
        for (response, log_prob) in pair.iter_mut().zip(log_probs) {
            (response.log_prob, response.reference) = (log_prob, 0.0);
        }
    }
    let objective = Objective { beta: 1.0, ..Objective::paper(Method::Dpo) };
    let losses = to_vec(objective.losses(quantities(&pairs, &device)).losses);
    close(losses[0], 1e5);
    close(losses[1], 0.0);
}

/// Without its constraint FPO is length-normalised DPO (TRL's `sigmoid_norm`), TDPO-2 is DPO.
#[test]
fn without_alpha_the_constraint_is_gone() {
    let device = Device::flex();
    let pairs = random_pairs(2, 9);
    let u = |method, pairs: &[[Response; 2]]| {
        let objective = Objective { alpha: 0.0, beta: 0.3, ..Objective::paper(method) };
        to_vec(objective.losses(quantities(pairs, &device)).logits())
    };
    assert_eq!(u(Method::Tdpo2, &pairs), u(Method::Dpo, &pairs));
    let mut normalised = pairs.clone();
    for response in normalised.iter_mut().flatten() {
        response.log_prob /= response.tokens;
        response.reference /= response.tokens;
    }
    for (a, b) in u(Method::Fpo, &pairs).into_iter().zip(u(Method::Dpo, &normalised)) {
        close(a, b);
    }
}

/// The gradient of the mean loss to every input, against central differences; a stop-gradient is
/// known by its zero.
#[test]
fn gradients_are_finite_differences_and_stops_are_stops() {
    let fields: [(&str, Field); 5] = [
        ("log_probs", |q| &mut q.log_probs),
        ("shared", |q| q.shared.as_mut().unwrap()),
        ("aligned", |q| q.aligned.as_mut().unwrap()),
        ("kl", |q| q.kl.as_mut().unwrap()),
        ("distance", |q| q.distance.as_mut().unwrap()),
    ];
    let pairs = random_pairs(3, 3);
    for objective in objectives() {
        // BCO's δ is a constant that moves with the rewards: its gradient has its own test.
        if objective.method == Method::BcoPair && objective.options.reward_shift != Some(false) {
            continue;
        }
        for stop_gradient in [true, false] {
            let objective = Objective { stop_gradient, ..objective };
            for (name, field) in fields {
                for chosen in [true, false] {
                    let stopped = name == "aligned"
                        || chosen
                            && match name {
                                "kl" => {
                                    matches!(objective.method, Method::Tdpo2 | Method::SimpoKl)
                                }
                                "distance" => objective.method == Method::Fpo && stop_gradient,
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

/// With δ held where it is, the gradient is that of two log-sigmoids.
#[test]
fn the_shift_of_bco_is_a_constant() {
    let pairs = random_pairs(4, 5);
    let objective = Objective { beta: 0.2, ..Objective::paper(Method::BcoPair) };
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
    for method in Method::ALL {
        assert_eq!(method.name().parse::<Method>(), Ok(method));
        assert_eq!(method.name().replace('-', "_").parse::<Method>(), Ok(method));
        let objective = Objective::paper(method);
        assert!(objective.check().is_ok());
        assert!(Objective { beta: 0.0, ..objective }.check().is_err());
        assert!(Objective { alpha: f64::NAN, ..objective }.check().is_err());
    }
    assert!("ppo".parse::<Method>().unwrap_err().contains("fpo"));
    let with = |wanted: fn(Needs) -> bool| -> Vec<Method> {
        let needs = |m: &Method| wanted(Objective::paper(*m).needs());
        Method::ALL.into_iter().filter(needs).collect()
    };
    assert_eq!(with(|n| n.token_kl), [Method::Tdpo1, Method::Tdpo2, Method::SimpoKl]);
    assert_eq!(with(|n| n.features), [Method::Fpo]);
    assert_eq!(with(|n| n.whole_step), [Method::BcoPair, Method::Aot, Method::AotUnpaired]);
    let free = [Method::Simpo, Method::SimpoKl, Method::Orpo, Method::Cpo, Method::CpoHinge];
    assert_eq!(with(|n| !n.reference_log_probs), [&free[..], &[Method::Asft]].concat());
    assert_eq!(with(|n| n.shared_log_probs || n.aligned_log_probs), []);
}

/// What a method does not ask for may be absent: nothing is computed in vain.
#[test]
fn a_method_reads_only_what_it_needs() {
    let device = Device::flex();
    let pairs = random_pairs(5, 4);
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
        assert_eq!(to_vec(objective.losses(needed).losses), to_vec(objective.losses(all).losses));
    }
}

/// Only a method of the whole step may see which pairs stand beside a pair.
#[test]
fn a_pair_has_its_own_loss_unless_the_method_says_otherwise() {
    let device = Device::flex();
    let pairs = random_pairs(6, 6);
    for objective in objectives() {
        let losses =
            |pairs: &[[Response; 2]]| to_vec(objective.losses(quantities(pairs, &device)).losses);
        let alone: Vec<f64> = pairs.iter().flat_map(|pair| losses(&[*pair])).collect();
        let same = alone.iter().zip(losses(&pairs)).all(|(a, b)| (a - b).abs() < 1e-9);
        assert_eq!(same, !objective.needs().whole_step, "{objective:?}");
    }
}

#[test]
fn impossible_numbers_are_named() {
    let device = Device::flex();
    let check = |change: fn(&mut Response)| {
        let mut pairs = random_pairs(7, 3);
        change(&mut pairs[2][1]);
        quantities(&pairs, &device).check().map_err(|e| e.to_string())
    };
    assert_eq!(check(|_| ()), Ok(()));
    // A certain token's log-probability may be lifted above 0 by rounding.
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
