//! Simple preference optimization (Meng et al. 2024, arXiv 2405.14734, equation 6), and the variant
//! with a token-level constraint of the FPO paper's appendix D.1.

use crate::{PerResponse, Preference};

/// u = β · avg log p(y_w) − β · avg log p(y_l) − γ. No reference model.
pub fn simpo(average_log_probs: PerResponse, beta: f64, gamma: f64) -> Preference {
    Preference { rewards: average_log_probs * beta, target_margin: gamma }
}

/// SimPO+KL: u = SimPO's u − α (β KL(y_l) − sg(β KL(y_w))).
pub fn simpo_kl(
    average_log_probs: PerResponse,
    kl: PerResponse,
    beta: f64,
    gamma: f64,
    alpha: f64,
) -> Preference {
    let constraint = kl.stop_gradient_on_chosen() * (alpha * beta);
    let rewards = average_log_probs * beta + constraint;
    Preference { rewards, target_margin: gamma }
}
