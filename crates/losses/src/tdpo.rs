//! Token-level direct preference optimization (Zeng et al. 2024, arXiv 2404.11999, equations 15, 17).
//!
//! KL(y) is the sum over response positions of KL(r(·|x, y<t) ‖ p(·|x, y<t)).

use crate::{PerResponse, Preference};

/// TDPO-1: u = DPO's u − β (KL(y_l) − KL(y_w)).
pub fn tdpo1(
    policy: PerResponse,
    reference: PerResponse,
    kl: PerResponse,
    beta: f64,
) -> Preference {
    let rewards = (policy - reference + kl) * beta;
    Preference { rewards, target_margin: 0.0 }
}

/// TDPO-2: u = DPO's u − α (β KL(y_l) − sg(β KL(y_w))).
pub fn tdpo2(
    policy: PerResponse,
    reference: PerResponse,
    kl: PerResponse,
    beta: f64,
    alpha: f64,
) -> Preference {
    let constraint = kl.stop_gradient_on_chosen() * alpha;
    let rewards = (policy - reference + constraint) * beta;
    Preference { rewards, target_margin: 0.0 }
}
