//! DPO with −log σ replaced by another function of its margin
//!
//! u = β (log p(y_w) − log r(y_w)) − β (log p(y_l) − log r(y_l))
//!
//! `policy` and `reference` are summed log-probabilities, or averages per token where a function says so.

use burn::tensor::{
    Tensor,
    activation::{relu, sigmoid, softplus},
};

use crate::{Limit, MethodSpec, Options, PairLosses, PerResponse, dpo};

/// Conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences & relationship to IPO"), where
/// a label is wrong with probability ε:
///
/// −(1 − ε) log σ(u) − ε log σ(−u)
pub fn cdpo(
    policy: PerResponse,
    reference: PerResponse,
    beta: f64,
    label_smoothing: f64,
) -> PairLosses {
    PairLosses::of_margin((policy - reference) * beta, |u| smoothed(u, label_smoothing))
}

pub(crate) static CDPO: MethodSpec = MethodSpec {
    options: Options { label_smoothing: Some(0.1), ..Options::ON_SUMS },
    ..MethodSpec::on_sums("cdpo", |o, q| {
        let (policy, reference) = o.sums(q);
        cdpo(policy, reference, o.beta, o.option(|x| x.label_smoothing))
    })
};

/// Robust DPO (Chowdhury et al. 2024, arXiv 2403.00409): an unbiased estimate of DPO's loss where a label
/// is wrong with probability ε, at the price of a loss that is unbounded below:
///
/// (−(1 − ε) log σ(u) + ε log σ(−u)) / (1 − 2ε)
///
/// # Panics
/// If ε isn't in [0, ½).
pub fn robust(
    policy: PerResponse,
    reference: PerResponse,
    beta: f64,
    label_smoothing: f64,
) -> PairLosses {
    assert!((0.0..0.5).contains(&label_smoothing), "robust needs 0 ≤ ε < ½");
    PairLosses::of_margin((policy - reference) * beta, |u| {
        let clean = softplus(-u.clone(), 1.0) * (1.0 - label_smoothing);
        let flipped = softplus(u, 1.0) * label_smoothing;
        (clean - flipped) / (1.0 - 2.0 * label_smoothing)
    })
}

pub(crate) static ROBUST: MethodSpec = MethodSpec {
    options: Options { label_smoothing: Some(0.1), ..Options::ON_SUMS },
    limits: &[Limit {
        option: "label_smoothing",
        range: "from 0 to below ½",
        holds: |o| o.label_smoothing.is_none_or(|e| (0.0..0.5).contains(&e)),
    }],
    ..MethodSpec::on_sums("robust", |o, q| {
        let (policy, reference) = o.sums(q);
        robust(policy, reference, o.beta, o.option(|x| x.label_smoothing))
    })
};

/// Hinge loss (Zhao et al. 2023, SLiC-HF, arXiv 2305.10425; on DPO's margin in Liu et al.
/// 2023, RSO, arXiv 2309.06657): max(0, 1 − u)
pub fn hinge(policy: PerResponse, reference: PerResponse, beta: f64) -> PairLosses {
    PairLosses::of_margin((policy - reference) * beta, |u| relu(-u + 1.0))
}

pub(crate) static HINGE: MethodSpec = MethodSpec::on_sums("hinge", |o, q| {
    let (policy, reference) = o.sums(q);
    hinge(policy, reference, o.beta)
});

/// Identity preference optimization (Azar et al. 2023, arXiv 2310.12036, equation 17; β is its τ):
///
/// (h − 1/(2β))², h = (log p(y_w) − log r(y_w)) − (log p(y_l) − log r(y_l))
///
/// `policy` and `reference` are divided by the number of response tokens, as in TRL and, according to TRL,
/// in the authors' experiments; the paper's equation has sums.
pub fn ipo(policy: PerResponse, reference: PerResponse, beta: f64) -> PairLosses {
    let log_ratios = policy - reference;
    let losses = (log_ratios.margin() - 0.5 / beta).square();
    PairLosses::new(losses, log_ratios * beta)
}

pub(crate) static IPO: MethodSpec = MethodSpec::on_averages("ipo", |o, q| {
    let (policy, reference) = q.averages();
    ipo(policy, reference, o.beta)
});

/// Length-normalised DPO (Lambert et al. 2024, Tülu 3, arXiv 2411.15124, preference tuning): DPO's u with
/// `policy` and `reference` divided by the number of response tokens. FPO without its constraint.
pub fn sigmoid_norm(policy: PerResponse, reference: PerResponse, beta: f64) -> PairLosses {
    dpo(policy, reference, beta)
}

pub(crate) static SIGMOID_NORM: MethodSpec = MethodSpec::on_averages("sigmoid-norm", |o, q| {
    let (policy, reference) = q.averages();
    sigmoid_norm(policy, reference, o.beta)
});

/// Efficient exact optimization on pairs (Ji et al. 2024, arXiv 2402.00856, equation 16): the reverse
/// KL(q ‖ (1 − ε, ε)) of the policy's preference q = (σ(u), σ(−u)):
///
/// σ(u) (log σ(u) − log(1 − ε)) + σ(−u) (log σ(−u) − log ε)
///
/// # Panics
/// If ε isn't in (0, 1).
pub fn exo_pair(
    policy: PerResponse,
    reference: PerResponse,
    beta: f64,
    label_smoothing: f64,
) -> PairLosses {
    assert!(label_smoothing > 0.0 && label_smoothing < 1.0, "exo_pair needs 0 < ε < 1");
    let term =
        |u: Tensor<1>, log_target: f64| sigmoid(u.clone()) * (-softplus(-u, 1.0) - log_target);
    PairLosses::of_margin((policy - reference) * beta, |u| {
        term(u.clone(), (-label_smoothing).ln_1p()) + term(-u, label_smoothing.ln())
    })
}

pub(crate) static EXO_PAIR: MethodSpec = MethodSpec {
    options: Options { label_smoothing: Some(1e-3), ..Options::ON_SUMS },
    limits: &[Limit {
        option: "label_smoothing",
        range: "above 0 and at most ½",
        holds: |o| o.label_smoothing.is_none_or(|e| e > 0.0 && e <= 0.5),
    }],
    ..MethodSpec::on_sums("exo-pair", |o, q| {
        let (policy, reference) = o.sums(q);
        exo_pair(policy, reference, o.beta, o.option(|x| x.label_smoothing))
    })
};

/// DiscoPOP, the log-ratio-modulated loss (Lu et al. 2024, arXiv 2406.08414, equation 5; τ 0.05):
///
/// −(1 − σ(u/τ)) log σ(u) + σ(u/τ) e^−u
///
/// Finite for τ ≤ 1: σ(u/τ) falls faster than e^−u grows.
pub fn discopop(
    policy: PerResponse,
    reference: PerResponse,
    beta: f64,
    temperature: f64,
) -> PairLosses {
    PairLosses::of_margin((policy - reference) * beta, |u| {
        let modulation = u.clone() / temperature;
        let logistic = sigmoid(-modulation.clone()) * softplus(-u.clone(), 1.0);
        // σ(u/τ) e^−u = e^(log σ(u/τ) − u): on its own the second factor overflows.
        let exponential = (-softplus(-modulation, 1.0) - u).exp();
        logistic + exponential
    })
}

pub(crate) static DISCOPOP: MethodSpec = MethodSpec {
    options: Options { discopop_tau: Some(0.05), ..Options::ON_SUMS },
    ..MethodSpec::on_sums("discopop", |o, q| {
        let (policy, reference) = o.sums(q);
        discopop(policy, reference, o.beta, o.option(|x| x.discopop_tau))
    })
};

/// −(1 − ε) log σ(u) − ε log σ(−u), `[pairs]`.
pub(crate) fn smoothed(u: Tensor<1>, label_smoothing: f64) -> Tensor<1> {
    softplus(-u.clone(), 1.0) * (1.0 - label_smoothing) + softplus(u, 1.0) * label_smoothing
}
