//! Token-level direct preference optimization (Zeng et al. 2024, arXiv 2404.11999, equations 15, 17).
//!
//! KL(y) is the sum over response positions of KL(r(·|x, y<t) ‖ p(·|x, y<t)).

use crate::{MethodSpec, Needs, Options, PairLosses, PerResponse};

const NEEDS: Needs = Needs { token_kl: true, ..Needs::REFERENCE };
/// No `ld_alpha`: the constraint is over all tokens of a response.
const OPTIONS: Options = Options::WEIGHTED_PAIRS;

/// TDPO-1: u = DPO's u − β (KL(y_l) − KL(y_w)).
pub fn tdpo1(
    policy: PerResponse,
    reference: PerResponse,
    kl: PerResponse,
    beta: f64,
) -> PairLosses {
    PairLosses::logistic((policy - reference + kl) * beta, 0.0)
}

pub(crate) static TDPO1: MethodSpec = MethodSpec {
    needs: NEEDS,
    options: OPTIONS,
    ..MethodSpec::on_sums("tdpo1", |o, q| {
        let (policy, reference) = o.sums(q);
        tdpo1(policy, reference, q.kl(), o.beta)
    })
};

/// TDPO-2: u = DPO's u − α (β KL(y_l) − sg(β KL(y_w))).
pub fn tdpo2(
    policy: PerResponse,
    reference: PerResponse,
    kl: PerResponse,
    beta: f64,
    alpha: f64,
) -> PairLosses {
    let constraint = kl.stop_gradient_on_chosen() * alpha;
    PairLosses::logistic((policy - reference + constraint) * beta, 0.0)
}

pub(crate) static TDPO2: MethodSpec = MethodSpec {
    needs: NEEDS,
    options: OPTIONS,
    ..MethodSpec::on_sums("tdpo2", |o, q| {
        let (policy, reference) = o.sums(q);
        tdpo2(policy, reference, q.kl(), o.beta, o.alpha)
    })
};
