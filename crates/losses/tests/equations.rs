//! Every objective against scalar arithmetic written from the equations, and against the identities
//! between them; gradients against finite differences in float64.

use burn::tensor::{DType, Device, Tensor, TensorData};
use fpo_losses::{Method, Objective, PerResponse, Quantities, feature_distance, mean_loss};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What is known of one response, in plain numbers.
#[derive(Clone, Copy)]
struct Response {
    log_prob: f64,
    reference: f64,
    tokens: f64,
    kl: f64,
    distance: f64,
}

fn random_pairs(seed: u64, pairs: usize) -> Vec<[Response; 2]> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut response = || Response {
        log_prob: -60.0 * rng.random::<f64>(),
        reference: -60.0 * rng.random::<f64>(),
        tokens: rng.random_range(1..40) as f64,
        kl: 5.0 * rng.random::<f64>(),
        distance: 2.0 * rng.random::<f64>(),
    };
    (0..pairs).map(|_| [response(), response()]).collect()
}

/// u of equation 8 by the rows of table 1, one pair at a time.
fn scalar_u(o: &Objective, [w, l]: [Response; 2]) -> f64 {
    let b = o.beta;
    let sum = |f: fn(Response) -> f64| b * (f(w) - f(l));
    let average = |f: fn(Response) -> f64| b * (f(w) / w.tokens - f(l) / l.tokens);
    let lp = |r: Response| r.log_prob;
    let lr = |r: Response| r.reference;
    match o.method {
        Method::Dpo => sum(lp) - sum(lr),
        Method::Tdpo1 => sum(lp) - sum(lr) - b * (l.kl - w.kl),
        Method::Tdpo2 => sum(lp) - sum(lr) - o.alpha * (b * l.kl - b * w.kl),
        Method::Simpo => average(lp) - o.gamma,
        Method::SimpoKl => average(lp) - o.gamma - o.alpha * (b * l.kl - b * w.kl),
        Method::Fpo => average(lp) - average(lr) - o.alpha * (b * l.distance - b * w.distance),
    }
}

fn column(pairs: &[[Response; 2]], device: &Device, f: fn(Response) -> f64) -> PerResponse {
    let side = |i: usize| {
        let values: Vec<f64> = pairs.iter().map(|pair| f(pair[i])).collect();
        let count = values.len();
        Tensor::<1>::from_data(TensorData::new(values, [count]), (device, DType::F64))
    };
    PerResponse { chosen: side(0), rejected: side(1) }
}

fn quantities(pairs: &[[Response; 2]], device: &Device) -> Quantities {
    Quantities {
        log_probs: column(pairs, device, |r| r.log_prob),
        counts: column(pairs, device, |r| r.tokens),
        reference: Some(column(pairs, device, |r| r.reference)),
        kl: Some(column(pairs, device, |r| r.kl)),
        distance: Some(column(pairs, device, |r| r.distance)),
    }
}

fn to_vec(x: Tensor<1>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * (1.0 + a.abs()), "{a} is not {b}");
}

#[test]
fn every_method_is_its_equation() {
    let device = Device::flex();
    let pairs = random_pairs(1, 33);
    for method in Method::ALL {
        for (beta, alpha, gamma) in [(0.1, 0.5, 0.5), (2.0, 0.0, 1.5), (0.7, 2.0, 0.0)] {
            let objective = Objective { beta, alpha, gamma, ..Objective::paper(method) };
            let preference = objective.preference(quantities(&pairs, &device));
            let us = to_vec(preference.logits());
            let losses = to_vec(preference.losses());
            for ((pair, u), loss) in pairs.iter().zip(us).zip(losses) {
                let expected = scalar_u(&objective, *pair);
                close(u, expected);
                close(loss, (1.0 + (-expected).exp()).ln());
            }
        }
    }
}

#[test]
fn the_loss_does_not_overflow() {
    let device = Device::flex();
    let far =
        |log_prob: f64| Response { log_prob, reference: 0.0, tokens: 1.0, kl: 0.0, distance: 0.0 };
    let pairs = [[far(-1e5), far(0.0)], [far(0.0), far(-1e5)]];
    let objective = Objective { beta: 1.0, ..Objective::paper(Method::Dpo) };
    let losses = to_vec(objective.preference(quantities(&pairs, &device)).losses());
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
        to_vec(objective.preference(quantities(pairs, &device)).logits())
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
    type Field = (&'static str, fn(&mut Quantities) -> &mut PerResponse);
    let fields: [Field; 3] = [
        ("log_probs", |q| &mut q.log_probs),
        ("kl", |q| q.kl.as_mut().unwrap()),
        ("distance", |q| q.distance.as_mut().unwrap()),
    ];
    let plain = Device::flex();
    let device = plain.clone().autodiff();
    let pairs = random_pairs(3, 3);
    let step = 1e-5;
    for method in Method::ALL {
        for stop_gradient in [true, false] {
            let objective = Objective { stop_gradient, beta: 0.4, ..Objective::paper(method) };
            for (name, field) in fields {
                for chosen in [true, false] {
                    let mut q = quantities(&pairs, &device);
                    let side = field(&mut q);
                    let slot = if chosen { &mut side.chosen } else { &mut side.rejected };
                    let leaf = slot.clone().require_grad();
                    *slot = leaf.clone();
                    let loss = mean_loss(&objective.preference(q));
                    let gradient = match loss.is_tracked() {
                        true => leaf.grad(&loss.backward()).map(to_vec),
                        false => None,
                    };
                    let gradient = gradient.unwrap_or(vec![0.0; pairs.len()]);

                    let stopped = chosen
                        && match name {
                            "kl" => matches!(method, Method::Tdpo2 | Method::SimpoKl),
                            "distance" => method == Method::Fpo && stop_gradient,
                            _ => false,
                        };
                    for (i, gradient) in gradient.into_iter().enumerate() {
                        let at = |shift: f64| {
                            let mut q = quantities(&pairs, &plain);
                            let side = field(&mut q);
                            let slot = if chosen { &mut side.chosen } else { &mut side.rejected };
                            let mut values = to_vec(slot.clone());
                            values[i] += shift;
                            let count = values.len();
                            let data = TensorData::new(values, [count]);
                            *slot = Tensor::from_data(data, (&plain, DType::F64));
                            to_vec(mean_loss(&objective.preference(q)))[0]
                        };
                        let difference = (at(step) - at(-step)) / (2.0 * step);
                        let expected = if stopped { 0.0 } else { difference };
                        assert!(
                            (gradient - expected).abs() < 1e-8,
                            "{method} {name} chosen {chosen}: {gradient} is not {expected}"
                        );
                    }
                }
            }
        }
    }
}

/// Equation 10 by sets and loops.
fn scalar_distance(policy: &[f64], reference: &[f64], k: usize, weights: &[f64]) -> f64 {
    let top = |values: &[f64]| -> Vec<usize> {
        let mut order: Vec<usize> = (0..values.len()).filter(|&i| values[i] > 0.0).collect();
        order.sort_by(|&a, &b| values[b].total_cmp(&values[a]));
        order.truncate(k);
        order
    };
    let (a, b) = (top(policy), top(reference));
    let union = (0..policy.len()).filter(|i| a.contains(i) || b.contains(i));
    union.map(|i| weights[i] * (policy[i] - reference[i]).powi(2)).sum::<f64>() / k as f64
}

fn matrix(rows: &[Vec<f64>], device: &Device) -> Tensor<2> {
    let shape = [rows.len(), rows[0].len()];
    Tensor::from_data(TensorData::new(rows.concat(), shape), (device, DType::F64))
}

/// Sparse rows: most features are zero in most responses.
fn random_rows(seed: u64, rows: usize, width: usize, density: f64) -> Vec<Vec<f64>> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut entry = || match rng.random::<f64>() < density {
        true => 3.0 * rng.random::<f64>(),
        false => 0.0,
    };
    (0..rows).map(|_| (0..width).map(|_| entry()).collect()).collect()
}

#[test]
fn distance_is_equation_10() {
    let device = Device::flex();
    for (seed, (rows, width, k, density)) in [
        (1, 1, 1, 1.0),
        (4, 17, 3, 0.3),
        (5, 64, 10, 0.05),
        (3, 8, 8, 0.9),
        (2, 8, 20, 0.5),
        (3, 9, 4, 0.0),
    ]
    .into_iter()
    .enumerate()
    {
        let policy = random_rows(seed as u64, rows, width, density);
        let reference = random_rows(seed as u64 + 100, rows, width, density);
        let weights: Vec<f64> = (0..width).map(|i| (i % 3) as f64).collect();
        let ones = vec![1.0; width];
        let tensor = |rows: &[Vec<f64>]| matrix(rows, &device);
        let plain = to_vec(feature_distance(tensor(&policy), tensor(&reference), k, None));
        let w = Tensor::from_data(TensorData::new(weights.clone(), [width]), (&device, DType::F64));
        let weighted = to_vec(feature_distance(tensor(&policy), tensor(&reference), k, Some(w)));
        for row in 0..rows {
            close(plain[row], scalar_distance(&policy[row], &reference[row], k, &ones));
            close(weighted[row], scalar_distance(&policy[row], &reference[row], k, &weights));
        }
    }
}

/// With k at least the number of features the union is everything: a mean square times width / k.
#[test]
fn a_large_k_compares_every_feature() {
    let device = Device::flex();
    let (policy, reference) = (random_rows(7, 3, 12, 0.5), random_rows(8, 3, 12, 0.5));
    let distance =
        to_vec(feature_distance(matrix(&policy, &device), matrix(&reference, &device), 12, None));
    for row in 0..3 {
        let squares = policy[row].iter().zip(&reference[row]).map(|(a, b)| (a - b).powi(2));
        close(distance[row], squares.sum::<f64>() / 12.0);
    }
}

/// Where alignment starts: policy equals reference, so distance and gradient are zero.
#[test]
fn nothing_pulls_at_the_start() {
    let device = Device::flex().autodiff();
    let rows = random_rows(9, 4, 32, 0.4);
    let policy = matrix(&rows, &device).require_grad();
    let distance = feature_distance(policy.clone(), matrix(&rows, &device), 5, None);
    assert_eq!(to_vec(distance.clone()), [0.0; 4]);
    let gradient = policy.grad(&distance.sum().backward()).unwrap();
    assert!(gradient.into_data().iter::<f64>().all(|g| g == 0.0));
}

#[test]
fn the_gradient_of_the_distance_is_that_of_the_selected_squares() {
    let device = Device::flex().autodiff();
    let (policy, reference) = (random_rows(11, 3, 20, 0.4), random_rows(12, 3, 20, 0.4));
    let leaf = matrix(&policy, &device).require_grad();
    let k = 4;
    let distance = feature_distance(leaf.clone(), matrix(&reference, &device), k, None);
    let gradient: Vec<f64> =
        leaf.grad(&distance.sum().backward()).unwrap().into_data().iter::<f64>().collect();
    let ones = vec![1.0; 20];
    for row in 0..3 {
        for i in 0..20 {
            // A feature that is zero stays where it is: a step down would leave the domain.
            let at = |shift: f64| {
                let mut values = policy[row].clone();
                values[i] += shift;
                scalar_distance(&values, &reference[row], k, &ones)
            };
            let step = 1e-6;
            let expected = match policy[row][i] > 0.0 {
                true => (at(step) - at(-step)) / (2.0 * step),
                // Only the reference can have selected it: −2 r / k.
                false if at(0.0) != at_without(&policy[row], &reference[row], k, i) => {
                    -2.0 * reference[row][i] / k as f64
                }
                false => 0.0,
            };
            assert!((gradient[row * 20 + i] - expected).abs() < 1e-6, "row {row} feature {i}");
        }
    }
}

/// The distance with one feature's weight at zero.
fn at_without(policy: &[f64], reference: &[f64], k: usize, feature: usize) -> f64 {
    let weights: Vec<f64> = (0..policy.len()).map(|i| f64::from(i != feature)).collect();
    scalar_distance(policy, reference, k, &weights)
}

#[test]
fn methods_have_names_needs_and_limits() {
    for method in Method::ALL {
        assert_eq!(method.name().parse::<Method>(), Ok(method));
        assert!(Objective::paper(method).check().is_ok());
        assert!(Objective { beta: 0.0, ..Objective::paper(method) }.check().is_err());
        assert!(Objective { alpha: f64::NAN, ..Objective::paper(method) }.check().is_err());
    }
    assert!("ppo".parse::<Method>().unwrap_err().contains("fpo"));
    let with_token_kl: Vec<Method> =
        Method::ALL.into_iter().filter(|m| m.needs().token_kl).collect();
    assert_eq!(with_token_kl, [Method::Tdpo1, Method::Tdpo2, Method::SimpoKl]);
    assert!(!Method::Simpo.needs().reference_log_probs && Method::Fpo.needs().features);
}
