//! Simple preference optimization (Meng et al. 2024, arXiv 2405.14734, equation 6), and the variant
//! with a token-level constraint of the FPO paper's appendix D.1.

use crate::{MethodSpec, Needs, Options, PairLosses, PerResponse};

/// u = β · avg log p(y_w) − β · avg log p(y_l) − γ. No reference model.
pub fn simpo(average_log_probs: PerResponse, beta: f64, gamma: f64) -> PairLosses {
    PairLosses::logistic(average_log_probs * beta, gamma)
}

pub(crate) static SIMPO: MethodSpec = MethodSpec {
    beta: 2.0,
    options: Options { nll_weight: Some(0.0), ..Options::WEIGHTED_PAIRS },
    ..MethodSpec::reference_free("simpo", |o, q| {
        let nll_weight = o.option(|x| x.nll_weight);
        simpo(q.policy_averages(), o.beta, o.gamma).plus_nll(q.chosen_nll(), nll_weight)
    })
};

/// SimPO+KL: u = SimPO's u − α (β KL(y_l) − sg(β KL(y_w))).
pub fn simpo_kl(
    average_log_probs: PerResponse,
    kl: PerResponse,
    beta: f64,
    gamma: f64,
    alpha: f64,
) -> PairLosses {
    let constraint = kl.stop_gradient_on_chosen() * (alpha * beta);
    PairLosses::logistic(average_log_probs * beta + constraint, gamma)
}

pub(crate) static SIMPO_KL: MethodSpec = MethodSpec {
    beta: 2.0,
    needs: Needs { token_kl: true, ..Needs::NOTHING },
    ..MethodSpec::reference_free("simpo-kl", |o, q| {
        simpo_kl(q.policy_averages(), q.kl(), o.beta, o.gamma, o.alpha)
    })
};
