//! Every objective as scalar arithmetic from the papers, one pair at a time: slow, and plain to see.

use burn::tensor::{DType, Device, Tensor, TensorData};
use fpo_losses::{Method, Objective, Options, PerResponse, Quantities};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What is known of one response, in plain numbers.
#[derive(Clone, Copy)]
pub struct Response {
    pub log_prob: f64,
    pub shared: f64,
    pub reference: f64,
    pub reference_shared: f64,
    pub tokens: f64,
    pub aligned: f64,
    pub kl: f64,
    pub distance: f64,
}

pub fn random_pairs(seed: u64, pairs: usize) -> Vec<[Response; 2]> {
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
pub fn scalar_u(o: &Objective, [w, l]: [Response; 2]) -> f64 {
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

pub fn log_sigma(x: f64) -> f64 {
    -(-x).exp().ln_1p()
}

pub fn sigma(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The loss of every pair, from the papers, one pair at a time.
pub fn scalar_losses(o: &Objective, pairs: &[[Response; 2]]) -> Vec<f64> {
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

pub fn desensitised(o: &Objective, full: f64, shared: f64) -> f64 {
    shared + o.options.ld_alpha.unwrap_or(1.0) * (full - shared)
}

pub fn log_ratio(o: &Objective, r: Response) -> f64 {
    desensitised(o, r.log_prob, r.shared) - desensitised(o, r.reference, r.reference_shared)
}

pub fn smoothed(u: f64, epsilon: f64) -> f64 {
    -(1.0 - epsilon) * log_sigma(u) - epsilon * log_sigma(-u)
}

pub fn scalar_loss(o: &Objective, [w, l]: [Response; 2], [r_w, r_l]: [f64; 2], delta: f64) -> f64 {
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
pub fn smallest(f: impl Fn(f64) -> f64, mut low: f64, mut high: f64) -> f64 {
    let ratio = (5f64.sqrt() - 1.0) / 2.0;
    for _ in 0..200 {
        let (a, b) = (high - ratio * (high - low), low + ratio * (high - low));
        if f(a) < f(b) { high = b } else { low = a }
    }
    f(0.5 * (low + high))
}

pub fn column(pairs: &[[Response; 2]], device: &Device, f: fn(Response) -> f64) -> PerResponse {
    let side = |i: usize| {
        let values: Vec<f64> = pairs.iter().map(|pair| f(pair[i])).collect();
        let count = values.len();
        Tensor::<1>::from_data(TensorData::new(values, [count]), (device, DType::F64))
    };
    PerResponse { chosen: side(0), rejected: side(1) }
}

pub fn quantities(pairs: &[[Response; 2]], device: &Device) -> Quantities {
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
pub fn objectives() -> Vec<Objective> {
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

pub fn to_vec(x: Tensor<1>) -> Vec<f64> {
    x.into_data().iter::<f64>().collect()
}

pub fn close(a: f64, b: f64) {
    assert!((a - b).abs() <= 1e-9 * (1.0 + a.abs()), "{a} is not {b}");
}
