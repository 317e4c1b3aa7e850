//! Distributional alignment via optimal transport (Melnyk et al. 2024, arXiv 2406.05882):
//! the quantiles of a batch are compared, and one distribution is pushed to dominate the other.
//!
//! The i-th loss belongs to the i-th quantile, not to the i-th pair; only the mean is meaningful. The mean
//! over micro-batches differs from the mean over the whole batch.

use burn::tensor::Tensor;

use crate::{MethodSpec, Needs, Options, PairLosses, PerResponse, dpo_variants::smoothed};

const NEEDS: Needs = Needs { whole_step: true, ..Needs::REFERENCE };
/// No `use_weighting`: the loss of a quantile belongs to no pair that could be weighted.
const OPTIONS: Options =
    Options { label_smoothing: Some(0.0), use_weighting: None, ..Options::ON_SUMS };

/// Paired: the policy's margins against the reference's:
///
/// δ = sort(log p(y_w) − log p(y_l)) − sort(log r(y_w) − log r(y_l)),
/// loss = −(1 − ε) log σ(β δ) − ε log σ(−β δ)
pub fn aot(
    policy: PerResponse,
    reference: PerResponse,
    beta: f64,
    label_smoothing: f64,
) -> PairLosses {
    let delta = policy.margin().sort(0) - reference.margin().sort(0);
    quantile_losses(delta, policy, reference, beta, label_smoothing)
}

pub(crate) static AOT: MethodSpec = MethodSpec {
    needs: NEEDS,
    options: OPTIONS,
    ..MethodSpec::on_sums("aot", |o, q| {
        let (policy, reference) = o.sums(q);
        aot(policy, reference, o.beta, o.option(|x| x.label_smoothing))
    })
};

/// Unpaired: the chosen responses' log-ratios against the rejected ones':
///
/// δ = sort(log p(y_w) − log r(y_w)) − sort(log p(y_l) − log r(y_l)),
/// loss as in [`aot`]
pub fn aot_unpaired(
    policy: PerResponse,
    reference: PerResponse,
    beta: f64,
    label_smoothing: f64,
) -> PairLosses {
    let PerResponse { chosen, rejected } = policy.clone() - reference.clone();
    let delta = chosen.sort(0) - rejected.sort(0);
    quantile_losses(delta, policy, reference, beta, label_smoothing)
}

pub(crate) static AOT_UNPAIRED: MethodSpec = MethodSpec {
    needs: NEEDS,
    options: OPTIONS,
    ..MethodSpec::on_sums("aot-unpaired", |o, q| {
        let (policy, reference) = o.sums(q);
        aot_unpaired(policy, reference, o.beta, o.option(|x| x.label_smoothing))
    })
};

fn quantile_losses(
    delta: Tensor<1>,
    policy: PerResponse,
    reference: PerResponse,
    beta: f64,
    label_smoothing: f64,
) -> PairLosses {
    let losses = smoothed(delta * beta, label_smoothing);
    PairLosses::new(losses, (policy - reference) * beta)
}
