//! Every objective against scalar arithmetic written from the equations, and against the identities
//! between them; gradients against finite differences in float64.

use burn::tensor::{DType, Device, Tensor, TensorData};
use fpo_losses::{
    Method, Needs, Objective, Options, PerResponse, Quantities, feature_distance, mean_loss,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What is known of one response, in plain numbers.
#[derive(Clone, Copy)]
struct Response {
    log_prob: f64,
    shared: f64,
    reference: f64,
    reference_shared: f64,
    tokens: f64,
    aligned: f64,
    kl: f64,
    distance: f64,
}

fn random_pairs(seed: u64, pairs: usize) -> Vec<[Response; 2]> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut response = || {
        let (log_prob, reference) = (-60.0 * rng.random::<f64>(), -60.0 * rng.random::<f64>());
        Response {
            log_prob,
            shared: log_prob * rng.random::<f64>(),
            reference,
            reference_shared: reference * rng.random::<f64>(),
            tokens: rng.random_range(1..40) as f64,
            aligned: -2.0 * rng.random::<f64>(),
            kl: 5.0 * rng.random::<f64>(),
            distance: 2.0 * rng.random::<f64>(),
        }
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
        other => panic!("{other} is not in table 1"),
    }
}

fn log_sigma(x: f64) -> f64 {
    -(-x).exp().ln_1p()
}

fn sigma(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The loss of every pair, from the papers, one pair at a time.
fn scalar_losses(o: &Objective, pairs: &[[Response; 2]]) -> Vec<f64> {
    let rewards: Vec<[f64; 2]> =
        pairs.iter().map(|pair| pair.map(|r| o.beta * log_ratio(o, r))).collect();
    let delta = rewards.iter().flatten().sum::<f64>() / (2 * pairs.len()) as f64;
    let sorted = |f: &dyn Fn(usize) -> f64| {
        let mut values: Vec<f64> = (0..pairs.len()).map(f).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let transport = |a: Vec<f64>, b: Vec<f64>| -> Vec<f64> {
        a.iter()
            .zip(&b)
            .map(|(a, b)| smoothed(a - b, o.options.label_smoothing(o.method)))
            .collect()
    };
    let policy = |r: Response| o.beta * desensitised(o, r.log_prob, r.shared);
    let reference = |r: Response| o.beta * desensitised(o, r.reference, r.reference_shared);
    let losses = match o.method {
        Method::Aot => transport(
            sorted(&|i| policy(pairs[i][0]) - policy(pairs[i][1])),
            sorted(&|i| reference(pairs[i][0]) - reference(pairs[i][1])),
        ),
        Method::AotUnpaired => transport(sorted(&|i| rewards[i][0]), sorted(&|i| rewards[i][1])),
        _ => {
            let each = pairs.iter().zip(&rewards);
            each.map(|(pair, rewards)| scalar_loss(o, *pair, *rewards, delta)).collect()
        }
    };
    let weight = |[w, l]: &[Response; 2]| match o.options.use_weighting {
        Some(true) => w.aligned.exp() * l.aligned.exp(),
        _ => 1.0,
    };
    losses.iter().zip(pairs).map(|(loss, pair)| loss * weight(pair)).collect()
}

fn desensitised(o: &Objective, full: f64, shared: f64) -> f64 {
    shared + o.options.ld_alpha.unwrap_or(1.0) * (full - shared)
}

fn log_ratio(o: &Objective, r: Response) -> f64 {
    desensitised(o, r.log_prob, r.shared) - desensitised(o, r.reference, r.reference_shared)
}

fn smoothed(u: f64, epsilon: f64) -> f64 {
    -(1.0 - epsilon) * log_sigma(u) - epsilon * log_sigma(-u)
}

fn scalar_loss(o: &Objective, [w, l]: [Response; 2], [r_w, r_l]: [f64; 2], delta: f64) -> f64 {
    let (b, u) = (o.beta, r_w - r_l);
    let epsilon = o.options.label_smoothing(o.method);
    let nll_weight = o.options.nll_weight(o.method);
    let average = |r: Response| r.log_prob / r.tokens;
    let odds = |r: Response| average(r).exp() / (1.0 - average(r).exp());
    let nll = -average(w);
    let contrast = b * (w.log_prob - l.log_prob);
    match o.method {
        Method::Cdpo => smoothed(u, epsilon),
        Method::Robust => {
            (-(1.0 - epsilon) * log_sigma(u) + epsilon * log_sigma(-u)) / (1.0 - 2.0 * epsilon)
        }
        Method::Hinge => (1.0 - u).max(0.0),
        Method::Ipo => {
            let h = average(w) - w.reference / w.tokens - average(l) + l.reference / l.tokens;
            (h - 1.0 / (2.0 * b)).powi(2)
        }
        Method::SigmoidNorm => {
            let h = average(w) - w.reference / w.tokens - average(l) + l.reference / l.tokens;
            -log_sigma(b * h)
        }
        Method::ExoPair => {
            sigma(u) * (log_sigma(u) - (1.0 - epsilon).ln())
                + sigma(-u) * (log_sigma(-u) - epsilon.ln())
        }
        Method::Discopop => {
            let share = sigma(u / o.options.discopop_tau());
            // Near 0 times infinity where u is far below 0.
            let exponential = if u < -30.0 { 0.0 } else { share * (-u).exp() };
            -(1.0 - share) * log_sigma(u) + exponential
        }
        Method::AdaDpo => {
            let [low, high] = o.options.ada_tau();
            let loss =
                |tau: f64| -tau * log_sigma(u / tau) + (o.options.ada_rho() - 2f64.ln()) * tau;
            smallest(loss, low, high)
        }
        Method::NcaPair => -log_sigma(r_w) - 0.5 * log_sigma(-r_w) - 0.5 * log_sigma(-r_l),
        Method::BcoPair => {
            let delta = if o.options.reward_shift == Some(false) { 0.0 } else { delta };
            -log_sigma(r_w - delta) - log_sigma(-(r_l - delta))
        }
        Method::SppoHard => {
            (r_w / b - 1.0 / (2.0 * b)).powi(2) + (r_l / b + 1.0 / (2.0 * b)).powi(2)
        }
        Method::ApoZero => (1.0 - sigma(r_w)) + sigma(r_l),
        Method::ApoDown => sigma(r_w) + (1.0 - sigma(r_w - r_l)),
        Method::Orpo => nll - b * log_sigma(odds(w).ln() - odds(l).ln()),
        Method::Asft => nll - b * (log_sigma(odds(w).ln()) + log_sigma(-odds(l).ln())),
        Method::Cpo => smoothed(contrast, epsilon) + nll_weight * nll,
        Method::CpoHinge => (1.0 - contrast).max(0.0) + nll_weight * nll,
        Method::Simpo => -log_sigma(scalar_u(o, [w, l])) + nll_weight * nll,
        Method::Dpo => -log_sigma(u),
        Method::Tdpo1 | Method::Tdpo2 | Method::SimpoKl | Method::Fpo => {
            -log_sigma(scalar_u(o, [w, l]))
        }
        Method::Aot | Method::AotUnpaired => panic!("a loss of the whole batch"),
    }
}

/// The smallest value of a convex function, by golden sections.
fn smallest(f: impl Fn(f64) -> f64, mut low: f64, mut high: f64) -> f64 {
    let ratio = (5f64.sqrt() - 1.0) / 2.0;
    for _ in 0..200 {
        let (a, b) = (high - ratio * (high - low), low + ratio * (high - low));
        if f(a) < f(b) { high = b } else { low = a }
    }
    f(0.5 * (low + high))
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
        shared: Some(column(pairs, device, |r| r.shared)),
        aligned: Some(column(pairs, device, |r| r.aligned)),
        reference: Some(column(pairs, device, |r| r.reference)),
        reference_shared: Some(column(pairs, device, |r| r.reference_shared)),
        kl: Some(column(pairs, device, |r| r.kl)),
        distance: Some(column(pairs, device, |r| r.distance)),
    }
}

/// Methods with constants, and each option that they have away from its default.
fn objectives() -> Vec<Objective> {
    let mut all = Vec::new();
    for method in Method::ALL {
        for (beta, alpha, gamma) in [(0.1, 0.5, 0.5), (2.0, 0.0, 1.5), (0.7, 2.0, 0.0)] {
            all.push(Objective { beta, alpha, gamma, ..Objective::paper(method) });
        }
        let none = Options::default();
        for options in [
            Options { label_smoothing: Some(0.3), ..none },
            Options { discopop_tau: Some(0.6), ..none },
            Options { nll_weight: Some(0.7), ..none },
            Options { reward_shift: Some(false), ..none },
            Options { ada_rho: Some(0.05), ada_tau: Some([0.3, 2.0]), ..none },
            Options { ada_rho: Some(0.6), ada_tau: Some([1e-3, 100.0]), ..none },
            Options { ld_alpha: Some(0.0), ..none },
            Options { ld_alpha: Some(0.4), ..none },
            Options { use_weighting: Some(true), ..none },
        ] {
            if options.check(method).is_ok() {
                all.push(Objective { beta: 0.3, options, ..Objective::paper(method) });
            }
        }
    }
    all
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
