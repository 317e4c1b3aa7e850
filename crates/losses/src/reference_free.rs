//! Objectives without a reference model, anchored by the likelihood of the chosen response.
//!
//! `chosen_nll` `[pairs]` is its negative log-likelihood; the caller decides whether to sum or to average
//! over tokens. TRL averages over all tokens of a batch, for ORPO including the prompt's.

use burn::tensor::{
    Tensor,
    activation::{relu, softplus},
};

use crate::{MethodSpec, Options, PairLosses, PerResponse, dpo_variants::smoothed};

/// Odds ratio preference optimization (Hong et al. 2024, arXiv 2403.07691, equations 4, 6 and 7; β is
/// its λ), with log-probabilities divided by the number of response tokens:
///
/// NLL(y_w) − β log σ(log odds(y_w) − log odds(y_l)), odds(y) = p(y) / (1 − p(y))
///
/// Average log-probabilities must be below 0: the odds of probability 1 are infinite.
pub fn orpo(average_log_probs: PerResponse, chosen_nll: Tensor<1>, beta: f64) -> PairLosses {
    let PerResponse { chosen, rejected } = average_log_probs.clone();
    let log_odds_ratio = log_odds(chosen) - log_odds(rejected);
    let losses = chosen_nll + softplus(-log_odds_ratio, 1.0) * beta;
    PairLosses::new(losses, average_log_probs * beta)
}

pub(crate) static ORPO: MethodSpec =
    MethodSpec::reference_free("orpo", |o, q| orpo(q.policy_averages(), q.chosen_nll(), o.beta));

/// Aligned supervised fine-tuning (Wang et al. 2024, arXiv 2409.10571; β is its λ), with log-probabilities
/// divided by the number of response tokens: each response's own odds rather than their ratio,
///
/// NLL(y_w) − β (log σ(log odds(y_w)) + log σ(−log odds(y_l)))
///     = NLL(y_w) − β (log p(y_w) + log(1 − p(y_l))), since σ(log odds) = p
///
/// Average log-probabilities must be below 0, as in [`orpo`].
pub fn asft(average_log_probs: PerResponse, chosen_nll: Tensor<1>, beta: f64) -> PairLosses {
    let PerResponse { chosen, rejected } = average_log_probs.clone();
    let losses = chosen_nll - (chosen + log_1m_exp(rejected)) * beta;
    PairLosses::new(losses, average_log_probs * beta)
}

pub(crate) static ASFT: MethodSpec =
    MethodSpec::reference_free("asft", |o, q| asft(q.policy_averages(), q.chosen_nll(), o.beta));

/// Contrastive preference optimization (Xu et al. 2024, arXiv 2401.08417, equation 3 and the NLL term
/// of its objective), with summed log-probabilities, u = β (log p(y_w) − log p(y_l)):
///
/// −(1 − ε) log σ(u) − ε log σ(−u) + w · NLL(y_w)
pub fn cpo(
    policy: PerResponse,
    chosen_nll: Tensor<1>,
    beta: f64,
    label_smoothing: f64,
    nll_weight: f64,
) -> PairLosses {
    PairLosses::of_margin(policy * beta, |u| smoothed(u, label_smoothing) + chosen_nll * nll_weight)
}

pub(crate) static CPO: MethodSpec = MethodSpec {
    options: Options {
        label_smoothing: Some(0.0),
        nll_weight: Some(1.0),
        ..Options::WEIGHTED_PAIRS
    },
    ..MethodSpec::reference_free("cpo", |o, q| {
        let (smoothing, weight) = (o.option(|x| x.label_smoothing), o.option(|x| x.nll_weight));
        cpo(q.log_probs.clone(), q.chosen_nll(), o.beta, smoothing, weight)
    })
};

/// [`cpo`] with the hinge loss of SLiC-HF (arXiv 2305.10425): max(0, 1 − u) + w · NLL(y_w)
pub fn cpo_hinge(
    policy: PerResponse,
    chosen_nll: Tensor<1>,
    beta: f64,
    nll_weight: f64,
) -> PairLosses {
    PairLosses::of_margin(policy * beta, |u| relu(-u + 1.0) + chosen_nll * nll_weight)
}

pub(crate) static CPO_HINGE: MethodSpec = MethodSpec {
    options: Options { nll_weight: Some(1.0), ..Options::WEIGHTED_PAIRS },
    ..MethodSpec::reference_free("cpo-hinge", |o, q| {
        let weight = o.option(|x| x.nll_weight);
        cpo_hinge(q.log_probs.clone(), q.chosen_nll(), o.beta, weight)
    })
};

/// log(p / (1 − p)), given log p < 0.
fn log_odds(log_p: Tensor<1>) -> Tensor<1> {
    log_p.clone() - log_1m_exp(log_p)
}

/// log(1 − p), given log p < 0.
fn log_1m_exp(log_p: Tensor<1>) -> Tensor<1> {
    // With t = tanh(−log p / 2), 1 − p = 2t / (1 + t): no cancellation near p = 1, no overflow near 0.
    let t = (-log_p * 0.5).tanh();
    (t.clone() * 2.0).log() - t.log1p()
}
