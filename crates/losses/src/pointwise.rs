//! Losses of each response's own reward, rather than of the margin alone:
//!
//! r(y) = β (log p(y) − log r(y)), with summed log-probabilities.

use burn::tensor::{
    Tensor,
    activation::{sigmoid, softplus},
};

use crate::{MethodSpec, Options, PairLosses, PerResponse};

/// Noise contrastive alignment on pairs (Chen et al. 2024, arXiv 2402.05369):
///
/// −log σ(r_w) − ½ log σ(−r_w) − ½ log σ(−r_l)
pub fn nca_pair(policy: PerResponse, reference: PerResponse, beta: f64) -> PairLosses {
    let rewards = (policy - reference) * beta;
    let PerResponse { chosen, rejected } = rewards.clone();
    let noise = softplus(chosen.clone(), 1.0) + softplus(rejected, 1.0);
    PairLosses::new(softplus(-chosen, 1.0) + noise * 0.5, rewards)
}

pub(crate) static NCA_PAIR: MethodSpec = MethodSpec::on_sums("nca-pair", |o, q| {
    let (policy, reference) = o.sums(q);
    nca_pair(policy, reference, o.beta)
});

/// Binary classifier optimization on pairs (Jung et al. 2024, arXiv 2404.04656, its reward shift):
///
/// −log σ(r_w − δ) − log σ(−(r_l − δ))
///
/// `delta` `[1]` is the mean of the rewards of both sides, a constant: of the step ([`mean_reward`]), or
/// a running mean that the caller keeps. TRL's `bco_pair` is δ = 0.
pub fn bco_pair(
    policy: PerResponse,
    reference: PerResponse,
    beta: f64,
    delta: Tensor<1>,
) -> PairLosses {
    let rewards = (policy - reference) * beta;
    let PerResponse { chosen, rejected } = rewards.clone();
    let losses = softplus(-chosen + delta.clone(), 1.0) + softplus(rejected - delta, 1.0);
    PairLosses::new(losses, rewards)
}

pub(crate) static BCO_PAIR: MethodSpec = MethodSpec {
    options: Options { reward_shift: Some(true), ..Options::ON_SUMS },
    ..MethodSpec::on_sums("bco-pair", |o, q| {
        let (policy, reference) = o.sums(q);
        let rewards = (policy.clone() - reference.clone()) * o.beta;
        let delta = match o.option(|x| x.reward_shift) {
            true => mean_reward(&rewards),
            false => rewards.chosen.zeros_like().mean(),
        };
        bco_pair(policy, reference, o.beta, delta)
    })
};

/// δ = (mean r_w + mean r_l) / 2 over a batch, a constant `[1]`.
pub fn mean_reward(rewards: &PerResponse) -> Tensor<1> {
    let PerResponse { chosen, rejected } = rewards.clone();
    (chosen.mean() + rejected.mean()).detach() * 0.5
}

/// Self-play preference optimization with hard labels (Wu et al. 2024, arXiv 2405.00675, equation 4.7
/// with P = 1 for the winner and 0 for the loser; 1/β is its η):
///
/// (log p(y_w)/r(y_w) − 1/(2β))² + (log p(y_l)/r(y_l) + 1/(2β))²
pub fn sppo_hard(policy: PerResponse, reference: PerResponse, beta: f64) -> PairLosses {
    let log_ratios = policy - reference;
    let PerResponse { chosen, rejected } = log_ratios.clone();
    let losses = (chosen - 0.5 / beta).square() + (rejected + 0.5 / beta).square();
    PairLosses::new(losses, log_ratios * beta)
}

pub(crate) static SPPO_HARD: MethodSpec = MethodSpec::on_sums("sppo-hard", |o, q| {
    let (policy, reference) = o.sums(q);
    sppo_hard(policy, reference, o.beta)
});

/// Anchored preference optimization for a policy worse than its chosen responses (D'Oosterlinck et
/// al. 2024, arXiv 2408.06266, equation 7): chosen up, rejected down:
///
/// (1 − σ(r_w)) + σ(r_l)
pub fn apo_zero(policy: PerResponse, reference: PerResponse, beta: f64) -> PairLosses {
    let rewards = (policy - reference) * beta;
    let PerResponse { chosen, rejected } = rewards.clone();
    PairLosses::new(sigmoid(-chosen) + sigmoid(rejected), rewards)
}

pub(crate) static APO_ZERO: MethodSpec = MethodSpec::on_sums("apo-zero", |o, q| {
    let (policy, reference) = o.sums(q);
    apo_zero(policy, reference, o.beta)
});

/// Anchored preference optimization for a policy better than its chosen responses (arXiv 2408.06266,
/// equation 8): both down, the rejected further:
///
/// σ(r_w) + (1 − σ(r_w − r_l))
pub fn apo_down(policy: PerResponse, reference: PerResponse, beta: f64) -> PairLosses {
    let rewards = (policy - reference) * beta;
    PairLosses::new(sigmoid(rewards.chosen.clone()) + sigmoid(-rewards.margin()), rewards)
}

pub(crate) static APO_DOWN: MethodSpec = MethodSpec::on_sums("apo-down", |o, q| {
    let (policy, reference) = o.sums(q);
    apo_down(policy, reference, o.beta)
});
