//! Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290, equation 7).

use crate::{PerResponse, Preference};

/// u = β (log p(y_w) − log r(y_w)) − β (log p(y_l) − log r(y_l)), with summed log-probabilities.
pub fn dpo(policy: PerResponse, reference: PerResponse, beta: f64) -> Preference {
    let rewards = (policy - reference) * beta;
    Preference { rewards, target_margin: 0.0 }
}
