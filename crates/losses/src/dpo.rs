//! Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290, equation 7).

use crate::{MethodSpec, PairLosses, PerResponse};

/// −log σ(u), u = β (log p(y_w) − log r(y_w)) − β (log p(y_l) − log r(y_l)), with summed log-probabilities.
pub fn dpo(policy: PerResponse, reference: PerResponse, beta: f64) -> PairLosses {
    PairLosses::logistic((policy - reference) * beta, 0.0)
}

pub(crate) static DPO: MethodSpec = MethodSpec {
    aliases: &["sigmoid"],
    ..MethodSpec::on_sums("dpo", |o, q| {
        let (policy, reference) = o.sums(q);
        dpo(policy, reference, o.beta)
    })
};
