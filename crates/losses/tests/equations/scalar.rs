//! Every objective as scalar arithmetic from the papers, one pair at a time: slow, and easy to check by eye.

use burn::tensor::{DType, Device, Tensor, TensorData};
use fpo_losses::{Method, Objective, Options, PerResponse, Quantities};
use proptest::{
    array::uniform2,
    collection::{SizeRange, vec},
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};

/// The quantities of one response, in float64.
#[derive(Clone, Copy, Debug)]
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

fn response() -> impl Strategy<Value = Response> {
    let log_prob = || -60.0..-0.01;
    let share = || 0.0..1.0;
    let sums = (log_prob(), share(), log_prob(), share());
    (sums, 1..40u32, -2.0..0.0, 0.0..5.0, 0.0..2.0).prop_map(
        |((log_prob, shared, reference, reference_shared), tokens, aligned, kl, distance)| {
            Response {
                log_prob,
                shared: shared * log_prob,
                reference,
                reference_shared: reference_shared * reference,
                tokens: f64::from(tokens),
                aligned,
                kl,
                distance,
            }
        },
    )
}

/// Batches of pairs, chosen and rejected.
pub fn pairs(count: impl Into<SizeRange>) -> impl Strategy<Value = Vec<[Response; 2]>> {
    vec(uniform2(response()), count)
}

/// The same value of a strategy at every run, for tests at a fixed point.
pub fn sample<T>(strategy: impl Strategy<Value = T>) -> T {
    strategy.new_tree(&mut TestRunner::deterministic()).unwrap().current()
}

/// u of equation 8 by the rows of table 1, one pair at a time.
pub fn scalar_u(o: &Objective, [w, l]: [Response; 2]) -> f64 {
    let b = o.beta;
    let sum = |f: fn(Response) -> f64| b * (f(w) - f(l));
    let average = |f: fn(Response) -> f64| b * (f(w) / w.tokens - f(l) / l.tokens);
    let lp = |r: Response| r.log_prob;
    let lr = |r: Response| r.reference;
    match o.method.name() {
        "dpo" => sum(lp) - sum(lr),
        "tdpo1" => sum(lp) - sum(lr) - b * (l.kl - w.kl),
        "tdpo2" => sum(lp) - sum(lr) - o.alpha * (b * l.kl - b * w.kl),
        "simpo" => average(lp) - o.gamma,
        "simpo-kl" => average(lp) - o.gamma - o.alpha * (b * l.kl - b * w.kl),
        "fpo" => average(lp) - average(lr) - o.alpha * (b * l.distance - b * w.distance),
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
        a.iter().zip(&b).map(|(a, b)| smoothed(a - b, label_smoothing(o))).collect()
    };
    let policy = |r: Response| o.beta * desensitised(o, r.log_prob, r.shared);
    let reference = |r: Response| o.beta * desensitised(o, r.reference, r.reference_shared);
    let losses = match o.method.name() {
        "aot" => transport(
            sorted(&|i| policy(pairs[i][0]) - policy(pairs[i][1])),
            sorted(&|i| reference(pairs[i][0]) - reference(pairs[i][1])),
        ),
        "aot-unpaired" => transport(sorted(&|i| rewards[i][0]), sorted(&|i| rewards[i][1])),
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

/// ε, by default the one of each method's paper or of TRL.
fn label_smoothing(o: &Objective) -> f64 {
    o.options.label_smoothing.unwrap_or(match o.method.name() {
        "cdpo" | "robust" => 0.1,
        "exo-pair" => 1e-3,
        _ => 0.0,
    })
}

pub fn smoothed(u: f64, epsilon: f64) -> f64 {
    -(1.0 - epsilon) * log_sigma(u) - epsilon * log_sigma(-u)
}

pub fn scalar_loss(o: &Objective, [w, l]: [Response; 2], [r_w, r_l]: [f64; 2], delta: f64) -> f64 {
    let (b, u) = (o.beta, r_w - r_l);
    let epsilon = label_smoothing(o);
    let nll_weight = o.options.nll_weight.unwrap_or(f64::from(o.method != Method::SIMPO));
    let average = |r: Response| r.log_prob / r.tokens;
    let odds = |r: Response| average(r).exp() / (1.0 - average(r).exp());
    let nll = -average(w);
    let contrast = b * (w.log_prob - l.log_prob);
    match o.method.name() {
        "cdpo" => smoothed(u, epsilon),
        "robust" => {
            (-(1.0 - epsilon) * log_sigma(u) + epsilon * log_sigma(-u)) / (1.0 - 2.0 * epsilon)
        }
        "hinge" => (1.0 - u).max(0.0),
        "ipo" => {
            let h = average(w) - w.reference / w.tokens - average(l) + l.reference / l.tokens;
            (h - 1.0 / (2.0 * b)).powi(2)
        }
        "sigmoid-norm" => {
            let h = average(w) - w.reference / w.tokens - average(l) + l.reference / l.tokens;
            -log_sigma(b * h)
        }
        "exo-pair" => {
            sigma(u) * (log_sigma(u) - (1.0 - epsilon).ln())
                + sigma(-u) * (log_sigma(-u) - epsilon.ln())
        }
        "discopop" => {
            let share = sigma(u / o.options.discopop_tau.unwrap_or(0.05));
            // 0 times infinity where u is far below 0.
            let exponential = if u < -30.0 { 0.0 } else { share * (-u).exp() };
            -(1.0 - share) * log_sigma(u) + exponential
        }
        "ada-dpo" => {
            let [low, high] = o.options.ada_tau.unwrap_or([0.1, 5.0]);
            let rho = o.options.ada_rho.unwrap_or(0.3);
            let loss = |tau: f64| -tau * log_sigma(u / tau) + (rho - 2f64.ln()) * tau;
            smallest(loss, low, high)
        }
        "nca-pair" => -log_sigma(r_w) - 0.5 * log_sigma(-r_w) - 0.5 * log_sigma(-r_l),
        "bco-pair" => {
            let delta = if o.options.reward_shift == Some(false) { 0.0 } else { delta };
            -log_sigma(r_w - delta) - log_sigma(-(r_l - delta))
        }
        "sppo-hard" => (r_w / b - 1.0 / (2.0 * b)).powi(2) + (r_l / b + 1.0 / (2.0 * b)).powi(2),
        "apo-zero" => (1.0 - sigma(r_w)) + sigma(r_l),
        "apo-down" => sigma(r_w) + (1.0 - sigma(r_w - r_l)),
        "orpo" => nll - b * log_sigma(odds(w).ln() - odds(l).ln()),
        "asft" => nll - b * (log_sigma(odds(w).ln()) + log_sigma(-odds(l).ln())),
        "cpo" => smoothed(contrast, epsilon) + nll_weight * nll,
        "cpo-hinge" => (1.0 - contrast).max(0.0) + nll_weight * nll,
        "simpo" => -log_sigma(scalar_u(o, [w, l])) + nll_weight * nll,
        "dpo" => -log_sigma(u),
        "tdpo1" | "tdpo2" | "simpo-kl" | "fpo" => -log_sigma(scalar_u(o, [w, l])),
        other => panic!("{other} has no scalar equation here"),
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

/// Every method with several constants, and with each of its options away from the default.
pub fn objectives() -> Vec<Objective> {
    let mut all = Vec::new();
    for method in Method::all() {
        for (beta, alpha, gamma) in [(0.1, 0.5, 0.5), (2.0, 0.0, 1.5), (0.7, 2.0, 0.0)] {
            all.push(Objective { beta, alpha, gamma, ..Objective::paper(method) });
        }
        let none = Options::NONE;
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
